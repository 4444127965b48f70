"""Check that the database has all triggers, indexes, sequences and partitions of this release. Read-only.

The expected names come from a schema that is created in memory, so that they cannot be out of date.
"""

from collections.abc import Iterator
from functools import cache

from sqlalchemy import Connection, Engine, Integer, create_engine, func, literal_column, select, text
from sqlmodel import SQLModel

from strategy_core.store.engine import snapshot, upgrade

_ON_POSTGRESQL_ALONE = (("strategy", "tell_strategy"),)
_TRIGGERS = """
SELECT relname, tgname, tgenabled::text FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
WHERE NOT tgisinternal AND relnamespace = current_schema()::regnamespace
"""
_PARTITIONS = """
SELECT whole.relname, part.relname FROM pg_inherits
JOIN pg_class AS whole ON whole.oid = inhparent JOIN pg_class AS part ON part.oid = inhrelid
WHERE whole.relkind = 'p' AND whole.relnamespace = current_schema()::regnamespace ORDER BY part.relname
"""
_OF_ANOTHER = """
SELECT part.relname, pg_get_userbyid(part.relowner), pg_get_userbyid(whole.relowner) FROM pg_inherits
JOIN pg_class AS whole ON whole.oid = inhparent JOIN pg_class AS part ON part.oid = inhrelid
WHERE whole.relkind = 'p' AND whole.relnamespace = current_schema()::regnamespace AND whole.relowner <> part.relowner
ORDER BY part.relname
"""
_WITHOUT_DEFAULT = """
SELECT relname FROM pg_partitioned_table JOIN pg_class ON pg_class.oid = partrelid
WHERE partdefid = 0 AND relnamespace = current_schema()::regnamespace ORDER BY relname
"""


def missing_guards(engine: Engine) -> list[str]:
    """Return one line for each trigger, index, sequence or partition that is missing or wrong.

    Without a trigger evidence can be edited, also on a single partition. Without a partial index a strategy can have
    two active versions. A sequence that is behind its table makes the next change fail, also a rollback.
    """
    with snapshot(engine) as session:  # a month that is being created has a partition before it has its trigger
        connection = session.connection()
        if engine.dialect.name == "postgresql":
            return [*_missing_on_postgresql(connection), *_behind(connection)]
        return list(_missing_on_sqlite(connection))


def _missing_on_sqlite(connection: Connection) -> Iterator[str]:
    found = _of_sqlite(connection)
    for (kind, name), definition in _expected().items():
        if (kind, name) not in found:
            yield f"{kind} {name} is missing"
        elif found[kind, name] != definition:
            yield f"{kind} {name} differs from this release"


def _missing_on_postgresql(connection: Connection) -> Iterator[str]:
    run = connection.execute
    triggers = {(table, name): enabled for table, name, enabled in run(text(_TRIGGERS))}
    partitions: dict[str, list[str]] = {}
    for table, partition in run(text(_PARTITIONS)):
        partitions.setdefault(table, []).append(partition)
    indexes = set(run(text("SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()")).scalars())
    wanted = [(table, name) for (kind, name), (table, _) in _expected().items() if kind == "trigger"]
    kept = [(table, f"refuse_truncate_{table}") for table, name in wanted if name.startswith("refuse_delete_")]
    for table, name in (*wanted, *kept, *_ON_POSTGRESQL_ALONE):
        if fault := _fault(triggers.get((table, name))):
            yield f"trigger {name} {fault}"
            continue  # its partitions lack it too
        for partition in partitions.get(table, []):
            if fault := _fault(triggers.get((partition, name))):
                yield f"trigger {name} of {partition} {fault}"
    yield from (f"index {name} is missing" for kind, name in _expected() if kind == "index" and name not in indexes)
    for table in run(text(_WITHOUT_DEFAULT)).scalars():
        yield f"partition {table}_default is missing, which takes the rows without a month"
    for partition, owner, wanted_owner in run(text(_OF_ANOTHER)):
        yield f"partition {partition} belongs to {owner}, so {wanted_owner} can neither dump nor drop it"


def _fault(enabled: str | None) -> str:
    if enabled is None:
        return "is missing"
    return "" if enabled in "OA" else "is disabled"


def _behind(connection: Connection) -> Iterator[str]:
    for table in SQLModel.metadata.sorted_tables:  # complete, because `_expected` has run the migrations
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
            yield f"sequence {sequence} is behind its table, whose highest id is {newest}"


@cache
def _expected() -> dict[tuple[str, str], tuple[str, str]]:
    """Return (table, definition) of each trigger and index of this release, by (kind, name)."""
    engine = create_engine("sqlite://")
    upgrade(engine)
    with engine.connect() as connection:
        found = _of_sqlite(connection)
    engine.dispose()
    return found


def _of_sqlite(connection: Connection) -> dict[tuple[str, str], tuple[str, str]]:
    rows = connection.execute(
        text(
            "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE type IN ('trigger', 'index') AND sql IS NOT NULL"
        )
    )
    return {(kind, name): (table, definition) for kind, name, table, definition in rows.tuples()}
