"""What the database itself must hold beside its rows: triggers, indexes, sequences; it mends nothing.

A schema of this release is made in memory and asked what it has, so that no list of names can fall behind it.
"""

from collections.abc import Iterator
from functools import cache

from sqlalchemy import Connection, Engine, Integer, create_engine, func, literal_column, select, text
from sqlmodel import SQLModel

from strategy_core.store.engine import upgrade

_ON_POSTGRESQL_ALONE = ("tell_strategy",)


def missing_guards(engine: Engine) -> list[str]:
    """Return in words what should stand in the database and does not: a trigger, an index, a sequence's place.

    Without a trigger evidence can be edited, without a partial index there can be two actives, and a sequence that has
    fallen behind refuses the next change, a rollback with it.
    """
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            return [*_missing_on_postgresql(connection), *_behind(connection)]
        return list(_missing_on_sqlite(connection))


def _missing_on_sqlite(connection: Connection) -> Iterator[str]:
    found = _of_sqlite(connection)
    for (kind, name), definition in _expected().items():
        if (kind, name) not in found:
            yield f"{kind} {name} is not there"
        elif found[kind, name] != definition:
            yield f"{kind} {name} is not the one of this release"


def _missing_on_postgresql(connection: Connection) -> Iterator[str]:
    run = connection.execute
    rows = run(
        text(
            "SELECT tgname, tgenabled::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid "
            "WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace"
        )
    )
    triggers = {name: enabled for name, enabled in rows}  # noqa: C416  a result has keys() that are its columns'
    indexes = set(run(text("SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()")).scalars())
    names = {kind: [name for each, name in _expected() if each == kind] for kind in ("trigger", "index")}
    kept = [name.removeprefix("refuse_delete_") for name in names["trigger"] if name.startswith("refuse_delete_")]
    for name in (*names["trigger"], *(f"refuse_truncate_{table}" for table in kept), *_ON_POSTGRESQL_ALONE):
        if name not in triggers:
            yield f"trigger {name} is not there"
        elif triggers[name] not in "OA":
            yield f"trigger {name} is disabled"
    yield from (f"index {name} is not there" for name in names["index"] if name not in indexes)


def _behind(connection: Connection) -> Iterator[str]:
    for table in SQLModel.metadata.sorted_tables:  # every model's, since `_expected` has run the migrations
        column = table.autoincrement_column
        if column is None:
            continue
        sequence = connection.execute(select(func.pg_get_serial_sequence(table.name, column.name))).scalar()
        if sequence is None:
            yield f"column {table.name}.{column.name} has no sequence"
            continue
        newest = connection.execute(select(func.max(column))).scalar() or 0
        place = literal_column("CASE WHEN is_called THEN last_value ELSE 0 END", Integer)
        given = connection.execute(select(place).select_from(text(sequence))).scalar()
        if newest > (given or 0):
            yield f"sequence {sequence} is behind its table, which has {newest}"


@cache
def _expected() -> dict[tuple[str, str], str]:
    """Return the triggers and indexes of a new database of this release, by kind and name."""
    engine = create_engine("sqlite://")
    upgrade(engine)
    with engine.connect() as connection:
        found = _of_sqlite(connection)
    engine.dispose()
    return found


def _of_sqlite(connection: Connection) -> dict[tuple[str, str], str]:
    rows = connection.execute(
        text("SELECT type, name, sql FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql IS NOT NULL")
    )
    return {(kind, name): definition for kind, name, definition in rows.tuples()}
