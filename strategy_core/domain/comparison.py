"""Shadow against active on the same candles, as a report; it judges nothing: verdicts are the gates'."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict
from scipy.special import stdtrit  # not scipy.stats, which takes half a second to import

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.errors import NaiveTime
from strategy_core.domain.performance import Performance, performance
from strategy_core.domain.strategy import Action

_SIDE = {Action.BUY.value: 1.0, Action.SELL.value: -1.0, Action.HOLD.value: 0.0}


@dataclass(frozen=True, slots=True)
class Arm:
    """What one version said, and what it was worth; every array has a row per (symbol, candle).

    Attributes:
        actions: `buy`, `sell`, `hold`; anything else (None, "", "error") is no decision: it failed, or had too little
            history.
        r_multiple: of the trade decided on that candle; NaN while pending, ignored where the version held.
        pnl: of the same trade, price units.
        marks: change of marked-to-market R in that candle over the arm's trades on compared candles; None: no drawdown.
    """

    actions: Sequence[str | None] | NDArray[Any]
    r_multiple: FloatArray
    pnl: FloatArray
    marks: FloatArray | None = None


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
    *,
    symbols: ArrayLike,
    opened_at: pd.DatetimeIndex,
    shadow: Arm,
    active: Arm,
    regimes: ArrayLike | None = None,
    risk_fraction: float = 0.01,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two versions row by row; rows are unique (symbol, candle), in any order.

    Args:
        symbols: shape (rows,).
        opened_at: the candles' open times, aware; shape (rows,). Days are UTC days of these.
        regimes: label of each candle; None leaves `by_regime` empty.
        risk_fraction: share of equity one R stands for, in the drawdown.
        confidence: of the two-sided interval of the difference.

    Raises:
        NaiveTime: *opened_at* has no time zone.
    """
    if opened_at.tz is None:
        raise NaiveTime("opened_at")
    seconds = opened_at.as_unit("s").asi8
    rows = _Rows(
        symbols=np.asarray(symbols, dtype=object),
        days=seconds // 86_400,
        shadow=_Decided.of(shadow),
        active=_Decided.of(active),
    )
    whole = rows.compared(confidence, risk_fraction, _by_time(shadow.marks, seconds), _by_time(active.marks, seconds))
    if regimes is None:
        return whole
    labels, codes = np.unique(np.asarray(regimes, dtype=np.str_), return_inverse=True)
    each = {
        str(label): rows.only(codes == code).compared(confidence, risk_fraction, None, None)
        for code, label in enumerate(labels)
    }
    return whole.model_copy(update={"by_regime": each})


def day_cluster_interval(differences: FloatArray, days: IntArray, confidence: float = 0.95) -> Interval:
    """Return the mean difference and its day-cluster t interval: outcomes of one day are not independent.

    mean ± t(D - 1) · sqrt(D / (D - 1) · Σ_day (Σ (d - mean))²) / n, for n differences on D days. For a one-sided bound
    at 95 % take `low` (or `high`) at a *confidence* of 0.90.

    Args:
        differences: shape (n,), finite.
        days: any whole number that names each one's day; shape (n,).
        confidence: two-sided, in (0, 1).

    Source: Liang & Zeger (1986), with the small-sample factor and t(D - 1) of Cameron & Miller (2015), eq. 12.
    """
    n = len(differences)
    _, codes = np.unique(days, return_inverse=True)
    count = int(codes.max()) + 1 if n else 0
    mean = float(differences.mean()) if n else None
    if mean is None or count < 2:
        return Interval(mean=mean, low=None, high=None, n=n, days=count)
    sums = np.bincount(codes, weights=differences - mean)
    error = float(np.sqrt(count / (count - 1) * np.sum(sums**2))) / n
    reach = float(stdtrit(count - 1, (1 + confidence) / 2)) * error
    return Interval(mean=mean, low=mean - reach, high=mean + reach, n=n, days=count)


@dataclass(frozen=True, slots=True)
class _Decided:
    """An arm with its actions as numbers: 1 buy, -1 sell, 0 hold, NaN no decision."""

    side: FloatArray
    r_multiple: FloatArray
    pnl: FloatArray

    @classmethod
    def of(cls, arm: Arm) -> "_Decided":
        said = pd.Series(np.asarray(arm.actions, dtype=object)).map(_SIDE)
        return cls(side=np.asarray(said, dtype=np.float64), r_multiple=arm.r_multiple, pnl=arm.pnl)

    def only(self, rows: BoolArray) -> "_Decided":
        return _Decided(self.side[rows], self.r_multiple[rows], self.pnl[rows])

    @property
    def signalled(self) -> BoolArray:
        return np.not_equal(self.side, 0)

    def performance(self, booked: BoolArray, marks: FloatArray | None, risk_fraction: float) -> Performance:
        counted = booked & self.signalled
        return performance(self.r_multiple[counted], self.pnl[counted], marks=marks, risk_fraction=risk_fraction)


@dataclass(frozen=True, slots=True)
class _Rows:
    symbols: NDArray[np.object_]
    days: IntArray
    shadow: _Decided
    active: _Decided

    def only(self, rows: BoolArray) -> "_Rows":
        return _Rows(self.symbols[rows], self.days[rows], self.shadow.only(rows), self.active.only(rows))

    def compared(
        self,
        confidence: float,
        risk_fraction: float,
        shadow_marks: FloatArray | None,
        active_marks: FloatArray | None,
    ) -> Comparison:
        both = self.only(~np.isnan(self.shadow.side) & ~np.isnan(self.active.side))
        shadow, active = both.shadow, both.active
        actionable = shadow.signalled | active.signalled
        differs = int(np.sum(shadow.side != active.side))
        r_shadow = np.where(shadow.signalled, shadow.r_multiple, 0.0)
        r_active = np.where(active.signalled, active.r_multiple, 0.0)
        booked = actionable & ~np.isnan(r_shadow) & ~np.isnan(r_active)
        slots = int(actionable.sum())
        return Comparison(
            symbols=tuple(sorted(str(symbol) for symbol in pd.unique(both.symbols))),
            candles_compared=len(both.days),
            candles_excluded=len(self.days) - len(both.days),
            shadow_signal_count=int(shadow.signalled.sum()),
            active_signal_count=int(active.signalled.sum()),
            divergence_rate=100 * differs / slots if slots else None,
            divergence_rate_all_candles=100 * differs / len(both.days) if len(both.days) else None,
            agreement={
                one: {
                    other: int(np.sum((shadow.side == _SIDE[one]) & (active.side == _SIDE[other]))) for other in Action
                }
                for one in Action
            },
            slots=slots,
            pending_slots=slots - int(booked.sum()),
            shadow=shadow.performance(booked, shadow_marks, risk_fraction),
            active=active.performance(booked, active_marks, risk_fraction),
            difference=day_cluster_interval((r_shadow - r_active)[booked], both.days[booked], confidence),
            by_regime={},
        )


def _by_time(marks: FloatArray | None, seconds: IntArray) -> FloatArray | None:
    """Add up what all symbols moved in each candle, oldest first."""
    if marks is None:
        return None
    moments, codes = np.unique(seconds, return_inverse=True)
    changes = np.zeros(len(moments))
    np.add.at(changes, codes, marks)
    return changes
