"""Comparison of a shadow version with the active one on the same candles, in total, by regime and by day."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import stdtrit  # not scipy.stats, which takes half a second to import

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.performance import NO_TRADES, ClosedTrades, Performance
from strategy_core.domain.strategy import Action


@dataclass(frozen=True, slots=True)
class Cell:
    """Counts for candles of one symbol, regime and day with the same pair of actions.

    The candles of one such group may be split into several cells.

    Attributes:
        regime: of the market, or "" without regimes.
        day: UTC day of the candles, as any whole number that identifies it.
        shadow, active: the actions. None without a decision: it failed, had too little history, or did not run.
        candles: number of candles.
        closed: number of candles on which all trades have closed.
        shadow_trades, active_trades: of the closed candles. NO_TRADES where the version held.
        replayed: whether the decisions are from a replay, and not from the log of live decisions.
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
    replayed: bool = field(default=False, kw_only=True)


class Interval(BaseModel):
    """A mean and its confidence limits.

    Attributes:
        mean: only with observations.
        low, high: only with two days or more, since one cluster does not show the spread between clusters.
        n: number of observations.
        days: number of distinct days.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    mean: float | None
    low: float | None
    high: float | None
    n: int
    days: int


class Comparison(BaseModel):
    """Two versions on the same candles. Rates are in percent. Performance counts slots that are closed in both.

    Attributes:
        candles_compared: rows (symbol, candle) on which both decided. All other figures are about these.
        candles_excluded: rows on which at least one had no decision.
        shadow_signal_count, active_signal_count: buys and sells.
        divergence_rate: share of actionable candles (at least one signalled) with different actions, if any.
        divergence_rate_all_candles: the same share of all compared candles. Small when both mostly hold.
        agreement: [shadow's action][active's action] -> candles.
        slots: actionable candles. pending_slots of them have an open trade.
        difference: R of shadow - R of active per closed slot, 0 where a version held, with a day-clustered interval.
        by_regime: the same by regime, without drawdown, since the candles of a regime are not a continuous account.
        candles_replayed: of the compared candles, those from a replay.
        drawdowns_from: the first candle that counts in both drawdowns, if there is one. It is later than the first
            compared candle if one version had decided before, and so may still have held trades of its own.
        trained_until: end of the training of the versions, if they say so. In all figures are only later candles.
        in_sample: the same for the earlier candles, on which a version was trained. None if there are none.
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
    candles_replayed: int = 0
    drawdowns_from: datetime | None = None
    trained_until: datetime | None = None
    in_sample: "Comparison | None" = None


def compare(
    cells: Iterable[Cell], *, drawdowns: tuple[float, float] | None = None, confidence: float = 0.95
) -> Comparison:
    """Compare two versions. Each candle is in one cell. The order of the cells does not matter.

    Args:
        drawdowns: the largest of the shadow and of the active version, or None to leave them out.
        confidence: of the two-sided interval of the difference.
    """
    whole, by_regime = _Sums(), defaultdict[str, _Sums](_Sums)
    for cell in cells:
        whole.add(cell)
        if cell.regime:
            by_regime[cell.regime].add(cell)
    each = {regime: sums.compared(confidence, None) for regime, sums in sorted(by_regime.items())}
    return whole.compared(confidence, drawdowns if whole.actions else None).model_copy(update={"by_regime": each})


def day_cluster_interval(observations: IntArray, sums: FloatArray, confidence: float = 0.95) -> Interval:
    """Return the mean difference and its day-cluster t interval, because outcomes of one day are not independent.

    mean ± t(D - 1) · sqrt(D / (D - 1) · Σ_day (Σ (d - mean))²) / n, for n differences on D days. For a one-sided bound
    at 95 %, use `low` (or `high`) at a *confidence* of 0.90.

    Args:
        observations: number of differences of each day, at least one, shape (D,).
        sums: Σ d of each day, shape (D,), finite.
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
    """Sums over cells.

    Attributes:
        actions: (shadow's action, active's action) -> candles.
        days: day -> closed slots and Σ of their differences.
        replayed: compared candles from a replay.
    """

    symbols: set[str] = field(default_factory=set)
    actions: Counter[tuple[Action | None, Action | None]] = field(default_factory=Counter)
    days: dict[int, tuple[int, float]] = field(default_factory=dict)
    shadow: ClosedTrades = NO_TRADES
    active: ClosedTrades = NO_TRADES
    replayed: int = 0

    def add(self, cell: Cell) -> None:
        self.actions[cell.shadow, cell.active] += cell.candles
        if cell.shadow is None or cell.active is None:
            return
        self.symbols.add(cell.symbol)
        self.replayed += cell.candles if cell.replayed else 0
        if not cell.closed or cell.shadow is cell.active is Action.HOLD:
            return
        slots, difference = self.days.get(cell.day, (0, 0.0))
        apart = cell.shadow_trades.r - cell.active_trades.r
        self.days[cell.day] = (slots + cell.closed, difference + apart)
        self.shadow += cell.shadow_trades
        self.active += cell.active_trades

    def compared(self, confidence: float, drawdowns: tuple[float, float] | None) -> Comparison:
        agreement = {one: {other: self.actions[one, other] for other in Action} for one in Action}
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
            candles_excluded=self.actions.total() - compared,
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
            candles_replayed=self.replayed,
        )


class DaySums(NamedTuple):
    """Sums over some or all closed slots of one day.

    Attributes:
        day: as days since 1970.
        unlike: number of the *slots* with different decisions.
        canary_r, active_r: Σ R.
    """

    day: int
    slots: int
    unlike: int
    canary_r: float
    active_r: float


@dataclass(frozen=True, slots=True)
class Daily:
    """Slots by day. All arrays have shape (days,), oldest day first.

    Attributes:
        day: as days since 1970, without days that have no slots.
        slots: on that day. `unlike` counts those with different decisions.
        canary_r, active_r: Σ R of that day.
        mean: canary R - active R per slot, over all days up to that one.
        low, high: the day-cluster t interval of that mean. NaN on the first day.
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
    """Return slots by day. The input may have any order. The last interval equals `day_cluster_interval`.

    Running sums are enough: with S a day's Σ d and n its slots, Σ (S - n·mean)² = Σ S² - 2·mean·Σ S·n + mean²·Σ n².
    """
    table = np.array(sums, np.float64).reshape(-1, len(DaySums._fields))
    day, place = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    counts, unlike, canary_r, active_r = (_sum_by_place(place, column, len(day)) for column in table.T[1:])
    apart = canary_r - active_r
    n, clusters = np.cumsum(counts), np.arange(1, len(day) + 1)
    mean = np.cumsum(apart) / n
    squares = np.cumsum(apart**2) - 2 * mean * np.cumsum(apart * counts) + mean**2 * np.cumsum(counts**2)
    with np.errstate(divide="ignore", invalid="ignore"):  # one day does not show the spread between days
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


def _sum_by_place(place: IntArray, column: FloatArray, days: int) -> FloatArray:
    return np.bincount(place, weights=column, minlength=days).astype(np.float64)
