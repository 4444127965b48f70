"""An exit because of a flatten beside an earlier one, and when the newest snapshot of positions was taken."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import TIME, refuse

revision = "v0022"
down_revision = "v0021"
branch_labels = None
depends_on = None

_COPY = """
INSERT INTO position_exit (id, trade_id, strategy_name, symbol, manager, why, flattens, candle, announced_at)
SELECT id, trade_id, strategy_name, symbol, manager, why, why = 'flatten', candle, announced_at
FROM position_exit_before
"""
_FLATTENS = "flattens = (why = 'flatten')"


# As in v0021: who writes waits from the first statement on, and both tables are had together or none is held.
_HOLD = """
DO $$
DECLARE
    until timestamptz := clock_timestamp() + current_setting('lock_timeout')::interval;
BEGIN
    LOOP
        BEGIN
            LOCK TABLE position_exit IN ACCESS EXCLUSIVE MODE;
            LOCK TABLE strategy IN SHARE ROW EXCLUSIVE MODE NOWAIT;
            RETURN;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > until THEN
                RAISE;
            END IF;
            PERFORM pg_sleep(0.05);
        END;
    END LOOP;
END $$
"""


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(_HOLD)
        op.execute("ALTER TABLE position_exit DROP CONSTRAINT uq_position_exit")
        op.execute("ALTER TABLE position_exit ADD COLUMN flattens BOOLEAN DEFAULT false NOT NULL")
        op.execute("ALTER TABLE position_exit DISABLE TRIGGER refuse_update_position_exit")
        op.execute("UPDATE position_exit SET flattens = true WHERE why = 'flatten'")
        op.execute("ALTER TABLE position_exit ENABLE TRIGGER refuse_update_position_exit")
        op.execute("ALTER TABLE position_exit ALTER COLUMN flattens DROP DEFAULT")
        op.execute(f"ALTER TABLE position_exit ADD CONSTRAINT ck_position_exit_flattens CHECK ({_FLATTENS})")
        op.execute("ALTER TABLE position_exit ADD CONSTRAINT uq_position_exit UNIQUE (trade_id, flattens)")
    else:
        _create_exits_anew()
    op.create_table(
        "position_snapshot",
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("taken_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["strategy_name"], ["strategy.name"]),
        sa.PrimaryKeyConstraint("strategy_name"),
    )


def _create_exits_anew() -> None:
    """SQLite drops no constraint of a table."""
    op.execute("ALTER TABLE position_exit RENAME TO position_exit_before")
    op.create_table(
        "position_exit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("trade_id", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("manager", sa.String(), nullable=True),
        sa.Column("why", sa.String(), nullable=False),
        sa.Column("flattens", sa.Boolean(), nullable=False),
        sa.Column("candle", TIME, nullable=True),
        sa.Column("announced_at", TIME, nullable=False),
        sa.CheckConstraint("why IN ('close', 'stop', 'target', 'horizon', 'flatten')", name="ck_position_exit"),
        sa.CheckConstraint(_FLATTENS, name="ck_position_exit_flattens"),
        sa.ForeignKeyConstraint(["trade_id"], ["position.trade_id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("trade_id", "flattens", name="uq_position_exit"),
    )
    op.execute(_COPY)
    op.execute("DROP TABLE position_exit_before")
    op.create_index("ix_position_exit", "position_exit", ["strategy_name", "id"])
    for change in ("UPDATE", "DELETE"):
        refuse(False, "position_exit", change, "position_exit is evidence: its rows are never changed")
