"""The symbols that are excluded from a canary, and since when."""

import sqlalchemy as sa
from alembic import op

from strategy_core.store.migrations.versions.v0001_first_schema import JSON

revision = "v0010"
down_revision = "v0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("canary_config", sa.Column("excluded_symbols", JSON, nullable=False, server_default="{}"))
