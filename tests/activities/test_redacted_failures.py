"""What an activity raises leaves the worker without secrets, and means what it meant."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

from activities.faults import ProviderError
from activities.outages import Outages
from activities.redaction import RedactedFailures
from activities.redactors import Redactors
from activities.shown_texts import UNTOLD
from activities.storage_faults import StorageFaults
from activities.vault_faults import VaultFailure
from sandhold.contracts.errors import ErrorCode, ProviderFault, ToolError, as_application_error
from sandhold.contracts.names import Activity
from sandhold.contracts.steps import CallStep, SandboxRef
from sandhold.security import SecurityError
from sandhold.security.errors import KeyUnknown
from sandhold.storage.errors import StorageUnavailable
from sandhold.temporal import PLAIN_CONVERTER
from sandhold.vault import VaultError, VaultRefused, VaultUnavailable

SECRET = "correct-horse-battery"
TOKEN = "ghp_" + "a1B2" * 9
STEP = CallStep(ref=SandboxRef(session_id="s", sandbox_id="box", owner="me", generation=1), call_id="c")


class Known:
    def __init__(self, failure: Exception | None = None) -> None:
        self._failure = failure

    async def of(self, session_id: str, owner: str, *, fresh: bool = False) -> Mapping[str, str]:
        if self._failure:
            raise self._failure
        return {"HORSE": SECRET}


class Failing(ActivityInboundInterceptor):
    def __init__(self, failure: BaseException, cause: BaseException | None, *, implicit: bool) -> None:
        self._failure, self._cause, self._implicit = failure, cause, implicit

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        if self._cause is None:
            raise self._failure
        try:
            raise self._cause
        except Exception as cause:
            if self._implicit:
                raise self._failure  # noqa: B904
            raise self._failure from cause


async def raised(
    failure: BaseException,
    cause: BaseException | None = None,
    *,
    implicit: bool = False,
    known: Known | None = None,
    step: Any = STEP,
    activity_type: str = "unknown",
) -> tuple[BaseException, Failure]:
    """What leaves the worker, and how Temporal writes it down."""
    failing = Failing(failure, cause, implicit=implicit)
    inner = Outages().intercept_activity(StorageFaults().intercept_activity(failing))
    chain = RedactedFailures(Redactors(known or Known())).intercept_activity(inner)
    asked = ExecuteActivityInput(fn=raised, args=[step], executor=None, headers={})
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, activity_type=activity_type)
    with pytest.raises(BaseException) as found:  # noqa: PT011
        await environment.run(chain.execute_activity, asked)
    written = Failure()
    await PLAIN_CONVERTER.encode_failure(found.value, written)
    return found.value, written


async def test_a_failure_that_quotes_no_secret_passes_as_it_is() -> None:
    failure = ProviderError(ProviderFault(status=503), ToolError(code=ErrorCode.PROVIDER_UNAVAILABLE, message="503"))
    assert (await raised(failure))[0] is failure


async def test_messages_details_and_causes_are_redacted_and_everything_else_stays() -> None:
    error = ToolError(
        code=ErrorCode.PROVIDER_UNAVAILABLE,
        message=f"503 {SECRET}",
        hint=f"not {TOKEN}",
        sandbox_ids=[SECRET],
        retryable=True,
    )
    failure = ApplicationError(
        error.message,
        error,
        {"a": [SECRET, 7, None]},
        type=error.code,
        non_retryable=True,
        next_retry_delay=timedelta(seconds=3),
        category=ApplicationErrorCategory.BENIGN,
    )
    told, written = await raised(failure, ValueError(f"because of {SECRET}"))
    assert isinstance(told, ApplicationError)
    assert told.message == "503 [redacted:HORSE]"
    shown = error.model_copy(
        update={"message": told.message, "hint": "not [redacted:github-token]", "sandbox_ids": ["[redacted:HORSE]"]}
    )
    assert list(told.details) == [shown, {"a": ["[redacted:HORSE]", 7, None]}]
    assert (told.type, told.non_retryable, told.next_retry_delay) == (error.code, True, timedelta(seconds=3))
    assert told.category == ApplicationErrorCategory.BENIGN
    assert written.cause.message == "because of [redacted:HORSE]"
    assert written.cause.application_failure_info.type == "ValueError"
    assert "in execute_activity" in written.stack_trace
    assert SECRET not in str(written)
    assert TOKEN not in str(written)


async def test_an_exception_of_any_kind_is_redacted_and_keeps_its_type() -> None:
    told, written = await raised(KeyError(SECRET), RuntimeError(f"before {SECRET}"), implicit=True)
    assert isinstance(told, ApplicationError)
    assert (told.type, told.message, told.non_retryable) == ("KeyError", "'[redacted:HORSE]'", False)
    assert written.cause.message == "before [redacted:HORSE]"


async def test_what_pydantic_quotes_as_wrong_is_not_told() -> None:
    class Wanted(BaseModel):
        number: int

    with pytest.raises(ValueError, match="number") as wrong:
        Wanted.model_validate({"number": "anything, input_type=x] at all"})
    told, _ = await raised(wrong.value)
    assert "anything" not in str(told)
    assert "int_parsing" in str(told)


async def test_faults_of_storage_are_given_their_meaning_before_they_are_redacted() -> None:
    told, written = await raised(StorageUnavailable(f"no {SECRET}"))
    assert isinstance(told, ApplicationError)
    assert told.details[0].message == "no [redacted:HORSE]"
    assert SECRET not in str(written)


async def test_a_cancellation_stays_one() -> None:
    told, _ = await raised(asyncio.CancelledError())
    assert type(told) is asyncio.CancelledError
    told, written = await raised(asyncio.CancelledError(), ValueError(SECRET), implicit=True)
    assert type(told) is asyncio.CancelledError
    assert SECRET not in str(written)


async def test_without_a_session_tokens_are_known_by_their_shape() -> None:
    told, _ = await raised(ValueError(f"{TOKEN} {SECRET}"), step="no step")
    assert str(told) == f"ValueError: [redacted:github-token] {SECRET}"


async def test_no_text_is_told_when_nobody_knows_what_is_secret() -> None:
    told, written = await raised(
        ApplicationError(SECRET, ToolError(code=ErrorCode.TIMEOUT, message=SECRET), type="timeout"),
        known=Known(ConnectionError("no vault")),
    )
    assert isinstance(told, ApplicationError)
    assert told.type == "timeout"
    assert told.details[0].code is ErrorCode.TIMEOUT
    assert SECRET not in str(written)


VAULT_FAULTS = [
    VaultUnavailable("the vault's database could not be reached"),
    VaultRefused("the vault's database refuses access"),
    KeyUnknown("k-1", removed=True),
]


@pytest.mark.parametrize("fault", VAULT_FAULTS, ids=lambda fault: type(fault).__name__)
async def test_what_the_vault_says_of_itself_is_told_as_it_is_while_it_is_away(
    fault: VaultError | SecurityError,
) -> None:
    told, written = await raised(VaultFailure(fault, ambiguous=True), fault, known=Known(fault))
    assert isinstance(told, VaultFailure)
    assert str(fault) in told.message
    assert told.details[0].hint
    assert written.cause.message == str(fault)
    plain, _ = await raised(fault, known=Known(fault))
    assert plain is fault


async def test_it_is_told_so_also_by_whoever_passes_it_on() -> None:
    fault = VaultUnavailable("the vault's database could not be reached")
    told, written = await raised(
        VaultFailure(fault), ValueError(SECRET), known=Known(fault), activity_type=Activity.PUSH_FILES
    )
    assert isinstance(told, ApplicationError)
    assert not isinstance(told, VaultFailure), "it was given a pause"
    assert told.next_retry_delay is not None
    assert told.details[0].message == told.message == f"the connection or a secret cannot be read: {fault}"
    assert (told.details[0].hint, told.details[0].retryable) == (fault.hint, True)
    assert SECRET not in str(written)


async def test_errors_of_others_keep_all_but_their_texts_while_the_vault_is_away() -> None:
    error = ToolError(
        code=ErrorCode.CONNECTION_REQUIRED,
        message=SECRET,
        hint=SECRET,
        retryable=True,
        ambiguous=True,
        provider="daytona",
        sandbox_ids=["box"],
        workflow_id="sandbox/s/box",
    )
    failure = as_application_error(error)
    told, written = await raised(failure, known=Known(VaultUnavailable("away")))
    assert isinstance(told, ApplicationError)
    assert (told.type, told.non_retryable) == (ErrorCode.CONNECTION_REQUIRED, True)
    assert list(told.details) == [error.model_copy(update={"message": UNTOLD, "hint": None})]
    assert SECRET not in str(written)
