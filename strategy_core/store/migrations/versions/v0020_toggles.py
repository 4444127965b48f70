"""Rules of toggles, and segments of users. A rule is not edited or deleted: it ends once."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0020"
down_revision = "v0019"
branch_labels = None
depends_on = None

_FIXED = ("id", "strategy_name", "toggle", "position", "conditions", "value", "valid_from", "set_by")
_IN_FORCE = sa.text("valid_to IS NULL")


def upgrade() -> None:
    op.create_table(
        "segment",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("users", sa.Integer(), nullable=False),
        sa.Column("loaded_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "user_segment",
        sa.Column("segment_name", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["segment_name"], ["segment.name"]),
        sa.PrimaryKeyConstraint("segment_name", "user_id"),
    )
    op.create_index("ix_user_segment_user", "user_segment", ["user_id"])
    op.create_table(
        "toggle_rule",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("toggle", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("conditions", JSON, nullable=False),
        sa.Column("value", JSON, nullable=False),
        sa.Column("valid_from", TIME, nullable=False),
        sa.Column("valid_to", TIME, nullable=True),
        sa.Column("set_by", sa.String(), nullable=False),
        sa.CheckConstraint("position > 0", name="ck_rule_position"),
        sa.CheckConstraint("valid_to >= valid_from", name="ck_rule_span"),
        sa.ForeignKeyConstraint(["strategy_name"], ["strategy.name"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_toggle_rule", "toggle_rule", ["strategy_name", "toggle", "valid_from"])
    op.create_index(
        "one_rule_per_position",
        "toggle_rule",
        ["strategy_name", "toggle", "position"],
        unique=True,
        sqlite_where=_IN_FORCE,
        postgresql_where=_IN_FORCE,
    )
    op.create_table(
        "toggle_revision",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("revision", sa.String(), nullable=False),
        sa.CheckConstraint("id = 1", name="ck_one_revision"),
        sa.PrimaryKeyConstraint("id"),
    )
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    columns = ", ".join(_FIXED)
    refuse(on_postgresql, "toggle_rule", f"UPDATE OF {columns}", "toggle_rule is never edited: make a new one")
    refuse(on_postgresql, "toggle_rule", "DELETE", "toggle_rule is never deleted")
    trigger = "CREATE TRIGGER end_once_toggle_rule BEFORE UPDATE OF valid_to ON toggle_rule FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{trigger} WHEN (OLD.valid_to IS NOT NULL) EXECUTE FUNCTION refuse_change('a rule ends once')")
        op.execute(
            "CREATE TRIGGER refuse_truncate_toggle_rule BEFORE TRUNCATE ON toggle_rule FOR EACH STATEMENT "
            "EXECUTE FUNCTION refuse_change('toggle_rule is never emptied')"
        )
    else:
        op.execute(f"{trigger} WHEN OLD.valid_to IS NOT NULL BEGIN SELECT RAISE(ABORT, 'a rule ends once'); END")
