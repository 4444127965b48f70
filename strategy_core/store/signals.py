"""Signals for platforms, in an order that a reader can continue from.

The order of ids or times would not do: on PostgreSQL a row may become visible after others with a higher id, and a late
run logs old candles. So a decision inserts its signal without a number and takes no lock. A short transaction of its
own then numbers all signals that are committed. Such transactions follow one another, so once a number is visible, all
lower ones are.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, text
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.domain.lifecycle import Status
from strategy_core.store.engine import cancel_when_idle, insert_if_new
from strategy_core.store.tables import SIGNALS, SignalHead, SignalRow, StrategyVersion

_SERVING = (Status.ACTIVE, Status.CANARY)
_LOCK_WITHIN = "SET LOCAL lock_timeout = '1s'"
_NUMBER = text("""
UPDATE signal SET number = :newest + placed.place
FROM (
    SELECT decision_id, row_number() OVER (ORDER BY timestamp, strategy_name, symbol, version) AS place
    FROM signal WHERE number IS NULL
) AS placed
WHERE signal.decision_id = placed.decision_id
""")


def add(session: Session, decisions: Sequence[Mapping[str, Any]]) -> None:
    """Insert a signal for each buy, sell or close of a version that serves users.

    Args:
        decisions: rows that are new in the decision log.
    """
    rows = [
        {
            "decision_id": row["id"],
            "strategy_name": row["strategy_name"],
            "version": row["version"],
            "symbol": row["symbol"],
            "timestamp": row["timestamp"],
            "decision": row["decision"],
            "intent": row.get("intent", "open"),
            "confidence": row["confidence"],
        }
        for row in decisions
        if row["role"] in _SERVING and (row["decision"] in SIGNALS or row.get("intent") == "close")
    ]
    if rows:
        session.connection().execute(insert(SignalRow), rows)


def is_unnumbered(session: Session) -> bool:
    """Return whether there are signals without a number."""
    return (
        session.exec(select(SignalRow.decision_id).where(col(SignalRow.number).is_(None)).limit(1)).first() is not None
    )


def number_new(session: Session) -> int:
    """Number the signals that have none, by candle, and return how many there were.

    The lock lasts until the transaction ends, and nothing else takes it: no decision, tick or rollback waits for it.
    """
    cancel_when_idle(session)
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(text(_LOCK_WITHIN))
    found = _lock_head(session)
    numbered = session.connection().execute(_NUMBER, {"newest": found.number}).rowcount
    found.number += numbered
    session.add(found)
    session.flush()
    return numbered


def _lock_head(session: Session) -> SignalHead:
    insert_if_new(session, SignalHead, [{"id": 1, "number": 0, "dropped": 0}])
    return session.exec(select(SignalHead).with_for_update().execution_options(populate_existing=True)).one()


def head(session: Session) -> tuple[int, int]:
    """Return the numbers of the newest signal and of the newest one that is not kept any more, each 0 without one."""
    found = session.exec(select(SignalHead.number, SignalHead.dropped)).first()
    return (0, 0) if found is None else (found[0], found[1])


def decision_of(session: Session, number: int) -> UUID | None:
    """Return the id of the decision with this signal number."""
    return session.exec(select(SignalRow.decision_id).where(SignalRow.number == number)).first()


def page(
    session: Session, *, after: int, until: int, strategies: Collection[str] | None, limit: int
) -> Sequence[tuple[SignalRow, str, str]]:
    """Return (signal, status of its version now, timeframe) of the numbers in (after, until], in order."""
    query = (
        select_columns(SignalRow, col(StrategyVersion.status), col(StrategyVersion.timeframe))
        .join(
            StrategyVersion,
            (col(StrategyVersion.strategy_name) == SignalRow.strategy_name)
            & (col(StrategyVersion.version) == SignalRow.version),
        )
        .where(col(SignalRow.number) > after, col(SignalRow.number) <= until)
        .order_by(col(SignalRow.number))
        .limit(limit)
    )
    if strategies is not None:
        query = query.where(col(SignalRow.strategy_name).in_(sorted(strategies)))
    return [(signal, status, timeframe) for signal, status, timeframe in session.execute(query)]


def let_go(session: Session, before: datetime) -> int:
    """Stop to hand out the oldest signals, on candles before then, and return the number of the last of them.

    The newest signal stays, as the place from which a reader that has seen all of them continues.
    """
    found = _lock_head(session)
    first_kept = session.exec(
        select(func.min(SignalRow.number)).where(
            col(SignalRow.number) > found.dropped, col(SignalRow.timestamp) >= before
        )
    ).one()
    found.dropped = max(found.dropped, (first_kept or found.number) - 1)
    session.add(found)
    session.flush()
    return found.dropped


def drop(session: Session, until: int) -> int:
    """Delete the signals up to this number, after `let_go`. Return how many there were."""
    return session.connection().execute(delete(SignalRow).where(col(SignalRow.number) <= until)).rowcount
