"""Replayed decisions, their outcomes and marks. No tick, gate or metric reads them."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import delete, func
from sqlalchemy import select as select_columns
from sqlmodel import Session, SQLModel, col, select

from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Intent
from strategy_core.store.bulk_insert import write_if_new
from strategy_core.store.outcomes import is_of
from strategy_core.store.tables import SIGNALS, ReplayDecision, ReplayMark, ReplayOutcome


class Stretch(NamedTuple):
    """The candles of one version and symbol that opened in [start, end]."""

    strategy_name: str
    version: str
    symbol: str
    start: datetime
    end: datetime

    def of(self, table: Any) -> tuple[Any, ...]:
        """Return the conditions on the rows of a table."""
        mine = (col(getattr(table, name)) == getattr(self, name) for name in ("strategy_name", "version", "symbol"))
        return (*mine, col(table.timestamp) >= self.start, col(table.timestamp) <= self.end)


def read_hashes(session: Session, stretch: Stretch) -> dict[datetime, str]:
    """Return the window hash of each candle that has been replayed."""
    query = select(ReplayDecision.timestamp, ReplayDecision.window_hash).where(*stretch.of(ReplayDecision))
    return dict(session.exec(query).all())


def read_signals(session: Session, stretch: Stretch) -> Sequence[tuple[datetime, str]]:
    """Return (candle, decision) of the replayed signals, oldest first."""
    query = select(ReplayDecision.timestamp, ReplayDecision.decision).where(*stretch.of(ReplayDecision))
    signals = query.where(col(ReplayDecision.decision).in_(SIGNALS))
    return session.exec(signals.order_by(col(ReplayDecision.timestamp))).all()


def read_closes(session: Session, stretch: Stretch) -> Sequence[datetime]:
    """Return the replayed candles on which the version decided to close, oldest first."""
    query = select(ReplayDecision.timestamp).where(*stretch.of(ReplayDecision))
    closes = query.where(ReplayDecision.intent == Intent.CLOSE.value)
    return session.exec(closes.order_by(col(ReplayDecision.timestamp))).all()


def read_booked(session: Session, stretch: Stretch) -> set[datetime]:
    """Return the candles whose outcome is booked."""
    return set(session.exec(select(ReplayOutcome.timestamp).where(*stretch.of(ReplayOutcome))).all())


def read_marks(session: Session, stretch: Stretch) -> dict[datetime, float]:
    return dict(session.exec(select(ReplayMark.timestamp, ReplayMark.r).where(*stretch.of(ReplayMark))).all())


def add_decisions(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows that are new and return their number."""
    return len(write_if_new(session, ReplayDecision, rows))


def add_outcomes(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows that are new and return their number."""
    return len(write_if_new(session, ReplayOutcome, rows))


def replace_marks(session: Session, stretch: Stretch, rows: Sequence[Mapping[str, Any]]) -> None:
    """Delete the marks of the stretch and insert *rows*."""
    _delete(session, ReplayMark, stretch)
    write_if_new(session, ReplayMark, rows)


def discard_decisions(session: Session, stretch: Stretch) -> int:
    """Delete the decisions of the stretch with their outcomes, and return their number."""
    return _delete(session, ReplayDecision, stretch)


def discard_outcomes(session: Session, stretch: Stretch) -> int:
    """Delete the outcomes of the stretch, and return their number."""
    return _delete(session, ReplayOutcome, stretch)


def _delete(session: Session, table: type[SQLModel], stretch: Stretch) -> int:
    return session.connection().execute(delete(table).where(*stretch.of(table))).rowcount


class Span(NamedTuple):
    """The first and the newest candle that a version has replayed, and their number over its symbols."""

    first: datetime
    newest: datetime
    candles: int


def replayed_span(session: Session, strategy_name: str, version: str, symbols: Sequence[str]) -> Span | None:
    """Return what a version has replayed on *symbols*, or None if that is nothing."""
    first, newest, candles = session.execute(
        select_columns(func.min(ReplayDecision.timestamp), func.max(ReplayDecision.timestamp), func.count()).where(
            col(ReplayDecision.strategy_name) == strategy_name,
            col(ReplayDecision.version) == version,
            col(ReplayDecision.symbol).in_(symbols),
        )
    ).one()
    return None if first is None else Span(first, newest, candles)


class Trade(NamedTuple):
    """A replayed signal. *closed_at* is None while its trade is open."""

    symbol: str
    timestamp: datetime
    closed_at: datetime | None


def read_candles(
    session: Session, strategy_name: str, version: str, symbols: Sequence[str], start: datetime, end: datetime
) -> set[tuple[str, datetime]]:
    """Return (symbol, candle) of the replayed decisions on candles in [start, end)."""
    query = select(ReplayDecision.symbol, ReplayDecision.timestamp)
    return set(session.exec(query.where(*_within(strategy_name, version, symbols, start, end))).all())


def read_trades(
    session: Session, strategy_name: str, version: str, symbols: Sequence[str], start: datetime, end: datetime
) -> list[Trade]:
    """Return the replayed signals on candles in [start, end)."""
    query = (
        select(ReplayDecision.symbol, ReplayDecision.timestamp, ReplayOutcome.closed_at)
        .outerjoin(ReplayOutcome, is_of(ReplayOutcome, ReplayDecision))
        .where(*_within(strategy_name, version, symbols, start, end), col(ReplayDecision.decision).in_(SIGNALS))
    )
    return [Trade(*row) for row in session.exec(query).all()]


def marks_by_candle(
    session: Session, strategy_name: str, version: str, start: datetime, end: datetime
) -> dict[datetime, float]:
    """Return the change of marked-to-market R by candle in [start, end), summed over symbols."""
    query = select(ReplayMark.timestamp, func.sum(ReplayMark.r)).where(
        ReplayMark.strategy_name == strategy_name,
        ReplayMark.version == version,
        col(ReplayMark.timestamp) >= start,
        col(ReplayMark.timestamp) < end,
    )
    return dict(session.exec(query.group_by(col(ReplayMark.timestamp))).all())


def _within(
    strategy_name: str, version: str, symbols: Sequence[str], start: datetime, end: datetime
) -> tuple[Any, ...]:
    return (
        col(ReplayDecision.strategy_name) == strategy_name,
        col(ReplayDecision.version) == version,
        col(ReplayDecision.symbol).in_(symbols),
        col(ReplayDecision.timestamp) >= start,
        col(ReplayDecision.timestamp) < end,
        col(ReplayDecision.reason) != INSUFFICIENT_HISTORY,
    )
