"""The second request of a command whose secrets cannot be read: it finds what runs, or says that it may run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from temporalio.exceptions import ApplicationError

from activities.redactors import Redactors
from activities.vault_faults import VaultFailure
from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error
from sandhold.contracts.steps import CommandProgress, SandboxRef
from sandhold.security import KeyRingUnusable, SecurityError
from sandhold.vault import VaultError, VaultRefused, VaultUnavailable
from tests.activities.commands_under_test import EXECUTE, Commands, new_call_id
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan

FAULTS = [
    VaultUnavailable("the vault's database could not be reached"),
    VaultRefused("the vault's database refuses access"),
    KeyRingUnusable("the key ring cannot be read"),
]
MISSING = as_application_error(ToolError(code=ErrorCode.INVALID_ARGUMENTS, message="the session has no secret TOKEN"))


class Vault:
    """The secrets of a session, which can be away."""

    def __init__(self) -> None:
        self.fault: VaultError | SecurityError | None = None
        self.environment_fault: Exception | None = None
        self.replaced_between = False
        self._values = ["first-value-of-it"]

    async def of(self, session_id: str, owner: str, *, fresh: bool = False) -> Mapping[str, str]:
        if self.fault is not None:
            raise self.fault
        return {f"TOKEN-before-{age}" if age else "TOKEN": value for age, value in enumerate(self._read())}

    async def environment(self, ref: SandboxRef, names: Sequence[str]) -> dict[str, str]:
        if self.environment_fault is not None:
            raise self.environment_fault
        return {"TOKEN": self._read()[0]}

    def _read(self) -> list[str]:
        """All values, the latest first; another process replaces it right after."""
        values = self._values
        if self.replaced_between:
            self._values = ["second-value-of-it", *values]
        return values


@pytest.fixture
def vault() -> Vault:
    return Vault()


@pytest.fixture
def commands(
    provider: ProviderUnderTest, shared_sandbox: SandboxRef, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> Commands:
    commands = Commands(provider, shared_sandbox)
    monkeypatch.setattr(commands.activities, "_redactors", Redactors(vault))
    monkeypatch.setattr(commands.activities, "_secrets", vault)
    return commands


async def test_a_secret_that_is_replaced_while_a_command_gets_it_is_not_shown(commands: Commands, vault: Vault) -> None:
    vault.replaced_between = True
    result = await commands.run('echo "$TOKEN"', call_id=new_call_id())
    assert result.stdout == "[redacted:TOKEN-before-1]\n"


async def again(commands: Commands, script: str, call_id: str, attempt: int = 2) -> CommandProgress:
    step = commands.step(script, call_id)
    return await commands.provider.run(commands.activities.run_command, step, attempt=attempt)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_a_command_that_runs_is_found_again_while_the_vault_is_away(
    commands: Commands, vault: Vault, fault: VaultError | SecurityError
) -> None:
    call_id = new_call_id()
    script = f"echo run >>ran-{call_id}; until [ -e go-{call_id} ]; do sleep 0.1; done; exit 3"
    first = await commands.leave(script, call_id=call_id)
    vault.fault = fault
    found = await again(commands, script, call_id)
    assert found.running is not None
    assert (found.outcome, found.running.deadline_at is None) == (None, False)
    assert abs((found.running.started_at - first.started_at).total_seconds()) < 5
    await commands.sh(f"touch go-{call_id}")
    assert (await commands.follow_to_the_end(found.running)).exit_code == 3
    assert await commands.sh(f"cat ran-{call_id}") == "run\n"


async def test_one_that_has_ended_is_left_to_a_follower_who_tells_it_once_secrets_are_known(
    commands: Commands, vault: Vault
) -> None:
    call_id = new_call_id()
    await commands.run("echo done; exit 4", call_id=call_id)
    vault.fault = FAULTS[0]  # type: ignore[assignment]
    found = await again(commands, "echo done; exit 4", call_id)
    assert found.running is not None
    result = await commands.follow_to_the_end(found.running)
    assert (result.exit_code, result.stdout) == (4, "done\n")


async def test_one_whose_secret_was_removed_since_is_found_again(commands: Commands, vault: Vault) -> None:
    call_id = new_call_id()
    await commands.leave("sleep 100", call_id=call_id)
    vault.environment_fault = MISSING
    assert (await again(commands, "sleep 100", call_id)).running is not None
    await commands.stop(call_id)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
async def test_one_that_is_not_there_may_still_come(
    commands: Commands, vault: Vault, fault: VaultError | SecurityError
) -> None:
    call_id = new_call_id()
    vault.fault = fault
    with pytest.raises(VaultFailure) as raised:
        await again(commands, "true", call_id)
    assert raised.value.details[0].ambiguous
    assert raised.value.non_retryable is not isinstance(fault, VaultUnavailable)
    with pytest.raises(type(fault)):
        await again(commands, "true", call_id, attempt=1)
    vault.fault = None
    assert (await commands.run("echo ran", call_id=call_id)).stdout == "ran\n"


async def test_another_command_under_the_same_id_is_told_as_that(commands: Commands, vault: Vault) -> None:
    call_id = new_call_id()
    await commands.run("true", call_id=call_id)
    vault.fault = FAULTS[0]  # type: ignore[assignment]
    outcome = (await again(commands, "false", call_id)).outcome
    assert outcome is not None
    assert outcome.error is not None
    assert outcome.error.code is ErrorCode.CALL_ID_CONFLICT


async def test_where_the_sandbox_does_not_answer_either_that_is_told(
    commands: Commands, vault: Vault, faults: FaultPlan
) -> None:
    await commands.run("true")
    vault.fault = FAULTS[1]  # type: ignore[assignment]
    await faults.add(**EXECUTE, effect="status", status=502, times=1)
    with pytest.raises(ApplicationError) as raised:
        await again(commands, "true", new_call_id())
    assert (raised.value.type, raised.value.details[0].ambiguous) == (ErrorCode.PROVIDER_UNAVAILABLE, True)
