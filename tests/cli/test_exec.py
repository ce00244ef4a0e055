"""`sandhold exec` and `sandhold output`, each a process: live output, signals, pipes, input, and what comes between."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import pytest

from sandhold.client import Session
from tests.cable import Cable
from tests.cli.process import COMMAND, Finished, finished, sandhold, started
from tests.local_daytona_server import API_KEY
from tests.stack import Stack, environment_of
from tests.workflows.waiting import eventually

ANY_BYTES = r"printf 'a\000b\377\033[31mred\r\n'; printf '\200err\000' >&2; exit 42"
FOR_EVER = "echo begun; sleep 4321 & sleep 4321; echo never"
HELD = "echo begun; until [ -e go ]; do sleep 0.1; done; echo end; exit 5"
EXTRA_MEMORY_KIB = 24 * 1024


@pytest.fixture(scope="module")
def env(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    return environment_of(shared_stack, tmp_path_factory.mktemp("cli"))


@pytest.fixture
async def session(stack: Stack) -> Session:
    """A session with one started sandbox, `box`."""
    session = await stack.open()
    await session.create_sandbox(sandbox_id="box")
    return session


class Live:
    """A run of `sandhold` that is looked at while it goes on."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdin is not None
        self.process, self.out, self.err, self.stdin = process, process.stdout, process.stderr, process.stdin

    @classmethod
    async def exec(cls, session: Session, *words: str, env: Mapping[str, str]) -> Live:
        return cls(await started("exec", session.session_id, "box", *words, env=env))

    async def line(self, stream: asyncio.StreamReader) -> str:
        async with asyncio.timeout(60):
            return (await stream.readline()).decode()

    async def interrupt(self) -> None:
        """Press Ctrl-C; it was heard when this returns."""
        self.process.send_signal(signal.SIGINT)
        assert "cancelling" in await self.line(self.err)

    async def finished(self) -> Finished:
        return await finished(self.process)


async def run(*arguments: str, env: Mapping[str, str]) -> Finished:
    return await finished(await started(*arguments, env=env))


async def sleepers(session: Session) -> int:
    return int((await session.exec("box", "pgrep -cxf 'sleep 4321' || true", output="normal")).stdout)


async def goes_on(session: Session, call_id: str) -> bool:
    return (await session.command("box", call_id).state()).status == "running"


async def test_output_comes_while_the_command_runs_and_the_exit_code_is_its_own(
    session: Session, env: Mapping[str, str]
) -> None:
    live = await Live.exec(session, "--", f"echo err >&2; {HELD}", env=env)
    assert (await live.line(live.out), await live.line(live.err)) == ("begun\n", "err\n")
    await session.write_file("box", "go", "")
    assert await live.finished() == Finished(5, "end\n", "")


async def test_secrets_are_redacted_in_output_while_it_comes(session: Session, env: Mapping[str, str]) -> None:
    script = f"echo key {API_KEY}; echo {API_KEY} >&2; printf '{API_KEY[:6]}'; {HELD}".replace("begun", API_KEY[6:])
    live = await Live.exec(session, "--call-id", "telling", "--", script, env=env)
    shown = "[redacted:SANDHOLD_DAYTONA_API_KEY]\n"
    assert (await live.line(live.out), await live.line(live.err)) == (f"key {shown}", shown)
    assert await live.line(live.out) == shown
    await session.write_file("box", "go", "")
    assert await live.finished() == Finished(5, "end\n", "")
    again = await run("output", session.session_id, "box", "telling", env=env)
    assert (again.out, again.err) == (f"key {shown}{shown}end\n", shown)
    as_json = await run("exec", session.session_id, "box", "--call-id", "telling", "--json", "--", script, env=env)
    assert as_json.out.count('"redactions": 3') == 1
    assert API_KEY not in as_json.out


async def test_a_command_that_empties_its_output_keeps_its_exit_code_and_the_loss_is_told(
    session: Session, env: Mapping[str, str]
) -> None:
    script = (
        "echo 'Building it all' >/dev/stderr; until [ -e go ]; do sleep 0.1; done; "
        "echo Done >/dev/stderr; sleep 1; echo 'warning: some files were not found' >/dev/stderr; exit 3"
    )
    live = await Live.exec(session, "--call-id", "emptying", "--", script, env=env)
    assert await live.line(live.err) == "Building it all\n"
    await session.write_file("box", "go", "")
    ended = await live.finished()
    assert (ended.code, ended.out) == (3, "")
    assert "not all of the output was kept" in ended.err
    assert "only the first 16 bytes" in ended.err
    told = [chunk.data async for chunk in session.command("box", "emptying").output()]
    assert b"".join(told) == b"Building it all\n"


