"""Each version keeps windows of its vetting with its answers, which its workers are asked again."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import refuse

revision = "v0008"
down_revision = "v0007"
branch_labels = None
depends_on = None

_TABLE = "recorded_answers"


def upgrade() -> None:
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    op.create_table(
        _TABLE,
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_answers_version",
        ),
        sa.PrimaryKeyConstraint("strategy_name", "version"),
    )
    refuse(on_postgresql, _TABLE, "UPDATE", f"{_TABLE} is evidence: its rows are never changed")
    refuse(on_postgresql, _TABLE, "DELETE", f"{_TABLE} is evidence: its rows are never deleted")
    if on_postgresql:
        op.execute(
            f"CREATE TRIGGER refuse_truncate_{_TABLE} BEFORE TRUNCATE ON {_TABLE} FOR EACH STATEMENT "
            f"EXECUTE FUNCTION refuse_change('{_TABLE} is never emptied')"
        )
