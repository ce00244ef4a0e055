"""Clones that take long, are cut off, or leave something behind."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime

import pytest

from sandhold.client import Session
from sandhold.contracts.calls import CallEnvelope
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.git import GitCloneResult
from sandhold.contracts.names import RENEW_SIGNAL, sandbox_workflow_id
from sandhold.contracts.sandboxes import Renewal
from tests.git.repositories import new_repository
from tests.git.stacks import GITHUB, GitStack
from tests.github.api_server import Canned
from tests.security.canaries import Search
from tests.stack import CONVERTER
from tests.workflows.waiting import eventually

WITHIN_S = 60.0
LARGE_BYTES = 20_000_000


async def begin(session: Session, sandbox: str, call_id: str, **arguments: object) -> CallEnvelope:
    """A clone that nobody waits for."""
    asked = {"sandbox_id": sandbox, "repo_url": "acme/plain", **arguments}
    return await session.call("daytona_git_clone", asked, call_id, wait=False)


async def ended(session: Session, sandbox: str, call_id: str) -> CallEnvelope:
    """The envelope of a clone, once it is over."""

    async def look() -> CallEnvelope | None:
        return await session.result(call_id, sandbox)

    found = await eventually(look, lambda told: told is not None and told.status == "done", f"the end of {call_id}")
    assert found is not None
    return found


async def left(session: Session, sandbox: str) -> str:
    """Directories of clones, and temporary ones, in the sandbox's workspace."""
    looked = await session.exec(sandbox, "find . -maxdepth 3 -name .git -o -maxdepth 3 -name '.sandhold-clone-*'")
    return looked.stdout


async def nothing_is_left(git: GitStack, session: Session) -> None:
    await eventually(lambda: git.tokens(session), lambda tokens: tokens == [], "no token in the vault")
    assert git.book.live == []


