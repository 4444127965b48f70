"""Differences between a database's schema and the models. Partitions belong to their tables."""

from typing import Any

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text
from sqlmodel import SQLModel

_PARTITIONS = "SELECT relname FROM pg_class WHERE relispartition AND relnamespace = current_schema()::regnamespace"


def differences(engine: Engine) -> list[Any]:
    """Return what a migration would have to do. On PostgreSQL each partition has the foreign key of outcomes."""
    on_postgresql = engine.dialect.name == "postgresql"
    with engine.connect() as connection:
        partitions = set(connection.execute(text(_PARTITIONS)).scalars()) if on_postgresql else set()

        def is_one_of_ours(name: str | None, kind: str, _parents: object) -> bool:
            return kind != "table" or name not in partitions

        def is_of_the_whole(thing: Any, _name: str | None, kind: str, _reflected: bool, _compared: object) -> bool:
            return not (on_postgresql and kind == "foreign_key_constraint" and thing.table.name == "outcome")

        options = {"compare_type": True, "include_name": is_one_of_ours, "include_object": is_of_the_whole}
        found: list[Any] = compare_metadata(MigrationContext.configure(connection, opts=options), SQLModel.metadata)
        return found
