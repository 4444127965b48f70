"""Replays: decisions of versions on past candles, with their outcomes and marks, apart from the log.

Rows are not changed. They can be deleted, because the same replay makes them again.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import TIME, refuse

revision = "v0011"
down_revision = "v0010"
branch_labels = None
depends_on = None

_KEY = ("strategy_name", "version", "symbol", "timestamp")
_VERSION = (["strategy_name", "version"], ["strategy_version.strategy_name", "strategy_version.version"])


def upgrade() -> None:
    op.create_table(
        "replay_decision",
        *_key(),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("window_hash", sa.String(), nullable=False),
        sa.Column("replayed_at", TIME, nullable=False),
        sa.CheckConstraint("decision IN ('buy', 'sell', 'hold')", name="ck_replay_decision"),
        sa.CheckConstraint("confidence BETWEEN 0 AND 1", name="ck_replay_confidence"),
        sa.CheckConstraint("timestamp < replayed_at", name="ck_replay_past"),
        sa.ForeignKeyConstraint(*_VERSION, name="fk_replay_version"),
        sa.PrimaryKeyConstraint(*_KEY),
    )
    op.create_table(
        "replay_outcome",
        *_key(),
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
            _KEY, [f"replay_decision.{column}" for column in _KEY], name="fk_replay_outcome", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint(*_KEY),
    )
    op.create_table(
        "replay_mark",
        *_key(),
        sa.Column("r", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(*_VERSION, name="fk_replay_mark_version"),
        sa.PrimaryKeyConstraint(*_KEY),
    )
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for table in ("replay_decision", "replay_outcome", "replay_mark"):
        refuse(on_postgresql, table, "UPDATE", f"{table} is evidence: its rows are never changed")


def _key() -> list[sa.Column[Any]]:
    return [
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("symbol", sa.String(), nullable=False),
        sa.Column("timestamp", TIME, nullable=False),
    ]
