"""Incidents: faults that last, with one alert at the start and one at the end."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME

revision = "v0011"
down_revision = "v0008"
branch_labels = None
depends_on = None

_OPEN = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "incident",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cause", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("seen_at", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("affected", JSON, nullable=False),
        sa.Column("alerted", JSON, nullable=False),
        sa.Column("alerted_at", TIME, nullable=False),
        sa.Column("alerts", sa.Integer(), nullable=False),
        sa.CheckConstraint("alerts >= 1", name="ck_incident_alerts"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("one_open_incident", "incident", ["cause"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
