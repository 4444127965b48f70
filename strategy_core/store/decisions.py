"""The decision log: written once a candle and version, read by key and by time; never changed."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import func
from sqlmodel import Session, col, select

from strategy_core.store import tallies
from strategy_core.store.bulk import write_if_new
from strategy_core.store.outcomes import is_of
from strategy_core.store.tables import ERROR, SIGNALS, EquityMark, Outcome, ShadowDecisionLog, StrategyVersion
from strategy_core.store.types import UtcDateTime

LOG = ShadowDecisionLog
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_ITS_OUTCOME = is_of(Outcome, LOG)


def log_decisions(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the rows that are new, count them, and return how many were; a second run changes nothing."""
    new = write_if_new(session, LOG, rows)
    tallies.count_decisions(session, new)  # when all are logged: see there
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
