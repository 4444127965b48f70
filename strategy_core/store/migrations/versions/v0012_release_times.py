"""Freezes of releases, and starts of rollouts that are scheduled for a later time.

Rows are not edited or deleted. A freeze is lifted once, and a scheduled start ends once.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0012"
down_revision = "v0011"
branch_labels = None
depends_on = None

_FREEZE = ("id", "strategy_name", "starts_at", "ends_at", "reason", "set_at", "set_by")
_LIFT = ("lifted_at", "lifted_by", "lifted_because")
_START = (
    *("id", "strategy_name", "version", "plan", "start_at", "asked_at", "actor", "role", "source"),
    *("reason", "override_reason"),
)
_END = ("ended_at", "outcome", "ended_because", "rollout_id")
_PENDING = sa.text("ended_at IS NULL")


def upgrade() -> None:
    op.create_table(
        "release_freeze",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("starts_at", TIME, nullable=False),
        sa.Column("ends_at", TIME, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.Column("lifted_at", TIME, nullable=True),
        sa.Column("lifted_by", sa.String(), nullable=False),
        sa.Column("lifted_because", sa.Text(), nullable=False),
        sa.CheckConstraint("starts_at < ends_at", name="ck_freeze_span"),
        sa.CheckConstraint("(lifted_at IS NULL) = (lifted_by = '')", name="ck_freeze_lifted"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_release_freeze", "release_freeze", ["strategy_name", "ends_at"])
    op.create_table(
        "scheduled_start",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("plan", JSON, nullable=False),
        sa.Column("start_at", TIME, nullable=False),
        sa.Column("asked_at", TIME, nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("override_reason", sa.Text(), nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("outcome", sa.String(), nullable=False),
        sa.Column("ended_because", sa.Text(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=True),
        sa.CheckConstraint("outcome IN ('', 'started', 'refused', 'cancelled')", name="ck_start_outcome"),
        sa.CheckConstraint("(ended_at IS NULL) = (outcome = '')", name="ck_start_ended"),
        sa.CheckConstraint("(outcome = 'started') = (rollout_id IS NOT NULL)", name="ck_start_rollout"),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_start_version",
        ),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "one_scheduled_start_per_strategy",
        "scheduled_start",
        ["strategy_name"],
        unique=True,
        sqlite_where=_PENDING,
        postgresql_where=_PENDING,
    )
    _guard("release_freeze", _FREEZE, _LIFT, "OLD.lifted_at IS NOT NULL", "a freeze is lifted once")
    _guard("scheduled_start", _START, _END, "OLD.ended_at IS NOT NULL", "a scheduled start ends once")


def _guard(table: str, fixed: Sequence[str], end: Sequence[str], has_ended: str, once: str) -> None:
    """Refuse every change of a row but its end, and a second end."""
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    refuse(on_postgresql, table, f"UPDATE OF {', '.join(fixed)}", f"{table} is never edited: make a new one")
    refuse(on_postgresql, table, "DELETE", f"{table} is never deleted")
    trigger = f"CREATE TRIGGER end_once_{table} BEFORE UPDATE OF {', '.join(end)} ON {table} FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{trigger} WHEN ({has_ended}) EXECUTE FUNCTION refuse_change('{once}')")
        op.execute(
            f"CREATE TRIGGER refuse_truncate_{table} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION refuse_change('{table} is never emptied')"
        )
    else:
        op.execute(f"{trigger} WHEN {has_ended} BEGIN SELECT RAISE(ABORT, '{once}'); END")
