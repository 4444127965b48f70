"""How two versions did over time, as curves and days that a report can show; it judges and changes nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isnan

import numpy as np
from sqlmodel import Session

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.daily import Daily, by_day
from strategy_core.domain.slots import Slots
from strategy_core.store import outcomes, slots, versions
from strategy_core.store.tables import ComparisonReport

MOST_POINTS = 400  # of a curve: what is between two of them is less than two pixels
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Equity:
    """Cumulative R of both versions, marked to market, open trades included, on the symbols that they share.

    Attributes:
        at: candles' open times, ascending: MOST_POINTS at most, the first and the newest among them.
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
    names = (report.shadow_version, report.active_version)
    closed, _ = slots.read_slots(
        session, report.strategy_name, *names, start=report.period_start, end=report.period_end
    )
    equity = read_equity(session, report.strategy_name, *names, start=report.period_start, end=report.period_end)
    return ComparisonCurves(report, equity, days_of(slots.by_candle(closed)))


def read_equity(
    session: Session, strategy_name: str, canary: str, control: str, *, start: datetime, end: datetime
) -> Equity:
    """Return both versions' equity over [start, end), from 0 at its start."""
    shared = set.intersection(
        *(set(versions.get_version(session, strategy_name, name).symbols) for name in (canary, control))
    )
    ours, theirs = (_marks(session, strategy_name, name, sorted(shared), start, end) for name in (canary, control))
    times = sorted({start, *ours, *theirs})
    kept = np.unique(np.linspace(0, len(times) - 1, MOST_POINTS).round().astype(int))
    curves = (_cumulative([changes.get(at, 0.0) for at in times])[kept] for changes in (ours, theirs))
    return Equity(tuple(times[place] for place in kept), *(tuple(curve.tolist()) for curve in curves))


def days_of(booked: Slots) -> tuple[Day, ...]:
    """Return slots day by day."""
    return tuple(_day(by_day(booked)))


def _marks(
    session: Session, strategy_name: str, version: str, symbols: Sequence[str], start: datetime, end: datetime
) -> dict[datetime, float]:
    changes: dict[datetime, float] = {}
    for symbol in symbols:
        marks = outcomes.marks_by_candle(session, strategy_name, version, start=start, end=end, symbol=symbol)
        for candle, r in marks.items():
            changes[candle] = changes.get(candle, 0.0) + r
    return changes


def _cumulative(changes: Sequence[float]) -> FloatArray:
    return np.cumsum(np.array(changes, np.float64))


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
