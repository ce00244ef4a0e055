"""The connections of owners: one for each provider, whose secret opens only in its own row and version."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from pydantic import JsonValue, SecretStr
from sqlalchemy import ColumnElement, and_, delete, insert, or_, select, update

from sandhold.vault.errors import AlreadyThere, ConnectionChanged, ConnectionMissing, VaultError
from sandhold.vault.parts import Parts, now
from sandhold.vault.records import (
    ConnectionRecord,
    ConnectionRow,
    Provider,
    hint_of,
    valid_connection,
    valid_failure,
    valid_secret,
)
from sandhold.vault.schema import connections, place_of_connection

logger = logging.getLogger("sandhold.vault")

USE_NOTED_EVERY = timedelta(minutes=1)
FAILURE_NOTED_EVERY = timedelta(seconds=10)
"""Shorter: what another process has cleared meanwhile is marked again so soon."""
_SHOWN = [each for each in connections.columns if each.name != "sealed"]
_MANY = 10_000

_Version = tuple[str, int]
"""The connection's id, and the version: a connection that was removed and made again begins at 1 with another id."""


class StoredConnections:
    """The table of connections."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._use_noted: dict[_Version, float] = {}
        self._failure_noted: dict[_Version, tuple[str, float]] = {}

    async def connection(self, owner: str, provider: Provider) -> ConnectionRecord | None:
        """The owner's connection with its secret; None when there is none.

        Raises VaultError; and SecurityError, such as Tampered, when the secret does not open here.
        """
        async with self._parts.database.reading() as reading:
            row = (await reading.execute(select(connections).where(_is(owner, provider)))).mappings().first()
        if row is None:
            return None
        secret = await self._parts.envelope.open(row["sealed"], place_of_connection(dict(row)))
        return ConnectionRecord(**_shown(row), secret=SecretStr(secret.decode()))

    async def connection_rows(self, owner: str | None = None) -> list[ConnectionRow]:
        """All connections, or an owner's, in the order of owners and providers. Opens no secret."""
        wanted = select(*_SHOWN).order_by(connections.c.owner, connections.c.provider)
        if owner is not None:
            wanted = wanted.where(connections.c.owner == owner)
        async with self._parts.database.reading() as reading:
            return [ConnectionRow(**_shown(row)) for row in (await reading.execute(wanted)).mappings()]

    async def put_connection(
        self,
        owner: str,
        provider: Provider,
        secret: SecretStr,
        *,
        replaces: int,
        api_url: str | None = None,
        organization: str | None = None,
        details: Mapping[str, JsonValue] | None = None,
    ) -> ConnectionRecord:
        """Store a connection in place of the version `replaces`, which is 0 where there is none yet.

        `details` are not secret. Of two who replace the same version one gets ConnectionChanged, and nothing of it is
        stored. Raises ValueRefused, VaultError and SecurityError.
        """
        valid_connection(owner, provider, api_url, organization)
        value = valid_secret(secret)
        async with self._parts.database.reading() as reading:
            before = (await reading.execute(select(*_SHOWN).where(_is(owner, provider)))).mappings().first()
        if (0 if before is None else before["version"]) != replaces:
            raise ConnectionChanged(owner, provider)
        moment = now()
        row: dict[str, Any] = {
            "id": uuid.uuid4().hex if before is None else before["id"],
            "owner": owner,
            "provider": provider,
            "version": replaces + 1,
            "api_url": api_url,
            "organization": organization,
            "details": dict(details or {}),
            "hint": hint_of(secret),
            "created_at": moment if before is None else before["created_at"],
            "updated_at": moment,
            "last_used_at": None,
            "last_failure_at": None,
            "last_failure": None,
        }
        primary = await self._parts.envelope.primary()
        sealed = await self._parts.envelope.seal(value, place_of_connection(row))
        try:
            async with self._parts.database.writing() as writing:
                if await self._parts.envelope.primary() != primary:
                    # The wait was long: a rotation may have been here already, and would leave the value behind.
                    sealed = await self._parts.envelope.seal(value, place_of_connection(row))
                if before is None:
                    await writing.execute(insert(connections).values(**row, sealed=sealed))
                else:
                    is_the_same = and_(connections.c.id == row["id"], connections.c.version == replaces)
                    done = await writing.execute(update(connections).where(is_the_same).values(**row, sealed=sealed))
                    if done.rowcount != 1:
                        raise ConnectionChanged(owner, provider)
        except AlreadyThere:
            raise ConnectionChanged(owner, provider) from None
        self._parts.changed(connections.name, owner)
        return ConnectionRecord(**row, secret=secret)

    async def delete_connection(self, owner: str, provider: Provider, *, version: int | None = None) -> None:
        """Forget a connection, or only this version. Raises ConnectionMissing, ConnectionChanged and VaultError."""
        async with self._parts.database.writing() as writing:
            found = (await writing.execute(select(connections.c.version).where(_is(owner, provider)))).scalar()
            if found is None:
                raise ConnectionMissing(owner, provider)
            wanted = _is(owner, provider) & (connections.c.version == (found if version is None else version))
            if (await writing.execute(delete(connections).where(wanted))).rowcount != 1:
                raise ConnectionChanged(owner, provider)
        self._parts.changed(connections.name, owner)

    async def note_use(self, owner: str, connection_id: str, version: int) -> None:
        """Note that this version is used, where it is still stored. Costs a write once a minute, however many
        processes use it.

        Bookkeeping: where the database does not take it the use is logged, and noted another time.
        """
        key, moment = (connection_id, version), time.monotonic()
        noted_at = self._use_noted.get(key)
        if noted_at is not None and moment < noted_at + USE_NOTED_EVERY.total_seconds():
            return
        if len(self._use_noted) >= _MANY:
            self._use_noted.clear()
        # Before the write, so that of a hundred calls at once one makes it.
        self._use_noted[key] = moment
        used_at = now()
        long_ago = or_(connections.c.last_used_at.is_(None), connections.c.last_used_at <= used_at - USE_NOTED_EVERY)
        noting = update(connections).where(_is_version(owner, connection_id, version), long_ago)
        try:
            async with self._parts.database.writing() as writing:
                await writing.execute(noting.values(last_used_at=used_at))
        except VaultError as error:
            logger.warning(
                "the use of a connection is not noted: %s", error, extra={"owner": owner, "connection": connection_id}
            )

    async def note_failure(self, owner: str, connection_id: str, version: int, code: str) -> bool:
        """Mark that the provider does not take this version; whether it is still the one that is stored.

        The same failure again within FAILURE_NOTED_EVERY costs no write. `code` is one of ours, never a provider's
        words. Raises ValueRefused and VaultError.
        """
        valid_failure(code)
        key, moment = (connection_id, version), time.monotonic()
        which = _is_version(owner, connection_id, version)
        noted = self._failure_noted.get(key)
        if noted is not None and noted[0] == code and moment < noted[1] + FAILURE_NOTED_EVERY.total_seconds():
            async with self._parts.database.reading() as reading:
                return (await reading.execute(select(connections.c.id).where(which))).scalar() is not None
        if len(self._failure_noted) >= _MANY:
            self._failure_noted.clear()
        # Before the write, so that of a hundred calls that fail at once one makes it.
        self._failure_noted[key] = (code, moment)
        done = False
        try:
            done = await self._mark(owner, which, code)
        finally:
            if not done:
                self._failure_noted.pop(key, None)
        return done

    async def clear_failure(self, owner: str, connection_id: str, version: int) -> bool:
        """Take the mark away: the provider has taken this version. Whether there was one. Raises VaultError."""
        self._failure_noted.pop((connection_id, version), None)
        marked = connections.c.last_failure.is_not(None)
        return await self._mark(owner, _is_version(owner, connection_id, version) & marked, None)

    async def _mark(self, owner: str, which: ColumnElement[bool], code: str | None) -> bool:
        marked = update(connections).where(which)
        marked = marked.values(last_failure=code, last_failure_at=None if code is None else now())
        async with self._parts.database.writing() as writing:
            done = (await writing.execute(marked)).rowcount == 1
        if done:
            self._parts.changed(connections.name, owner)
        return done


def _is(owner: str, provider: str) -> ColumnElement[bool]:
    return and_(connections.c.owner == owner, connections.c.provider == provider)


def _is_version(owner: str, connection_id: str, version: int) -> ColumnElement[bool]:
    return and_(connections.c.owner == owner, connections.c.id == connection_id, connections.c.version == version)


def _shown(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "sealed"}
