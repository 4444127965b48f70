"""Ramps of a pair of versions over a history, from a new start each month; never what the versions decide."""

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.calibration import RampResult, run_ramp
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.plan import Plan
from strategy_core.domain.scoring import ScoringRule, score
from strategy_core.domain.simulation import Ramp
from strategy_core.domain.slots import Slots
from strategy_core.services.evidence import LOOK_BACK

RULE = ScoringRule()
CANDLE = timeframe_delta("1h")
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Arm:
    """What a version did on each candle; arrays of shape (candles,).

    Attributes:
        side: +1 buy, -1 sell, 0 hold.
        r: of the trade that its signal made; 0 where it held, NaN where the trade has not closed.
        closed_at: days since 1970 at which that was known; of a hold, its own candle's close.
    """

    side: IntArray
    r: FloatArray
    closed_at: FloatArray


def arm(candles: pd.DataFrame, side: IntArray) -> Arm:
    closes = _days(pd.DatetimeIndex(candles.index) + CANDLE)
    at = np.flatnonzero(side)
    trades = score(candles, at, side[at], RULE)
    r, closed_at = np.zeros(len(candles)), closes.copy()
    r[at], closed_at[at] = trades.r_multiple, closes[trades.exit_position]
    return Arm(side, r, closed_at)


def exchanged(one: Arm, other: Arm, at: BoolArray) -> tuple[Arm, Arm]:
    """Return the two with their places changed on the candles *at*: neither is then better than the other."""

    def mixed(a: Arm, b: Arm) -> Arm:
        return Arm(np.where(at, b.side, a.side), np.where(at, b.r, a.r), np.where(at, b.closed_at, a.closed_at))

    return mixed(one, other), mixed(other, one)


@dataclass(frozen=True, slots=True)
class Pair:
    """The closed slots of two versions in booking order; times in days since 1970, shape (slots,).

    Attributes:
        opened_at: when the candle that was decided on opened.
        closed_at: when the trades of both had closed.
    """

    slots: Slots
    opened_at: FloatArray
    closed_at: FloatArray

    def between(self, start: float, end: float) -> "Pair":
        """Return the slots that opened at *start* or later and had closed by *end*."""
        chosen = np.flatnonzero((self.opened_at >= start) & (self.closed_at <= end))
        return Pair(self.slots.take(chosen), self.opened_at[chosen], self.closed_at[chosen])


def pair(candles: pd.DataFrame, canary: Arm, active: Arm) -> Pair:
    """Return the slots of two arms: where either signalled, booked when the trades of both have closed."""
    signalled = (canary.side != 0) | (active.side != 0)
    closed = np.isfinite(canary.r) & np.isfinite(active.r)
    at = np.flatnonzero(signalled & closed)
    closed_at = np.maximum(canary.closed_at, active.closed_at)
    at = at[np.argsort(closed_at[at], kind="stable")]
    symbol = np.zeros(len(at), np.int64)  # the history is of one
    slots = Slots(closed_at[at].astype(np.int64), canary.r[at], active.r[at], canary.side[at], active.side[at], symbol)
    return Pair(slots, _days(pd.DatetimeIndex(candles.index))[at], closed_at[at])


def monthly_starts(candles: pd.DataFrame, days: int) -> FloatArray:
    """Return the first of each month that has the whole look back of shadow before it and *days* after it."""
    opens = pd.DatetimeIndex(candles.index)
    firsts = pd.date_range(opens[0] + LOOK_BACK, opens[-1] + CANDLE - days * _DAY, freq="MS", normalize=True)
    return _days(firsts[firsts >= opens[0] + LOOK_BACK])


def ramps(plan: Plan, shadow: Pair, live: Pair, starts: FloatArray, days: int) -> list[RampResult]:
    """Take *live* through *plan* from each start; its history is that of the pair *shadow* before the start."""
    return [
        run_ramp(plan, _history(shadow, start), _ramp(live, start, days), days=days, risk_fraction=RULE.risk_fraction)
        for start in starts.tolist()
    ]


def _history(shadow: Pair, start: float) -> History:
    look_back = LOOK_BACK / _DAY
    return measure(shadow.between(start - look_back, start).slots, look_back)


def _ramp(live: Pair, start: float, days: int) -> Ramp:
    found = live.between(start, start + days)
    return Ramp(found.slots, found.closed_at - start, np.zeros(len(found.slots), np.bool_))


def _days(moments: pd.DatetimeIndex) -> FloatArray:
    days: FloatArray = moments.as_unit("ns").asi8 / (_DAY / timedelta(microseconds=1) * 1_000)
    return days
