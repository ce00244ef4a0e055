"""The secrets of sessions. They belong to a session's first run: a later session of the same id never gets them."""

from __future__ import annotations

import hashlib
import uuid

from pydantic import SecretStr
from sqlalchemy import ColumnElement, and_, delete, func, insert, select, tuple_, update

from sandhold.vault.errors import SecretMissing, SecretsFull
from sandhold.vault.parts import Parts, now
from sandhold.vault.records import SECRETS_PER_SESSION, SecretRow, SecretsOfSession, valid_name, valid_secret
from sandhold.vault.schema import claims, place_of_secret, secrets


class StoredSecrets:
    """The table of secrets."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def set_secret(self, session_id: str, run_id: str, name: str, value: SecretStr) -> SecretRow:
        """Store a secret of a session, in place of one of this name.

        Raises ValueRefused, SecretsFull, VaultError and SecurityError.
        """
        valid_name(session_id, name)
        data = valid_secret(value)
        moment = now()
        row = {"session_id": session_id, "run_id": run_id, "name": name}
        sealed = await self._parts.envelope.seal(data, place_of_secret(row))
        is_it = and_(_of(session_id, run_id), secrets.c.name == name)
        async with self._parts.database.writing() as writing:
            await self._parts.database.lock(writing, _lock_of(session_id, run_id))
            created_at = (await writing.execute(select(secrets.c.created_at).where(is_it))).scalar()
            if created_at is not None:
                await writing.execute(update(secrets).where(is_it).values(sealed=sealed, updated_at=moment))
            else:
                count = select(func.count()).select_from(secrets).where(_of(session_id, run_id))
                if (await writing.execute(count)).scalar_one() >= SECRETS_PER_SESSION:
                    raise SecretsFull(session_id, SECRETS_PER_SESSION)
                new = {**row, "id": uuid.uuid4().hex, "sealed": sealed, "created_at": moment, "updated_at": moment}
                await writing.execute(insert(secrets).values(**new))
        self._parts.changed(secrets.name, session_id)
        return SecretRow(**row, created_at=created_at or moment, updated_at=moment)

    async def secrets(self, session_id: str, run_id: str) -> dict[str, SecretStr]:
        """All secrets of the session, by name. Raises VaultError; SecurityError when one does not open here."""
        wanted = select(secrets).where(_of(session_id, run_id)).order_by(secrets.c.name)
        async with self._parts.database.reading() as reading:
            rows = (await reading.execute(wanted)).mappings().all()
        opened = {}
        for row in rows:
            value = await self._parts.envelope.open(row["sealed"], place_of_secret(dict(row)))
            opened[str(row["name"])] = SecretStr(value.decode())
        return opened

    async def secret_rows(self, session_id: str, run_id: str) -> list[SecretRow]:
        """What secrets the session has, by name, without their values. Raises VaultError."""
        shown = [secrets.c[name] for name in SecretRow.model_fields]
        wanted = select(*shown).where(_of(session_id, run_id)).order_by(secrets.c.name)
        async with self._parts.database.reading() as reading:
            return [SecretRow(**row) for row in (await reading.execute(wanted)).mappings()]

    async def delete_secret(self, session_id: str, run_id: str, name: str) -> None:
        """Forget one. Raises SecretMissing and VaultError."""
        async with self._parts.database.writing() as writing:
            done = await writing.execute(delete(secrets).where(_of(session_id, run_id), secrets.c.name == name))
            if done.rowcount != 1:
                raise SecretMissing(session_id, name)
        self._parts.changed(secrets.name, session_id)

    async def delete_secrets(self, session_id: str, run_id: str) -> int:
        """Forget all of a session; how many there were. Raises VaultError."""
        async with self._parts.database.writing() as writing:
            done = await writing.execute(delete(secrets).where(_of(session_id, run_id)))
        self._parts.changed(secrets.name, session_id)
        return done.rowcount

    async def sessions_with_secrets(
        self, after: tuple[str, str] = ("", ""), limit: int = 100
    ) -> list[SecretsOfSession]:
        """The next sessions that have secrets, in order, after (session id, run id). Raises VaultError."""
        which = (secrets.c.session_id, secrets.c.run_id)
        wanted = select(*which, func.count().label("names"), func.max(secrets.c.updated_at).label("updated_at"))
        wanted = wanted.where(tuple_(*which) > tuple_(*after)).group_by(*which).order_by(*which).limit(limit)
        async with self._parts.database.reading() as reading:
            return [SecretsOfSession(**row) for row in (await reading.execute(wanted)).mappings()]

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


def _of(session_id: str, run_id: str) -> ColumnElement[bool]:
    return and_(secrets.c.session_id == session_id, secrets.c.run_id == run_id)


def _lock_of(*what: str) -> int:
    """A number of 64 bits with a sign; that two things get the same one costs them a wait."""
    return int.from_bytes(hashlib.sha256("\0".join(what).encode()).digest()[:8], signed=True)
