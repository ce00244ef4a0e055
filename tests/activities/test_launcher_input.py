"""What is sent to a running command, on every sh that is here: each piece of input and each signal arrives once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from activities.launcher import (
    CallReport,
    LauncherRequest,
    Position,
    follow_request,
    inline_input,
    signal_request,
    stop_request,
    write_request,
)
from tests.activities.shells import Machine, new_call_id, processes_with, shells_present


@pytest.fixture(params=shells_present())
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return Machine.made_of(tmp_path, request.param)


def writing(call_id: str, data: bytes, *, writer: str | None = None, close: bool = False) -> LauncherRequest:
    text = inline_input(data)
    assert text is not None
    return write_request(writer or new_call_id(), call_id, text=text, close=close)


async def begin(machine: Machine, script: str, *, keep_stdin: bool = True) -> str:
    call_id = new_call_id()
    report = await machine.run(script, call_id=call_id, wait_s=0, timeout_s=None, keep_stdin=keep_stdin)
    assert report.state == "running"
    return call_id


async def end_of(machine: Machine, call_id: str) -> CallReport:
    known = Position(call_id, 2**50, 2**50)
    (report,) = (await machine.ask(follow_request([known], wait_s=20, budget_bytes=1))).reports
    return report


async def refusal_of(machine: Machine, request: LauncherRequest) -> str | None:
    refusal = (await machine.ask(request)).refusal
    return refusal and refusal.kind


async def test_every_byte_arrives_in_order_and_the_end_after_it(machine: Machine) -> None:
    call_id = await begin(machine, "cat; echo over")
    data = bytes(range(256)) * 20
    for piece in (b"first\n", data, b"-n %s \\n $HOME `x`\n"):
        assert await refusal_of(machine, writing(call_id, piece)) is None
    assert await refusal_of(machine, writing(call_id, b"last", close=True)) is None
    report = await end_of(machine, call_id)
    assert report.stdout.head == b"first\n" + data + b"-n %s \\n $HOME `x`\n" + b"last" + b"over\n"
    assert processes_with(str(machine.home).encode()) == []


async def test_a_repeated_write_arrives_once(machine: Machine) -> None:
    call_id = await begin(machine, "cat")
    writer, closer = new_call_id(), new_call_id()
    await asyncio.gather(*(machine.ask(writing(call_id, b"once\n", writer=writer)) for _ in range(8)))
    await machine.ask_and_kill(writing(call_id, b"twice\n", writer="killed"), 0.005)
    await machine.ask(writing(call_id, b"twice\n", writer="killed"))
    for _ in range(3):
        assert await refusal_of(machine, writing(call_id, b"end\n", writer=closer, close=True)) is None
    assert (await end_of(machine, call_id)).stdout.head == b"once\ntwice\nend\n"
    # A retry that comes when all is over hears that it was done.
    assert await refusal_of(machine, writing(call_id, b"once\n", writer=writer)) is None
    assert await refusal_of(machine, writing(call_id, b"end\n", writer=closer, close=True)) is None


async def test_writers_at_once_lose_nothing(machine: Machine) -> None:
    call_id = await begin(machine, "cat")
    await asyncio.gather(*(machine.ask(writing(call_id, b"%d\n" % n)) for n in range(30)))
    await machine.ask(writing(call_id, b"", close=True))
    lines = (await end_of(machine, call_id)).stdout.head.split()
    assert sorted(map(int, lines)) == list(range(30))


async def test_a_write_never_waits_for_a_command_that_does_not_read(machine: Machine, tmp_path: Path) -> None:
    call_id = await begin(machine, "sleep 1; cat")
    data = random.Random(2).randbytes(300_000)
    assert inline_input(data) is None
    upload = tmp_path / "upload"
    for _ in range(2):
        upload.write_bytes(data)
        request = write_request("large", call_id, upload_path=str(upload), close=True)
        assert await refusal_of(machine, request) is None
        assert not upload.exists()
    report = await end_of(machine, call_id)
    assert report.stdout.size == 300_000
    assert data.startswith(report.stdout.head)


async def test_a_write_that_cannot_arrive_is_refused(machine: Machine) -> None:
    assert await refusal_of(machine, writing(new_call_id(), b"x")) == "unknown"
    without = await begin(machine, "sleep 60", keep_stdin=False)
    assert await refusal_of(machine, writing(without, b"x")) == "no_stdin"
    await machine.ask(stop_request(without, grace_s=0))

    call_id = await begin(machine, "cat; sleep 60")
    await machine.ask(writing(call_id, b"x", close=True))
    assert await refusal_of(machine, writing(call_id, b"y")) == "closed"
    assert await refusal_of(machine, writing(call_id, b"", close=True)) == "closed"
    async with asyncio.timeout(10):
        while not (machine.folder(call_id) / "stdout").read_bytes():
            await asyncio.sleep(0.02)
    (stopped,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert stopped.stdout.head == b"x"
    assert await refusal_of(machine, writing(call_id, b"z")) in {"over", "closed"}

    ended = await begin(machine, "read line")
    await machine.ask(writing(ended, b"line\n"))
    await end_of(machine, ended)
    assert await refusal_of(machine, writing(ended, b"z")) == "over"


async def test_input_that_the_command_has_closed_harms_nobody(machine: Machine) -> None:
    call_id = await begin(machine, "exec <&-; sleep 1; echo fine")
    assert await refusal_of(machine, writing(call_id, b"x" * 80_000)) is None
    assert await refusal_of(machine, writing(call_id, b"y")) is None
    assert (await end_of(machine, call_id)).stdout.head == b"fine\n"


async def test_a_stopped_command_leaves_no_feeder_behind(machine: Machine) -> None:
    call_id = await begin(machine, "sleep 60")
    await machine.ask(writing(call_id, b"x" * 90_000))
    await machine.ask(stop_request(call_id, grace_s=0))
    async with asyncio.timeout(10):
        while processes_with(str(machine.home).encode()):
            await asyncio.sleep(0.05)


async def test_a_signal_reaches_the_whole_group_once_per_call(machine: Machine) -> None:
    script = (
        "n=0; trap 'n=$((n + 1)); echo $n' USR1; (trap 'exit 0' USR1; sleep 60 & wait) & while :; do sleep 0.05; done"
    )
    call_id = await begin(machine, script)
    await asyncio.sleep(0.3)
    sender = new_call_id()
    await asyncio.gather(*(machine.ask(signal_request(sender, call_id, "USR1")) for _ in range(5)))
    await asyncio.sleep(0.2)
    await machine.ask(signal_request(new_call_id(), call_id, "USR1"))
    await asyncio.sleep(0.2)
    (stopped,) = (await machine.ask(stop_request(call_id, grace_s=0))).reports
    assert stopped.stdout.head == b"1\n2\n"


async def test_an_interrupt_ends_a_command_as_the_keyboard_would(machine: Machine) -> None:
    call_id = await begin(machine, "sleep 60; echo never", keep_stdin=False)
    (report,) = (await machine.ask(signal_request(new_call_id(), call_id, "INT"))).reports
    assert report.folder == call_id
    ended = await end_of(machine, call_id)
    assert (ended.state, ended.reason, ended.exit_code, ended.stdout.size) == ("ended", None, 130, 0)
    assert await refusal_of(machine, signal_request(new_call_id(), call_id, "INT")) == "over"
    assert await refusal_of(machine, signal_request(new_call_id(), new_call_id(), "INT")) == "unknown"


async def test_a_stopped_process_goes_on_when_it_is_told_to(machine: Machine) -> None:
    call_id = await begin(machine, "sleep 0.3; echo went on", keep_stdin=False)
    await machine.ask(signal_request(new_call_id(), call_id, "STOP"))
    known = Position(call_id)
    assert (await machine.ask(follow_request([known], wait_s=1, budget_bytes=100))).reports == []
    await machine.ask(signal_request(new_call_id(), call_id, "CONT"))
    assert (await end_of(machine, call_id)).stdout.head == b"went on\n"
