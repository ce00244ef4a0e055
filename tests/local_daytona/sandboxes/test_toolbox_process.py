"""Commands in a sandbox, as the official client starts them."""

from __future__ import annotations

import asyncio
import time

import pytest
from daytona import DaytonaError
from daytona.common.errors import DaytonaBadRequestError, DaytonaProcessExecutionTimeoutError

from tests.local_daytona.sandboxes.boxes import Box, all_gone, started


async def test_a_command_answers_its_exit_code_and_its_merged_output(shared_box: Box) -> None:
    done = await shared_box.process.exec("echo out; echo err >&2; exit 7")
    assert (done.exit_code, done.result) == (7, "out\nerr\n")


async def test_cwd_and_environment_are_the_commands(box: Box) -> None:
    assert await box.run("pwd; echo $GREETING", cwd="/usr", env={"GREETING": "ho ho 'ho'"}) == "/usr\nho ho 'ho'\n"
    await box.run("mkdir -p below/it")
    assert await box.run("pwd", cwd="below/it") == "/home/daytona/below/it\n"


async def test_commands_start_in_the_home_of_the_user_daytona(shared_box: Box) -> None:
    assert await shared_box.run("pwd; whoami; echo ~ $HOME $USER") == (
        "/home/daytona\ndaytona\n/home/daytona /home/daytona daytona\n"
    )
    assert (await shared_box.info.get_user_home_dir()).dir == "/home/daytona"
    assert (await shared_box.info.get_work_dir()).dir == "/home/daytona"
    assert await shared_box.info.get_version()


async def test_a_cwd_that_does_not_exist_is_a_bad_request_that_names_it(shared_box: Box) -> None:
    with pytest.raises(DaytonaBadRequestError, match="/no/such/place"):
        await shared_box.process.exec("true", cwd="/no/such/place")


@pytest.mark.parametrize(
    "command",
    ["cat <<END\nhello\nEND", "echo hello # the end", "echo hel\\\nlo", "(exit 3); echo hello", "printf 'hello\\n'"],
)
async def test_every_shape_of_command_runs_as_written(shared_box: Box, command: str) -> None:
    assert await shared_box.run(command) == "hello\n"


async def test_standard_input_is_empty(shared_box: Box) -> None:
    assert await shared_box.run("cat; read line || echo nothing") == "nothing\n"


async def test_a_timeout_is_a_408_and_kills_the_process_group(box: Box) -> None:
    marker = f"86{time.time_ns() % 10**9}"
    with pytest.raises(DaytonaProcessExecutionTimeoutError) as raised:
        await box.process.exec(f"sleep {marker} & sleep {marker}", timeout=1)
    assert raised.value.status_code == 408
    assert await all_gone(f"sleep\0{marker}")


async def test_a_process_in_its_own_session_survives_the_end_and_the_timeout_of_its_request(box: Box) -> None:
    marker = f"85{time.time_ns() % 10**9}"
    detached = f"setsid sleep {marker} </dev/null >/dev/null 2>&1 &"
    assert await box.run(detached) == ""
    with pytest.raises(DaytonaProcessExecutionTimeoutError):
        await box.process.exec(f"{detached} sleep {marker}0", timeout=1)
    assert await all_gone(f"sleep\0{marker}0")
    assert await started(f"sleep\0{marker}", 2)


async def test_a_caller_that_hangs_up_does_not_end_the_command(box: Box) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await box.process.exec("sleep 1; echo $(seq 30000); touch finished")
    await box.run("for i in $(seq 100); do [ -e finished ] && exit 0; sleep 0.1; done; exit 1")


async def test_a_background_process_that_holds_the_output_is_waited_for_until_the_timeout(box: Box) -> None:
    assert await box.run("(sleep 0.5; echo late) & echo early") == "early\nlate\n"
    with pytest.raises(DaytonaProcessExecutionTimeoutError):
        await box.process.exec("sleep 1000 & echo early", timeout=1)


async def test_a_command_that_a_signal_ends_answers_128_and_the_signal(shared_box: Box) -> None:
    assert (await shared_box.process.exec("kill -KILL $$")).exit_code == 137
    assert (await shared_box.process.exec("kill -SEGV $$")).exit_code == 139


