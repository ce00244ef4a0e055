"""The secrets of a session: those that its commands get, and all that must not be seen in what they print."""

from __future__ import annotations

import base64
import itertools
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence

from temporalio.exceptions import ApplicationError

from activities.connections import Connections
from sandhold.contracts.errors import ErrorCode, ToolError, as_application_error
from sandhold.contracts.secrets import why_no_secret_variable
from sandhold.contracts.sessions import SessionRecord
from sandhold.contracts.steps import SandboxRef
from sandhold.github import USERNAME, is_installation
from sandhold.security.process_secrets import logs_ready, register_secret_in_use
from sandhold.settings import Settings
from sandhold.vault.records import PROVIDERS, SessionValues

ENVIRONMENT_BYTES = 512 * 1024
"""The most that all secrets of a command may weigh: Linux gives a program 2 MiB for its arguments and environment."""
RUN_KEPT_S = 600.0
"""How long it is taken for granted which session an id means: Temporal does not forget one for longer than that."""
SHOWN_FOR_GIT = "GIT_TOKEN"
"""Shown in the place of a token that was minted for git."""
_RUNS_KEPT = 10_000
_OF_THE_PROCESS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

Lookup = Callable[[str], Awaitable[SessionRecord | None]]
"""What Temporal knows of a session; None when nothing."""


class SessionSecrets:
    """Reads them from the vault, at most ten seconds late. Nothing of them is ever part of a message, nor of a log."""

    def __init__(self, settings: Settings, connections: Connections, lookup: Lookup) -> None:
        self._settings = settings
        self._connections = connections
        self._lookup = lookup
        self._runs: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def of(self, session_id: str, owner: str, *, fresh: bool = False) -> Mapping[str, str]:
        """Every secret that output of this session must not show, by the name that is shown in its place.

        With `fresh` what the user has set is read anew. Raises VaultError and SecurityError: what cannot be known
        cannot be blacked out.
        """
        known = {name: value for name in _OF_THE_PROCESS if (value := os.environ.get(name))}
        if self._settings.daytona_api_key is not None:
            known["SANDHOLD_DAYTONA_API_KEY"] = self._settings.daytona_api_key.get_secret_value()
        if self._connections.cache is not None:
            for provider in PROVIDERS:
                record = await self._connections.cache.connection(owner, provider)
                if record is not None and not is_installation(record.secret):
                    known[f"{provider}-connection"] = record.secret.get_secret_value()
                    register_secret_in_use(f"{provider}-connection", record.secret.get_secret_value())
        values = await self._values(session_id, fresh=fresh)
        known.update({name: value.get_secret_value() for name, value in values.usable.items()})
        ages = Counter[str]()
        # A command that runs on may still print what has been replaced since.
        for name, secret in values.retired:
            value = secret.get_secret_value()
            if known.get(name) != value:
                ages[name] += 1
                known[f"{name}-before-{ages[name]}"] = value
        names = _free_names(SHOWN_FOR_GIT, known)
        tokens = await self._git_tokens(session_id, fresh=fresh)
        await logs_ready()
        for token in tokens:
            shown = next(names)
            known[shown] = token
            # As git sends it; the token's own forms leave the beginning of this.
            known[f"{shown}-basic"] = base64.b64encode(f"{USERNAME}:{token}".encode()).decode()
        return known

    async def environment(self, ref: SandboxRef, names: Sequence[str]) -> dict[str, str]:
        """The variables that a command gets for these secrets, with their values of now.

        Raises ApplicationError `invalid_arguments` when one is not set, and `too_large`; VaultError, SecurityError.
        """
        if not names:
            return {}
        for name in names:
            if (refused := why_no_secret_variable(name)) is not None:
                raise as_application_error(ToolError(code=ErrorCode.INVALID_ARGUMENTS, message=refused))
        # What was set or replaced a moment ago is for the next command already.
        found = (await self._values(ref.session_id, fresh=True)).usable
        await logs_ready()
        if missing := [name for name in names if name not in found]:
            raise _missing(ref.session_id, missing)
        chosen = {name: found[name].get_secret_value() for name in names}
        if sum(len(name) + len(value.encode()) for name, value in chosen.items()) > ENVIRONMENT_BYTES:
            raise _too_large()
        return chosen

    async def _values(self, session_id: str, *, fresh: bool = False) -> SessionValues:
        """What the user has set for the session, and had."""
        if self._connections.cache is None or (run_id := await self.run_of(session_id)) is None:
            return SessionValues({}, ())
        found = await self._connections.cache.secret_values(session_id, run_id, fresh=fresh)
        # Logs forget first what was registered first: let that be what no command gets any more.
        for name, value in (*reversed(found.retired), *found.usable.items()):
            register_secret_in_use(name, value.get_secret_value())
        return found

    async def _git_tokens(self, session_id: str, *, fresh: bool = False) -> list[str]:
        """The tokens that git in the session's sandboxes has."""
        if self._connections.cache is None or (run_id := await self.run_of(session_id)) is None:
            return []
        found = await self._connections.cache.git_tokens(session_id, run_id, fresh=fresh)
        tokens = [each.token.get_secret_value() for each in found]
        for token in tokens:
            register_secret_in_use(SHOWN_FOR_GIT, token)
        return tokens

    async def run_of(self, session_id: str) -> str | None:
        """The first run of the session, which its secrets belong to; None when Temporal knows no such session."""
        now = time.monotonic()
        known = self._runs.get(session_id)
        if known is not None and now < known[0]:
            return known[1]
        record = await self._lookup(session_id)
        if record is None:
            return None
        self._runs[session_id] = now + RUN_KEPT_S, record.run_id
        self._runs.move_to_end(session_id)
        while len(self._runs) > _RUNS_KEPT:
            self._runs.popitem(last=False)
        return record.run_id


def _free_names(name: str, taken: Mapping[str, str]) -> Iterator[str]:
    """The name, and then others like it, but none that is taken: users may call their secrets the same."""
    for number in itertools.count(1):
        free = name if number == 1 else f"{name}-{number}"
        if free not in taken:
            yield free


def _missing(session_id: str, names: Iterable[str]) -> ApplicationError:
    wanted = list(names)
    commands = ", ".join(f"`sandhold secrets set {session_id} {name}`" for name in wanted)
    return as_application_error(
        ToolError(
            code=ErrorCode.INVALID_ARGUMENTS,
            message=f"the session has no secret {', '.join(wanted)}; nothing was done",
            hint=f"Ask the user to set what is missing ({commands}), then call again under a new call id.",
        )
    )


def _too_large() -> ApplicationError:
    message = f"the secrets of a command may weigh {ENVIRONMENT_BYTES} bytes in all; nothing was run"
    return as_application_error(ToolError(code=ErrorCode.TOO_LARGE, message=message))
