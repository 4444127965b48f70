"""Insert many rows of evidence at once: `COPY` on PostgreSQL, `executemany` on SQLite.

PostgreSQL copies rows directly into their table, because nearly always all of them are new, or all exist. A staging
table would take twice as long and would need a privilege that the role of flows and API does not have.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, Dialect, Integer, Table, func, literal_column, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel

from strategy_core.store.tables import UtcDateTime

Row = Mapping[str, Any]
_ORDER = itemgetter("timestamp", "strategy_name", "version", "symbol")
_ROWS_PER_STATEMENT = 5_000
_ROWID = literal_column("rowid", Integer)  # SQLite only
_ROWS, _TYPES = "rows_to_send", "types_to_send"  # execution options that carry them to `send_rows`


def write_if_new(session: Session, model: type[SQLModel], rows: Sequence[Row]) -> list[Row]:
    """Insert the rows with a new natural key, skip the others, and return those inserted, oldest first.

    Every writer of a table inserts in this order, which prevents deadlocks. Time comes first, because PostgreSQL fills
    one partition after another.

    Args:
        rows: each with every column of the table. Of two rows with one key the first is inserted.
    """
    table: Table = model.__table__  # type: ignore[attr-defined]
    ordered = sorted(rows, key=_ORDER)
    batches = (ordered[start : start + _ROWS_PER_STATEMENT] for start in range(0, len(ordered), _ROWS_PER_STATEMENT))
    connection = session.connection()
    write = _copy if connection.dialect.name == "postgresql" else _insert
    return [row for batch in batches for row in write(connection, table, batch)]


def send_rows(cursor: Any, statement: str, _parameters: Any, context: Any) -> bool:
    """Send the rows of this module's statements through the driver (a `do_execute` listener)."""
    rows = context.execution_options.get(_ROWS)
    if rows is None:
        return False
    if context.dialect.name == "sqlite":
        cursor.executemany(statement, rows)
        return True
    with cursor.copy(statement) as copy:
        copy.set_types(context.execution_options[_TYPES])
        for row in rows:
            copy.write_row(row)
    return True


def _copy(connection: Connection, table: Table, rows: Sequence[Row]) -> Sequence[Row]:
    types = [column.type.compile(connection.dialect).lower().replace("float", "float8") for column in table.c]
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(
                f"COPY {table.name} ({', '.join(table.c.keys())}) FROM STDIN (FORMAT BINARY)",
                execution_options={_ROWS: _converted(connection.dialect, table, rows), _TYPES: types},
            )
    except IntegrityError:  # a key exists (any other violation is raised again by the insert)
        insert = postgresql.insert(table).on_conflict_do_nothing().returning(*table.primary_key)
        return _rows_of(connection.execute(insert, [dict(row) for row in rows]), table, rows)
    return rows


def _insert(connection: Connection, table: Table, rows: Sequence[Row]) -> Sequence[Row]:
    """Insert as `_copy` does. New rows are those with a higher rowid: a savepoint would cost a third more."""
    before = connection.execute(select(func.max(_ROWID)).select_from(table)).scalar() or 0
    names, marks = ", ".join(table.c.keys()), ", ".join("?" * len(table.c))
    done = connection.exec_driver_sql(
        f"INSERT INTO {table.name} ({names}) VALUES ({marks}) ON CONFLICT DO NOTHING",  # noqa: S608  our own names
        execution_options={_ROWS: _converted(connection.dialect, table, rows)},
    )
    if done.rowcount == len(rows):
        return rows
    return _rows_of(connection.execute(select(*table.primary_key).where(int(before) < _ROWID)), table, rows)


def _rows_of(keys: Iterable[Any], table: Table, rows: Sequence[Row]) -> list[Row]:
    """Return the rows with these primary keys, of two with one key the first."""
    by_key = {tuple(row[column.name] for column in table.primary_key): row for row in reversed(rows)}
    return sorted((by_key[tuple(key)] for key in keys), key=_ORDER)


def _converted(dialect: Dialect, table: Table, rows: Sequence[Row]) -> Iterable[tuple[Any, ...]]:
    """Convert values for the driver as SQLAlchemy does, but a whole column at a time."""
    columns = []
    for column in table.c:
        values: Iterable[Any] = map(itemgetter(column.name), rows)
        convert = column.type.dialect_impl(dialect).bind_processor(dialect)
        if convert is not None:
            repeats = isinstance(column.type, UtcDateTime)
            values = map(cache(convert) if repeats else convert, values)
        columns.append(values)
    return zip(*columns, strict=True)
