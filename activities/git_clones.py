"""Cloning a repository into a sandbox: the command that does it, and what comes after its end."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from datetime import timedelta

import structlog
from pydantic import SecretStr
from temporalio import activity
from temporalio.exceptions import ApplicationError

from activities.commands import CommandActivities, Order
from activities.git_errors import clone_error
from activities.git_requests import answer_of
from activities.git_scripts import (
    CLONE,
    CloneState,
    Credential,
    check_request,
    clone_environment,
    clone_state,
    mark_of,
)
from activities.git_tokens import CloneTokens, patterns_of
from activities.heartbeats import heartbeats
from activities.launcher import Script
from activities.outcomes import arguments_of, failed_outcome, outcome_of
from activities.provider import ProviderAccess
from activities.redactors import Redactors
from sandhold.contracts.calls import CallOutcome
from sandhold.contracts.errors import ErrorCode, SandboxSignal, ToolError, ToolFailure
from sandhold.contracts.git import FinishCloneStep, GitCloneArguments, GitCloneResult
from sandhold.contracts.names import WORKSPACE_PATH, Activity, ToolName, call_folder
from sandhold.contracts.steps import CommandProgress, CommandStep, SandboxRef
from sandhold.contracts.tools import ExecResult
from sandhold.github import USERNAME, GitHub, GitHubFault, RepositoryAddress
from sandhold.security.redaction import Redactor
from sandhold.storage import SessionStorage
from sandhold.vault import GitToken, VaultError

log = structlog.get_logger("git")

CHECK_WITHIN_S = 30.0
REVOKED_IN_TRIES = 6
"""After so many attempts an outcome is told although a token was not revoked: the clean-up tries on, and it ends."""
REVOKED_WITHIN = timedelta(seconds=30)
"""A longer wait for GitHub than this holds no outcome up."""
_NOTHING_RUNS = frozenset({SandboxSignal.NOT_STARTED.value, SandboxSignal.LOST.value})
_REFUSED_USE = "The server asked for a credential, but did not take the user's: the repository can be read without one."


class GitCloneActivities:
    """Clones by the launcher, as commands are run; ends what a clone was given."""

    def __init__(
        self,
        access: ProviderAccess,
        storage: SessionStorage,
        commands: CommandActivities,
        redactors: Redactors,
        github: GitHub,
        tokens: CloneTokens,
    ) -> None:
        self._access = access
        self._storage = storage
        self._commands = commands
        self._redactors = redactors
        self._github = github
        self._tokens = tokens

    @activity.defn(name=Activity.CLONE_REPOSITORY)
    async def clone_repository(self, step: CommandStep) -> CommandProgress:
        """Start the clone, or find it, and wait a few seconds for its end: as `run_command` does for a command.

        A credential is looked for only where the address is one of a connected host. One that is minted is in the
        vault before it goes anywhere; whatever comes of this, `finish_clone` has to follow.
        """
        clone: _Clone | None = None

        async def order() -> Order:
            nonlocal clone
            arguments = await arguments_of(self._storage, step, ToolName.GIT_CLONE, GitCloneArguments)
            address = await self._github.address(step.ref.owner, arguments.repo_url)
            clone = _Clone(step.ref, step.call_id, arguments, address)
            return Order(clone.script, "verbose", timeout_s=arguments.timeout / 1000)

        async def environment() -> tuple[Redactor, Mapping[str, str]]:
            assert clone is not None
            access = await self._tokens.access(step, clone.address, submodules=clone.submodules)
            # After the token is in the vault: what cannot be shown is not run.
            return await self._redactors.of(step.ref, fresh=True), clone.environment(access)

        return await self._commands.start(step, order, environment)

    @activity.defn(name=Activity.FINISH_CLONE)
    async def finish_clone(self, step: FinishCloneStep) -> CallOutcome:
        """The outcome of a clone whose command is over.

        When this returns nothing of the clone's credential is in the sandbox, the token is revoked, and nothing half is
        left; or that is counted and logged, and the token ends by itself. Of a sandbox that does not run only the
        token is seen to. Safe to repeat.
        """
        async with heartbeats():
            minted = await self._tokens.of(step.ref, step.call_id)
            state = await self._looked_at(step, minted) if step.inside else None
            for token in minted:
                await self._end(token)
            if state is not None and state.found:
                return CallOutcome(error=_credential_found(state))
            if state is not None and state.ours and step.status is not None:
                result = _result(state)
                return await outcome_of(self._storage, step.ref.session_id, step.call_id, result)
            said = await self._said(step)
            return failed_outcome(ToolFailure(**clone_error(step.status, step.exit_code, said, state).model_dump()))

    async def _looked_at(self, step: FinishCloneStep, minted: list[GitToken]) -> CloneState | None:
        """What is left of the clone in the sandbox; None when that does not run any more."""
        own, stored = [(USERNAME, token.token) for token in minted], await self._tokens.stored(step.ref.owner)
        secrets = own or ([stored] if stored is not None else [])
        patterns = [pattern for username, secret in secrets for pattern in patterns_of(secret, username)]
        order = check_request(call_folder(step.call_id), patterns, own=bool(own))
        try:
            state = await answer_of(self._access, step.ref, order, clone_state, most_s=CHECK_WITHIN_S)
        except ApplicationError as error:
            if error.type in _NOTHING_RUNS:
                return None
            raise
        if state.asked and not own and (state.taken or state.refused):
            await self._tokens.note_answer(step.ref.owner, refused=not state.taken)
        if state.found:
            log.error("a clone had left a credential behind", call_id=step.call_id, found=len(state.found))
        return state

    async def _end(self, token: GitToken) -> None:
        try:
            await self._tokens.end(token)
        except (GitHubFault, VaultError) as fault:
            log.warning("a clone's token was not revoked", call_id=token.call_id, reason=str(fault))
            if activity.info().attempt < REVOKED_IN_TRIES and _passes_soon(fault):
                raise

    async def _said(self, step: FinishCloneStep) -> str:
        """What the command wrote to stderr, as far as its outcome shows it."""
        outcome = step.command
        if outcome is None or outcome.error is not None:
            return ""
        value = outcome.result
        if value is None and outcome.result_ref is not None:
            value = await self._storage.get_json(step.ref.session_id, outcome.result_ref)
        return "" if value is None else ExecResult.model_validate(value).stderr


def _passes_soon(fault: GitHubFault | VaultError) -> bool:
    if isinstance(fault, VaultError):
        return True
    return fault.error.retryable and (fault.retry_after or timedelta()) <= REVOKED_WITHIN


class _Clone:
    """One clone: what it is to bring, and where to."""

    def __init__(self, ref: SandboxRef, call_id: str, arguments: GitCloneArguments, address: RepositoryAddress) -> None:
        self.address = address
        self.submodules = arguments.submodules
        self._arguments = arguments
        self.path = _path(arguments, address)
        self._ref = arguments.branch or ""
        what = (address.url, self._ref, self.path, str(arguments.depth), str(arguments.submodules))
        self._mark = mark_of(ref.session_id, ref.sandbox_id, call_id, *what)
        # Not by its text, which a newer worker may have changed when it looks for it again.
        self.script = Script(CLONE, "/", stands_for="\0".join(["clone", *what]))

    def environment(self, access: tuple[str, SecretStr] | None) -> dict[str, str]:
        credential = None
        if access is not None:
            username, token = access
            credential = Credential(self.address.host, username, token.get_secret_value())
        return clone_environment(
            self.address.url,
            ref=self._ref,
            path=self.path,
            mark=self._mark,
            depth=self._arguments.depth,
            submodules=self.submodules,
            credential=credential,
        )


def _path(arguments: GitCloneArguments, address: RepositoryAddress) -> str:
    """Where to, absolute. Raises ToolFailure for what can be no new directory."""
    default = f"{address.owner}/{address.name}" if address.owner is not None else _last_part(address.url)
    path = posixpath.normpath(posixpath.join(WORKSPACE_PATH, arguments.path or default))
    path = "/" + path.lstrip("/")
    if path == "/" or path == WORKSPACE_PATH or WORKSPACE_PATH.startswith(f"{path}/"):
        raise ToolFailure(
            ErrorCode.INVALID_ARGUMENTS,
            "daytona_git_clone: path: the workspace itself cannot be a clone",
            hint="Give a directory in it, or no path.",
        )
    return path


def _last_part(url: str) -> str:
    name = url.rstrip("/").rpartition("/")[2].removesuffix(".git")
    return name if name not in {"", ".", ".."} else "repository"


def _result(state: CloneState) -> GitCloneResult:
    hint = None
    if state.commit is None:
        hint = "The repository is empty."
    elif state.refused:
        hint = _REFUSED_USE
    return GitCloneResult(
        repo_url=state.url,
        path=state.path or "",
        branch=state.branch if state.commit is not None else None,
        commit=state.commit,
        authenticated=state.taken and not state.refused,
        hint=hint,
    )


def _credential_found(state: CloneState) -> ToolError:
    where = f"The clone is at {state.path}." if state.ours else "There is no clone."
    return ToolError(
        code=ErrorCode.CREDENTIAL_FOUND,
        message=f"after the clone a credential was found in: {', '.join(state.found)[:500]}; it was removed there",
        hint=f"{where} Tell the user to replace the credential if it is one of the repository's own content.",
    )
