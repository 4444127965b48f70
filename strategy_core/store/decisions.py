"""The decision log: written once a candle and version, read by key and by time; never changed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from sqlalchemy import bindparam, func
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.store import counters
from strategy_core.store.bulk_insert import write_if_new
from strategy_core.store.outcomes import is_of
from strategy_core.store.tables import (
    ERROR,
    SIGNALS,
    DecisionTally,
    EquityMark,
    Outcome,
    ShadowDecisionLog,
    StrategyVersion,
    UtcDateTime,
)

LOG = ShadowDecisionLog
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_ITS_OUTCOME = is_of(Outcome, LOG)


def log_decisions(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the rows that are new, count them, and return how many were; a second run changes nothing."""
    new = write_if_new(session, LOG, rows)
    counters.count_decisions(session, new)  # when all are logged: see there
    return len(new)


def newest_decided(session: Session, strategy_name: str, version: str, symbol: str) -> datetime | None:
    """Return the open time of the newest candle with a row of this version, errors included."""
    return session.exec(select(func.max(LOG.timestamp)).where(*_key(strategy_name, version, symbol))).one()


def newest_rows(
    session: Session, strategy_name: str, version: str, symbol: str, limit: int
) -> Sequence[tuple[datetime, str]]:
    """Return (candle, window hash) of the newest rows, errors included, newest first."""
    return session.exec(
        select(LOG.timestamp, LOG.window_hash)
        .where(*_key(strategy_name, version, symbol))
        .order_by(col(LOG.timestamp).desc())
        .limit(limit)
    ).all()


def find_decisions(
    session: Session,
    strategy_name: str,
    version: str,
    symbol: str | None = None,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    limit: int | None = None,
) -> Sequence[ShadowDecisionLog]:
    """Return decisions on candles in [start, end), oldest first; with *limit* the newest so many of them."""
    query = select(LOG).where(LOG.strategy_name == strategy_name, LOG.version == version)
    if symbol is not None:
        query = query.where(LOG.symbol == symbol)
    if start is not None:
        query = query.where(col(LOG.timestamp) >= start)
    if end is not None:
        query = query.where(col(LOG.timestamp) < end)
    newest_first = query.order_by(col(LOG.timestamp).desc(), col(LOG.symbol).desc())
    if limit is not None:
        newest_first = newest_first.limit(limit)
    return list(reversed(session.exec(newest_first).all()))


def find_breaches(session: Session, strategy_name: str, version: str) -> Sequence[ShadowDecisionLog]:
    """Return the decisions in which the version tried to touch the outside, oldest first."""
    return session.exec(
        select(LOG)
        .where(
            LOG.strategy_name == strategy_name,
            LOG.version == version,
            LOG.decision == ERROR,
            LOG.error_kind == "breach",
        )
        .order_by(col(LOG.timestamp), LOG.symbol)
    ).all()


def decisions_by_kind(session: Session, strategy_name: str) -> dict[tuple[str, str], int]:
    """Return how often each version said what, by (version, decision)."""
    rows = session.exec(
        select(LOG.version, LOG.decision, func.count())
        .where(LOG.strategy_name == strategy_name)
        .group_by(LOG.version, LOG.decision)
    ).all()
    return {(version, decision): count for version, decision, count in rows}


def signals_to_score(
    session: Session, version: StrategyVersion, symbol: str, *, horizon: int
) -> Sequence[tuple[datetime, str]]:
    """Return (candle, decision) of the signals whose outcome is not booked yet, oldest first.

    Looks back from the newest candle that was marked to market: all that was decided *horizon* + 1 candles before it
    had closed by then, so the cost does not grow with the log.
    """
    mine = _key(version.strategy_name, version.version, symbol)
    marked = (
        select(func.max(EquityMark.timestamp))
        .where(
            EquityMark.strategy_name == version.strategy_name,
            EquityMark.version == version.version,
            EquityMark.symbol == symbol,
        )
        .scalar_subquery()
    )
    since = (
        select(LOG.timestamp)
        .where(*mine, col(LOG.timestamp) <= marked)
        .order_by(col(LOG.timestamp).desc())
        .offset(horizon + 1)
        .limit(1)
        .scalar_subquery()
    )
    return session.exec(
        select(LOG.timestamp, LOG.decision)
        .outerjoin(Outcome, _ITS_OUTCOME)
        .where(
            *mine,
            col(LOG.timestamp) >= func.coalesce(since, _BEGINNING, type_=UtcDateTime()),
            col(LOG.decision).in_(SIGNALS),
            col(Outcome.decision_id).is_(None),
        )
        .order_by(col(LOG.timestamp))
    ).all()


def _key(strategy_name: str, version: str, symbol: str) -> tuple[Any, ...]:
    return (LOG.strategy_name == strategy_name, LOG.version == version, LOG.symbol == symbol)


TALLY = DecisionTally


class Last(NamedTuple):
    """The newest row of a symbol, and how far its newest rows reach back.

    Attributes:
        oldest: the candle of the last of so many rows as were asked for; None when there are fewer.
    """

    newest: datetime
    window_hash: str
    oldest: datetime | None


def last_rows(session: Session, strategy_name: str, version: str, count: int, *, since: datetime) -> dict[str, Last]:
    """Return, by symbol, what its newest *count* rows since then are, errors included.

    Args:
        since: earlier candles are not looked for; of a log in parts only those since then are read.
    """
    asked = {"strategy_name": strategy_name, "version": version, "before": count - 1, "since": since}
    rows = session.execute(_LAST, asked)
    return {symbol: Last(newest, window_hash, oldest) for symbol, newest, window_hash, oldest in rows if newest}


def rows_since(
    session: Session, strategy_name: str, version: str, symbols: Sequence[str], since: datetime
) -> dict[str, list[tuple[datetime, str]]]:
    """Return, by symbol, (candle, window hash) of all rows since then, newest first; for symbols that have few."""
    found: dict[str, list[tuple[datetime, str]]] = defaultdict(list)
    wanted = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.symbol).in_(symbols))
    newest_first = col(LOG.timestamp).desc()
    query = select(LOG.symbol, LOG.timestamp, LOG.window_hash).where(*wanted, col(LOG.timestamp) >= since)
    for symbol, timestamp, window_hash in session.exec(query.order_by(newest_first)):
        found[symbol].append((timestamp, window_hash))
    return found


def _newest(column: Any) -> Any:
    """Return what a symbol that has been counted has in its newest row: a question by key, never a scan."""
    mine = (getattr(LOG, key) == getattr(TALLY, key) for key in ("strategy_name", "version", "symbol"))
    since = col(LOG.timestamp) >= bindparam("since", type_=UtcDateTime())
    return select(column).where(*mine, since).order_by(col(LOG.timestamp).desc()).limit(1).correlate(TALLY)


_LAST = select_columns(
    col(TALLY.symbol),
    _newest(LOG.timestamp).scalar_subquery(),
    _newest(LOG.window_hash).scalar_subquery(),
    _newest(LOG.timestamp).offset(bindparam("before")).scalar_subquery(),
).where(col(TALLY.strategy_name) == bindparam("strategy_name"), col(TALLY.version) == bindparam("version"))
