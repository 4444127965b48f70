"""Incidents, with one alert at the start and one at the end, and the newest failed run of each version."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME

revision = "v0011"
down_revision = "v0010"
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
    op.create_table(
        "failed_run",
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("hit", sa.Boolean(), nullable=False),
        sa.Column("host_fault", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_failed_run_version",
        ),
        sa.PrimaryKeyConstraint("strategy_name", "version"),
    )
    op.create_index("one_open_incident", "incident", ["cause"], unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN)