async def test_words_bytes_timeouts_and_missing_sandboxes(session: Session, env: Mapping[str, str]) -> None:
    def run_in(box: str, *words: str) -> asyncio.Task[Finished]:
        return asyncio.create_task(run("exec", session.session_id, box, *words, env=env))

    words, late = run_in("box", "--", "printf", "%s|", "a b", "--json"), run_in("box", "--timeout", "1", "--", FOR_EVER)
    wrong, as_json = run_in("nobody", "--", "true"), run_in("nobody", "--json", "--", "true")
    raw = await started("exec", session.session_id, "box", "--", ANY_BYTES, env=env)
    assert await raw.communicate() == (b"a\0b\xff\x1b[31mred\r\n", b"\x80err\0")
    assert raw.returncode == 42
    assert await words == Finished(0, "a b|--json|", "")
    assert ((await late).code, (await late).out, "timed out" in (await late).err) == (124, "begun\n", True)
    assert ((await wrong).code, (await wrong).out) == (3, "")
    assert ((await as_json).code, (await as_json).document["error"]["code"]) == (3, "sandbox_not_found")


async def test_json_is_the_envelope_with_the_commands_result(session: Session, env: Mapping[str, str]) -> None:
    arguments = ("exec", session.session_id, "box", "--json", "--call-id", "as-json")
    ended, left = await asyncio.gather(
        run(*arguments, "--", "echo out; exit 7", env=env),
        run("exec", session.session_id, "box", "--json", "--detach", "--", HELD, env=env),
    )
    result = ended.document["result"]
    assert (ended.code, result["exit_code"], result["stdout"]) == (7, 7, "out\n")
    assert (ended.document["call_id"], ended.document["status"], ended.document["ok"]) == ("as-json", "done", True)
    assert (left.code, left.document["status"]) == (0, "running")
    assert await goes_on(session, left.document["call_id"])


async def test_ctrl_c_cancels_the_command_and_all_it_started(session: Session, env: Mapping[str, str]) -> None:
    live = await Live.exec(session, "--", FOR_EVER, env=env)
    assert await live.line(live.out) == "begun\n"
    assert await sleepers(session) == 2
    await live.interrupt()
    ended = await live.finished()
    assert (ended.code, ended.out, "was cancelled" in ended.err) == (130, "", True)
    assert await sleepers(session) == 0


async def test_a_second_ctrl_c_leaves_the_command_running_and_it_is_found_again_from_its_start(
    session: Session, env: Mapping[str, str]
) -> None:
    call = ("--call-id", "held", "--", HELD)
    live = await Live.exec(session, *call, env=env)
    assert await live.line(live.out) == "begun\n"
    await live.interrupt()
    live.process.send_signal(signal.SIGINT)
    left = await live.finished()
    assert (left.code, left.out, "--call-id held" in left.err, "goes on" in left.err) == (130, "", True, True)
    again = await Live.exec(session, *call, env=env)
    assert await again.line(again.out) == "begun\n"
    await session.write_file("box", "go", "")
    assert await again.finished() == Finished(5, "end\n", "")
    assert await run("exec", session.session_id, "box", *call, env=env) == Finished(5, "begun\nend\n", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
async def test_whoever_ends_this_process_does_not_end_the_command(
    session: Session, env: Mapping[str, str], number: signal.Signals, code: int
) -> None:
    live = await Live.exec(session, "--call-id", "kept", "--", HELD, env=env)
    assert await live.line(live.out) == "begun\n"
    live.process.send_signal(number)
    left = await live.finished()
    assert (left.code, "--call-id kept" in left.err) == (code, True)
    assert await goes_on(session, "kept")


async def test_a_reader_that_leaves_ends_the_command_quietly(session: Session, env: Mapping[str, str]) -> None:
    script = "while echo line; do sleep 0.1; done"
    exec_ = f"{' '.join(COMMAND)} exec {session.session_id} box --call-id piped"
    shell = f'{exec_} -- "$SCRIPT" | head -n 1; echo ${{PIPESTATUS[0]}}'
    pipe = await asyncio.create_subprocess_exec(
        "bash", "-c", shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**env, "SCRIPT": script}
    )
    assert await finished(pipe) == Finished(0, "line\n141\n", "")
    assert (await session.command("box", "piped").wait()).status == "cancelled"


