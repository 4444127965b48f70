"""A comparison from two arms' rows held in memory: what it means, where `domain.comparison` has what rows add up to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from strategy_core.domain import comparison
from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.comparison import Cell, Comparison, Interval
from strategy_core.domain.comparison import day_cluster_interval as interval_of_days
from strategy_core.domain.performance import ClosedTrades, Performance, max_drawdown, performance
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
    """
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
    """Return the interval of `domain.comparison.day_cluster_interval` from the differences themselves."""
    _, codes, counts = np.unique(days, return_inverse=True, return_counts=True)
    sums = np.bincount(codes, weights=differences, minlength=len(counts)).astype(np.float64)
    return interval_of_days(counts, sums, confidence)


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


def cells_of(
    *, symbols: ArrayLike, opened_at: pd.DatetimeIndex, shadow: Arm, active: Arm, regimes: ArrayLike | None = None
) -> Iterator[Cell]:
    """Yield each row as a cell of its own, as `domain.comparison` takes them."""
    names = np.asarray(symbols, dtype=object)
    labels = np.full(len(names), "") if regimes is None else np.asarray(regimes, dtype=np.str_)
    arms = (shadow, active)
    for at in range(len(names)):
        said = [_action(arm.actions[at]) for arm in arms]
        signals = [action in (Action.BUY, Action.SELL) for action in said]
        open_ones = [signal and np.isnan(arm.r_multiple[at]) for arm, signal in zip(arms, signals, strict=True)]
        closed = all(action is not None for action in said) and not any(open_ones)
        trades = [
            ClosedTrades.of(arm.r_multiple[[at]], arm.pnl[[at]]) if closed and signal else ClosedTrades()
            for arm, signal in zip(arms, signals, strict=True)
        ]
        day = int(opened_at[at].timestamp()) // 86_400
        yield Cell(str(names[at]), str(labels[at]), day, said[0], said[1], 1, int(closed), *trades)


def compare_cells(*, risk_fraction: float = 0.01, **rows: Any) -> Comparison:
    """Return what `domain.comparison` makes of these rows."""
    seconds = rows["opened_at"].as_unit("s").asi8
    marks = [_by_time(rows[arm].marks, seconds) for arm in ("shadow", "active")]
    falls = [None if changes is None else max_drawdown(changes, risk_fraction) or 0.0 for changes in marks]
    drawdowns = None if falls[0] is None or falls[1] is None else (falls[0], falls[1])
    return comparison.compare(cells_of(**rows), drawdowns=drawdowns)


def _action(said: object) -> Action | None:
    return Action(str(said)) if said in set(Action) else None
