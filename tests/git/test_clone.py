"""Clones through a session, on the whole stack, with real git on both sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from sandhold.client import Session
from sandhold.contracts.errors import ErrorCode, ToolError, ToolFailure
from tests.git.stacks import GITHUB, OTHER, GitStack
from tests.github.api_server import Canned

WITHIN_S = 60.0


@pytest.fixture(scope="module")
async def connected(shared_git_stack: GitStack) -> AsyncIterator[tuple[Session, str]]:
    """A session of an owner with an installation at `acme`, and a sandbox."""
    session = await shared_git_stack.session()
    yield session, await shared_git_stack.sandbox(session)
    await session.end()


@pytest.fixture(scope="module")
async def unconnected(shared_git_stack: GitStack) -> AsyncIterator[tuple[Session, str]]:
    """As `connected`, without any connection."""
    session = await shared_git_stack.session(await shared_git_stack.owner(connected=False))
    yield session, await shared_git_stack.sandbox(session)
    await session.end()


async def refused(session: Session, sandbox: str, repo_url: str, **arguments: object) -> ToolError:
    with pytest.raises(ToolFailure) as caught:
        await session.git_clone(sandbox, repo_url, timeout=WITHIN_S, **arguments)  # type: ignore[arg-type]
    return caught.value.error


async def test_a_private_repository_is_cloned_and_nothing_of_its_token_is_left(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    cloned = await session.git_clone(sandbox, "acme/plain", timeout=WITHIN_S)
    assert cloned.authenticated
    assert cloned.repo_url == f"https://{GITHUB}/acme/plain.git"
    assert cloned.path == "/home/daytona/acme/plain"
    assert (cloned.branch, cloned.commit) == ("main", git.commits["acme/plain"]["main"])
    assert cloned.hint is None
    [minted] = git.book.minted
    assert minted.repositories == {"plain"}
    assert minted.permissions == {"contents": "read", "metadata": "read"}
    assert git.book.live == []
    assert await git.tokens(session) == []
    text = await session.read_file(sandbox, f"{cloned.path}/README")
    assert text.content is not None
    assert "acme/plain again" in text.content


@pytest.mark.parametrize(
    ("asked", "branch", "commit"),
    [
        ("feature/one", "feature/one", "feature/one"),
        ("first", None, "first"),
        ("the commit", None, "first"),
        ("its beginning", None, "first"),
    ],
)
async def test_a_branch_a_tag_or_a_commit_is_checked_out(
    git: GitStack, connected: tuple[Session, str], asked: str, branch: str | None, commit: str
) -> None:
    session, sandbox = connected
    commits = git.commits["acme/plain"]
    name = {"the commit": commits["first"], "its beginning": commits["first"][:10]}.get(asked, asked)
    path = f"refs/{asked.replace(' ', '-')}"
    cloned = await session.git_clone(sandbox, "acme/plain", branch=name, path=path, timeout=WITHIN_S)
    assert (cloned.path, cloned.branch, cloned.commit) == (f"/home/daytona/{path}", branch, commits[commit])
    assert cloned.authenticated


@pytest.mark.parametrize("branch", [None, "feature/one", "the commit"])
async def test_a_depth_of_one_brings_one_commit(
    git: GitStack, connected: tuple[Session, str], branch: str | None
) -> None:
    session, sandbox = connected
    commit = git.commits["acme/plain"][branch if branch == "feature/one" else "main"]
    name = commit if branch == "the commit" else branch
    path = f"shallow/{(branch or 'default').replace(' ', '-')}"
    cloned = await session.git_clone(sandbox, "acme/plain", branch=name, path=path, depth=1, timeout=WITHIN_S)
    assert cloned.commit == commit
    counted = await session.exec(sandbox, "git rev-list --count HEAD", cwd=cloned.path)
    assert counted.stdout == "1\n"


async def test_an_address_of_ssh_is_cloned_by_https(git: GitStack, connected: tuple[Session, str]) -> None:
    session, sandbox = connected
    cloned = await session.git_clone(sandbox, f"git@{GITHUB}:acme/plain.git", path="by-ssh", timeout=WITHIN_S)
    assert cloned.repo_url == f"https://{GITHUB}/acme/plain.git"
    assert cloned.authenticated


async def test_a_submodule_at_the_same_host_is_cloned_with_the_same_credential(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    cloned = await session.git_clone(sandbox, "acme/whole", submodules=True, timeout=WITHIN_S)
    assert cloned.authenticated
    text = await session.read_file(sandbox, f"{cloned.path}/part/README")
    assert text.content is not None
    assert "acme/part" in text.content
    status = await session.exec(
        sandbox, "git submodule status --recursive && git -C part fetch -q 2>&1", cwd=cloned.path
    )
    assert git.commits["acme/part"]["main"] in status.stdout
    assert status.exit_code != 0  # nothing was left to fetch with
    assert git.book.live == []


async def test_an_empty_repository_is_cloned(git: GitStack, connected: tuple[Session, str]) -> None:
    session, sandbox = connected
    cloned = await session.git_clone(sandbox, "acme/empty", timeout=WITHIN_S)
    assert (cloned.commit, cloned.branch, cloned.hint) == (None, None, "The repository is empty.")


async def test_a_public_repository_needs_no_connection(git: GitStack, unconnected: tuple[Session, str]) -> None:
    session, sandbox = unconnected
    cloned = await session.git_clone(sandbox, f"https://{GITHUB}/acme/public", timeout=WITHIN_S)
    assert not cloned.authenticated
    assert cloned.commit == git.commits["acme/public"]["main"]
    assert git.book.minted == []


async def test_a_credential_that_nobody_asked_for_is_not_said_to_have_been_used(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    cloned = await session.git_clone(sandbox, "acme/public", timeout=WITHIN_S)
    assert not cloned.authenticated
    assert git.server.tokens_at(GITHUB) == set()
    assert git.book.live == []


async def test_a_public_repository_of_another_account_gets_no_token(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    cloned = await session.git_clone(sandbox, "globex/public", timeout=WITHIN_S)
    assert not cloned.authenticated
    assert git.book.minted == []


async def test_a_private_repository_without_a_connection_is_not_found_and_says_what_to_do(
    git: GitStack, unconnected: tuple[Session, str]
) -> None:
    session, sandbox = unconnected
    error = await refused(session, sandbox, "acme/plain")
    assert error.code is ErrorCode.REPOSITORY_NOT_FOUND
    assert "sandhold connect github" in (error.hint or "")
    assert not error.retryable


async def test_a_repository_that_is_not_there_is_not_found(git: GitStack, connected: tuple[Session, str]) -> None:
    session, sandbox = connected
    error = await refused(session, sandbox, "acme/nothing")
    assert error.code is ErrorCode.REPOSITORY_NOT_FOUND
    assert "connection was used" in (error.hint or "")
    assert git.book.live == []


@pytest.mark.parametrize("branch", ["no-such-branch", "0" * 40, "abcdef0123"])
async def test_a_branch_that_is_not_there_is_told_apart(
    git: GitStack, connected: tuple[Session, str], branch: str
) -> None:
    session, sandbox = connected
    error = await refused(session, sandbox, "acme/plain", branch=branch, path="no-branch")
    assert error.code is ErrorCode.BRANCH_NOT_FOUND
    left = await session.exec(sandbox, "ls -A no-branch; ls -A | grep sandhold-clone")
    assert "No such file" in left.stderr
    assert left.stdout == ""


async def test_a_directory_with_something_in_it_is_a_conflict_and_stays(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    await session.write_file(sandbox, "taken/mine", "mine")
    error = await refused(session, sandbox, "acme/plain", path="taken")
    assert error.code is ErrorCode.CONFLICT
    listed = await session.exec(sandbox, "ls -A taken; rm taken/mine")
    assert listed.stdout == "mine\n"
    assert (await session.git_clone(sandbox, "acme/plain", path="taken", timeout=WITHIN_S)).commit


async def test_a_path_that_cannot_be_made_is_refused(git: GitStack, connected: tuple[Session, str]) -> None:
    session, sandbox = connected
    assert (await refused(session, sandbox, "acme/plain", path="/proc/x")).code is ErrorCode.PERMISSION_DENIED
    assert (await refused(session, sandbox, "acme/plain", path=".")).code is ErrorCode.INVALID_ARGUMENTS


@pytest.mark.parametrize("kind", ["wrong", "revoked"])
async def test_a_token_that_is_not_good_is_told_as_that(git: GitStack, kind: str) -> None:
    token = f"ghp_{'a' * 36}"
    if kind == "revoked":
        stored = git.book.store("acme")
        token, stored.revoked = stored.value, True
    session_owner = await git.owner(token)
    session = await git.session(session_owner)
    sandbox = await git.sandbox(session)
    error = await refused(session, sandbox, "acme/plain")
    assert error.code is ErrorCode.AUTHENTICATION_FAILED
    assert "connect GitHub again" in (error.hint or "")
    assert token not in str(error)
    connection = await git.stack.vault.connection(session_owner, "github")
    assert connection is not None
    assert connection.last_failure == "authentication_failed"


async def test_a_stored_token_clones_and_stays_good(git: GitStack) -> None:
    token = git.book.store("acme")
    session = await git.session(await git.owner(token.value))
    sandbox = await git.sandbox(session)
    cloned = await session.git_clone(sandbox, "acme/plain", timeout=WITHIN_S)
    assert cloned.authenticated
    assert not token.revoked


async def test_a_token_that_has_expired_is_told_as_that(git: GitStack, connected: tuple[Session, str]) -> None:
    session, sandbox = connected
    git.api.token_life_s = 0.0
    error = await refused(session, sandbox, "acme/plain", path="expired")
    assert error.code is ErrorCode.AUTHENTICATION_FAILED
    assert await git.tokens(session) == []


@pytest.mark.parametrize("address", ["acme/broken", "https://nowhere.test/acme/plain"])
async def test_a_server_that_fails_or_is_not_there_is_a_network_error(
    git: GitStack, connected: tuple[Session, str], address: str
) -> None:
    session, sandbox = connected
    git.server.broken["acme/broken"] = 503
    error = await refused(session, sandbox, address, path="not-reached")
    assert error.code is ErrorCode.NETWORK_ERROR
    assert error.retryable


async def test_a_password_in_the_address_is_refused_and_not_repeated(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    asked_before = len(git.server.asked)
    error = await refused(session, sandbox, f"https://x:hunter22@{GITHUB}/acme/plain")
    assert error.code is ErrorCode.INVALID_ARGUMENTS
    assert "hunter22" not in str(error)
    assert len(git.server.asked) == asked_before


@pytest.mark.parametrize(
    "address",
    [
        f"https://{GITHUB}:x@{OTHER}/acme/plain",
        f"https://{OTHER}/acme/plain",
        f"https://{OTHER}/acme/plain?https://{GITHUB}/",
        f"https://{GITHUB}.{OTHER}/acme/plain",
        "ext::sh -c touch% /tmp/owned",
        "file:///home/daytona",
        "--upload-pack=touch /tmp/owned",
        f"git://{GITHUB}/acme/plain",
        f"ssh://git@{OTHER}/acme/plain",
        f"https://{GITHUB}/acme/plain\nhttps://{OTHER}",
        f"http://{GITHUB}/acme/plain",
    ],
)
async def test_a_hostile_address_gets_no_credential_and_runs_nothing(
    git: GitStack, connected: tuple[Session, str], address: str
) -> None:
    session, sandbox = connected
    error = await refused(session, sandbox, address, path="hostile")
    assert error.code in {ErrorCode.INVALID_ARGUMENTS, ErrorCode.REPOSITORY_NOT_FOUND, ErrorCode.NETWORK_ERROR}
    assert git.server.tokens_at(OTHER) == set()
    assert git.book.minted == []
    assert (await session.exec(sandbox, "ls /tmp/owned hostile 2>/dev/null")).stdout == ""


async def test_a_repository_that_the_installation_does_not_have_is_cloned_where_it_is_public(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    git.api.installations[42].repositories = {"part"}
    cloned = await session.git_clone(sandbox, "acme/public", path="public-not-granted", timeout=WITHIN_S)
    assert not cloned.authenticated
    error = await refused(session, sandbox, "acme/plain", path="not-granted")
    assert error.code is ErrorCode.REPOSITORY_NOT_FOUND
    assert "installation" in (error.hint or "")


async def test_a_refused_token_is_an_error_to_read(git: GitStack, connected: tuple[Session, str]) -> None:
    session, sandbox = connected
    git.api.installations[42].suspended = True
    error = await refused(session, sandbox, "acme/plain", path="suspended")
    assert error.code is ErrorCode.AUTHENTICATION_FAILED
    assert "suspended" in error.message


async def test_a_failed_request_for_a_token_is_made_again(git: GitStack, connected: tuple[Session, str]) -> None:
    session, sandbox = connected
    git.api.answers.extend([Canned(503), Canned(502)])
    cloned = await session.git_clone(sandbox, "acme/plain", path="asked-again", timeout=WITHIN_S)
    assert cloned.authenticated
    assert len(git.book.minted) == 1


async def test_a_redirect_to_another_host_takes_no_credential_along(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    git.server.redirects[f"{GITHUB}/acme/moved"] = f"https://{OTHER}/globex/own.git"
    error = await refused(session, sandbox, "acme/moved")
    assert error.code is ErrorCode.REPOSITORY_NOT_FOUND
    assert any(each.host == OTHER for each in git.server.asked)
    assert git.server.tokens_at(OTHER) == set()


async def test_a_redirect_after_authentication_takes_no_credential_along(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    """The host takes the credential first, and then sends git elsewhere: to where it is asked for again."""
    session, sandbox = connected
    git.server.redirects_after[f"{GITHUB}/acme/plain"] = f"https://{OTHER}/globex/own.git"
    error = await refused(session, sandbox, "acme/plain", path="moved-later")
    assert error.code is ErrorCode.AUTHENTICATION_FAILED
    assert git.server.tokens_at(GITHUB) != set()
    assert any(each.host == OTHER for each in git.server.asked)
    assert git.server.tokens_at(OTHER) == set()


async def test_a_redirect_within_the_host_is_followed_with_the_credential(
    git: GitStack, connected: tuple[Session, str]
) -> None:
    session, sandbox = connected
    git.server.redirects[f"{GITHUB}/acme/old-name"] = f"https://{GITHUB}/acme/plain.git"
    error = await refused(session, sandbox, "acme/old-name")
    # The token is for the name that was asked for; GitHub's own follow the repository to its new one.
    assert error.code is ErrorCode.REPOSITORY_NOT_FOUND
    assert git.server.tokens_at(GITHUB) == {each.value for each in git.book.minted}


async def test_twenty_clones_at_once_are_minted_within_the_limits(git: GitStack) -> None:
    session = await git.session()
    sandboxes = await asyncio.gather(*(git.sandbox(session) for _ in range(4)))
    told = ({"Retry-After": "1"}, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"})
    git.api.answers.extend(Canned(403, headers) for headers in told)
    cloned = await asyncio.gather(
        *(
            session.git_clone(sandboxes[number % len(sandboxes)], "acme/plain", path=f"many/{number}", timeout=180)
            for number in range(20)
        )
    )
    assert {each.commit for each in cloned} == {git.commits["acme/plain"]["main"]}
    assert all(each.authenticated for each in cloned)
    assert not git.api.answers
    assert git.api.most_at_once <= 10
    assert len(git.book.minted) == 20
    assert git.book.live == []
    assert await git.tokens(session) == []
