"""`daytona_exec` and `daytona_command` on one sandbox, as its workflow carries them out."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import JsonValue

from activities.command_io import CommandIoActivities
from activities.commands import CommandActivities
from activities.following import FollowingActivities
from activities.interruptions import InterruptionActivities
from activities.redactors import Redactors
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.commands import CommandResult
from sandhold.contracts.steps import (
    CleanCommandsStep,
    CommandPlace,
    CommandProgress,
    CommandStep,
    FollowCommandsStep,
    ReadOutputStep,
    SandboxRef,
    SignalCommandStep,
    StopCommandsStep,
    WriteInputStep,
)
from sandhold.contracts.tools import ExecResult
from sandhold.storage import SegmentReader, Stream
from tests.activities.provider_under_test import ProviderUnderTest

EXECUTE = {"method": "POST", "route": "/toolbox/{sandbox_id}/process/execute"}
_numbers = itertools.count(1)


class SecretsUnderTest:
    """Secrets that a test says are known to every session."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    async def of(self, session_id: str, owner: str, *, fresh: bool = False) -> Mapping[str, str]:
        return self.known


class Commands:
    """The tool on one sandbox, as a workflow calls it."""

    def __init__(self, provider: ProviderUnderTest, ref: SandboxRef) -> None:
        self.provider = provider
        self.ref = ref
        self.secrets = SecretsUnderTest()
        redactors = Redactors(self.secrets)
        self.activities = CommandActivities(provider.access, provider.storage, redactors, provider.secrets)
        self.following = FollowingActivities(provider.access, provider.storage, redactors)
        self.io = CommandIoActivities(provider.access, provider.storage, redactors)
        self.interruptions = InterruptionActivities(provider.storage, redactors)
        self.output = SegmentReader(provider.storage)

    def step(
        self, command: str, call_id: str | None = None, *, output_cap_bytes: int = 2**30, **arguments: Any
    ) -> CommandStep:
        return CommandStep(
            ref=self.ref,
            call_id=call_id or new_call_id(),
            arguments={"sandbox_id": self.ref.sandbox_id, "command": command, **arguments},
            default_timeout_ms=60_000,
            output_cap_bytes=output_cap_bytes,
        )

    async def begin(self, command: str, *, limit_s: float = 60.0, **options: Any) -> CommandProgress:
        """One attempt within `limit_s`: the shorter, the sooner it leaves a long command to a follower."""
        return await self.provider.run(self.activities.run_command, self.step(command, **options), limit_s=limit_s)

    async def run(self, command: str, **options: Any) -> ExecResult:
        """A command that ends within its first request."""
        progress = await self.begin(command, **options)
        return result_of(progress)

    async def leave(self, command: str, **options: Any) -> CommandPlace:
        """A command that outlasts its first request."""
        progress = await self.begin(command, **{"limit_s": 1.0, **options})
        assert progress.running is not None, progress
        return progress.running

    async def follow(self, places: Iterable[CommandPlace]) -> list[CommandProgress]:
        step = FollowCommandsStep(ref=self.ref, commands=list(places))
        return (await self.provider.run(self.following.follow_commands, step)).ended

    async def follow_to_the_end(self, place: CommandPlace) -> ExecResult:
        """As the workflow does: again and again until the command has ended."""
        while True:
            step = FollowCommandsStep(ref=self.ref, commands=[place])
            told = await self.provider.run(self.following.follow_commands, step)
            if told.ended:
                return await self.result(told.ended[0])
            place = place.model_copy(update={"stored": told.stored[place.call_id]})

    async def result(self, progress: CommandProgress) -> ExecResult:
        """The result, wherever it is."""
        assert progress.outcome is not None, progress
        if progress.outcome.result_ref is None:
            return result_of(progress)
        stored = await self.provider.storage.get_json(self.ref.session_id, progress.outcome.result_ref)
        return ExecResult.model_validate(stored)

    async def stored(self, call_id: str, stream: Stream = "stdout") -> bytes:
        """All that session storage holds of a stream."""
        return b"".join([each.data async for each in self.output.windows(self.ref.session_id, call_id, stream)])

    async def read(self, call_id: str, stdout: int = 0, stderr: int = 0, **more: Any) -> CommandResult:
        fields = {"wait_s": 0.0, "reader": new_call_id(), **more}
        step = ReadOutputStep(ref=self.ref, call_id=call_id, stdout_offset=stdout, stderr_offset=stderr, **fields)
        return CommandResult.model_validate(await self._value(await self.provider.run(self.io.read_output, step)))

    async def write(self, call_id: str, data: bytes, *, close: bool = False, **more: Any) -> CallOutcome:
        fields = {"writer": new_call_id(), "data": base64.b64encode(data).decode(), "close": close, **more}
        step = WriteInputStep(ref=self.ref, call_id=call_id, **fields)
        return (await self.provider.persist(self.io.write_input, step))[0]

    async def signal(self, call_id: str, name: str, **more: Any) -> CallOutcome:
        step = SignalCommandStep(ref=self.ref, call_id=call_id, signal=name, **{"sender": new_call_id(), **more})
        return (await self.provider.persist(self.io.signal_command, step))[0]

    async def clean(self, *keep: str) -> None:
        await self.provider.run(self.io.clean_commands, CleanCommandsStep(ref=self.ref, keep=list(keep)))

    async def _value(self, outcome: CallOutcome) -> JsonValue:
        assert outcome.error is None, outcome.error
        if outcome.result_ref is None:
            return outcome.result
        return await self.provider.storage.get_json(self.ref.session_id, outcome.result_ref)

    def stop_step(self, *call_ids: str, grace_s: float) -> StopCommandsStep:
        return StopCommandsStep(ref=self.ref, call_ids=list(call_ids), grace_s=grace_s)

    async def stop(self, *call_ids: str, grace_s: float = 1.0) -> None:
        await self.provider.run(self.activities.stop_commands, self.stop_step(*call_ids, grace_s=grace_s))

    async def sh(self, command: str) -> str:
        return await self.provider.sh(self.ref, command)


def new_call_id() -> str:
    return f"call-{os.getpid()}-{next(_numbers)}"


def result_of(progress: CommandProgress) -> ExecResult:
    assert progress.outcome is not None, progress
    assert progress.outcome.error is None, progress.outcome.error
    return ExecResult.model_validate(progress.outcome.result)
