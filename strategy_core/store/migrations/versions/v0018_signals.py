"""Signals for platforms that copy them, with a number each, once they are committed."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import TIME, refuse

revision = "v0018"
down_revision = "v0017"
branch_labels = None
depends_on = None

_FIXED = ("decision_id", "strategy_name", "version", "symbol", "timestamp", "decision", "intent", "confidence")
_UNNUMBERED = sa.text("number IS NULL")


def upgrade() -> None:
    op.create_table(
        "signal",
        sa.Column("decision_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=True),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("intent", sa.String(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.CheckConstraint(
            "(decision IN ('buy', 'sell') AND intent = 'open') OR (decision = 'hold' AND intent = 'close')",
            name="ck_signal",
        ),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_signal_version",
        ),
        sa.PrimaryKeyConstraint("decision_id"),
        sa.UniqueConstraint("number", name="uq_signal_number"),
    )
    op.create_index(
        "ix_signal_unnumbered", "signal", ["timestamp"], sqlite_where=_UNNUMBERED, postgresql_where=_UNNUMBERED
    )
    op.create_table(
        "signal_head",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("dropped", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1 AND dropped <= number", name="ck_signal_head"),
        sa.PrimaryKeyConstraint("id"),
    )
    _guard()


def _guard() -> None:
    """Refuse every change of a signal but its number, and a second number. Old signals may be deleted."""
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    once = "a signal is numbered once"
    refuse(on_postgresql, "signal", f"UPDATE OF {', '.join(_FIXED)}", "a signal is never edited")
    trigger = "CREATE TRIGGER number_once_signal BEFORE UPDATE OF number ON signal FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{trigger} WHEN (OLD.number IS NOT NULL) EXECUTE FUNCTION refuse_change('{once}')")
    else:
        op.execute(f"{trigger} WHEN OLD.number IS NOT NULL BEGIN SELECT RAISE(ABORT, '{once}'); END")
