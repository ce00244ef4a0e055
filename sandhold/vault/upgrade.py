"""The upgrade itself, by alembic, which is loaded only when there is something to do."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from sandhold.vault.errors import VaultNewer
from sandhold.vault.schema import HEAD
from sandhold.vault.schema_version import version_of

logger = logging.getLogger("sandhold.vault")

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(connection: Connection) -> None:
    """Bring the database to this build's version, within the connection's transaction. Raises VaultNewer."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    found = version_of(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise VaultNewer(found)
    command.upgrade(config, HEAD)
    if found != HEAD:
        logger.info("the vault was brought to a new version", extra={"from": found, "to": HEAD})
