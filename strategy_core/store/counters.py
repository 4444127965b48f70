"""Running counts for the metrics, updated in the transaction of the rows they count.

Decisions are counted here and not by a trigger, because a trigger runs after each statement. A transaction of several
statements would then lock counts between its inserts, and two runs of the same candles could deadlock. Here all rows of
a version are inserted before its counts are updated, and counts are updated in a fixed order.
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
    """Count rows that were just inserted into the decision log: all of a version in this transaction.

    Args:
        rows: oldest candle first.
    """
    newest = dict(zip(map(_OF, rows), map(itemgetter("timestamp"), rows), strict=True))
    counts = {
        key: dict(zip(_NAMES, key, strict=True)) | dict.fromkeys(_ACTIONS, 0) | {"newest_candle_s": int(at.timestamp())}
        for key, at in newest.items()
    }
    for (*key, action), total in Counter(map(itemgetter(*_NAMES, "decision"), rows)).items():
        counts[tuple(key)][action] = total
    _add(session, DecisionTally, [counts[key] for key in sorted(counts)])
    errors = Counter(
        (row["strategy_name"], row["version"], row["error_kind"]) for row in rows if row["decision"] == ERROR
    )
    kinds = [(strategy_name, Counted.ERROR.value, *names) for strategy_name, *names in errors]
    _add(session, Tally, [_row(*key, total=errors[key[0], key[2], key[3]]) for key in sorted(kinds)])


def count(session: Session, strategy_name: str, what: Counted, names: Sequence[tuple[str, str]]) -> None:
    """Count events of a strategy, each a (name, detail). The caller has locked the strategy's row."""
    totals = Counter(names)
    _add(session, Tally, [_row(strategy_name, what.value, *key, total=totals[key]) for key in sorted(totals)])


def _row(strategy_name: str, what: str, name: str, detail: str, *, total: int) -> dict[str, Any]:
    return {"strategy_name": strategy_name, "what": what, "name": name, "detail": detail, "total": total}


def _adding(dialect: str, table: type[SQLModel]) -> Any:
    """Return the upsert that adds a row's numbers to the stored ones."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    statement, stored = insert(table), table.__table__.c  # type: ignore[attr-defined]
    key = [column.name for column in stored if column.primary_key]
    new = {
        column.name: stored[column.name] + statement.excluded[column.name]
        for column in stored
        if column.name not in key
    }
    if "newest_candle_s" in new:
        given, known = statement.excluded.newest_candle_s, stored.newest_candle_s
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
