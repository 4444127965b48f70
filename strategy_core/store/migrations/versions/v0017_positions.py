"""Positions: users' open trades with the version that manages each, and what a decision means for them.

Open trades of versions that are retired get no position: nobody has managed them, and to decide now who does would be a
guess.
"""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import TIME, refuse

revision = "v0017"
down_revision = "v0016"
branch_labels = None
depends_on = None

_FIXED = ("trade_id", "user_id", "strategy_name", "symbol", "side", "opened_by", "opened_at", "recorded_at")
_OPEN = sa.text("closed_at IS NULL")
_COLUMNS = (  # table, column, constraint, its condition
    ("shadow_decision_log", "intent VARCHAR DEFAULT 'open' NOT NULL", "ck_intent", "{close}"),
    ("replay_decision", "intent VARCHAR DEFAULT 'open' NOT NULL", "ck_replay_intent", "{close}"),
    ("live_trade", "side VARCHAR", "ck_live_side", "side IN ('buy', 'sell')"),
    ("live_trade", "size FLOAT", "ck_live_size", "size > 0"),
)
_CLOSE = "intent = 'open' OR (intent = 'close' AND decision = 'hold')"
_BACKFILL = """
INSERT INTO position (
    trade_id, user_id, strategy_name, symbol, opened_by, manager, managed_since, opened_at, closed_at, recorded_at
)
SELECT opened.trade_id, opened.user_id, opened.strategy_name, opened.symbol, opened.version, opened.version,
    opened.opened_at, opened.opened_at, NULL, opened.ingested_at
FROM live_trade AS opened
JOIN strategy_version ON strategy_version.strategy_name = opened.strategy_name
    AND strategy_version.version = opened.version AND strategy_version.status <> 'retired'
WHERE opened.state = 'open' AND NOT EXISTS (
    SELECT 1 FROM live_trade AS closed WHERE closed.trade_id = opened.trade_id AND closed.state = 'closed'
)
"""


# As in v0007: one table is waited for while none is held, the others are had at once, or all are let go.
_HOLD = """
DO $$
DECLARE
    wanted text[] := ARRAY[
        'strategy_version IN SHARE ROW EXCLUSIVE', 'shadow_decision_log IN ACCESS EXCLUSIVE',
        'replay_decision IN ACCESS EXCLUSIVE', 'live_trade IN ACCESS EXCLUSIVE'
    ];
    awaited text := wanted[1];
    asked text;
    until timestamptz := clock_timestamp() + current_setting('lock_timeout')::interval;
BEGIN
    LOOP
        BEGIN
            EXECUTE 'LOCK TABLE ' || awaited || ' MODE';
            FOREACH asked IN ARRAY wanted LOOP
                EXECUTE 'LOCK TABLE ' || asked || ' MODE NOWAIT';
            END LOOP;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > until THEN
                RAISE;
            END IF;
            awaited := asked;
        END;
    END LOOP;
END $$
"""


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    if on_postgresql:
        op.execute(_HOLD)  # first of all: who writes from here on waits, and holds nothing that is wanted here
    _create_position()
    _create_change_and_exit()
    for table, column, constraint, condition in _COLUMNS:
        check = f"CONSTRAINT {constraint} CHECK ({condition.format(close=_CLOSE)})"
        if on_postgresql:  # NOT VALID: the rows that are there need no scan, which would hold up whoever writes
            op.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
            op.execute(f"ALTER TABLE {table} ADD {check} NOT VALID")
        else:
            op.execute(f"ALTER TABLE {table} ADD COLUMN {column} {check}")
    op.execute(_BACKFILL)
    refuse(on_postgresql, "position", f"UPDATE OF {', '.join(_FIXED)}", "position is never edited: report the trade")
    refuse(on_postgresql, "position", "DELETE", "position is never deleted")
    for table in ("position_change", "position_exit"):
        for change in ("UPDATE", "DELETE"):
            refuse(on_postgresql, table, change, f"{table} is evidence: its rows are never changed")
    if on_postgresql:
        for table in ("position", "position_change", "position_exit"):
            op.execute(
                f"CREATE TRIGGER refuse_truncate_{table} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
                f"EXECUTE FUNCTION refuse_change('{table} is never emptied')"
            )


def _create_position() -> None:
    op.create_table(
        "position",
        sa.Column("trade_id", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("side", sa.String(), nullable=True),
        sa.Column("size", sa.Float(), nullable=True),
        sa.Column("opened_by", sa.String(), nullable=False),
        sa.Column("manager", sa.String(), nullable=True),
        sa.Column("managed_since", TIME, nullable=False),
        sa.Column("opened_at", TIME, nullable=False),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("flatten_at", TIME, nullable=True),
        sa.Column("missing_since", TIME, nullable=True),
        sa.Column("recorded_at", TIME, nullable=False),
        sa.CheckConstraint("side IN ('buy', 'sell')", name="ck_position_side"),
        sa.CheckConstraint("size >= 0", name="ck_position_size"),
        sa.CheckConstraint(
            "manager IS NOT NULL OR flatten_at IS NOT NULL OR closed_at IS NOT NULL", name="ck_position_managed"
        ),
        sa.ForeignKeyConstraint(
            ["strategy_name", "opened_by"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_position_opener",
        ),
        sa.ForeignKeyConstraint(
            ["strategy_name", "manager"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_position_manager",
        ),
        sa.PrimaryKeyConstraint("trade_id"),
    )
    op.create_index(
        "ix_position_open", "position", ["strategy_name", "manager"], sqlite_where=_OPEN, postgresql_where=_OPEN
    )
    op.create_index("ix_position_opened", "position", ["strategy_name", "opened_at"])


def _create_change_and_exit() -> None:
    op.create_table(
        "position_change",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trade_id", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("before", sa.String(), nullable=False),
        sa.Column("after", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('hand_over', 'flatten', 'size', 'missing', 'found')", name="ck_position_change"),
        sa.ForeignKeyConstraint(["trade_id"], ["position.trade_id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_position_change", "position_change", ["trade_id"])
    op.create_table(
        "position_exit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trade_id", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("manager", sa.String(), nullable=True),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("candle", TIME, nullable=True),
        sa.Column("announced_at", TIME, nullable=False),
        sa.CheckConstraint("why IN ('close', 'stop', 'target', 'horizon', 'flatten')", name="ck_position_exit"),
        sa.ForeignKeyConstraint(["trade_id"], ["position.trade_id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("trade_id", name="uq_position_exit"),
    )
    op.create_index("ix_position_exit", "position_exit", ["strategy_name", "id"])
