"""Shadow against active on the same candles, as a report; it judges nothing: verdicts are the gates'."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import stdtrit  # not scipy.stats, which takes half a second to import

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.performance import NO_TRADES, ClosedTrades, Performance
from strategy_core.domain.strategy import Action


@dataclass(frozen=True, slots=True)
class Cell:
    """Candles of one symbol, regime and day on which the versions said the same two things; from one candle to all.

    Attributes:
        regime: of the market; "" where nobody asked for it.
        day: UTC day of the candles, as any whole number that names it.
        shadow, active: what each said; None is no decision: it failed, had too little history, or was not asked.
        candles: how many.
        closed: of these, where the trades of all that signalled have closed.
        shadow_trades, active_trades: of the closed ones; NO_TRADES where the version held.
    """

    symbol: str
    regime: str
    day: int
    shadow: Action | None
    active: Action | None
    candles: int
    closed: int = 0
    shadow_trades: ClosedTrades = NO_TRADES
    active_trades: ClosedTrades = NO_TRADES


class Interval(BaseModel):
    """A mean and its confidence limits.

    Attributes:
        mean: None without observations.
        low, high: None with fewer than two days: one cluster says nothing of the spread between clusters.
        n: observations.
        days: distinct days they fell on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float | None
    low: float | None
    high: float | None
    n: int
    days: int


