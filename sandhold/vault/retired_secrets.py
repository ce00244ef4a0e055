"""Values of secrets that were replaced or removed.

What runs may still print them, in whatever process follows it, so they are kept for redaction until the session's
clean-up. They are for nothing else: no command gets one.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr
from sqlalchemy import ColumnElement, RowMapping, and_, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sandhold.security import KeyRingUnusable, SecurityError
from sandhold.security.envelope import size_of
from sandhold.security.secret_forms import is_searchable
from sandhold.vault.parts import Parts, now
from sandhold.vault.records import RETIRED_BYTES_PER_SESSION, RETIRED_PER_SESSION, SECRET_BYTES
from sandhold.vault.schema import place_of_retired_secret, place_of_secret, retired_secrets, secrets

logger = logging.getLogger("sandhold.vault")


@dataclass(frozen=True)
class Retiring:
    """A value that is about to be replaced or removed, made ready to be kept."""

    was: bytes | None
    """As it is stored; None when there is none."""
    row: dict[str, Any] | None = None
    """To keep it by; None when there is nothing to keep."""
    in_its_place: Sequence[str] = ()
    """Ids of those that need not be kept beside it: of the same value, or such that do not open."""


class RetiredSecrets:
    """The table of retired secrets."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def prepared(self, session_id: str, run_id: str, name: str, new: bytes | None) -> Retiring:
        """The value that the secret has now, for `keep`; `new` is what comes in its place.

        One that does not open is not kept: nobody could search for it, and setting the secret anew is what mends it.
        Raises VaultError and KeyRingUnusable.
        """
        is_it = and_(secrets.c.session_id == session_id, secrets.c.run_id == run_id, secrets.c.name == name)
        async with self._parts.database.reading() as reading:
            current = (await reading.execute(select(secrets).where(is_it))).mappings().first()
            wanted = select(retired_secrets).where(_of(session_id, run_id), retired_secrets.c.name == name)
            earlier = (await reading.execute(wanted)).mappings().all()
        if current is None:
            return Retiring(None)
        was = bytes(current["sealed"])
        try:
            value = await self._parts.envelope.open(was, place_of_secret(dict(current)))
        except KeyRingUnusable:
            raise
        except SecurityError as error:
            logger.warning(
                "a secret that does not open is replaced; output that shows it is not redacted",
                extra={"session": session_id, "secret": name, "error": type(error).__name__},
            )
            return Retiring(was)
        if value == new or not is_searchable(value):
            return Retiring(was)
        row: dict[str, Any] = {"id": uuid.uuid4().hex, "session_id": session_id, "run_id": run_id, "name": name}
        row["sealed"] = await self._parts.envelope.seal(value, place_of_retired_secret(row))
        in_its_place = [str(each["id"]) for each in earlier if await self._is_needless(each, value)]
        return Retiring(was, row, in_its_place)

    async def _is_needless(self, row: RowMapping, value: bytes) -> bool:
        try:
            return await self._parts.envelope.open(bytes(row["sealed"]), place_of_retired_secret(dict(row))) == value
        except KeyRingUnusable:
            raise
        except SecurityError:
            return True

    async def keep(
        self, writing: AsyncConnection, session_id: str, run_id: str, retiring: Retiring, secrets_bytes: int
    ) -> None:
        """Keep the value, within the transaction that replaces it and after which secrets have so many bytes in all.

        The oldest make room for later ones and for the secrets; the latest one always has room.
        """
        if retiring.row is not None:
            await writing.execute(insert(retired_secrets).values(**retiring.row, retired_at=now()))
        wanted = select(retired_secrets.c.id, retired_secrets.c.sealed).where(_of(session_id, run_id))
        wanted = wanted.order_by(retired_secrets.c.retired_at.desc(), retired_secrets.c.id)
        room, places = max(SECRET_BYTES, RETIRED_BYTES_PER_SESSION - secrets_bytes), RETIRED_PER_SESSION
        dropped = []
        for row in (await writing.execute(wanted)).mappings():
            if row["id"] not in retiring.in_its_place:
                room, places = room - weight_of(bytes(row["sealed"])), places - 1
                if room >= 0 and places >= 0:
                    continue
                # What is older goes as well, also what would fit.
                room = -1
            dropped.append(row["id"])
        if dropped:
            await writing.execute(delete(retired_secrets).where(retired_secrets.c.id.in_(dropped)))

    async def values(self, session_id: str, run_id: str) -> list[tuple[str, SecretStr]]:
        """Name and value of each, the latest first. Raises VaultError; SecurityError when one does not open here."""
        wanted = select(retired_secrets).where(_of(session_id, run_id))
        wanted = wanted.order_by(retired_secrets.c.retired_at.desc(), retired_secrets.c.id)
        async with self._parts.database.reading() as reading:
            rows = (await reading.execute(wanted)).mappings().all()
        envelope = self._parts.envelope
        opened = await asyncio.gather(
            *(envelope.open(bytes(row["sealed"]), place_of_retired_secret(dict(row))) for row in rows)
        )
        return [(str(row["name"]), SecretStr(value.decode())) for row, value in zip(rows, opened, strict=True)]

    async def count(self, session_id: str, run_id: str) -> int:
        """How many a session has. Raises VaultError."""
        wanted = select(func.count()).select_from(retired_secrets).where(_of(session_id, run_id))
        async with self._parts.database.reading() as reading:
            return int((await reading.execute(wanted)).scalar_one())

    async def forget(self, writing: AsyncConnection, session_id: str, run_id: str) -> int:
        """Forget all of a session, within a transaction; how many there were."""
        return (await writing.execute(delete(retired_secrets).where(_of(session_id, run_id)))).rowcount


def weight_of(sealed: bytes) -> int:
    """How many bytes a stored value counts for."""
    try:
        return size_of(sealed)
    except SecurityError:
        # Altered: that is for who opens it to say, and must not keep others from being set.
        return len(sealed)


def _of(session_id: str, run_id: str) -> ColumnElement[bool]:
    return and_(retired_secrets.c.session_id == session_id, retired_secrets.c.run_id == run_id)
