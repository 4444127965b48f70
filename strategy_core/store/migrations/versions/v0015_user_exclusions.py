"""Exclusions of users from canaries. Rows are not edited or deleted. An exclusion ends once.

An index finds the closed trades of a user, for loss limits.
"""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import TIME, refuse

revision = "v0015"
down_revision = "v0014"
branch_labels = None
depends_on = None

_FIXED = ("id", "strategy_name", "user_id", "kind", "valid_from", "until", "reason", "actor")
_OPEN = sa.text("valid_to IS NULL")
_ONCE = "an exclusion of a user ends once"


def upgrade() -> None:
    op.create_table(
        "canary_exclusion",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("user_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("valid_from", TIME, nullable=False),
        sa.Column("valid_to", TIME, nullable=True),
        sa.Column("until", TIME, nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('opt_out', 'never', 'always', 'guard', 'large_account')", name="ck_exclusion_kind"
        ),
        sa.CheckConstraint("user_id <> ''", name="ck_exclusion_user"),
        sa.CheckConstraint("valid_to >= valid_from", name="ck_exclusion_span"),
        sa.CheckConstraint("until > valid_from", name="ck_exclusion_until"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "one_exclusion_per_user",
        "canary_exclusion",
        ["strategy_name", "kind", "user_id"],
        unique=True,
        sqlite_where=_OPEN,
        postgresql_where=_OPEN,
    )
    op.create_index("ix_exclusion_user", "canary_exclusion", ["user_id", "strategy_name"])
    op.create_index(
        "ix_live_closed_by_user",
        "live_trade",
        ["strategy_name", "user_id", "closed_at"],
        sqlite_where=sa.text("state = 'closed'"),
        postgresql_where=sa.text("state = 'closed'"),
    )
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    refuse(
        on_postgresql,
        "canary_exclusion",
        f"UPDATE OF {', '.join(_FIXED)}",
        "canary_exclusion is never edited: make a new one",
    )
    refuse(on_postgresql, "canary_exclusion", "DELETE", "canary_exclusion is never deleted")
    trigger = "CREATE TRIGGER end_once_canary_exclusion BEFORE UPDATE OF valid_to ON canary_exclusion FOR EACH ROW"
    if on_postgresql:
        op.execute(f"{trigger} WHEN (OLD.valid_to IS NOT NULL) EXECUTE FUNCTION refuse_change('{_ONCE}')")
        op.execute(
            "CREATE TRIGGER refuse_truncate_canary_exclusion BEFORE TRUNCATE ON canary_exclusion FOR EACH STATEMENT "
            "EXECUTE FUNCTION refuse_change('canary_exclusion is never emptied')"
        )
    else:
        op.execute(f"{trigger} WHEN OLD.valid_to IS NOT NULL BEGIN SELECT RAISE(ABORT, '{_ONCE}'); END")
