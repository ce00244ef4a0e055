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
from datetime import datetime, timedelta
from typing import Any

from pydantic import SecretStr
from sqlalchemy import ColumnElement, RowMapping, and_, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from sandhold.security import KeyRingUnusable, SecurityError
from sandhold.security.envelope import size_of
from sandhold.security.secret_forms import is_searchable
from sandhold.vault.parts import Parts, now
from sandhold.vault.records import RETIRED_BYTES_PER_SESSION, RETIRED_PER_SESSION, SECRET_BYTES
from sandhold.vault.schema import PlaceOf, place_of_retired_secret, place_of_secret, retired_secrets, secrets

logger = logging.getLogger("sandhold.vault")

_A_MOMENT = timedelta(microseconds=1)
"""The least that both databases tell apart."""


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

        One that does not open is not kept, nor are earlier ones of this name: nobody could search for them, and a
        session that has one cannot redact. Setting or removing the secret, by whatever value, is what mends it. Raises
        VaultError and KeyRingUnusable.
        """
        is_it = and_(secrets.c.session_id == session_id, secrets.c.run_id == run_id, secrets.c.name == name)
        async with self._parts.database.reading() as reading:
            current = (await reading.execute(select(secrets).where(is_it))).mappings().first()
            wanted = select(retired_secrets).where(_of(session_id, run_id), retired_secrets.c.name == name)
            earlier = (await reading.execute(wanted)).mappings().all()
        kept = {str(row["id"]): await self._opened(row, place_of_retired_secret) for row in earlier}
        damaged = [each for each, value in kept.items() if value is None]
        if current is None:
            return Retiring(None, in_its_place=damaged)
        was = bytes(current["sealed"])
        value = await self._opened(current, place_of_secret)
        if value is None or value == new or not is_searchable(value):
            return Retiring(was, in_its_place=damaged)
        row: dict[str, Any] = {"id": uuid.uuid4().hex, "session_id": session_id, "run_id": run_id, "name": name}
        row["sealed"] = await self._parts.envelope.seal(value, place_of_retired_secret(row))
        return Retiring(was, row, [*damaged, *(each for each, earlier_value in kept.items() if earlier_value == value)])

    async def _opened(self, row: RowMapping, place_of: PlaceOf) -> bytes | None:
        """The value of a row that may be dropped; None when it does not open."""
        try:
            return await self._parts.envelope.open(bytes(row["sealed"]), place_of(dict(row)))
        except KeyRingUnusable:
            raise
        except SecurityError as error:
            logger.warning(
                "a value of a secret that does not open is dropped; output that shows it is not redacted",
                extra={"session": row["session_id"], "secret": row["name"], "error": type(error).__name__},
            )
            return None

    async def keep(
        self, writing: AsyncConnection, session_id: str, run_id: str, retiring: Retiring, secrets_bytes: int
    ) -> None:
        """Keep the value, within the transaction that replaces it and after which secrets have so many bytes in all.

        The oldest make room for later ones and for the secrets; this one always has room, whatever the clocks of those
        who kept others before.
        """
        if retiring.row is not None:
            latest = select(func.max(retired_secrets.c.retired_at)).where(_of(session_id, run_id))
            before: datetime | None = (await writing.execute(latest)).scalar()
            retired_at = now() if before is None else max(now(), before + _A_MOMENT)
            await writing.execute(insert(retired_secrets).values(**retiring.row, retired_at=retired_at))
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