async def test_a_reader_that_reads_nothing_keeps_nobody_from_leaving(session: Session, env: Mapping[str, str]) -> None:
    reading, writing = os.pipe()
    with contextlib.ExitStack() as ends:
        ends.callback(os.close, reading)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "exec", session.session_id, "box", "--call-id", "stuck", "--", "yes | head -c 300000; sleep 4321",
            stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE, env=dict(env),
        )  # fmt: skip
        os.close(writing)

        async def held() -> int:
            waiting = array.array("i", [0])
            fcntl.ioctl(reading, termios.FIONREAD, waiting)
            return waiting[0]

        await eventually(held, lambda count: count >= 60_000, "a full pipe")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert b"cancelling" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert (process.returncode, b"--call-id stuck" in err, b"Traceback" in err) == (130, True, False)
    assert await goes_on(session, "stuck")


async def test_input_is_passed_on_to_its_end(session: Session, env: Mapping[str, str], tmp_path: Path) -> None:
    data = bytes(range(256)) * 600
    file = tmp_path / "input"
    file.write_bytes(data)

    async def fed(stdin: IO[bytes] | int, given: bytes | None, *words: str) -> tuple[int | None, bytes, bytes]:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, "exec", session.session_id, "box", "--stdin", *words,
            stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(env),
        )  # fmt: skip
        async with asyncio.timeout(90):
            out, err = await process.communicate(given)
        return process.returncode, out, err

    with file.open("rb") as first, file.open("rb") as second:
        line, whole, again, none, unread = await asyncio.gather(
            fed(subprocess.PIPE, b"hi\n", "--", "cat"),
            fed(first, None, "--call-id", "same", "--", "tee -a got"),
            fed(second, None, "--call-id", "same", "--", "tee -a got"),
            fed(subprocess.DEVNULL, None, "--", "cat; echo end"),
            fed(subprocess.PIPE, b"x" * 200_000, "--", "exit 3"),
        )
    assert line == (0, b"hi\n", b"")
    assert whole == again == (0, data, b"")
    assert none == (0, b"end\n", b"")
    assert unread == (3, b"", b"")
    kept = (await session.exec("box", "sha256sum <got", output="normal")).stdout.split()[0]
    assert kept == hashlib.sha256(data).hexdigest()


async def test_input_from_a_pipe_is_passed_on_whole_by_whoever_attaches_again(
    session: Session, env: Mapping[str, str]
) -> None:
    """The first is left in the middle; the second gets the same input at once, so its reads end elsewhere."""
    lines = [f"line {number}\n".encode() * 200 for number in range(40)]
    call = ("--stdin", "--call-id", "piped-in", "--", "tee -a got; echo end")
    first = await Live.exec(session, *call, env=env)
    for number, line in enumerate(lines[:20]):
        first.stdin.write(line)
        await asyncio.sleep(0.08 if number % 3 else 0)
    assert await first.line(first.out) == "line 0\n"
    first.process.send_signal(signal.SIGTERM)
    assert await first.process.wait() == 143
    first.stdin.close()
    again = await Live.exec(session, *call, env=env)
    out, _ = await again.process.communicate(b"".join(lines))
    assert (again.process.returncode, out) == (0, b"".join(lines) + b"end\n")
    kept = (await session.exec("box", "sha256sum <got", output="normal")).stdout.split()[0]
    assert kept == hashlib.sha256(b"".join(lines)).hexdigest()


async def test_a_command_that_cannot_get_the_rest_of_its_input_is_left_with_an_error(
    session: Session, env: Mapping[str, str]
) -> None:
    call = ("--stdin", "--call-id", "cut-off", "--", "cat; echo end")
    first = await Live.exec(session, *call, env=env)
    first.stdin.write(b"one\n")
    assert await first.line(first.out) == "one\n"
    first.process.send_signal(signal.SIGTERM)
    assert await first.process.wait() == 143
    other = await Live.exec(session, *call, env=env)
    _, err = await other.process.communicate(b"two, and more than one\n")
    assert other.process.returncode == 1
    assert b"the command goes on" in err
    assert b"written before, and differently" in err
    again = await Live.exec(session, *call, env=env)
    out, _ = await again.process.communicate(b"one\nmore\n")
    assert (again.process.returncode, out) == (0, b"one\nmore\nend\n")
    ended = await Live.exec(session, *call, env=env)
    out, err = await ended.process.communicate(b"")
    assert (ended.process.returncode, out) == (0, b"one\nmore\nend\n")


async def test_a_conversation_over_standard_input(session: Session, env: Mapping[str, str]) -> None:
    live = await Live.exec(session, "--stdin", "--", "while read -r name; do echo hello $name; done", env=env)
    for name in ("ada", "bob"):
        live.stdin.write(f"{name}\n".encode())
        assert await live.line(live.out) == f"hello {name}\n"
    live.stdin.close()
    assert await live.finished() == Finished(0, "", "")


async def test_without_stdin_a_command_that_reads_sees_its_end(session: Session, env: Mapping[str, str]) -> None:
    live = await Live.exec(session, "--", "cat; echo end", env=env)
    assert await live.line(live.out) == "end\n"
    assert (await live.finished()).code == 0


