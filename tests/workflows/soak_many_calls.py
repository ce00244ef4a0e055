"""Many calls on one sandbox, over several continue-as-news: no error, nothing twice."""

from __future__ import annotations

import asyncio

from tests.stack import Stack
from tests.workflows.calls import creates, exec_ok

CALLERS = 6
CALLS_EACH = 250


async def test_1500_calls_from_6_callers_have_no_error_and_no_duplicate(stack: Stack) -> None:
    session = await stack.open()
    box = await creates(session)

    async def caller(number: int) -> None:
        for call in range(CALLS_EACH):
            envelope = await session.call(
                "daytona_exec",
                {"sandbox_id": box, "command": f"echo {number}.{call} >> log; echo {call}", "output": "concise"},
                call_id=f"{number}.{call}",
            )
            assert envelope.error is None, envelope.error
            assert isinstance(envelope.result, dict)
            assert (envelope.result["exit_code"], envelope.result["stdout"].strip()) == (0, str(call))

    await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    assert (await stack.status(session, box)).runs >= 4
    counted = await exec_ok(session, box, "wc -l < log; sort -u log | wc -l", output="normal")
    assert counted["stdout"].split() == [str(CALLERS * CALLS_EACH)] * 2
    again = await session.call(
        "daytona_exec",
        {"sandbox_id": box, "command": "echo 5.249 >> log; echo 249", "output": "concise"},
        call_id="5.249",
    )
    assert again.ok
    assert (await exec_ok(session, box, "wc -l < log", output="normal"))["stdout"].strip() == str(CALLERS * CALLS_EACH)
    await session.end()
