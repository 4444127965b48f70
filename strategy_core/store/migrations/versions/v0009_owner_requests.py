"""What owners ask for in forms is written down before it is done, so that it cannot be lost with a process."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME

revision = "v0009"
down_revision = "v0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "owner_request",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("parameters", JSON, nullable=False),
        sa.Column("signed_in", sa.String(), nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("taken_by", sa.String(), nullable=False),
        sa.Column("taken_until", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.CheckConstraint("ended_at IS NOT NULL OR (NOT failed AND line = '')", name="ck_request_ended"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "ix_request_open",
        "owner_request",
        ["taken_until"],
        sqlite_where=sa.text("ended_at IS NULL"),
        postgresql_where=sa.text("ended_at IS NULL"),
    )