class Comparison(BaseModel):
    """Two versions on the same candles. Rates are percent; arms count trades of slots that are closed in both.

    Attributes:
        candles_compared: rows (symbol, candle) on which both decided; all that follows is of these.
        candles_excluded: rows on which at least one had no decision.
        shadow_signal_count, active_signal_count: buys and sells.
        divergence_rate: share of actionable candles (either signalled) on which the actions differ; None without any.
        divergence_rate_all_candles: the same of all compared candles; looks small when both mostly hold.
        agreement: [shadow's action][active's action] -> candles.
        slots: actionable candles, of which pending_slots have a trade that has not closed yet.
        difference: R of shadow - R of active per closed slot, 0 where a version held; its interval is day-clustered.
        by_regime: the same for each regime's candles; without drawdown, since a regime's candles are no account.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    symbols: tuple[str, ...]
    candles_compared: int
    candles_excluded: int
    shadow_signal_count: int
    active_signal_count: int
    divergence_rate: float | None
    divergence_rate_all_candles: float | None
    agreement: Mapping[Action, Mapping[Action, int]]
    slots: int
    pending_slots: int
    shadow: Performance
    active: Performance
    difference: Interval
    by_regime: Mapping[str, "Comparison"]


def compare(
    cells: Iterable[Cell], *, drawdowns: tuple[float, float] | None = None, confidence: float = 0.95
) -> Comparison:
    """Compare two versions by what their candles add up to; every candle is in one cell, cells come in any order.

    Args:
        drawdowns: the largest of the shadow's account and of the active's; None: not asked for.
        confidence: of the two-sided interval of the difference.
    """
    whole, by_regime = _Sums(), defaultdict[str, _Sums](_Sums)
    for cell in cells:
        whole.add(cell)
        if cell.regime:
            by_regime[cell.regime].add(cell)
    each = {regime: sums.compared(confidence, None) for regime, sums in sorted(by_regime.items())}
    return whole.compared(confidence, drawdowns if whole.said else None).model_copy(update={"by_regime": each})


def day_cluster_interval(observations: IntArray, sums: FloatArray, confidence: float = 0.95) -> Interval:
    """Return the mean difference and its day-cluster t interval: outcomes of one day are not independent.

    mean ± t(D - 1) · sqrt(D / (D - 1) · Σ_day (Σ (d - mean))²) / n, for n differences on D days. For a one-sided bound
    at 95 % take `low` (or `high`) at a *confidence* of 0.90.

    Args:
        observations: how many differences each day has, at least one; shape (D,).
        sums: Σ d of each day; shape (D,), finite.
        confidence: two-sided, in (0, 1).

    Source: Liang & Zeger (1986), with the small-sample factor and t(D - 1) of Cameron & Miller (2015), eq. 12.
    """
    n, days = int(observations.sum()), len(observations)
    mean = float(sums.sum()) / n if n else None
    if mean is None or days < 2:
        return Interval(mean=mean, low=None, high=None, n=n, days=days)
    error = float(np.sqrt(days / (days - 1) * np.sum((sums - mean * observations) ** 2))) / n
    reach = float(stdtrit(days - 1, (1 + confidence) / 2)) * error
    return Interval(mean=mean, low=mean - reach, high=mean + reach, n=n, days=days)


@dataclass(slots=True)
class _Sums:
    """What cells come to.

    Attributes:
        said: (shadow's action, active's action) -> candles.
        days: day -> closed slots and Σ of their differences.
    """

    symbols: set[str] = field(default_factory=set)
    said: Counter[tuple[Action | None, Action | None]] = field(default_factory=Counter)
    days: dict[int, tuple[int, float]] = field(default_factory=dict)
    shadow: ClosedTrades = NO_TRADES
    active: ClosedTrades = NO_TRADES

    def add(self, cell: Cell) -> None:
        self.said[cell.shadow, cell.active] += cell.candles
        if cell.shadow is None or cell.active is None:
            return
        self.symbols.add(cell.symbol)
        if not cell.closed or cell.shadow is cell.active is Action.HOLD:
            return
        slots, difference = self.days.get(cell.day, (0, 0.0))
        apart = cell.shadow_trades.r - cell.active_trades.r
        self.days[cell.day] = (slots + cell.closed, difference + apart)
        self.shadow += cell.shadow_trades
        self.active += cell.active_trades

    def compared(self, confidence: float, drawdowns: tuple[float, float] | None) -> Comparison:
        agreement = {one: {other: self.said[one, other] for other in Action} for one in Action}
        compared = sum(sum(row.values()) for row in agreement.values())
        held = agreement[Action.HOLD][Action.HOLD]
        slots = compared - held
        differs = compared - sum(agreement[action][action] for action in Action)
        days = sorted(self.days)
        difference = day_cluster_interval(
            np.array([self.days[day][0] for day in days], dtype=np.int64),
            np.array([self.days[day][1] for day in days], dtype=np.float64),
            confidence,
        )
        ours, theirs = drawdowns or (None, None)
        return Comparison(
            symbols=tuple(sorted(self.symbols)),
            candles_compared=compared,
            candles_excluded=self.said.total() - compared,
            shadow_signal_count=compared - sum(agreement[Action.HOLD].values()),
            active_signal_count=compared - sum(row[Action.HOLD] for row in agreement.values()),
            divergence_rate=100 * differs / slots if slots else None,
            divergence_rate_all_candles=100 * differs / compared if compared else None,
            agreement=agreement,
            slots=slots,
            pending_slots=slots - difference.n,
            shadow=self.shadow.performance(ours),
            active=self.active.performance(theirs),
            difference=difference,
            by_regime={},
        )


class DaySums(NamedTuple):
    """What some of a day's closed slots add up to; from one slot to all of the day's.

    Attributes:
        day: as days since 1970.
        unlike: how many of *slots* the two said different things on.
        canary_r, active_r: Σ R.
    """

    day: int
    slots: int
    unlike: int
    canary_r: float
    active_r: float


@dataclass(frozen=True, slots=True)
class Daily:
    """Slots by the day that stands in them; every array has shape (days,), oldest day first.

    Attributes:
        day: as days since 1970; days without a slot are not in it.
        slots: on that day; `unlike` are those on which the two said different things.
        canary_r, active_r: Σ R of that day.
        mean: canary R - active R per slot, over all days up to that one.
        low, high: the day-cluster t interval of that mean; NaN on the first day.
    """

    day: IntArray
    slots: IntArray
    unlike: IntArray
    canary_r: FloatArray
    active_r: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def by_day(sums: Sequence[DaySums], confidence: float = 0.95) -> Daily:
    """Return slots day by day, given in any order; the last interval is that of `comparison.day_cluster_interval`.

    With S the day's Σ d and n its slots, Σ (S - n·mean)² = Σ S² - 2·mean·Σ S·n + mean²·Σ n²: running sums are enough.
    """
    table = np.array(sums, np.float64).reshape(-1, len(DaySums._fields))
    day, place = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    counts, unlike, canary_r, active_r = (_added(place, column, len(day)) for column in table.T[1:])
    apart = canary_r - active_r
    n, clusters = np.cumsum(counts), np.arange(1, len(day) + 1)
    mean = np.cumsum(apart) / n
    squares = np.cumsum(apart**2) - 2 * mean * np.cumsum(apart * counts) + mean**2 * np.cumsum(counts**2)
    with np.errstate(divide="ignore", invalid="ignore"):  # one day says nothing of the spread between days
        error = np.sqrt(clusters / (clusters - 1) * np.maximum(squares, 0.0)) / n
        reach = stdtrit(clusters - 1, (1 + confidence) / 2) * error
    return Daily(
        day=day,
        slots=counts.astype(np.int64),
        unlike=unlike.astype(np.int64),
        canary_r=canary_r,
        active_r=active_r,
        mean=mean,
        low=mean - reach,
        high=mean + reach,
    )


def _added(place: IntArray, column: FloatArray, days: int) -> FloatArray:
    return np.bincount(place, weights=column, minlength=days).astype(np.float64)
