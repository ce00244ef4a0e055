"""Run by alembic: brings the database on the given connection, within its transaction, to the wanted version."""

from __future__ import annotations

from alembic import context

from sandhold.vault.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
