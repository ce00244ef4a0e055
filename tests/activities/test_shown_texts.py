"""Errors anywhere in what an activity returns, stores or tells by heartbeats quote no secret."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import BaseModel
from temporalio import activity
from temporalio.testing import ActivityEnvironment
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput

import worker
from activities.filling import FillingActivities
from activities.keeping import _Effort
from activities.outcomes import outcome_of
from activities.redacted_errors import RedactedErrors
from activities.redactors import Redactors
from activities.shown_texts import UNTOLD, as_shown, showing, shown_here
from activities.stream_requests import StreamBroken
from activities.workspaces.entries import Report
from sandhold.contracts.calls import LEDGER_RESULT_LIMIT_BYTES, CallOutcome
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from sandhold.contracts.steps import (
    CallStep,
    CommandProgress,
    FollowCommandsResult,
    SandboxRef,
    TellInterruptedResult,
)
from sandhold.contracts.tools import RESULTS, CreateSandboxResult
from sandhold.contracts.transfers import (
    FailedUpload,
    PushFilesResult,
    RestoredWorkspace,
    RestoreFrom,
    SavedWorkspace,
)
from sandhold.storage import SessionStorage
from sandhold.vault import VaultUnavailable
from tests.stack import RING

SECRET = "hunter2hunter2"
ERROR = ToolError(code=ErrorCode.INTERNAL, message=f"quoted: {SECRET}", hint=f"Not {SECRET}.", ambiguous=True)
SHOWN = ERROR.model_copy(update={"message": "quoted: [redacted:PW]", "hint": "Not [redacted:PW]."})
STEP = CallStep(ref=SandboxRef(session_id="s", sandbox_id="box", owner="me", generation=1), call_id="c")


class Known:
    """Secrets of a session, which can be away."""

    def __init__(self) -> None:
        self.is_away = False
        self.asked = 0

    async def of(self, session_id: str, owner: str, *, fresh: bool = False) -> Mapping[str, str]:
        self.asked += 1
        if self.is_away:
            raise VaultUnavailable("away")
        return {"PW": SECRET}


@pytest.fixture
def known() -> Known:
    return Known()


async def answered(known: Known, answer: Any) -> Any:
    """What leaves the worker when an activity makes this its answer; a function is called inside of it."""

    class Answering(ActivityInboundInterceptor):
        def __init__(self) -> None:
            pass

        async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
            return await answer() if callable(answer) else answer

    around = RedactedErrors(Redactors(known)).intercept_activity(Answering())
    asked = ExecuteActivityInput(fn=answered, args=[STEP], executor=None, headers={})
    return await ActivityEnvironment().run(around.execute_activity, asked)


FAILED = FailedUpload(session_path="a", sandbox_path="b", error=ERROR)
RESTORED = RestoredWorkspace(session_id="s", session_path="w", error=ERROR)
PROGRESS = CommandProgress(call_id="c", outcome=CallOutcome(error=ERROR))


@pytest.mark.parametrize(
    "answer",
    [
        SavedWorkspace(error=ERROR),
        PushFilesResult(files_failed=[FAILED]),
        CreateSandboxResult(sandbox_id="box", files_failed=[FAILED], restored=RESTORED),
        FollowCommandsResult(ended=[PROGRESS, PROGRESS]),
        TellInterruptedResult(ended=[PROGRESS]),
        CallOutcome(error=ERROR),
    ],
    ids=lambda answer: type(answer).__name__,
)
async def test_an_error_is_redacted_wherever_in_an_answer_it_is(known: Known, answer: BaseModel) -> None:
    told = await answered(known, answer)
    assert type(told) is type(answer)
    text = answer.model_dump_json().replace(ERROR.message, SHOWN.message).replace(f"Not {SECRET}.", SHOWN.hint or "")
    assert told.model_dump_json() == text
    assert SECRET not in text
    known.is_away = True
    told = await answered(known, answer)
    assert UNTOLD in told.model_dump_json()
    assert SECRET not in told.model_dump_json()


async def test_what_holds_no_error_needs_no_secrets(known: Known) -> None:
    known.is_away = True
    for answer in (SavedWorkspace(session_path=SECRET), CallOutcome(result={"content": SECRET}), None, [SECRET]):
        assert await answered(known, answer) is answer
    assert known.asked == 0


async def test_a_result_that_is_stored_holds_errors_as_they_may_be_shown(known: Known, tmp_path: Path) -> None:
    storage = SessionStorage.open(tmp_path.as_uri(), RING)
    result = PushFilesResult(files_failed=[FAILED] * 100)
    told: CallOutcome = await answered(known, lambda: outcome_of(storage, "s", "c", result))
    assert told.result_ref is not None
    assert told.result_ref.bytes > LEDGER_RESULT_LIMIT_BYTES
    stored = PushFilesResult.model_validate(await storage.get_json("s", told.result_ref))
    assert [each.error for each in stored.files_failed] == [SHOWN] * 100


async def test_outside_of_an_activity_nothing_is_known() -> None:
    assert await as_shown(FAILED) is FAILED


NOT_OF_OTHERS = {
    "ids, and what the caller named": {
        "CommandPlace.call_id",
        "CommandPlace.output",
        "CommandProgress.call_id",
        "CommandResult.call_id",
        "CommandRow.call_id",
        "CreateSandboxResult.sandbox_id",
        "CreateSandboxResult.workspace_path",
        "ExecResult.call_id",
        "FailedUpload.sandbox_path",
        "FailedUpload.session_path",
        "FollowCommandsResult.stored",
        "ManageSandboxResult.sandbox_id",
        "GitCloneResult.branch",
        "GitCloneResult.path",
        "GitCloneResult.repo_url",
        "GitCredentialsResult.hosts",
        "ProviderSandbox.connection",
        "ProviderSandbox.organization",
        "ProviderSandbox.provider_id",
        "ProviderSandbox.provider_name",
        "ReadFileResult.path",
        "RestoredWorkspace.session_id",
        "RestoredWorkspace.session_path",
        "SandboxRow.sandbox_id",
        "SandboxRow.title",
        "SandboxRow.workspace_path",
        "SandboxStatus.calls",
        "SandboxStatus.connection",
        "SandboxStatus.ending",
        "SandboxStatus.organization",
        "SandboxStatus.owner",
        "SandboxStatus.provider_name",
        "SandboxStatus.session_id",
        "SandboxStatuses.by_workflow_id",
        "ShownSandbox.provider_id",
        "ShownSandbox.workflow_id",
        "StorageCleaned.removed",
        "StorageCleaned.unreadable",
        "WriteFileResult.path",
    },
    "words of ours": {
        "CommandResult.hint",
        "DownloadWorkspaceResult.hint",
        "GitCloneResult.hint",
        "GitCredentialsResult.hint",
        "ExecResult.hint",
        "ManageSandboxResult.state",
        "ProviderSandbox.state",
        "ReadFileResult.hint",
        "ReadFileResult.media_type",
        "SandboxRow.state",
        "SandboxStatus.next",
    },
    "hashes, and places in storage": {
        "DownloadWorkspaceResult.session_path",
        "DownloadWorkspaceResult.sha256",
        "GitCloneResult.commit",
        "OutputFiles.stderr",
        "OutputFiles.stdout",
        "SavedWorkspace.report_path",
        "SavedWorkspace.session_path",
        "SavedWorkspace.sha256",
        "StorageRef.path",
        "StorageRef.sha256",
        "WriteFileResult.sha256",
    },
    "output, redacted where it is read": {
        "CommandResult.stderr",
        "CommandResult.stdout",
        "ExecResult.stderr",
        "ExecResult.stdout",
    },
    "files and their names, which are never altered": {
        "DownloadWorkspaceResult.files_changed",
        "ReadFileResult.content",
        "SkippedEntry.path",
    },
    "a result, made by outcome_of": {"CallOutcome.result"},
}


def free_texts(kind: Any, seen: set[type]) -> Iterator[str]:
    """Every field that may hold any text, but for those of errors."""
    for part in (kind, *_parts(kind)):
        if not (isinstance(part, type) and issubclass(part, BaseModel)) or part in seen or part is ToolError:
            continue
        seen.add(part)
        for name, field in part.model_fields.items():
            owner = next(each for each in reversed(part.__mro__) if name in getattr(each, "__annotations__", {}))
            if str in (kinds := (field.annotation, *_parts(field.annotation))) or any(map(_is_json, kinds)):
                yield f"{owner.__name__}.{name}"
            yield from free_texts(field.annotation, seen)


def _parts(kind: Any) -> Iterator[Any]:
    if typing.get_origin(kind) is typing.Literal or _is_json(kind):
        return
    for each in typing.get_args(kind):
        yield each
        yield from _parts(each)


def _is_json(kind: Any) -> bool:
    return getattr(kind, "__name__", "") == "JsonValue"


def test_every_text_in_an_answer_is_that_of_an_error_or_known_not_to_quote_anybody() -> None:
    """A new field for what a provider, a sandbox or an exception says has to be a ToolError, or to be redacted."""
    holders = [each for name, each in vars(worker).items() if name.endswith("Activities") and isinstance(each, type)]
    functions = [
        each for holder in holders for each in vars(holder).values() if activity._Definition.from_callable(each)
    ]
    answers = [typing.get_type_hints(each)["return"] for each in functions]
    assert len(answers) > 20
    seen: set[type] = set()
    found = {text for kind in [*answers, *RESULTS.values()] for text in free_texts(kind, seen)}
    assert found == set().union(*NOT_OF_OTHERS.values())


async def test_what_heartbeats_tell_of_a_failure_is_redacted_before(known: Known) -> None:
    class Restoring:
        report = Report()

        async def run(self, *_: object) -> None:
            raise ToolFailure(ErrorCode.INTERNAL, f"quoted: {SECRET}")

    async def restored() -> RestoredWorkspace:
        filling = FillingActivities(cast("Any", None), cast("Any", None), cast("Any", None))
        return await filling._restored(STEP.ref, "c", RestoreFrom(session_path="w"), cast("Any", Restoring()))

    async def effort() -> list[str]:
        said = f"quoted: {SECRET}"
        failures: list[Exception] = [ToolFailure(ErrorCode.INTERNAL, said), StreamBroken(said), ValueError(said)]
        told = []
        for failure in failures:
            noted = _Effort()
            await noted.note(failure, 1.0)
            told.append(noted.why)
        return told

    with showing(Redactors(known), [STEP]):
        error = (await restored()).error
        assert error is not None
        assert error.message == "quoted: [redacted:PW]"
        assert await effort() == [error.message, f"a stream of the sandbox broke: {error.message}", "ValueError"]
        assert await shown_here(ValueError(SECRET)) == "[redacted:PW]"
        known.is_away = True
        assert await effort() == [UNTOLD] * 3
        assert await shown_here(ValueError(SECRET)) == UNTOLD