async def test_commands_start_with_default_signals(shared_box: Box) -> None:
    lines = (await shared_box.run("grep -E 'Sig(Ign|Blk)' /proc/self/status")).splitlines()
    # 32 and 33 belong to the C library, which lets no program change them: they come as the machine set them.
    own = sum(1 << (number - 1) for number in (32, 33))
    assert [int(line.split()[1], 16) & ~own for line in lines] == [0, 0]
    assert await shared_box.run("yes | head -1") == "y\n"


async def test_orphans_leave_no_zombies(box: Box) -> None:
    await box.run("for i in $(seq 50); do (sh -c 'sleep 0.05 &'); done")
    await asyncio.sleep(0.5)
    assert "Z" not in await box.run("cat /proc/[0-9]*/stat | sed 's/.*) //' | cut -c1")


async def test_fifty_commands_at_once_answer_each_its_own(box: Box) -> None:
    answers = await asyncio.gather(*(box.run(f"sleep 0.2; echo {number}") for number in range(50)))
    assert answers == [f"{number}\n" for number in range(50)]


async def test_a_command_inherits_nothing_but_its_three_streams(shared_box: Box) -> None:
    # The fourth is the folder that ls itself has opened.
    answers = await asyncio.gather(*(shared_box.run("ls /proc/self/fd") for _ in range(50)))
    assert set(answers) == {"0\n1\n2\n3\n"}


async def test_output_that_is_not_text_neither_breaks_nor_ends_the_answer(shared_box: Box) -> None:
    assert await shared_box.run("printf 'a\\0b\\377c\\303\\251\\033[0m'") == "a\0b\ufffdcé\x1b[0m"


async def test_twenty_megabytes_of_output_arrive_whole(shared_box: Box) -> None:
    output = await shared_box.run("head -c 20000000 /dev/zero | tr '\\0' x; printf 'é\\377'")
    assert len(output) == 20_000_002
    assert output.endswith("xé\ufffd")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"command": ""},
        {"command": 7},
        {"command": "true", "cwd": 7},
        {"command": "true", "timeout": "soon"},
        {"command": "true", "timeout": -1},
        {"command": "true", "timeout": True},
        {"command": "true", "timeout": 10**400},
        {"command": "true", "envs": ["A=1"]},
        {"command": "true", "envs": {"A": 1}},
        {"command": "true", "envs": {"A=B": "1"}},
        {"command": "true", "envs": {"A": "\0"}},
        {"command": "true\0false"},
        {"command": "true", "cwd": "/\0"},
        ["true"],
        None,
    ],
)
async def test_a_request_that_makes_no_sense_is_a_400(shared_box: Box, body: object) -> None:
    status, answer = await shared_box.ask("POST", "/process/execute", json=body)
    assert (status, answer["source"], answer["statusCode"]) == (400, "DAYTONA_DAEMON", 400)
    assert answer["code"] in ("INVALID_REQUEST_BODY", "BAD_REQUEST", "INVALID_FILE_PATH")
    assert (answer["method"], answer["path"]) == ("POST", "/process/execute")
    await shared_box.run("true")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
async def test_a_body_that_is_not_json_is_a_400(shared_box: Box, body: bytes) -> None:
    status, answer = await shared_box.ask("POST", "/process/execute", data=body)
    assert (status, answer["code"]) == (400, "INVALID_REQUEST_BODY")


async def test_a_command_that_the_kernel_cannot_take_is_a_400_that_says_why(shared_box: Box) -> None:
    with pytest.raises(DaytonaBadRequestError, match="Argument list too long"):
        await shared_box.process.exec(f": {'x' * 200_000}")


async def test_a_route_that_is_not_there_is_a_501_with_its_name(shared_box: Box) -> None:
    status, answer = await shared_box.ask("POST", "/process/session", json={"sessionId": "s"})
    assert status == 501
    assert "POST /process/session" in answer["message"]
    assert (await shared_box.ask("PATCH", "/files/info"))[0] == 501
    with pytest.raises(DaytonaError, match="/process/session"):
        await shared_box.process.create_session("s")
