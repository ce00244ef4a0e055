"""The one table from the provider's errors to ours, against answers as the provider really gives them."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest
from daytona import (
    AsyncDaytona,
    DaytonaConfig,
    DaytonaConnectionError,
    DaytonaError,
    DaytonaTimeoutError,
)
from temporalio.exceptions import ApplicationError

from activities.faults import ProviderError, fault_of, provider_error, request
from sandhold.contracts.errors import (
    ErrorCode,
    ProviderFault,
    ToolError,
    ToolFailure,
    as_application_error,
    from_provider,
    retry_after_s,
)
from tests.contracts.answering_server import answering

DAEMON = {"source": "DAYTONA_DAEMON"}

# status, body, what it becomes, retryable, ambiguous
ANSWERS: list[tuple[int, Any, ErrorCode, bool, bool]] = [
    (400, {"message": "Sandbox is not in a stoppable state"}, ErrorCode.PROVIDER_REJECTED, False, False),
    (400, {"message": "Total CPU limit exceeded. Maximum allowed: 10."}, ErrorCode.QUOTA_EXCEEDED, False, False),
    (400, {"message": "Total disk quota exceeded (30GiB)"}, ErrorCode.QUOTA_EXCEEDED, False, False),
    (403, {"message": "Sandbox memory exceeds the organization's limit"}, ErrorCode.QUOTA_EXCEEDED, False, False),
    (400, {"message": "Snapshot quota-test not found"}, ErrorCode.PROVIDER_REJECTED, False, False),
    (
        400,
        {"message": "bad request: failed to resolve container IP after 3 attempts: Is the Sandbox started?"},
        ErrorCode.PROVIDER_UNAVAILABLE,
        True,
        False,
    ),
    (
        404,
        {"message": "not found: sandbox container not found", "code": "NOT_FOUND"},
        ErrorCode.PROVIDER_UNAVAILABLE,
        True,
        False,
    ),
    (401, {"message": "Unauthorized"}, ErrorCode.CONNECTION_REQUIRED, False, False),
    (403, {"message": "Forbidden"}, ErrorCode.PROVIDER_REJECTED, False, False),
    (404, {"message": "Sandbox with ID or name x not found"}, ErrorCode.PROVIDER_REJECTED, False, False),
    (404, {"message": "no file", "code": "FILE_NOT_FOUND", **DAEMON}, ErrorCode.PATH_NOT_FOUND, False, False),
    (403, {"message": "denied", "code": "FILE_ACCESS_DENIED", **DAEMON}, ErrorCode.PERMISSION_DENIED, False, False),
    (400, {"message": "bad", "code": "INVALID_FILE_PATH", **DAEMON}, ErrorCode.INVALID_ARGUMENTS, False, False),
    (500, {"message": "write: no space left on device", **DAEMON}, ErrorCode.STORAGE_FULL, False, False),
    (507, {"message": "full"}, ErrorCode.STORAGE_FULL, False, False),
    (408, {"message": "timeout", "code": "PROCESS_EXECUTION_TIMEOUT", **DAEMON}, ErrorCode.TIMEOUT, True, True),
    (409, {"message": "Sandbox with name x already exists"}, ErrorCode.CONFLICT, True, False),
    (409, {"message": "Sandbox state change in progress"}, ErrorCode.CONFLICT, True, False),
    (413, {"message": "too large"}, ErrorCode.TOO_LARGE, False, False),
    (422, {"message": "unprocessable"}, ErrorCode.PROVIDER_REJECTED, False, False),
    (429, {"message": "Rate limit exceeded"}, ErrorCode.PROVIDER_UNAVAILABLE, True, False),
    (501, {"message": "not implemented"}, ErrorCode.PROVIDER_REJECTED, False, False),
    (500, {"message": "Internal server error"}, ErrorCode.PROVIDER_UNAVAILABLE, True, True),
    (502, "", ErrorCode.PROVIDER_UNAVAILABLE, True, True),
    (503, "<html><body><h1>503</h1></body></html>", ErrorCode.PROVIDER_UNAVAILABLE, True, True),
    (504, {"message": "gateway timeout"}, ErrorCode.PROVIDER_UNAVAILABLE, True, True),
    (200, "this is not JSON", ErrorCode.PROVIDER_UNAVAILABLE, True, True),
    (200, {"id": "only"}, ErrorCode.PROVIDER_UNAVAILABLE, True, True),
]


@pytest.mark.parametrize(("status", "body", "code", "retryable", "ambiguous"), ANSWERS)
async def test_an_answer_of_the_provider_becomes_our_error(
    status: int, body: Any, code: ErrorCode, retryable: bool, ambiguous: bool
) -> None:
    async with answering(status, body) as url, AsyncDaytona(DaytonaConfig(api_key="k", api_url=url)) as client:
        with pytest.raises(ProviderError) as failure:
            await request(client.get("x"), 5)
    error = failure.value.error
    assert (error.code, error.retryable, error.ambiguous) == (code, retryable, ambiguous)
    assert failure.value.type == code
    assert failure.value.non_retryable is not retryable
    assert failure.value.details == (error,)
    assert "<" not in error.message, "no page of a proxy reaches the agent"
    assert "Failed to get sandbox" not in error.message
    assert error.provider == ("daytona" if code is ErrorCode.CONNECTION_REQUIRED else None)
    if isinstance(body, dict) and "message" in body:
        assert str(body["message"]) in error.message


async def test_silence_is_a_timeout_and_a_closed_port_is_unavailable() -> None:
    async with answering(200, {}, after_s=5) as url, AsyncDaytona(DaytonaConfig(api_key="k", api_url=url)) as client:
        with pytest.raises(ProviderError, match="did not answer in time") as failure:
            await request(client.get("x"), 0.2)
        assert failure.value.error.ambiguous
    async with AsyncDaytona(DaytonaConfig(api_key="k", api_url=url)) as client:
        with pytest.raises(ProviderError) as failure:
            await request(client.get("x"), 5)
    assert failure.value.type == ErrorCode.PROVIDER_UNAVAILABLE
    assert not failure.value.non_retryable


@pytest.mark.parametrize(
    ("status", "code"), [(502, ErrorCode.PROVIDER_UNAVAILABLE), (401, ErrorCode.CONNECTION_REQUIRED)]
)
async def test_a_failed_download_and_upload_tell_their_status_though_the_client_hides_it(
    status: int, code: ErrorCode
) -> None:
    async with (
        answering(status, {"message": "no"}, sandbox=True) as url,
        AsyncDaytona(DaytonaConfig(api_key="k", api_url=url)) as client,
    ):
        sandbox = await client.get("x")
        for call in (sandbox.fs.download_file("/f"), sandbox.fs.upload_file(b"x", "/f")):
            with pytest.raises(ProviderError) as failure:
                await request(call, 5)
            assert failure.value.fault.status == status
            assert failure.value.type == code


async def test_a_fault_of_our_own_is_no_fault_of_the_provider() -> None:
    async def wrong() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError):
        await request(wrong(), 5)


def test_causes_tell_what_the_exception_hides() -> None:
    cause = aiohttp.ClientResponseError(None, (), status=503, message="Service Unavailable")  # type: ignore[arg-type]
    error = DaytonaError("503, message='Service Unavailable', url='http://host/secret'")
    error.__cause__ = cause
    fault = fault_of(error)
    assert (fault.status, fault.message) == (503, "Service Unavailable")
    assert fault_of(DaytonaTimeoutError("Function 'create' exceeded timeout of 1 seconds.")).timed_out
    assert fault_of(TimeoutError()).timed_out
    assert not fault_of(DaytonaConnectionError("reset")).timed_out


def test_a_wait_that_saw_an_error_state_is_told_from_a_broken_connection() -> None:
    saw = DaytonaError("Failed to create sandbox: Sandbox x entered error state: error, error reason: disk")
    assert provider_error(saw).saw_error_state
    assert not provider_error(DaytonaConnectionError("Failed to create sandbox: reset")).saw_error_state


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "3"}, 3.0),
        ({"retry-after-sandbox-create": "0.5"}, 0.5),
        ({"Retry-After": "100000"}, 300.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"Retry-After": "nan"}, None),
        ({"X-RateLimit-Remaining": "3"}, None),
    ],
)
def test_retry_after_is_read_in_seconds_and_bounded(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers) == seconds


def test_a_long_message_is_cut() -> None:
    assert len(from_provider(ProviderFault(status=500, message="x" * 10_000)).message) < 600


def test_a_failure_carries_its_error_through_temporal() -> None:
    failure = ToolFailure(ErrorCode.TOO_LARGE, "too large", hint="less", ambiguous=True)
    error = as_application_error(failure.error)
    assert isinstance(error, ApplicationError)
    assert (error.type, error.non_retryable, error.message) == ("too_large", True, "too large")
    assert ToolError.model_validate(json.loads(error.details[0].model_dump_json())) == failure.error
