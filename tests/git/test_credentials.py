"""Git's credential in a sandbox, on the whole stack, with real git on both sides."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta

import pytest

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode, ToolFailure
from sandhold.contracts.names import RENEW_SIGNAL, sandbox_workflow_id
from sandhold.contracts.sandboxes import Renewal
from tests.git.stacks import GITHUB, INSTALLATION, GitStack
from tests.github.api_server import Canned
from tests.security.canaries import Search
from tests.workflows.waiting import eventually

FILE = "/dev/shm/sandhold-git-$(id -u)/hosts.yml"
FILLED = (
    f"printf 'protocol=https\\nhost={GITHUB}\\n\\n' | GIT_TERMINAL_PROMPT=0 git credential fill | sed -n s/password=//p"
)
COMMIT = "cd acme/plain && git -c user.name=T -c user.email=t@example.com commit -q --allow-empty -m more"
EXECUTE = {"method": "POST", "route": "/toolbox/{sandbox_id}/process/execute"}
WITHIN_S = 60.0
_branches = itertools.count(1)


async def with_credentials(git: GitStack, owner: str | None = None, **policy: object) -> tuple[Session, str]:
    """A session with a sandbox in which git has a credential."""
    session = await git.session(owner, **policy)
    sandbox = await git.sandbox(session)
    assert (await session.git_credentials(sandbox, timeout=WITHIN_S)).authenticated
    return session, sandbox


async def shell(session: Session, sandbox: str, command: str) -> str:
    """What a command prints that has to succeed."""
    done = await session.exec(sandbox, command, timeout=WITHIN_S)
    assert done.exit_code == 0, done
    return done.stdout.strip()


async def reaches(session: Session, sandbox: str) -> bool:
    """Whether git in the sandbox reaches a private repository."""
    asked = f"GIT_TERMINAL_PROMPT=0 git ls-remote https://{GITHUB}/acme/plain.git"
    return (await session.exec(sandbox, asked, timeout=WITHIN_S)).exit_code == 0


async def no_token_lives(git: GitStack, session: Session) -> None:
    async def left() -> tuple[object, object]:
        return git.book.live, await git.tokens(session)

    await eventually(left, lambda seen: seen == ([], []), "no token, and none in the vault")


async def workflow_of(git: GitStack, session: Session, sandbox: str) -> list[str]:
    """The activities of git's credential that the sandbox's workflow has scheduled, and downloads."""
    handle = git.stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, sandbox))
    names = [
        event.activity_task_scheduled_event_attributes.activity_type.name
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    return [name for name in names if "git_" in name or name == "download_workspace"]


async def test_git_in_the_sandbox_pushes_and_fetches_until_its_session_ends(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    await session.git_clone(sandbox, "acme/plain", timeout=WITHIN_S)
    told = await session.git_credentials(sandbox, timeout=WITHIN_S)

    assert (told.authenticated, told.provider, told.hosts) == (True, "github", [GITHUB])
    assert told.expires_at is not None
    branch = f"pushed-{next(_branches)}"
    await shell(session, sandbox, f"{COMMIT} && git push -q origin HEAD:refs/heads/{branch} && git fetch -q")
    [token] = git.book.live
    assert token.permissions["contents"] == "write"
    assert token.value in git.server.tokens_at(GITHUB)
    assert [each.purpose for each in await git.tokens(session)] == ["helper"]
    assert await shell(session, sandbox, f"stat -c '%a %F' {FILE}") == "600 regular file"
    await session.end()
    assert git.book.live == []
    assert await git.tokens(session) == []


async def test_the_token_is_in_its_one_file_alone_and_nowhere_after_a_stop(git: GitStack) -> None:
    session, sandbox = await with_credentials(git)
    assert await reaches(session, sandbox)
    [token] = git.book.live
    search = Search({"token": token.value})

    assert search.in_folder(git.stack.daytona.data_dir) == {}, "nothing is on the sandbox's disk"
    holding = "grep -rlsE 'gh[s]_[0-9a-f]{36}' /dev/shm /tmp /home/daytona /proc/[0-9]*/environ /proc/[0-9]*/cmdline"
    assert await shell(session, sandbox, f"{holding} | sort -u") == await shell(session, sandbox, f"echo {FILE}")
    await session.manage_sandbox(sandbox, "stop")
    assert git.book.live == []
    assert await git.tokens(session) == []
    assert search.in_folder(git.stack.daytona.data_dir) == {}
    assert search.in_folder(git.stack.settings.data_dir) == {}


async def test_after_a_start_git_has_a_credential_again(git: GitStack) -> None:
    session, sandbox = await with_credentials(git)
    await session.manage_sandbox(sandbox, "stop")
    assert await reaches(session, sandbox), "the first command after the start finds it"
    assert len(git.book.live) == 1
    assert len(git.book.minted) == 2
    await session.manage_sandbox(sandbox, "archive")
    assert git.book.live == []


async def test_it_is_away_while_a_download_runs_and_the_same_one_is_back_after(git: GitStack) -> None:
    session, sandbox = await with_credentials(git)
    folder = "/dev/shm/sandhold-git-" + await shell(session, sandbox, "id -u")
    await session.download_workspace(sandbox, folder, timeout=WITHIN_S)

    assert await workflow_of(git, session, sandbox) == [
        "install_git_credentials",
        "remove_git_credentials",
        "download_workspace",
        "install_git_credentials",
    ]
    assert [file.path async for file in session.files.list() if "hosts" in file.path] == []
    assert await reaches(session, sandbox)
    assert len(git.book.minted) == 1


async def test_it_is_renewed_and_a_push_goes_on_for_longer_than_its_token(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    await session.git_clone(sandbox, "acme/plain", timeout=WITHIN_S)
    git.api.token_life_s = 8.0
    await session.git_credentials(sandbox, timeout=WITHIN_S)
    git.server.holding_pushes = asyncio.Event()
    push = (
        f"head -c 3000000 /dev/urandom >acme/plain/big && git -C acme/plain add big && {COMMIT} && git push -q origin"
    )
    pushing = asyncio.create_task(
        shell(session, sandbox, f"{push} HEAD:refs/heads/pushed-{next(_branches)} && echo done")
    )
    await asyncio.wait_for(git.server.reached.wait(), 60)
    used = git.book.tokens[
        [each.token for each in git.server.asked if each.path.endswith("git-receive-pack")][-1] or ""
    ]
    assert used.expires_at is not None

    async def its_end() -> bool:
        return used.has_expired

    await eventually(its_end, bool, "the token's end")
    git.server.holding_pushes.set()
    assert await pushing == "done"
    assert not used.revoked, "it has ended by itself"
    assert git.book.minted[-1] is not used
    assert await reaches(session, sandbox), "with the next one"
    last = git.book.minted[-1]
    await session.end()
    assert last.revoked or last.has_expired


async def test_calling_again_is_harmless(git: GitStack) -> None:
    session, sandbox = await with_credentials(git)
    again = await asyncio.gather(*(session.git_credentials(sandbox, timeout=WITHIN_S) for _ in range(3)))
    assert all(each.authenticated for each in again)
    assert len(git.book.minted) == 1
    assert await reaches(session, sandbox)


async def test_without_a_connection_the_agent_is_told_what_to_ask_for(git: GitStack) -> None:
    owner = await git.owner(connected=False)
    session = await git.session(owner)
    sandbox = await git.sandbox(session)
    with pytest.raises(ToolFailure) as caught:
        await session.git_credentials(sandbox, timeout=WITHIN_S)
    assert caught.value.error.code is ErrorCode.CONNECTION_REQUIRED
    assert caught.value.error.provider == "github"
    assert f"sandhold connect github --owner {owner}" in (caught.value.error.hint or "")
    await session.manage_sandbox(sandbox, "stop")
    # An earlier attempt might have delivered something: that is seen to.
    assert await workflow_of(git, session, sandbox) == [
        "install_git_credentials",
        "remove_git_credentials",
        "revoke_git_tokens",
    ]


async def test_what_github_refuses_is_told_and_leaves_nothing(git: GitStack) -> None:
    git.api.installations[INSTALLATION].suspended = True
    session = await git.session()
    sandbox = await git.sandbox(session)
    with pytest.raises(ToolFailure) as caught:
        await session.git_credentials(sandbox, timeout=WITHIN_S)
    assert caught.value.error.code is ErrorCode.AUTHENTICATION_FAILED
    git.api.installations[INSTALLATION].suspended = False
    assert (await session.git_credentials(sandbox, timeout=WITHIN_S)).authenticated


async def test_a_mint_that_fails_is_tried_again(git: GitStack) -> None:
    git.api.answers += [Canned(502), Canned(503)]
    session, sandbox = await with_credentials(git)
    assert await reaches(session, sandbox)


async def test_once_the_connection_is_gone_so_is_the_credential(git: GitStack) -> None:
    git.api.token_life_s = 6.0
    owner = await git.owner()
    session, sandbox = await with_credentials(git, owner)
    await git.stack.vault.delete_connection(owner, "github")

    async def is_there() -> str:
        return await shell(session, sandbox, f"ls {FILE} 2>/dev/null; git config --global --get-regexp helper; true")

    await eventually(is_there, lambda told: told == "", "the removal of file and settings", pause_s=0.3)
    await no_token_lives(git, session)


async def test_a_stored_token_is_put_in_place_and_never_revoked(git: GitStack) -> None:
    stored = git.book.store("acme").value
    session, sandbox = await with_credentials(git, await git.owner(stored))
    told = await session.git_credentials(sandbox, timeout=WITHIN_S)
    assert told.expires_at is None
    assert await reaches(session, sandbox)
    await session.manage_sandbox(sandbox, "stop")
    assert Search({"token": stored}).in_folder(git.stack.daytona.data_dir) == {}
    await session.end()
    assert not git.book.tokens[stored].revoked


async def test_tokens_end_with_a_sandbox_that_is_deleted_or_lost(git: GitStack) -> None:
    session, deleted = await with_credentials(git)
    lost = await git.sandbox(session)
    await session.git_credentials(lost, timeout=WITHIN_S)
    await session.manage_sandbox(deleted, "delete")
    assert len(git.book.live) == 1
    for each in await git.stack.provider_sandboxes(session):
        await each.delete()
    gone = await session.call("daytona_exec", {"sandbox_id": lost, "command": "true"}, timeout=WITHIN_S)
    assert gone.error is not None
    assert gone.error.code is ErrorCode.SANDBOX_LOST
    await no_token_lives(git, session)


async def test_a_revocation_that_fails_is_tried_again_and_holds_up_no_stop(git: GitStack) -> None:
    session, sandbox = await with_credentials(git)
    git.api.answers += [Canned(503)] * 3
    await session.manage_sandbox(sandbox, "stop")
    await no_token_lives(git, session)
    assert (await git.stack.status(session, sandbox)).state == "stopped"


async def test_a_renewed_workflow_goes_on_renewing(git: GitStack) -> None:
    git.api.token_life_s = 10.0
    session, sandbox = await with_credentials(git)
    handle = git.stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, sandbox))
    await handle.signal(RENEW_SIGNAL, Renewal(began_before=datetime.now(UTC) + timedelta(minutes=1)))
    await eventually(lambda: git.stack.status(session, sandbox), lambda status: status.runs == 2, "a second run")
    minted = len(git.book.minted)

    async def mints() -> int:
        return len(git.book.minted)

    await eventually(mints, lambda seen: seen > minted, "another token")
    await session.manage_sandbox(sandbox, "stop")
    await no_token_lives(git, session)


async def test_a_lost_answer_costs_no_second_token(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    await git.stack.faults.add(effect="answer_lost", times=1, **EXECUTE)
    await session.git_credentials(sandbox, timeout=WITHIN_S)
    assert await reaches(session, sandbox)
    assert len(git.book.minted) == 1


async def test_a_stop_that_comes_while_a_credential_is_on_its_way_leaves_none(git: GitStack) -> None:
    session = await git.session()
    sandbox = await git.sandbox(session)
    held = await git.stack.faults.add(effect="delay", seconds=30.0, when="before", times=1, **EXECUTE)
    await session.call("daytona_git_credentials", {"sandbox_id": sandbox}, "on-its-way", wait=False)

    async def hits() -> int:
        return await git.stack.faults.hits(held)

    await eventually(hits, bool, "the delivery")
    await session.manage_sandbox(sandbox, "stop", timeout=WITHIN_S)
    await no_token_lives(git, session)
    assert len(git.book.minted) == 1
    told = await session.result("on-its-way", sandbox)
    assert told is not None
    assert told.error is not None
    assert told.error.code is ErrorCode.CANCELLED


async def test_tokens_end_when_the_workflow_of_their_sandbox_is_closed_by_force(git: GitStack) -> None:
    session, sandbox = await with_credentials(git)
    await git.stack.temporal.get_workflow_handle(sandbox_workflow_id(session.session_id, sandbox)).terminate("by hand")
    await no_token_lives(git, session)


async def test_tokens_end_when_a_sandbox_is_found_to_have_been_stopped_by_others(git: GitStack) -> None:
    session, sandbox = await with_credentials(git)
    await session.start(sandbox, "sleep 1000", timeout=WITHIN_S)
    [provided] = await git.stack.provider_sandboxes(session)
    await provided.stop()
    await no_token_lives(git, session)
    assert (await git.stack.status(session, sandbox)).state == "stopped"
    assert await reaches(session, sandbox), "it is started, and has another one"
