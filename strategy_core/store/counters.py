"""Keep the counts that a scrape reads, in the transaction of what they count; never what they mean.

Code rather than a trigger, for the log of decisions: PostgreSQL fires triggers by statement, so that a run of several
statements would lock a count, then log more; two runs of the same candles could each hold what the other waits for.
Here every row of a version is logged before its counts are touched, and counts are touched in one order.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import case
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, SQLModel

from strategy_core.store.tables import ERROR, Counted, DecisionTally, Tally

_ACTIONS = ("buy", "sell", "hold", ERROR)
_NAMES = ("strategy_name", "version", "symbol")
_OF = itemgetter(*_NAMES)


def count_decisions(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Count rows of the decision log that have just been inserted; all that the transaction inserts of a version.

    Args:
        rows: the oldest candle first.
    """
    newest = dict(zip(map(_OF, rows), map(itemgetter("timestamp"), rows), strict=True))
    said = {
        key: dict(zip(_NAMES, key, strict=True)) | dict.fromkeys(_ACTIONS, 0) | {"newest_candle_s": int(at.timestamp())}
        for key, at in newest.items()
    }
    for (*key, action), total in Counter(map(itemgetter(*_NAMES, "decision"), rows)).items():
        said[tuple(key)][action] = total
    _add(session, DecisionTally, [said[key] for key in sorted(said)])
    errors = Counter(
        (row["strategy_name"], row["version"], row["error_kind"]) for row in rows if row["decision"] == ERROR
    )
    kinds = [(strategy_name, Counted.ERROR.value, *names) for strategy_name, *names in errors]
    _add(session, Tally, [_row(*key, total=errors[key[0], key[2], key[3]]) for key in sorted(kinds)])


def count(session: Session, strategy_name: str, what: Counted, names: Sequence[tuple[str, str]]) -> None:
    """Count events of a strategy, each a (name, detail); the caller has locked the strategy's row."""
    totals = Counter(names)
    _add(session, Tally, [_row(strategy_name, what.value, *key, total=totals[key]) for key in sorted(totals)])


def _row(strategy_name: str, what: str, name: str, detail: str, *, total: int) -> dict[str, Any]:
    return {"strategy_name": strategy_name, "what": what, "name": name, "detail": detail, "total": total}


def _adding(dialect: str, table: type[SQLModel]) -> Any:
    """Return the statement that adds a row's numbers to those that stand under its key."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement, stands = insert(table), table.__table__.c  # type: ignore[attr-defined]
    key = [column.name for column in stands if column.primary_key]
    new = {
        column.name: stands[column.name] + statement.excluded[column.name]
        for column in stands
        if column.name not in key
    }
    if "newest_candle_s" in new:
        given, known = statement.excluded.newest_candle_s, stands.newest_candle_s
        new["newest_candle_s"] = case((given > known, given), else_=known)
    return statement.on_conflict_do_update(index_elements=key, set_=new)


_ADD: dict[tuple[str, type[SQLModel]], Any] = {
    (dialect, table): _adding(dialect, table)
    for dialect in ("postgresql", "sqlite")
    for table in (DecisionTally, Tally)
}


def _add(session: Session, table: type[SQLModel], rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        dialect = session.get_bind().dialect.name
        session.connection().execute(_ADD[dialect, table], [dict(row) for row in rows])
