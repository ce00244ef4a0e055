"""The vault's tables, and every column of them that holds something encrypted.

A change here needs a migration in `migrations/versions`: a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, Column, DateTime, Dialect, Index, Integer, LargeBinary, MetaData, String, Table
from sqlalchemy import UniqueConstraint as Unique
from sqlalchemy.types import TypeDecorator

from sandhold.security import Place

HEAD = "0003"
"""The version of the schema that this build works with: the newest migration."""
VERSION_TABLE = "vault_version"

Row = Mapping[str, Any]
PlaceOf = Callable[[Row], Place]


class Moment(TypeDecorator[datetime]):
    """A time with its zone, UTC: SQLite keeps none."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(column_0_N_label)s",
    }
)


def place_of_connection(row: Row) -> Place:
    """The version, the organization and the address are part of it: a key never goes to an address that was put there
    by somebody who can write to the database alone."""
    name = "/".join([row["provider"], str(row["version"]), row["organization"] or "", row["api_url"] or ""])
    return Place("connection", row["owner"], row["id"], name)


def place_of_secret(row: Row) -> Place:
    """The session's first run is part of it: a later session of the same id does not open it."""
    return Place("session secret", row["session_id"], row["run_id"], row["name"])


def place_of_retired_secret(row: Row) -> Place:
    """Another place than the secret's own: a value that was replaced cannot be put back as the one in use."""
    return Place("retired session secret", row["session_id"], row["run_id"], f"{row['name']}/{row['id']}")


def place_of_git_token(row: Row) -> Place:
    """A token is revoked at the address that is part of it, and nowhere else: who can write to the database alone
    cannot have it sent to a server of his own."""
    name = "/".join([row["id"], row["sandbox_id"], row["api_url"]])
    return Place("git token", row["session_id"], row["run_id"], name)


connections = Table(
    "connections",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("provider", String(32), nullable=False),
    Column("version", Integer, nullable=False),
    Column("api_url", String(2000)),
    Column("organization", String(200)),
    Column("details", JSON, nullable=False),
    Column("hint", String(4), nullable=False),
    Column("sealed", LargeBinary, nullable=False, info={"place": place_of_connection}),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("last_used_at", Moment),
    Column("last_failure_at", Moment),
    Column("last_failure", String(64)),
    Unique("owner", "provider"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("session_id", String(63), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("sealed", LargeBinary, nullable=False, info={"place": place_of_secret}),
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Unique("session_id", "run_id", "name"),
)

retired_secrets = Table(
    "retired_secrets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("session_id", String(63), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("sealed", LargeBinary, nullable=False, info={"place": place_of_retired_secret}),
    Column("retired_at", Moment, nullable=False),
    Index("ix_retired_secrets_session_id_run_id", "session_id", "run_id"),
)
"""Values that were replaced or removed: what runs may still print them, so they are known until the clean-up."""

git_tokens = Table(
    "git_tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", String(128), nullable=False),
    Column("session_id", String(63), nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("sandbox_id", String(63), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("call_id", String(128)),
    Column("api_url", String(2000), nullable=False),
    Column("sealed", LargeBinary, nullable=False, info={"place": place_of_git_token}),
    Column("expires_at", Moment, nullable=False),
    Column("created_at", Moment, nullable=False),
    Index("ix_git_tokens_session_id_run_id", "session_id", "run_id"),
    Index("ix_git_tokens_expires_at", "expires_at"),
)
"""Tokens that were minted for a sandbox, until they are revoked or have expired."""

claims = Table(
    "claims",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("deployment", String(64), nullable=False),
    Column("claimed_at", Moment, nullable=False),
)
"""One row at most: the deployment whose clean-up may remove what its Temporal does not know."""


@dataclass(frozen=True)
class SealedColumn:
    """A column of encrypted values."""

    label: str
    table: Table
    column: Column[bytes]
    place: PlaceOf


def sealed_columns(of: MetaData) -> dict[str, SealedColumn]:
    """Every column of bytes, by `table.column`. Raises TypeError for one of which nobody says where its values belong.

    Each table of such a column has a text `id`, by which rotation goes over it.
    """
    found = {}
    for table in of.sorted_tables:
        for column in table.columns:
            if isinstance(column.type, LargeBinary):
                label = f"{table.name}.{column.name}"
                if "place" not in column.info or not isinstance(table.columns.id.type, String):
                    raise TypeError(f"{label} holds bytes, but nothing says where they belong: set its info['place']")
                found[label] = SealedColumn(label, table, column, column.info["place"])
    return dict(sorted(found.items()))


SEALED_COLUMNS = sealed_columns(metadata)
"""What rotation has to wrap again, by `table.column`, in its order."""
