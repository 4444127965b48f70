"""Policies of strategies, and what assistants ask and propose."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON, TIME, refuse

revision = "v0014"
down_revision = "v0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "strategy_policy",
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("policy", JSON, nullable=False),
        sa.ForeignKeyConstraint(["strategy_name"], ["strategy.name"]),
        sa.PrimaryKeyConstraint("strategy_name"),
    )
    op.create_table(
        "proposal",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("parameters", JSON, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("proposed_by", sa.String(), nullable=False),
        sa.Column("proposed_at", TIME, nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("decided_by", sa.String(), nullable=False),
        sa.Column("decided_at", TIME, nullable=True),
        sa.Column("failed", sa.Boolean(), nullable=False),
        sa.Column("line", sa.Text(), nullable=False),
        sa.CheckConstraint("(decided_at IS NULL) = (decision = '')", name="ck_proposal_decided"),
        sa.CheckConstraint("decision IN ('', 'approved', 'rejected')", name="ck_proposal_decision"),
        sa.ForeignKeyConstraint(["strategy_name"], ["strategy.name"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_proposal_strategy", "proposal", ["strategy_name", "proposed_at"])
    op.create_table(
        "agent_call",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("tool", sa.String(), nullable=False),
        sa.Column("strategy_name", sa.String(), nullable=False),
        sa.Column("arguments", JSON, nullable=False),
        sa.Column("refused", sa.Text(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_agent_call_strategy", "agent_call", ["strategy_name", "id"])
    on_postgresql = op.get_bind().dialect.name == "postgresql"
    for change in ("UPDATE", "DELETE"):
        refuse(on_postgresql, "agent_call", change, "agent_call is evidence: its rows are never changed")
    if on_postgresql:
        op.execute(
            "CREATE TRIGGER refuse_truncate_agent_call BEFORE TRUNCATE ON agent_call FOR EACH STATEMENT "
            "EXECUTE FUNCTION refuse_change('agent_call is never emptied')"
        )