async def test_a_clone_that_hangs_is_cancelled_and_leaves_nothing(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    await begin(session, sandbox, "hangs")
    await asyncio.wait_for(git.server.reached.wait(), 60)
    assert len(git.book.live) == 1
    [token] = await git.tokens(session)
    assert (token.purpose, token.call_id) == ("clone", "hangs")
    listed = await session.call("daytona_command", {"sandbox_id": sandbox, "action": "list"})
    assert isinstance(listed.result, dict)
    assert [row["call_id"] for row in listed.result["commands"]] == ["hangs"]
    await session.call("daytona_command", {"sandbox_id": sandbox, "action": "cancel", "call_id": "hangs"})
    told = await ended(session, sandbox, "hangs")
    assert told.error is not None
    assert told.error.code is ErrorCode.CANCELLED
    assert await left(session, sandbox) == ""
    await nothing_is_left(git, session)


async def test_a_clone_that_takes_too_long_is_ended_and_leaves_nothing(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    with pytest.raises(ToolFailure) as caught:
        await session.git_clone(sandbox, "acme/plain", timeout_ms=1500, timeout=WITHIN_S)
    assert caught.value.error.code is ErrorCode.TIMEOUT
    assert await left(session, sandbox) == ""
    await nothing_is_left(git, session)


async def test_stopping_the_sandbox_interrupts_its_clone_and_revokes_its_token(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    await begin(session, sandbox, "stopped")
    await asyncio.wait_for(git.server.reached.wait(), 60)
    await session.manage_sandbox(sandbox, "stop", timeout=WITHIN_S)
    told = await ended(session, sandbox, "stopped")
    assert told.error is not None
    assert told.error.code in {ErrorCode.CANCELLED, ErrorCode.INTERRUPTED}
    await nothing_is_left(git, session)


async def test_the_end_of_a_session_revokes_the_tokens_of_its_clones(git: GitStack) -> None:
    session = await git.session(await git.owner(), end_grace_s=0.0)
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    await begin(session, sandbox, "cut")
    await asyncio.wait_for(git.server.reached.wait(), 60)
    assert len(git.book.live) == 1
    await session.end(timeout=WITHIN_S)
    await nothing_is_left(git, session)


async def test_what_a_killed_clone_had_written_is_removed(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    await begin(session, sandbox, "killed")
    await asyncio.wait_for(git.server.reached.wait(), 60)
    assert "sandhold-clone" in await left(session, sandbox)
    await session.command(sandbox, "killed").signal("KILL")
    told = await ended(session, sandbox, "killed")
    assert told.error is not None
    assert told.error.code is ErrorCode.GIT_FAILED
    assert await left(session, sandbox) == ""
    await nothing_is_left(git, session)


async def test_a_clone_goes_on_over_a_continue_as_new_of_its_sandbox(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    await begin(session, sandbox, "renewed")
    await asyncio.wait_for(git.server.reached.wait(), 60)
    handle = git.stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, sandbox))
    await handle.signal(RENEW_SIGNAL, Renewal(began_before=datetime.now(UTC)))
    await eventually(lambda: git.stack.status(session, sandbox), lambda seen: seen.runs == 2, "a second run")
    assert len(git.book.live) == 1
    git.server.released.set()
    told = await ended(session, sandbox, "renewed")
    assert told.error is not None
    assert told.error.code is ErrorCode.NETWORK_ERROR
    await nothing_is_left(git, session)


async def test_a_sandbox_that_is_lost_leaves_no_token_of_its_clone(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    await begin(session, sandbox, "lost")
    await asyncio.wait_for(git.server.reached.wait(), 60)
    [found] = await git.stack.provider_sandboxes(session)
    await found.delete(wait=True)
    told = await ended(session, sandbox, "lost")
    assert told.error is not None
    assert told.error.code is ErrorCode.SANDBOX_LOST
    await nothing_is_left(git, session)


async def test_a_large_clone_is_followed_and_tells_its_progress(git: GitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.commands.FIRST_WAIT_S", 1.0)
    name = "acme/large"
    if name not in git.commits:
        git.commits[name] = new_repository(git.root, name, large_bytes=LARGE_BYTES)
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.pausing = asyncio.Event()
    told = await begin(session, sandbox, "large", repo_url=name)
    command = session.command(sandbox, "large")

    async def progress() -> str:
        return "".join([c.data.decode() async for c in command.output(follow=False) if c.stream == "stderr"])

    await eventually(progress, lambda text: "Receiving objects" in text, "progress")
    running = await session.result("large", sandbox)
    assert running is not None
    assert running.status == "running"
    git.server.pausing.set()
    told = await ended(session, sandbox, "large")
    assert told.error is None, told.error
    result = GitCloneResult.model_validate(told.result)
    assert result.commit == git.commits[name]["main"]
    assert result.authenticated
    size = await session.exec(sandbox, f"stat -c %s {result.path}/large")
    assert size.stdout == f"{LARGE_BYTES}\n"
    await nothing_is_left(git, session)


async def test_a_lost_answer_costs_no_second_clone_and_no_second_token(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    execute = {"method": "POST", "route": "/toolbox/{sandbox_id}/process/execute"}
    await git.stack.faults.add(effect="answer_lost", times=1, **execute)
    cloned = await session.git_clone(sandbox, "acme/plain", timeout=WITHIN_S)
    assert cloned.authenticated
    assert len(git.book.minted) == 1
    packs = [each for each in git.server.asked if each.path.endswith("git-upload-pack")]
    assert len(packs) == 2  # what there is, and the pack
    await nothing_is_left(git, session)


async def test_a_repeated_call_is_one_clone(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    first = await session.git_clone(sandbox, "acme/plain", call_id="again", timeout=WITHIN_S)
    assert await session.git_clone(sandbox, "acme/plain", call_id="again", timeout=WITHIN_S) == first
    assert len(git.book.minted) == 1


async def test_a_token_that_cannot_be_revoked_holds_no_answer_up_and_stays_on_record(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    git.server.hanging.add("acme/plain")
    await begin(session, sandbox, "unrevoked")
    await asyncio.wait_for(git.server.reached.wait(), 60)
    git.api.answers.extend([Canned(503)] * 1000)
    await session.call("daytona_command", {"sandbox_id": sandbox, "action": "cancel", "call_id": "unrevoked"})
    told = await ended(session, sandbox, "unrevoked")
    assert told.error is not None
    assert told.error.code is ErrorCode.CANCELLED
    [token] = await git.tokens(session)
    assert token.call_id == "unrevoked"


async def test_a_token_is_nowhere_on_disk_nor_in_history_after_a_clone(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    await session.exec(sandbox, "git config --global credential.helper store; touch .netrc")
    cloned = await session.git_clone(sandbox, "acme/whole", submodules=True, timeout=WITHIN_S)
    assert cloned.authenticated
    search = Search({f"token {number}": token.value for number, token in enumerate(git.book.minted)})
    assert search.in_folder(git.stack.daytona.data_dir) == {}
    assert search.in_folder(git.stack.settings.data_dir) == {}
    for workflow_id in (session.workflow_id, sandbox_workflow_id(session.session_id, sandbox)):
        history = await git.stack.temporal.get_workflow_handle(workflow_id).fetch_history()
        for event in history.events:
            for payload in _payloads(event):
                [opened] = await CONVERTER.decode([payload])
                assert search.in_bytes(json.dumps(opened).encode()) == set()


def _payloads(event: object) -> list[object]:
    """Every payload in an event."""
    found: list[object] = []
    for _, value in event.ListFields():  # type: ignore[attr-defined]
        for each in value if isinstance(value, list) or hasattr(value, "add") else [value]:
            if type(each).__name__ == "Payload":
                found.append(each)
            elif hasattr(each, "ListFields"):
                found += _payloads(each)
    return found


# A filter of the sandbox's own configuration, which sees all that git has in its environment.
_LEAKING = """
git config --global filter.leak.smudge 'setsid sleep 4321 >/dev/null 2>&1 & \
echo "https://x:$SANDHOLD_GIT_PASSWORD@github.test" >>"$HOME/.git-credentials"; \
echo "filtered with $SANDHOLD_GIT_PASSWORD" >&2; cat'
git config --global core.attributesFile "$HOME/attributes"
echo '* filter=leak' >attributes
"""


async def test_what_a_clone_left_behind_is_removed_and_told(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    await session.exec(sandbox, _LEAKING)
    await session.write_file(sandbox, ".git-credentials", "https://mine:mine@example.com\n")
    git.api.answers.append(Canned(503, method="DELETE"))  # What is found at the first look is removed by the second.
    with pytest.raises(ToolFailure) as caught:
        await session.git_clone(sandbox, "acme/plain", call_id="leaks", timeout=WITHIN_S)
    error = caught.value.error
    assert error.code is ErrorCode.CREDENTIAL_FOUND
    assert "process" in error.message
    assert ".git-credentials" in error.message
    token = git.book.minted[0].value
    assert token not in str(error)
    kept = await session.exec(sandbox, "grep -c '^https://mine:mine@' .git-credentials; pgrep -f 'sleep 432[1]'")
    assert kept.stdout == "1\n"
    assert Search({"token": token}).in_folder(git.stack.daytona.data_dir) == {}
    command = session.command(sandbox, "leaks")
    shown = b"".join([chunk.data async for chunk in command.output(follow=False)])
    assert b"[redacted:GIT_TOKEN" in shown
    assert token.encode() not in shown
    await nothing_is_left(git, session)


async def test_a_credential_in_a_repositorys_own_submodule_address_does_not_stay_in_its_configuration(
    git: GitStack,
) -> None:
    name = "acme/careless"
    if name not in git.commits:
        git.commits[name] = new_repository(git.root, name, submodule=f"https://joe:hunter22@{GITHUB}/globex/public.git")
    session = await git.session()
    sandbox = await git.sandbox(session)
    with pytest.raises(ToolFailure) as caught:
        await session.git_clone(sandbox, name, submodules=True, timeout=WITHIN_S)
    assert caught.value.error.code is ErrorCode.CREDENTIAL_FOUND
    looked = await session.exec(sandbox, "grep -r hunter22 .git; git config submodule.part.url", cwd=name)
    assert looked.stdout == f"https://{GITHUB}/globex/public.git\n"


async def test_a_finished_clone_is_adopted_by_its_own_call_and_by_no_other(git: GitStack) -> None:
    """The script itself, run again as after a sandbox that lost what was on record of the command."""
    from activities.git_scripts import CLONE, PATH_OCCUPIED

    session = await git.session()
    sandbox = await git.sandbox(session)
    cloned = await session.git_clone(sandbox, "acme/plain", timeout=WITHIN_S)
    await session.write_file(sandbox, "clone.sh", CLONE)
    marked = f"SANDHOLD_GIT_URL={cloned.repo_url} SANDHOLD_GIT_PATH={cloned.path} SANDHOLD_GIT_GIVEN=no"
    ours = f"SANDHOLD_GIT_MARK=$(cat {cloned.path}/.git/sandhold-clone)"
    again = await session.exec(sandbox, f"{marked} {ours} sh clone.sh")
    assert again.exit_code == 0, again
    other = await session.exec(sandbox, f"{marked} SANDHOLD_GIT_MARK=other sh clone.sh")
    assert other.exit_code == PATH_OCCUPIED
    assert (await session.exec(sandbox, "git status --porcelain", cwd=cloned.path)).stdout == ""
