"""A stack whose sandboxes find the tests' git server under the names of several hosts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from sandhold.client import Session
from sandhold.github.connection import secret_of_installation
from sandhold.vault import GitToken
from tests.git.server import GitServer
from tests.github.api_server import GitHubApi
from tests.github.certificates import Authority
from tests.github.tokens import TokenBook
from tests.stack import Stack, started

GITHUB, OTHER = "github.test", "elsewhere.test"
"""The host that is connected, and one that is not; both are the same server."""
INSTALLATION, ACCOUNT = 42, "acme"
CA_FILE = "/home/daytona/ca.pem"
_numbers = itertools.count(1)


@dataclass
class GitStack:
    """What tests of git need."""

    stack: Stack
    server: GitServer
    api: GitHubApi
    authority: Authority
    commits: dict[str, dict[str, str]] = field(default_factory=dict)
    """The commits of the repositories that are there, by repository and name."""

    @property
    def book(self) -> TokenBook:
        return self.api.tokens

    @property
    def root(self) -> Path:
        return self.server.root

    async def owner(self, token: str | None = None, *, connected: bool = True) -> str:
        """An owner of his own, with the installation at `acme` connected, or with a token."""
        owner = f"git-owner-{next(_numbers)}"
        if connected:
            await self.stack.vault.put_connection(
                owner,
                "github",
                secret_of_installation(INSTALLATION) if token is None else SecretStr(token),
                replaces=0,
                api_url=self.stack.settings.github_api_url,
                details={"kind": "app" if token is None else "token", "account": ACCOUNT},
            )
        return owner

    async def session(self, owner: str | None = None, **policy: Any) -> Session:
        return await self.stack.open(owner if owner is not None else await self.owner(), **policy)

    async def sandbox(self, session: Session, **arguments: Any) -> str:
        """A sandbox that trusts the servers of the tests."""
        env = {"GIT_SSL_CAINFO": CA_FILE, **arguments.pop("env", {})}
        sandbox = (await started(session, env=env, **arguments)).sandbox_id
        await session.write_file(sandbox, CA_FILE, self.authority.file.read_text())
        return sandbox

    async def tokens(self, session: Session) -> list[GitToken]:
        """What the vault still holds of the session's tokens."""
        run_id = (await self.stack.temporal.get_workflow_handle(session.workflow_id).describe()).run_id
        return await self.stack.vault.git_tokens(session.session_id, run_id)
