"""Runs migrations in the transaction that `store.engine.upgrade` hands over; never reads settings of its own."""

from alembic import context
from sqlmodel import SQLModel

from strategy_core.store import tables

METADATA = SQLModel.metadata
TABLES = (
    tables,
    tables,
    tables,
    tables,
    tables,
)  # imported so that their models stand in METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA, compare_type=True)
context.run_migrations()
