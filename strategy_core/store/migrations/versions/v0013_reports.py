"""Reports for owners, as the facts from which their pages are rendered. Rows are inserted and not changed."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0013"
down_revision = "v0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "report",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("subject", sa.String(), nullable=False),
        sa.Column("period_start", TIME, nullable=False),
        sa.Column("period_end", TIME, nullable=False),
        sa.Column("sentence", sa.Text(), nullable=False),
        sa.Column("facts", JSON, nullable=False),
        sa.Column("html_sha256", sa.String(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("strategy_name", "kind", "subject", name="uq_owner_report"),
    )
    op.create_index("ix_owner_report", "report", ["strategy_name", "created_at"])
    op.create_index("ix_report_created_at", "report", ["created_at"])
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    refuse(on_postgresql, "report", "UPDATE", "report is evidence: its rows are never changed")
    refuse(on_postgresql, "report", "DELETE", "report is evidence: its rows are never deleted")
    if on_postgresql:
        op.execute(
            "CREATE TRIGGER refuse_truncate_report BEFORE TRUNCATE ON report FOR EACH STATEMENT "
            "EXECUTE FUNCTION refuse_change('report is never emptied')"
        )
