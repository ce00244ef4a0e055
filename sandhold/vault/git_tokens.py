"""Tokens that were minted for git in a sandbox.

Each lies here before it is delivered anywhere, so that whoever comes after a process that died can still revoke it. The
row goes once the token is revoked, or has expired by itself.
"""

from __future__ import annotations

import asyncio
import uuid
from datetime import datetime

from pydantic import SecretStr
from sqlalchemy import ColumnElement, and_, delete, func, insert, select, tuple_

from sandhold.vault.errors import ValueRefused
from sandhold.vault.parts import Parts, now
from sandhold.vault.records import GitToken, GitTokenPurpose, SecretsOfSession, valid_git_token, valid_secret
from sandhold.vault.schema import git_tokens, place_of_git_token

_AT_ONCE = 1000


class StoredGitTokens:
    """The table of git tokens."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def put_git_token(
        self,
        token: SecretStr,
        *,
        owner: str,
        session_id: str,
        run_id: str,
        sandbox_id: str,
        generation: int,
        purpose: GitTokenPurpose,
        api_url: str,
        expires_at: datetime,
        call_id: str | None = None,
    ) -> GitToken:
        """Store a token that was minted, before it is delivered; what is stored, by whose id it is deleted.

        Raises ValueRefused, VaultError and SecurityError; nothing is stored then.
        """
        value = valid_secret(token)
        valid_git_token(owner, session_id, sandbox_id, api_url)
        if expires_at.tzinfo is None:
            raise ValueRefused("the end of a token's life has no time zone")
        row = {
            "id": uuid.uuid4().hex,
            "owner": owner,
            "session_id": session_id,
            "run_id": run_id,
            "sandbox_id": sandbox_id,
            "generation": generation,
            "purpose": purpose,
            "call_id": call_id,
            "api_url": api_url,
            "expires_at": expires_at,
            "created_at": now(),
        }
        sealed = await self._parts.envelope.seal(value, place_of_git_token(row))
        async with self._parts.database.writing() as writing:
            await writing.execute(insert(git_tokens).values(**row, sealed=sealed))
        self._parts.changed(git_tokens.name, session_id)
        return GitToken.model_validate({**row, "token": token})

    async def git_tokens(self, session_id: str, run_id: str, sandbox_id: str | None = None) -> list[GitToken]:
        """Those of a session, or of one of its sandboxes, the oldest first.

        Raises VaultError; SecurityError when one does not open here.
        """
        wanted = _of(session_id, run_id)
        if sandbox_id is not None:
            wanted = and_(wanted, git_tokens.c.sandbox_id == sandbox_id)
        ordered = select(git_tokens).where(wanted).order_by(git_tokens.c.created_at, git_tokens.c.id)
        async with self._parts.database.reading() as reading:
            rows = [dict(row) for row in (await reading.execute(ordered)).mappings()]
        envelope = self._parts.envelope
        opened = await asyncio.gather(
            *(envelope.open(bytes(row.pop("sealed")), place_of_git_token(row)) for row in rows)
        )
        return [
            GitToken.model_validate({**row, "token": SecretStr(value.decode())})
            for row, value in zip(rows, opened, strict=True)
        ]

    async def git_tokens_to_end(self, at: datetime, limit: int = _AT_ONCE) -> list[str]:
        """Ids of those that had expired by then, the oldest first: there is nothing left to revoke, only a row.

        Opens nothing, so that what does not open goes as well. Raises VaultError.
        """
        wanted = select(git_tokens.c.id).where(git_tokens.c.expires_at <= at)
        async with self._parts.database.reading() as reading:
            return list((await reading.execute(wanted.order_by(git_tokens.c.expires_at).limit(limit))).scalars())

    async def delete_git_token(self, token_id: str) -> bool:
        """Forget one that is revoked or has expired; whether it was there. Safe to repeat. Raises VaultError."""
        is_it = git_tokens.c.id == token_id
        async with self._parts.database.writing() as writing:
            session_id = (await writing.execute(select(git_tokens.c.session_id).where(is_it))).scalar()
            await writing.execute(delete(git_tokens).where(is_it))
        if session_id is None:
            return False
        self._parts.changed(git_tokens.name, session_id)
        return True

    async def sessions_with_git_tokens(
        self, after: tuple[str, str] = ("", ""), limit: int = 100
    ) -> list[SecretsOfSession]:
        """The next sessions that have tokens, in order, after (session id, run id). Raises VaultError."""
        which = (git_tokens.c.session_id, git_tokens.c.run_id)
        latest = func.max(git_tokens.c.created_at).label("updated_at")
        wanted = select(*which, func.count().label("values"), latest)
        wanted = wanted.where(tuple_(*which) > tuple_(*after)).group_by(*which).order_by(*which).limit(limit)
        async with self._parts.database.reading() as reading:
            return [SecretsOfSession(**row) for row in (await reading.execute(wanted)).mappings()]


def _of(session_id: str, run_id: str) -> ColumnElement[bool]:
    return and_(git_tokens.c.session_id == session_id, git_tokens.c.run_id == run_id)
