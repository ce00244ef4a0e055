"""Values of session secrets that were replaced or removed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retired_secrets",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("session_id", sa.String(63), nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(128), nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_retired_secrets"),
    )
    op.create_index("ix_retired_secrets_session_id_run_id", "retired_secrets", ["session_id", "run_id"])