async def test_output_of_running_ended_and_unknown_commands(session: Session, env: Mapping[str, str]) -> None:
    left = await run("exec", session.session_id, "box", "--detach", "--", f"echo err >&2; {HELD}", env=env)
    call_id = left.out.strip()
    await session.exec("box", "echo short", call_id="short")
    show = ("output", session.session_id, "box")
    command = session.command("box", call_id)
    await eventually(command.state, lambda state: state.status == "running", "the start")

    async def has_begun() -> bool:
        return len([chunk async for chunk in command.output(follow=False)]) == 2

    await eventually(has_begun, bool, "the first lines")
    following = Live(await started(*show, call_id, "--follow", env=env))
    now, short, unknown = await asyncio.gather(
        run(*show, call_id, env=env), run(*show, "short", env=env), run(*show, "never-was", env=env)
    )
    assert now == Finished(0, "begun\n", "err\n")
    assert short == Finished(0, "short\n", "")
    assert (unknown.code, unknown.out, "never-was" in unknown.err) == (1, "", True)
    assert (await following.line(following.out), await following.line(following.err)) == ("begun\n", "err\n")
    await session.write_file("box", "go", "")
    assert await following.finished() == Finished(0, "end\n", "")
    await session.end()
    after, gone = await asyncio.gather(run(*show, call_id, env=env), run(*show, "never-was", env=env))
    assert after == Finished(0, "begun\nend\n", "err\n")
    assert (gone.code, "has ended" in gone.err) == (3, True)


async def test_leaving_the_output_of_a_command_does_nothing_to_it(session: Session, env: Mapping[str, str]) -> None:
    command = await session.start("box", HELD)
    live = Live(await started("output", session.session_id, "box", command.call_id, "--follow", env=env))
    assert await live.line(live.out) == "begun\n"
    live.process.send_signal(signal.SIGINT)
    assert await live.finished() == Finished(130, "", "")
    assert await goes_on(session, command.call_id)


async def test_twenty_megabytes_take_no_more_memory_than_one_line(
    session: Session, env: Mapping[str, str], tmp_path: Path
) -> None:
    def measured(script: str, file: Path) -> int:
        """KiB at the most."""
        with file.open("wb") as out:
            arguments = [*COMMAND, "exec", session.session_id, "box", "--", script]
            process = subprocess.Popen(arguments, stdout=out, env=dict(env))
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return used.ru_maxrss

    line, much = tmp_path / "line", tmp_path / "much"
    little, most = await asyncio.gather(
        asyncio.to_thread(measured, "echo line", line),
        asyncio.to_thread(measured, "seq 1 3000000 | head -c 20000000", much),
    )
    numbers = "".join(f"{number}\n" for number in range(1, 3_000_000)).encode()[:20_000_000]
    assert much.stat().st_size == 20_000_000
    assert hashlib.sha256(much.read_bytes()).digest() == hashlib.sha256(numbers).digest()
    assert most - little < EXTRA_MEMORY_KIB


async def test_a_broken_connection_is_outlasted_and_a_lost_one_says_how_to_go_on(
    session: Session, env: Mapping[str, str]
) -> None:
    cable = Cable(env["SANDHOLD_TEMPORAL_ADDRESS"])
    await cable.plug()
    far = {**env, "SANDHOLD_TEMPORAL_ADDRESS": cable.address}
    outlasts = await Live.exec(session, "--call-id", "outlasts", "--", HELD, env=far)
    gives_up = await Live.exec(session, "--call-id", "gives-up", "--", HELD, env={**far, "SANDHOLD_RECONNECT_S": "0.5"})
    assert (await outlasts.line(outlasts.out), await gives_up.line(gives_up.out)) == ("begun\n", "begun\n")
    await cable.cut()
    lost = await gives_up.finished()
    assert (lost.code, lost.out, "--call-id gives-up" in lost.err) == (4, "", True)
    await cable.plug()
    await session.write_file("box", "go", "")
    assert await outlasts.finished() == Finished(5, "end\n", "")
    assert await run("exec", session.session_id, "box", "--call-id", "gives-up", "--", HELD, env=env) == Finished(
        5, "begun\nend\n", ""
    )
    await cable.cut()


async def test_what_cannot_be_together_is_a_wrong_command_line(env: Mapping[str, str]) -> None:
    for arguments in (
        ["exec", "demo", "box", "--stdin", "--detach", "--", "cat"],
        ["exec", "demo", "box", "--stdin", "--call-id", "x" * 120, "--", "cat"],
        ["--json", "output", "demo", "box", "c"],
    ):
        assert (await sandhold(*arguments, env=env)).code == 2
