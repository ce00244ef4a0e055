"""The secrets of sessions. They belong to a session's first run: a later session of the same id never gets them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretStr
from sqlalchemy import ColumnElement, and_, delete, func, insert, select, tuple_, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from sandhold.vault.errors import SecretMissing, SecretsFull, SecretsTooLarge
from sandhold.vault.parts import Parts, now
from sandhold.vault.records import (
    SECRETS_BYTES_PER_SESSION,
    SECRETS_PER_SESSION,
    SecretRow,
    SecretsOfSession,
    SessionValues,
    valid_name,
    valid_secret,
)
from sandhold.vault.retired_secrets import RetiredSecrets, weight_of
from sandhold.vault.schema import claims, place_of_secret, retired_secrets, secrets


@dataclass(frozen=True)
class _Stored:
    """A secret as it is stored."""

    sealed: bytes
    created_at: datetime

    @property
    def size(self) -> int:
        """Bytes of its value."""
        return weight_of(self.sealed)


class StoredSecrets:
    """The table of secrets, and behind it that of their earlier values."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._retired = RetiredSecrets(parts)

    async def set_secret(self, session_id: str, run_id: str, name: str, value: SecretStr) -> SecretRow:
        """Store a secret of a session, in place of one of this name, whose value is kept for redaction.

        Raises ValueRefused, SecretsFull, SecretsTooLarge, VaultError and SecurityError; nothing is changed then.
        """
        valid_name(session_id, name)
        data = valid_secret(value)
        moment = now()
        row = {"session_id": session_id, "run_id": run_id, "name": name}
        while True:
            primary = await self._parts.envelope.primary()
            sealed = await self._parts.envelope.seal(data, place_of_secret(row))
            retiring = await self._retired.prepared(session_id, run_id, name, data)
            async with self._alone_with(session_id, run_id) as (writing, stored):
                current = stored.pop(name, None)
                if (None if current is None else current.sealed) != retiring.was:
                    # Somebody was quicker, or has wrapped it anew: what is to be kept is another value now.
                    continue
                if await self._parts.envelope.primary() != primary:
                    # The wait was long: a rotation may have been here already, and would leave the values behind.
                    continue
                used = sum(each.size for each in stored.values())
                _check_room(session_id, len(data), used, current, len(stored))
                if current is not None:
                    wanted = update(secrets).where(_of(session_id, run_id), secrets.c.name == name)
                    await writing.execute(wanted.values(sealed=sealed, updated_at=moment))
                else:
                    new = {**row, "id": uuid.uuid4().hex, "sealed": sealed, "created_at": moment, "updated_at": moment}
                    await writing.execute(insert(secrets).values(**new))
                await self._retired.keep(writing, session_id, run_id, retiring, used + len(data))
            self._parts.changed(secrets.name, session_id)
            return SecretRow(**row, created_at=current.created_at if current else moment, updated_at=moment)

    async def secrets(self, session_id: str, run_id: str) -> dict[str, SecretStr]:
        """All that are set for the session, by name. Raises VaultError; SecurityError when one does not open here."""
        wanted = select(secrets).where(_of(session_id, run_id)).order_by(secrets.c.name)
        async with self._parts.database.reading() as reading:
            rows = (await reading.execute(wanted)).mappings().all()
        opened = {}
        for row in rows:
            value = await self._parts.envelope.open(row["sealed"], place_of_secret(dict(row)))
            opened[str(row["name"])] = SecretStr(value.decode())
        return opened

    async def secret_values(self, session_id: str, run_id: str) -> SessionValues:
        """The session's secrets, and all that must not be shown beside them. As `secrets`."""
        # In this order: a value that is replaced in between is seen twice, not missed.
        usable = await self.secrets(session_id, run_id)
        return SessionValues(usable, await self._retired.values(session_id, run_id))

    async def retired_count(self, session_id: str, run_id: str) -> int:
        """How many values that were replaced or removed are kept for redaction. Raises VaultError."""
        return await self._retired.count(session_id, run_id)

    async def secret_rows(self, session_id: str, run_id: str) -> list[SecretRow]:
        """What secrets the session has, by name, without their values. Raises VaultError."""
        shown = [secrets.c[name] for name in SecretRow.model_fields]
        wanted = select(*shown).where(_of(session_id, run_id)).order_by(secrets.c.name)
        async with self._parts.database.reading() as reading:
            return [SecretRow(**row) for row in (await reading.execute(wanted)).mappings()]

    async def delete_secret(self, session_id: str, run_id: str, name: str) -> None:
        """Remove one; its value is kept for redaction. Raises SecretMissing, VaultError and KeyRingUnusable."""
        while True:
            primary = await self._parts.envelope.primary()
            retiring = await self._retired.prepared(session_id, run_id, name, None)
            async with self._alone_with(session_id, run_id) as (writing, stored):
                if (current := stored.pop(name, None)) is None:
                    raise SecretMissing(session_id, name)
                if current.sealed != retiring.was or await self._parts.envelope.primary() != primary:
                    continue
                await writing.execute(delete(secrets).where(_of(session_id, run_id), secrets.c.name == name))
                used = sum(each.size for each in stored.values())
                await self._retired.keep(writing, session_id, run_id, retiring, used)
            self._parts.changed(secrets.name, session_id)
            return

    async def delete_secrets(self, session_id: str, run_id: str) -> int:
        """Forget all of a session, those kept for redaction as well; how many there were. Raises VaultError."""
        async with self._parts.database.writing() as writing:
            await self._parts.database.lock(writing, _lock_of(session_id, run_id))
            done = await writing.execute(delete(secrets).where(_of(session_id, run_id)))
            retired = await self._retired.forget(writing, session_id, run_id)
        self._parts.changed(secrets.name, session_id)
        return done.rowcount + retired

    async def sessions_with_secrets(
        self, after: tuple[str, str] = ("", ""), limit: int = 100
    ) -> list[SecretsOfSession]:
        """The next sessions that have secrets, or had, in order, after (session id, run id). Raises VaultError."""
        stored = union_all(
            select(secrets.c.session_id, secrets.c.run_id, secrets.c.updated_at),
            select(
                retired_secrets.c.session_id, retired_secrets.c.run_id, retired_secrets.c.retired_at.label("updated_at")
            ),
        ).subquery()
        which = (stored.c.session_id, stored.c.run_id)
        wanted = select(*which, func.count().label("values"), func.max(stored.c.updated_at).label("updated_at"))
        wanted = wanted.where(tuple_(*which) > tuple_(*after)).group_by(*which).order_by(*which).limit(limit)
        async with self._parts.database.reading() as reading:
            return [SecretsOfSession(**row) for row in (await reading.execute(wanted)).mappings()]

    @asynccontextmanager
    async def _alone_with(
        self, session_id: str, run_id: str
    ) -> AsyncIterator[tuple[AsyncConnection, dict[str, _Stored]]]:
        """A transaction that alone changes the session's secrets, and what is stored of them by name."""
        async with self._parts.database.writing() as writing:
            await self._parts.database.lock(writing, _lock_of(session_id, run_id))
            wanted = select(secrets.c.name, secrets.c.sealed, secrets.c.created_at).where(_of(session_id, run_id))
            rows = (await writing.execute(wanted)).mappings().all()
            yield writing, {row["name"]: _Stored(bytes(row["sealed"]), row["created_at"]) for row in rows}

    async def claimed_by(self) -> str | None:
        """The deployment whose this vault is; None when none has claimed it. Raises VaultError."""
        async with self._parts.database.reading() as reading:
            found: str | None = (await reading.execute(select(claims.c.deployment))).scalar()
        return found

    async def claim(self, deployment: str) -> str:
        """Claim the vault for a deployment unless one has; whose it is then. Raises VaultError."""
        async with self._parts.database.writing() as writing:
            await self._parts.database.lock(writing, _lock_of("claim", ""))
            found: str | None = (await writing.execute(select(claims.c.deployment))).scalar()
            if found is None:
                await writing.execute(insert(claims).values(id=1, deployment=deployment, claimed_at=now()))
        return found or deployment


def _check_room(session_id: str, size: int, used: int, replaced: _Stored | None, others: int) -> None:
    """Raise SecretsFull or SecretsTooLarge when there is no room for so many bytes beside the other secrets."""
    if replaced is None and others >= SECRETS_PER_SESSION:
        raise SecretsFull(session_id, SECRETS_PER_SESSION)
    # Sessions from before there was this limit may have more; what does not grow is taken from them as well.
    grows = replaced is None or size > replaced.size
    if grows and used + size > SECRETS_BYTES_PER_SESSION:
        raise SecretsTooLarge(session_id, size=size, used=used, most=SECRETS_BYTES_PER_SESSION)


def _of(session_id: str, run_id: str) -> ColumnElement[bool]:
    return and_(secrets.c.session_id == session_id, secrets.c.run_id == run_id)


def _lock_of(*what: str) -> int:
    """A number of 64 bits with a sign; that two things get the same one costs them a wait."""
    return int.from_bytes(hashlib.sha256("\0".join(what).encode()).digest()[:8], signed=True)
