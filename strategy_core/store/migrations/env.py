"""Runs migrations in the transaction that `store.engine.upgrade` hands over; never reads settings of its own."""

from alembic import context
from sqlmodel import SQLModel

from strategy_core.store import api_tables, platform_tables, rollout_tables, tables, tally_tables

METADATA = SQLModel.metadata
TABLES = (
    tables,
    rollout_tables,
    platform_tables,
    api_tables,
    tally_tables,
)  # imported so that their models stand in METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, compare_type=True)
context.run_migrations()
