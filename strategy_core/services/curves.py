"""How two versions did over time, as curves and days that a report can show; it judges and changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil, isnan
from typing import Any

from sqlmodel import Session

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.comparison import Cell
from strategy_core.domain.daily import Daily, DaySums, by_day
from strategy_core.store import outcomes, versions
from strategy_core.store.comparison import Pair, not_held
from strategy_core.store.tables import ComparisonReport

MOST_POINTS = 400  # of a curve: what is between two of them is less than two pixels
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Equity:
    """Cumulative R of both versions, marked to market, open trades included, on the symbols that they share.

    Attributes:
        at: the beginning, then candles' open times, ascending: MOST_POINTS at most, the newest among them.
        canary, control: R since the beginning, at each of them.
    """

    at: tuple[datetime, ...]
    canary: tuple[float, ...]
    control: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Day:
    """One UTC day's closed slots; *mean*, *low* and *high* are of the difference in R per slot, to the end of that day.

    Attributes:
        unlike: slots on which the two said different things.
        low, high: None on the first day, which says nothing of the spread between days.
    """

    day: datetime
    slots: int
    unlike: int
    canary_r: float
    control_r: float
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ComparisonCurves:
    """A stored comparison, and what it came to over its period."""

    report: ComparisonReport
    equity: Equity
    days: tuple[Day, ...]


def comparison_curves(session: Session, report: ComparisonReport) -> ComparisonCurves:
    """Return a stored comparison with its curves; days are of slots that have closed since, in all of its symbols."""
    name, shadow, active = report.strategy_name, report.shadow_version, report.active_version
    start, end = report.period_start, report.period_end
    cells = not_held(session, Pair(name, shadow, active, _shared(session, name, shadow, active), start, end))
    decided = (cell for _, cell in cells if cell.shadow is not None and cell.active is not None)
    days = days_of([_sums(cell) for cell in decided if cell.closed])
    return ComparisonCurves(report, read_equity(session, name, shadow, active, start=start, end=end), days)


def read_equity(
    session: Session, strategy_name: str, canary: str, control: str, *, start: datetime, end: datetime
) -> Equity:
    """Return both versions' equity over [start, end), from 0 at its start."""
    timeframe = timeframe_delta(versions.get_version(session, strategy_name, canary).timeframe)
    over: dict[str, Any] = {
        "symbols": _shared(session, strategy_name, canary, control),
        "start": start,
        "end": end,
        "stretch": max(timeframe, timedelta(seconds=ceil((end - start).total_seconds() / (MOST_POINTS - 1)))),
    }
    ours, theirs = (outcomes.marks_by_stretch(session, strategy_name, name, **over) for name in (canary, control))
    points, nothing = {start: (0.0, 0.0)}, (start, 0.0)
    so_far = (0.0, 0.0)
    for stretch in sorted(ours.keys() | theirs.keys()):
        (our_newest, our_r), (their_newest, their_r) = ours.get(stretch, nothing), theirs.get(stretch, nothing)
        so_far = (so_far[0] + our_r, so_far[1] + their_r)
        points[max(our_newest, their_newest)] = so_far
    return Equity(tuple(points), *zip(*points.values(), strict=True))


def days_of(sums: Sequence[DaySums]) -> tuple[Day, ...]:
    """Return slots day by day."""
    return tuple(_day(by_day(sums)))


def _sums(cell: Cell) -> DaySums:
    unlike = cell.closed if cell.shadow is not cell.active else 0
    return DaySums(cell.day, cell.closed, unlike, cell.shadow_trades.r, cell.active_trades.r)


def _shared(session: Session, strategy_name: str, one: str, other: str) -> list[str]:
    """Return the symbols that both versions decide on."""
    ours, theirs = (set(versions.get_version(session, strategy_name, name).symbols) for name in (one, other))
    return sorted(ours & theirs)


def _day(daily: Daily) -> list[Day]:
    columns = (
        daily.day,
        daily.slots,
        daily.unlike,
        daily.canary_r,
        daily.active_r,
        daily.mean,
        daily.low,
        daily.high,
    )
    return [
        Day(_EPOCH + timedelta(days=day), n, unlike, ours, theirs, mean, _known(low), _known(high))
        for day, n, unlike, ours, theirs, mean, low, high in zip(*(each.tolist() for each in columns), strict=True)
    ]


def _known(value: float) -> float | None:
    return None if isnan(value) else value
