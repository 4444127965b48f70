"""Races: many candidates of a strategy against its active version, their entries, and how they stood day by day."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0023"
down_revision = "v0022"
branch_labels = None
depends_on = None

_FIXED = {
    "race": ("id", "strategy_name", "plan", "starts", "began", "started_at", "started_by", "first_day"),
    "race_entry": ("race_id", "position", "strategy_name", "version", "entered_at"),
    "race_standing": ("race_id", "day", "active", "rows"),
}
_OUT = {  # an entry stays out for the reason that was first
    "eliminated_by": "an eliminated version stays out",
    "withdrawn": "a withdrawn version stays out",
}


def upgrade() -> None:
    _create_race()
    _create_entry_and_standing()
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for table, columns in _FIXED.items():
        refuse(on_postgresql, table, f"UPDATE OF {', '.join(columns)}", f"{table} is never edited: make a new one")
        refuse(on_postgresql, table, "DELETE", f"{table} is never deleted")
        if on_postgresql:
            op.execute(
                f"CREATE TRIGGER refuse_truncate_{table} BEFORE TRUNCATE ON {table} FOR EACH STATEMENT "
                f"EXECUTE FUNCTION refuse_change('{table} is never emptied')"
            )
    _once("race", "closed_at", "OLD.closed_at IS NOT NULL", "a race is closed once")
    _once("race", "tried", "NEW.tried < OLD.tried", "the number of versions that were tried never falls")
    _once("race", "next_day", "NEW.next_day < OLD.next_day", "the days of a race are counted once")
    for column, why in _OUT.items():
        _once("race_entry", column, f"OLD.{column} <> '' AND NEW.{column} <> OLD.{column}", why)


def _create_race() -> None:
    is_open = sa.text("closed_at IS NULL")
    op.create_table(
        "race",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("plan", JSON, nullable=False),
        sa.Column("starts", sa.Boolean(), nullable=False),
        sa.Column("began", sa.Integer(), nullable=False),
        sa.Column("tried", sa.Integer(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("started_by", sa.String(), nullable=False),
        sa.Column("first_day", TIME, nullable=False),
        sa.Column("next_day", TIME, nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("pairs", JSON, nullable=False),
        sa.Column("ruling", JSON, nullable=False),
        sa.Column("rollout_id", sa.Uuid(), nullable=True),
        sa.Column("withdrew_at", TIME, nullable=True),
        sa.Column("closed_at", TIME, nullable=True),
        sa.Column("closed_by", sa.String(), nullable=False),
        sa.Column("closed_because", sa.Text(), nullable=False),
        sa.CheckConstraint("(closed_at IS NULL) = (closed_by = '')", name="ck_race_closed"),
        sa.ForeignKeyConstraint(["strategy_name"], ["strategy.name"]),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollout.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "one_open_race_per_strategy",
        "race",
        ["strategy_name"],
        unique=True,
        sqlite_where=is_open,
        postgresql_where=is_open,
    )


def _create_entry_and_standing() -> None:
    op.create_table(
        "race_entry",
        sa.Column("race_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("entered_at", TIME, nullable=False),
        sa.Column("candles", sa.Integer(), nullable=False),
        sa.Column("errors", sa.Integer(), nullable=False),
        sa.Column("eliminated_by", sa.String(), nullable=False),
        sa.Column("withdrawn", sa.Text(), nullable=False),
        sa.Column("refused", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["race_id"], ["race.id"]),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_race_version",
        ),
        sa.PrimaryKeyConstraint("race_id", "position"),
        sa.UniqueConstraint("race_id", "version", name="uq_race_entry"),
    )
    op.create_table(
        "race_standing",
        sa.Column("race_id", sa.Uuid(), nullable=False),
        sa.Column("day", TIME, nullable=False),
        sa.Column("active", sa.String(), nullable=False),
        sa.Column("rows", JSON, nullable=False),
        sa.ForeignKeyConstraint(["race_id"], ["race.id"]),
        sa.PrimaryKeyConstraint("race_id", "day"),
    )


def _once(table: str, column: str, wrong: str, why: str) -> None:
    """Refuse an update of *column* of which *wrong* is true."""
    trigger = f"CREATE TRIGGER keep_{column}_{table} BEFORE UPDATE OF {column} ON {table} FOR EACH ROW"
    if op.get_bind().dialect.name == "postgresql":
        op.execute(f"{trigger} WHEN ({wrong}) EXECUTE FUNCTION refuse_change('{why}')")
    else:
        op.execute(f"{trigger} WHEN {wrong} BEGIN SELECT RAISE(ABORT, '{why}'); END")
