"""The clock of a replayed market, which every process that opens the database uses."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import TIME

revision = "v0012"
down_revision = "v0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "replay_clock",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("replay_from", TIME, nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("speed", sa.Float(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_one_clock"),
        sa.CheckConstraint("speed > 0 AND speed <= 1000000", name="ck_clock_speed"),
        sa.PrimaryKeyConstraint("id"),
    )
