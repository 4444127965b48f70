"""Outcomes, equity marks and comparison reports."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from sqlalchemy import BigInteger, and_, bindparam, cast, extract, func, text
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.store.bulk_insert import write_if_new
from strategy_core.store.engine import insert_if_new
from strategy_core.store.pagination import per_dialect
from strategy_core.store.tables import LIVE, ComparisonReport, EquityMark, EvidenceTables, Outcome, StrategyVersion

_MARKS = per_dialect(  # built once, because building it dominates the tick of many rollouts
    select(EquityMark.timestamp, func.sum(EquityMark.r))
    .where(
        EquityMark.strategy_name == bindparam("strategy_name"),
        EquityMark.version == bindparam("version"),
        col(EquityMark.timestamp) >= bindparam("start"),
    )
    .group_by(col(EquityMark.timestamp)),
    EquityMark,
    "version",
)


def find_ends(
    session: Session, strategy_name: str, version: str, symbol: str, *, since: datetime, until: datetime
) -> Sequence[tuple[datetime, str, datetime]]:
    """Return (candle of the signal, reason, time of the exit) of the outcomes of signals in [since, until]."""
    mine = (Outcome.strategy_name == strategy_name, Outcome.version == version, Outcome.symbol == symbol)
    within = (col(Outcome.timestamp) >= since, col(Outcome.timestamp) <= until)
    return session.exec(select(Outcome.timestamp, Outcome.exit_reason, Outcome.closed_at).where(*mine, *within)).all()


def is_of(outcome: Any, decision: Any) -> Any:
    """Return the join of outcomes to decisions: by candle, as in their indexes and partitions, and not by id."""
    candle = ("strategy_name", "version", "symbol", "timestamp")
    return and_(*(getattr(outcome, name) == getattr(decision, name) for name in candle))


def book_outcomes(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Book the outcomes that are new and return their number."""
    return len(write_if_new(session, Outcome, rows))


def mark_equity(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    return len(write_if_new(session, EquityMark, rows))


def newest_mark(session: Session, version: StrategyVersion, symbol: str) -> datetime | None:
    """Return the newest candle on which an open trade of this version was marked to market."""
    return session.exec(
        select(func.max(EquityMark.timestamp)).where(
            EquityMark.strategy_name == version.strategy_name,
            EquityMark.version == version.version,
            EquityMark.symbol == symbol,
        )
    ).one()


def newest_closed(session: Session, strategy_name: str, version: str) -> datetime | None:
    """Return when the newest booked trade of this version closed."""
    mine = (Outcome.strategy_name == strategy_name, Outcome.version == version)
    return session.exec(select(func.max(Outcome.closed_at)).where(*mine)).one()


def find_outcomes(
    session: Session, strategy_name: str, version: str, *, since: datetime | None = None
) -> Sequence[Outcome]:
    """Return booked outcomes of decisions on candles from *since* on, oldest candle first."""
    query = select(Outcome).where(Outcome.strategy_name == strategy_name, Outcome.version == version)
    if since is not None:
        query = query.where(col(Outcome.timestamp) >= since)
    return session.exec(query.order_by(col(Outcome.timestamp), Outcome.symbol)).all()


def marks_by_candle(
    session: Session,
    strategy_name: str,
    version: str,
    *,
    start: datetime,
    end: datetime | None = None,
    left_out: Mapping[str, datetime] = MappingProxyType({}),
    timeframe: timedelta = timedelta(0),
) -> dict[datetime, float]:
    """Return the change of marked-to-market R by candle in [start, end), summed over symbols.

    Args:
        left_out: by symbol, the first candle from which its marks are left out. Marks are not stored by trade, so a
            trade of an earlier signal, which users may still hold, then counts with its whole loss when it closes.
        timeframe: of the candles. Needed for *left_out*.
    """
    query = _MARKS[session.get_bind().dialect.name].where(
        *not_left_out(col(EquityMark.symbol), col(EquityMark.timestamp), left_out)
    )
    if end is not None:
        query = query.where(col(EquityMark.timestamp) < end)
    params = {"strategy_name": strategy_name, "version": version, "start": start}
    found: dict[datetime, float] = dict(session.exec(query, params=params).all())
    for symbol, first in left_out.items():
        mine = (Outcome.strategy_name == strategy_name, Outcome.version == version, Outcome.symbol == symbol)
        held = (col(Outcome.timestamp) >= start, col(Outcome.timestamp) < first)
        lost = (col(Outcome.closed_at) >= first + timeframe, col(Outcome.r_multiple) < 0)
        for closed_at, r in session.exec(
            select(Outcome.closed_at, Outcome.r_multiple).where(*mine, *held, *lost)
        ).all():
            found[closed_at - timeframe] = found.get(closed_at - timeframe, 0.0) + r
    return found


def not_left_out(symbol: Any, moment: Any, left_out: Mapping[str, datetime]) -> list[Any]:
    """Return the conditions by which rows with these two columns are before the moment of their symbol."""
    return [~and_(symbol == name, moment >= first) for name, first in left_out.items()]


def marks_by_stretch(
    session: Session,
    strategy_name: str,
    version: str,
    symbols: Collection[str],
    *,
    start: datetime,
    end: datetime,
    stretch: timedelta,
    origin: datetime | None = None,
    tables: EvidenceTables = LIVE,
    left_out: Mapping[str, datetime] = MappingProxyType({}),
) -> dict[int, tuple[datetime, float]]:
    """Return (newest candle, change of marked-to-market R) by stretch of [start, end).

    Stretches without marks are left out. The database adds up, because a chart needs some hundred points only.

    Args:
        origin: where stretch 0 begins. The default is *start*.
        left_out: by symbol, the first candle from which its marks are left out.
    """
    mark = tables.mark
    since_s = cast(extract("epoch", col(mark.timestamp)), BigInteger) - int((origin or start).timestamp())
    query = select_columns(since_s // int(stretch.total_seconds()), func.max(mark.timestamp), func.sum(mark.r)).where(
        col(mark.strategy_name) == strategy_name,
        col(mark.version) == version,
        col(mark.symbol).in_(symbols),
        col(mark.timestamp) >= start,
        col(mark.timestamp) < end,
        *not_left_out(col(mark.symbol), col(mark.timestamp), left_out),
    )
    return {place: (newest, r) for place, newest, r in session.execute(query.group_by(text("1")))}


def keep_report(session: Session, report: ComparisonReport) -> bool:
    """Store the report unless the same comparison is stored, and return whether it was new."""
    return insert_if_new(session, ComparisonReport, [report.model_dump()]) == 1


def find_reports(session: Session, strategy_name: str) -> Sequence[ComparisonReport]:
    """Return stored comparisons, newest first."""
    return session.exec(
        select(ComparisonReport)
        .where(ComparisonReport.strategy_name == strategy_name)
        .order_by(col(ComparisonReport.created_at).desc())
    ).all()


def newest_report(
    session: Session, strategy_name: str, shadow_version: str, active_version: str
) -> ComparisonReport | None:
    """Return the newest stored comparison of the two over all their symbols."""
    return session.exec(
        select(ComparisonReport)
        .where(
            ComparisonReport.strategy_name == strategy_name,
            ComparisonReport.shadow_version == shadow_version,
            ComparisonReport.active_version == active_version,
            ComparisonReport.symbol == "",
        )
        .order_by(col(ComparisonReport.created_at).desc(), col(ComparisonReport.period_end).desc())
        .limit(1)
    ).first()
