"""The first schema: versions, decisions, outcomes, rollouts, audit; and the triggers that keep evidence as it was.

On SQLite `INSERT OR REPLACE` passes them by unless the connection has `PRAGMA recursive_triggers=ON`, as every one that
`store.engine` opens has. A trigger before INSERT cannot stand in for it: it fires for `ON CONFLICT DO NOTHING` as well,
and cannot tell the two apart.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "v0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")

STATES = (
    "state IN ('running', 'paused', 'awaiting_approval', 'awaiting_decision', 'rolled_back', 'completed', 'aborted')"
)
EVIDENCE = (
    "shadow_decision_log",
    "outcome",
    "equity_mark",
    "live_trade_outcome",
    "comparison_report",
    "gate_verdict",
    "audit_event",
)
FROZEN = {  # columns that stay as they were inserted
    "strategy": ("name", "salt", "scoring"),
    "strategy_version": (
        "strategy_name",
        "version",
        "entry_point",
        "config",
        "symbols",
        "timeframe",
        "warmup_bars",
        "fingerprint",
        "fingerprint_parts",
        "registration_report",
    ),
    "rollout": ("strategy_name", "version", "control_version", "plan", "started_at"),
}


def upgrade() -> None:
    op.create_table(
        "alert_outbox",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("severity", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.Column("dedupe_key", sa.String(), nullable=False),
        sa.Column("sent_at", TIME, nullable=True),
        sa.CheckConstraint("severity IN ('info', 'warning', 'critical')", name="ck_severity"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("dedupe_key", name="uq_alert"),
    )
    op.create_index(op.f("ix_alert_outbox_at"), "alert_outbox", ["at"], unique=False)
    op.create_table(
        "audit_event",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("source", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=True),
        sa.Column("before", JSON, nullable=False),
        sa.Column("after", JSON, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_audit_event_rollout_id"), "audit_event", ["rollout_id"], unique=False)
    op.create_index("ix_audit_strategy", "audit_event", ["strategy_name", "id"], unique=False)
    op.create_table(
        "equity_mark",
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        sa.Column("r", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("strategy_name", "version", "symbol", "timestamp"),
    )
    op.create_table(
        "strategy",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("scoring", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "comparison_report",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("shadow_version", sa.String(), nullable=False),
        sa.Column("active_version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("period_start", TIME, nullable=False),
        sa.Column("period_end", TIME, nullable=False),
        sa.Column("report", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["strategy_name"],
            ["strategy.name"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint(
            "strategy_name",
            "shadow_version",
            "active_version",
            "symbol",
            "period_start",
            "period_end",
            name="uq_report",
        ),
    )
    op.create_table(
        "live_trade_outcome",
        sa.Column("trade_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("pnl", sa.Float(), nullable=True),
        sa.Column("risk", sa.Float(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=True),
        sa.Column("ingested_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(
            ["strategy_name"],
            ["strategy.name"],
        ),
        sa.PrimaryKeyConstraint("trade_id"),
    )
    op.create_index("ix_live_trade", "live_trade_outcome", ["strategy_name", "version", "closed_at"], unique=False)
    op.create_table(
        "strategy_version",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("entry_point", sa.String(), nullable=False),
        sa.Column("config", JSON, nullable=False),
        sa.Column("symbols", JSON, nullable=False),
        sa.Column("timeframe", sa.String(), nullable=False),
        sa.Column("warmup_bars", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.String(), nullable=False),
        sa.Column("fingerprint_parts", JSON, nullable=False),
        sa.Column("registration_report", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("activated_at", TIME, nullable=True),
        sa.Column("retired_at", TIME, nullable=True),
        sa.Column("quarantined_at", TIME, nullable=True),
        sa.CheckConstraint("status <> 'active' OR activated_at IS NOT NULL", name="ck_active_since"),
        sa.CheckConstraint("status <> 'retired' OR retired_at IS NOT NULL", name="ck_retired_since"),
        sa.CheckConstraint("status IN ('shadow', 'canary', 'active', 'retired')", name="ck_version_status"),
        sa.CheckConstraint("warmup_bars > 0", name="ck_warmup_bars"),
        sa.ForeignKeyConstraint(
            ["strategy_name"],
            ["strategy.name"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("strategy_name", "fingerprint", name="uq_strategy_fingerprint"),
        sa.UniqueConstraint("strategy_name", "version", name="uq_strategy_version"),
    )
    op.create_index(
        "one_active_per_strategy",
        "strategy_version",
        ["strategy_name"],
        unique=True,
        sqlite_where=sa.text("status = 'active'"),
        postgresql_where=sa.text("status = 'active'"),
    )
    op.create_index(
        "one_canary_per_strategy",
        "strategy_version",
        ["strategy_name"],
        unique=True,
        sqlite_where=sa.text("status = 'canary'"),
        postgresql_where=sa.text("status = 'canary'"),
    )
    op.create_table(
        "canary_config",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("rollout_bp", sa.Integer(), nullable=False),
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.CheckConstraint("rollout_bp BETWEEN 0 AND 10000", name="ck_rollout_bp"),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_canary_version",
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("strategy_name", name="uq_canary_strategy"),
    )
    op.create_table(
        "rollout",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("control_version", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("stage_index", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("plan", JSON, nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("stage_entered_at", TIME, nullable=False),
        sa.Column("stage_extended_at", TIME, nullable=False),
        sa.Column("approved_stage", sa.Integer(), nullable=True),
        sa.Column("blind_since", TIME, nullable=True),
        sa.Column("promoted_at", TIME, nullable=True),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("last_tick_at", TIME, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "(NOT state IN ('aborted', 'completed', 'rolled_back')) = (ended_at IS NULL)", name="ck_rollout_ended"
        ),
        sa.CheckConstraint(
            STATES,
            name="ck_rollout_state",
        ),
        sa.CheckConstraint("stage_index >= 0", name="ck_stage_index"),
        sa.CheckConstraint("version <> control_version", name="ck_rollout_control"),
        sa.ForeignKeyConstraint(
            ["strategy_name", "control_version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_rollout_control",
        ),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_rollout_version",
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "one_open_rollout_per_strategy",
        "rollout",
        ["strategy_name"],
        unique=True,
        sqlite_where=sa.text("NOT state IN ('aborted', 'completed', 'rolled_back')"),
        postgresql_where=sa.text("NOT state IN ('aborted', 'completed', 'rolled_back')"),
    )
    op.create_table(
        "shadow_decision_log",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.Column("features", JSON, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("window_hash", sa.String(), nullable=False),
        sa.Column("duration_ms", sa.Float(), nullable=False),
        sa.Column("error_kind", sa.String(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("logged_at", TIME, nullable=False),
        sa.CheckConstraint("(decision = 'error') = (error_kind <> '')", name="ck_error_kind"),
        sa.CheckConstraint("decision IN ('buy', 'sell', 'hold', 'error')", name="ck_decision"),
        sa.CheckConstraint("confidence BETWEEN 0 AND 1", name="ck_confidence"),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_decision_version",
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("strategy_name", "version", "symbol", "timestamp", name="uq_decision"),
    )
    op.create_index(
        "ix_decision_errors",
        "shadow_decision_log",
        ["strategy_name", "version", "timestamp"],
        unique=False,
        sqlite_where=sa.text("decision = 'error'"),
        postgresql_where=sa.text("decision = 'error'"),
    )
    op.create_table(
        "gate_verdict",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=False),
        sa.Column("ticked_at", TIME, nullable=False),
        sa.Column("stage_index", sa.Integer(), nullable=False),
        sa.Column("gate", sa.String(), nullable=False),
        sa.Column("verdict", sa.String(), nullable=False),
        sa.Column("armed", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("limit", sa.Float(), nullable=True),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "verdict IN ('breach', 'fail', 'blind', 'inconclusive', 'insufficient', 'pass')", name="ck_verdict"
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"],
            ["rollout.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("rollout_id", "gate", "ticked_at", name="uq_verdict"),
    )
    op.create_table(
        "outcome",
        sa.Column("decision_id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=False),
        sa.Column("entry_price", sa.Float(), nullable=False),
        sa.Column("exit_price", sa.Float(), nullable=False),
        sa.Column("exit_reason", sa.String(), nullable=False),
        sa.Column("risk", sa.Float(), nullable=False),
        sa.Column("pnl", sa.Float(), nullable=False),
        sa.Column("return_fraction", sa.Float(), nullable=False),
        sa.Column("r_multiple", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["decision_id"],
            ["shadow_decision_log.id"],
        ),
        sa.PrimaryKeyConstraint("decision_id"),
        sa.UniqueConstraint("strategy_name", "version", "symbol", "timestamp", name="uq_outcome"),
    )
    op.create_index("ix_outcome_closed", "outcome", ["strategy_name", "version", "closed_at"], unique=False)

    refuse_changes()


def refuse_changes() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    if on_postgresql:
        op.execute(
            "CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
    for table in EVIDENCE:
        refuse(on_postgresql, table, "UPDATE", f"{table} is evidence: its rows are never changed")
        refuse(on_postgresql, table, "DELETE", f"{table} is evidence: its rows are never deleted")
    for table, columns in FROZEN.items():
        refuse(on_postgresql, table, f"UPDATE OF {', '.join(columns)}", f"{table} is never edited: make a new one")
        refuse(on_postgresql, table, "DELETE", f"{table} is never deleted")
    if on_postgresql:  # it deletes without a row's trigger; SQLite has no such statement
        for table in (*EVIDENCE, *FROZEN):
            op.execute(
                f"CREATE TRIGGER refuse_truncate_{table} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
                f"EXECUTE FUNCTION refuse_change('{table} is never emptied')"
            )


def refuse(on_postgresql: bool, table: str, change: str, why: str) -> None:
    name = f"refuse_{change.split(maxsplit=1)[0].lower()}_{table}"
    what = f"EXECUTE FUNCTION refuse_change('{why}')" if on_postgresql else f"BEGIN SELECT RAISE(ABORT, '{why}'); END"
    op.execute(f"CREATE TRIGGER {name} BEFORE {change} ON {table} FOR EACH ROW {what}")
