"""`daytona_read_file` and `daytona_write_file` in a real sandbox.

The tests with the fixture `provider` alone also run against a real account (see test_lifecycle.py).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import uuid
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from activities.file_windows import WINDOW_BOUND_BYTES
from sandhold.contracts.calls import INLINE_LIMIT_BYTES, LEDGER_RESULT_LIMIT_BYTES, CallOutcome
from sandhold.contracts.errors import ErrorCode, SandboxSignal
from sandhold.contracts.names import WORKSPACE_PATH, call_folder
from sandhold.contracts.steps import CallStep, SandboxRef
from tests.activities.provider_under_test import ProviderUnderTest
from tests.local_daytona_faults import FaultPlan

EXECUTE = {"method": "POST", "route": "/toolbox/{id}/process/execute"}
UPLOAD = {"method": "POST", "route": "/toolbox/{id}/files/bulk-upload"}


class Files:
    """The two tools on one sandbox, as a workflow calls them."""

    def __init__(self, provider: ProviderUnderTest, ref: SandboxRef) -> None:
        self.provider = provider
        self.ref = ref
        # Unlike id(self), never the name of an earlier test's calls: those would answer with their results.
        self.calls = f"call-{uuid.uuid4().hex}"
        self.count = 0

    async def read(self, path: str, **arguments: Any) -> CallOutcome:
        return await self.provider.run(self.provider.files.read_file, self.step(path=path, **arguments))

    async def write(self, path: str, content: str | bytes, **arguments: Any) -> CallOutcome:
        return await self.provider.run(self.provider.files.write_file, self.write_step(path, content, **arguments))

    def write_step(self, path: str, content: str | bytes, **arguments: Any) -> CallStep:
        if isinstance(content, bytes):
            arguments = {"content": base64.b64encode(content).decode(), "encoding": "base64", **arguments}
        else:
            arguments = {"content": content, **arguments}
        return self.step(path=path, **arguments)

    def step(self, **arguments: Any) -> CallStep:
        self.count += 1
        arguments["sandbox_id"] = self.ref.sandbox_id
        return CallStep(ref=self.ref, call_id=f"{self.calls}-{self.count}", arguments=arguments)

    async def sh(self, command: str) -> str:
        return await self.provider.sh(self.ref, command)


@pytest.fixture
def files(provider: ProviderUnderTest, shared_sandbox: SandboxRef) -> Files:
    return Files(provider, shared_sandbox)


async def result_of(files: Files, outcome: CallOutcome) -> Any:
    """The result, wherever it is."""
    assert outcome.error is None, outcome.error
    if outcome.result is None:
        assert outcome.result_ref is not None
        return await files.provider.storage.get_json(files.ref.session_id, outcome.result_ref)
    return outcome.result


def code_of(outcome: CallOutcome) -> ErrorCode:
    assert outcome.error is not None
    return outcome.error.code


async def test_a_written_file_is_read_back(files: Files) -> None:
    text = "first line\nsecond: ünïcødé 😀\n"
    written = await result_of(files, await files.write("notes/today.txt", text))
    assert written == {
        "path": f"{WORKSPACE_PATH}/notes/today.txt",
        "bytes": len(text.encode()),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }
    read = await result_of(files, await files.read("~/notes/today.txt"))
    assert (read["content"], read["total_lines"], read["truncated"]) == (text, 2, False)
    window = await result_of(files, await files.read(f"{WORKSPACE_PATH}/notes/today.txt", offset=1, limit=1))
    assert window["content"] == "second: ünïcødé 😀\n"
    assert await files.sh("stat -c %a notes/today.txt; ls -A notes") == "644\ntoday.txt\n"


async def test_bytes_that_are_not_text_come_as_base64(files: Files) -> None:
    for data in (bytes(range(256)), "ü".encode("latin-1"), b"text with a NUL\0"):
        await result_of(files, await files.write("binary", data))
        read = await result_of(files, await files.read("binary"))
        assert read["encoding"] == "base64"
        assert base64.b64decode(read["content"]) == data


@pytest.mark.parametrize("name", ["a b'c\"d$(id)`id`;e", "-rf", "new\nline", "..hidden", "ünïcødé 😀", "sandhold-end"])
async def test_hostile_names_are_names(files: Files, name: str) -> None:
    await result_of(files, await files.write(f"names/{name}", name))
    assert (await result_of(files, await files.read(f"names/{name}")))["content"] == name


@pytest.mark.storage("folder", "s3")
async def test_a_large_file_goes_both_ways_by_reference_and_in_windows(files: Files) -> None:
    lines = [f"{number:07d} {'x' * 90}\n" for number in range(50_000)]
    text = "".join(lines)
    step = files.write_step("large.txt", text)
    reference = await files.provider.storage.put_json(
        files.ref.session_id, f"calls/{call_folder(step.call_id)}/arguments.json", step.arguments
    )
    by_reference = step.model_copy(update={"arguments": None, "arguments_ref": reference})
    outcome = await files.provider.run(files.provider.files.write_file, by_reference)
    written = await result_of(files, outcome)
    assert written["bytes"] == len(text)
    assert await files.sh("sha256sum <large.txt") == f"{written['sha256']}  -\n"
    outcome = await files.read("large.txt", offset=40_000, limit=1000)
    assert outcome.result is None, "above the inline limit only the reference crosses the history"
    read = await result_of(files, outcome)
    assert read["content"] == "".join(lines[40_000:41_000])
    assert (read["total_lines"], read["bytes"], read["truncated"]) == (50_000, len(text), True)
    bounded = await result_of(files, await files.read("large.txt", limit=100_000))
    assert WINDOW_BOUND_BYTES - 100 < len(bounded["content"]) <= WINDOW_BOUND_BYTES
    assert bounded["content"].endswith("x\n")
    assert bounded["truncated"]
    assert await files.sh(f"ls -A .sandhold/calls/{call_folder(step.call_id)}") == "lock\nwritten\n"


@pytest.mark.storage("folder", "s3")
async def test_a_result_is_inline_stored_or_both_by_its_size(files: Files) -> None:
    for size, is_inline, is_stored in (
        (LEDGER_RESULT_LIMIT_BYTES // 2, True, False),
        (LEDGER_RESULT_LIMIT_BYTES + 1, True, True),
        (INLINE_LIMIT_BYTES + 1, False, True),
    ):
        await files.write("sized", "x" * size)
        outcome = await files.read("sized")
        assert (outcome.result is not None, outcome.result_ref is not None) == (is_inline, is_stored)
        assert (await result_of(files, outcome))["content"] == "x" * size


async def test_32_mib_of_content_is_written(files: Files) -> None:
    data = os.urandom(24 * 1024 * 1024 - 1)  # 32 MiB as base64
    written = await result_of(files, await files.write("huge", data))
    assert written["sha256"] == hashlib.sha256(data).hexdigest()
    read = await result_of(files, await files.read("huge"))
    assert (read["content"], read["bytes"], read["total_lines"]) == (None, len(data), None)
    assert "daytona_exec" in read["hint"]
    await files.sh("rm huge")


async def test_what_cannot_be_read_is_a_typed_error(files: Files) -> None:
    await files.sh(
        "mkdir -p d secret; mkfifo -m 600 pipe; echo x >file; echo x >secret/f; chmod 0 secret; touch no; chmod 0 no"
    )
    assert code_of(await files.read("missing")) is ErrorCode.PATH_NOT_FOUND
    assert code_of(await files.read("file/below")) is ErrorCode.PATH_NOT_FOUND
    assert code_of(await files.read("secret/f")) is ErrorCode.PERMISSION_DENIED
    assert code_of(await files.read("no")) is ErrorCode.PERMISSION_DENIED
    for path in ("d", ".", "/", "pipe", "/dev/zero", "/dev/stdin"):
        outcome = await files.read(path)
        assert code_of(outcome) is ErrorCode.INVALID_ARGUMENTS, path
    assert outcome.error is not None
    assert not outcome.error.retryable


async def test_files_of_the_kernel_are_read_though_they_claim_to_be_empty(files: Files) -> None:
    read = await result_of(files, await files.read("/proc/self/status"))
    assert read["content"].startswith("Name:")
    assert read["bytes"] == len(read["content"])


async def test_what_cannot_be_written_is_a_typed_error_and_changes_nothing(files: Files) -> None:
    await files.sh(
        "echo old >plain; echo old >guarded; chmod 444 guarded; mkdir -p dir closed; chmod 555 closed; mkfifo tube"
    )
    for path, code in {
        "dir": ErrorCode.INVALID_ARGUMENTS,
        "dir/": ErrorCode.INVALID_ARGUMENTS,
        "plain/below": ErrorCode.INVALID_ARGUMENTS,
        "tube": ErrorCode.INVALID_ARGUMENTS,
        "/dev/null": ErrorCode.INVALID_ARGUMENTS,
        "n" * 300: ErrorCode.INVALID_ARGUMENTS,
        "guarded": ErrorCode.PERMISSION_DENIED,
        "closed/file": ErrorCode.PERMISSION_DENIED,
        "/etc/passwd": ErrorCode.PERMISSION_DENIED,
        "/new/file": ErrorCode.PERMISSION_DENIED,
    }.items():
        for append in (False, True):
            outcome = await files.write(path, "new", append=append)
            assert code_of(outcome) is code, (path, append, outcome.error)
    assert await files.sh("cat plain guarded") == "old\nold\n"


async def test_wrong_arguments_are_a_typed_error(files: Files) -> None:
    for outcome in (
        await files.read(""),
        await files.read("nul\0"),
        await files.read("x", offset=-1),
        await files.read("x", lines=3),
        await files.write("x", "not base64!", encoding="base64"),
        await files.write("x", "y", mode="999"),
    ):
        assert code_of(outcome) is ErrorCode.INVALID_ARGUMENTS


async def test_a_reference_that_leads_nowhere_is_a_typed_error(files: Files) -> None:
    step = files.step(path="x")
    reference = await files.provider.storage.put_json(files.ref.session_id, "calls/x/arguments.json", step.arguments)
    changed = {"path": "calls/y/arguments.json"}, {"sha256": "0" * 64}
    for changes, code in zip(changed, (ErrorCode.INTERNAL, ErrorCode.INVALID_ARGUMENTS), strict=True):
        lost = step.model_copy(update={"arguments_ref": reference.model_copy(update=changes)})
        assert code_of(await files.provider.run(files.provider.files.read_file, lost)) is code


async def test_a_mode_is_kept_or_taken_and_a_link_is_followed(files: Files) -> None:
    await files.write("script.sh", "echo one\n", mode="755")
    await files.write("script.sh", "echo two\n")
    await files.sh("ln -sf script.sh link")
    await files.write("link", "echo three\n")
    assert (
        await files.sh("stat -c '%a %F' script.sh link; ./script.sh") == "755 regular file\n777 symbolic link\nthree\n"
    )


@pytest.mark.parametrize("size", [10, 300_000], ids=["inline", "uploaded"])
async def test_an_append_whose_answer_was_lost_is_not_repeated(
    local_provider: ProviderUnderTest, faults: FaultPlan, files: Files, size: int
) -> None:
    await files.write(f"log-{size}", "before\n")
    step = files.write_step(f"log-{size}", "x" * size, append=True)
    await faults.add(**EXECUTE, effect="answer_lost", times=2)
    outcome, failures = await local_provider.persist(local_provider.files.write_file, step)
    assert len(failures) == 2
    result = await result_of(files, outcome)
    assert result["bytes"] == 7 + size
    again = await local_provider.run(local_provider.files.write_file, step)
    assert await result_of(files, again) == result
    assert await files.sh(f"wc -c <log-{size}") == f"{7 + size}\n"


@pytest.mark.parametrize("fault", ["reset_before", "reset_during", "answer_lost", "429", "502"])
@pytest.mark.parametrize("route", [EXECUTE, UPLOAD], ids=["execute", "upload"])
async def test_a_fault_on_the_way_is_retried(
    local_provider: ProviderUnderTest, faults: FaultPlan, files: Files, route: dict[str, str], fault: str
) -> None:
    effect = {"effect": "status", "status": int(fault)} if fault.isdigit() else {"effect": fault}
    await faults.add(**route, **effect, times=1)
    step = files.write_step("mended", b"y" * 200_000)
    outcome, failures = await local_provider.persist(local_provider.files.write_file, step)
    assert len(failures) <= 1
    assert (await result_of(files, outcome))["bytes"] == 200_000


async def test_a_small_file_costs_one_request_each_way(
    local_provider: ProviderUnderTest, faults: FaultPlan, files: Files
) -> None:
    await files.write("small", "x")
    await faults.forget_requests()
    await files.write("small", "y")
    await files.read("small")
    assert [request.route for request in await faults.requests()] == ["/toolbox/{sandbox_id}/process/execute"] * 2


async def test_a_full_disk_is_said_and_nothing_half_written_stays(
    local_provider: ProviderUnderTest, files: Files
) -> None:
    await files.sh(
        "echo old >/tmp/log; rm -f /tmp/fill; cat /dev/zero >/tmp/fill 2>/dev/null || true; truncate -s -8192 /tmp/fill"
    )
    try:
        for append in (False, True):
            outcome = await files.write("/tmp/log", "z" * 60_000, append=append)
            assert code_of(outcome) is ErrorCode.STORAGE_FULL, outcome
        assert await files.sh("cat /tmp/log; ls -A /tmp") == "old\nfill\nlog\n"
    finally:
        await files.sh("rm -f /tmp/fill")
    assert (await result_of(files, await files.write("/tmp/log", "new", append=True)))["bytes"] == 7


async def test_files_of_a_stopped_sandbox_ask_for_its_start(provider: ProviderUnderTest) -> None:
    ref = await provider.created()
    files = Files(provider, ref)
    await provider.stop(ref)
    for call in (files.read("x"), files.write("x", "y")):
        with pytest.raises(ApplicationError) as failure:
            await call
        assert failure.value.type == SandboxSignal.NOT_STARTED
    await provider.delete(ref)


async def test_an_error_is_json_without_a_stack_or_a_body(files: Files) -> None:
    outcome = await files.read("missing")
    shown = json.loads(outcome.model_dump_json())["error"]
    assert shown["message"] == f"{WORKSPACE_PATH}/missing: no such file"
