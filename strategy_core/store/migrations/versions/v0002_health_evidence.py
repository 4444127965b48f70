"""Evidence for the health gates: booked slots, metric samples, live trades, and the platform's users."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import FROZEN, JSON, TIME, refuse

revision = "v0002"
down_revision = "v0001"
branch_labels = None
depends_on = None

EVIDENCE = ("booked_slot", "metric_sample", "live_trade")
ROLLOUT = sa.table("rollout", sa.column("id", sa.Uuid()), sa.column("plan", JSON))
BOOK = sa.table(
    "rollout_book",
    sa.column("rollout_id", sa.Uuid()),
    sa.column("history", JSON),
    sa.column("slots", sa.Integer()),
    sa.column("totals", JSON),
)


def upgrade() -> None:
    op.drop_table("live_trade_outcome")  # nothing ever wrote to it
    op.create_table(
        "rollout_book",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("history", JSON, nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("totals", JSON, nullable=False),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("rollout_id"),
    )
    op.create_table(
        "booked_slot",
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=False),
        sa.Column("booked_at", TIME, nullable=False),
        sa.Column("canary_r", sa.Float(), nullable=False),
        sa.Column("active_r", sa.Float(), nullable=False),
        sa.Column("canary_side", sa.Integer(), nullable=False),
        sa.Column("active_side", sa.Integer(), nullable=False),
        sa.CheckConstraint("canary_side IN (-1, 0, 1) AND active_side IN (-1, 0, 1)", name="ck_sides"),
        sa.CheckConstraint("canary_side <> 0 OR active_side <> 0", name="ck_signalled"),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("rollout_id", "position"),
        sa.UniqueConstraint("rollout_id", "symbol", "timestamp", name="uq_slot"),
    )
    op.create_table(
        "metric_sample",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("gate", sa.String(), nullable=False),
        sa.Column("taken_at", TIME, nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("problem", sa.Text(), nullable=False),
        sa.CheckConstraint("(value IS NULL) = (problem <> '')", name="ck_sample"),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("rollout_id", "gate", "taken_at", name="uq_sample"),
    )
    op.create_table(
        "platform_user",
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("capital", sa.Float(), nullable=True),
        sa.Column("loaded_at", TIME, nullable=False),
        sa.CheckConstraint("capital >= 0", name="ck_capital"),
        sa.PrimaryKeyConstraint("user_id"),
    )
    op.create_table(
        "live_trade",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trade_id", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("candle_s", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("pnl", sa.Float(), nullable=True),
        sa.Column("risk", sa.Float(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("canary_bp", sa.Integer(), nullable=False),
        sa.Column("misrouted", sa.Boolean(), nullable=False),
        sa.Column("ingested_at", TIME, nullable=False),
        sa.CheckConstraint("state IN ('open', 'closed', 'failed')", name="ck_live_state"),
        sa.CheckConstraint("(state = 'closed') = (closed_at IS NOT NULL AND pnl IS NOT NULL)", name="ck_live_closed"),
        sa.CheckConstraint("(state = 'failed') = (error <> '')", name="ck_live_failed"),
        sa.CheckConstraint("risk > 0", name="ck_live_risk"),
        sa.CheckConstraint("state <> 'closed' OR risk IS NOT NULL", name="ck_live_r"),
        sa.CheckConstraint("latency_ms >= 0", name="ck_live_latency"),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_live_trade_version",
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("trade_id", "state", name="uq_live_trade"),
    )
    op.create_index("ix_live_trade", "live_trade", ["strategy_name", "opened_at"], unique=False)
    op.create_index(
        "ix_live_misrouted",
        "live_trade",
        ["strategy_name", "opened_at"],
        unique=False,
        sqlite_where=sa.text("misrouted = 1"),
        postgresql_where=sa.text("misrouted"),
    )

    on_postgresql = op.get_bind().dialect.name == "postgresql"
    take_over_rollouts(on_postgresql)
    for table in EVIDENCE:
        refuse(on_postgresql, table, "UPDATE", f"{table} is evidence: its rows are never changed")
        refuse(on_postgresql, table, "DELETE", f"{table} is evidence: its rows are never deleted")
    refuse(
        on_postgresql,
        "rollout_book",
        "UPDATE OF rollout_id, history",
        "rollout_book keeps its history: it is never edited",
    )
    refuse(on_postgresql, "rollout_book", "DELETE", "rollout_book is never deleted")
    if on_postgresql:
        for table in (*EVIDENCE, "rollout_book"):
            op.execute(
                f"CREATE TRIGGER refuse_truncate_{table} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
                f"EXECUTE FUNCTION refuse_change('{table} is never emptied')"
            )


def take_over_rollouts(on_postgresql: bool) -> None:
    """Give rollouts of the first release the gates that took the place of theirs: an open one must stay protected.

    Their pairs' histories were not measured: they begin with none, which is the cautious guess. What they have seen
    since their start is booked at their next tick.
    """
    run = op.get_bind().execute
    known = run(sa.select(ROLLOUT.c.id, ROLLOUT.c.plan)).all()
    if not known:
        return
    run(sa.insert(BOOK), [{"rollout_id": one.id, "history": {}, "slots": 0, "totals": {}} for one in known])
    op.execute("DROP TRIGGER refuse_update_rollout" + (" ON rollout" if on_postgresql else ""))
    for one in known:
        gates = [new for gate in one.plan["gates"] for new in _successors(gate)]
        run(sa.update(ROLLOUT).where(ROLLOUT.c.id == one.id).values(plan={**one.plan, "gates": gates}))
    columns = ", ".join(FROZEN["rollout"])
    refuse(on_postgresql, "rollout", f"UPDATE OF {columns}", "rollout is never edited: make a new one")


def _successors(gate: dict[str, Any]) -> list[dict[str, Any]]:
    if gate["kind"] != "paired_difference":
        return [gate]
    kept: dict[str, Any] = {
        name: gate[name] for name in ("dry_run", "minimum_slots", "minimum_days", "confidence") if name in gate
    }
    return [{"kind": "harm", "dry_run": gate.get("dry_run", False)}, {"kind": "not_worse", **kept}]
