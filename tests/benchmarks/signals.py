"""The signals of `fib_rsi` over a history, healthy and made worse in the ways that releases are; never what they earn.

Signals are an array of shape (candles,): +1 buy, -1 sell, 0 hold, at the candle that was decided on.
"""

import zlib
from collections.abc import Callable

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.strategy import Action, Context
from strategy_core.strategies.fib_rsi import FibRsi, FibRsiParams

_SIDES = {Action.BUY: 1, Action.SELL: -1, Action.HOLD: 0}
STALE_CANDLES = 6
LENT = 0.4  # of the losing signals are left out by hindsight


def signals(candles: pd.DataFrame, params: FibRsiParams) -> IntArray:
    context = Context("GOLD", "1h", pd.DatetimeIndex(candles.index)[-1].to_pydatetime())
    said = [_SIDES[decision.action] for decision in FibRsi().decide_many(candles, params, context)]
    return np.array([0] * (len(candles) - len(said)) + said, np.int64)


def thresholds_swapped(candles: pd.DataFrame, sides: IntArray) -> IntArray:
    """Oversold and overbought exchanged, past the check that refuses such a config: as a slip in the code would be."""
    right = FibRsiParams()
    wrong = {"rsi_overbought": right.rsi_oversold, "rsi_oversold": right.rsi_overbought}
    return signals(candles, FibRsiParams.model_construct(**right.model_dump() | wrong))


def one_candle_late(candles: pd.DataFrame, sides: IntArray) -> IntArray:
    """The window ends one candle early: what was said of it is said again a candle later."""
    return _late(sides, 1)


def stale_input(candles: pd.DataFrame, sides: IntArray) -> IntArray:
    """The window is six candles old."""
    return _late(sides, STALE_CANDLES)


def side_inverted(candles: pd.DataFrame, sides: IntArray) -> IntArray:
    return -sides


def one_in_three_dropped(candles: pd.DataFrame, sides: IntArray) -> IntArray:
    return np.where(_drawn(candles, "dropped") < 1 / 3, 0, sides)


FAULTS: tuple[Callable[[pd.DataFrame, IntArray], IntArray], ...] = (
    thresholds_swapped,
    one_candle_late,
    stale_input,
    side_inverted,
    one_in_three_dropped,
)


def with_hindsight(candles: pd.DataFrame, sides: IntArray, r: FloatArray) -> IntArray:
    """Leave out two in five of the signals that lost: a version with an edge, which nobody could have run.

    A fault can only be harm to a version that has something to lose.
    """
    return np.where((r < 0) & (_drawn(candles, "hindsight") < LENT), 0, sides)


def exchanged_days(candles: pd.DataFrame, draw: int) -> BoolArray:
    """Return on which candles two versions change places: by the toss of a coin for each UTC day."""
    days = pd.DatetimeIndex(candles.index).floor("D")
    return _hashed(days, f"exchanged {draw}") < 0.5


def _drawn(candles: pd.DataFrame, purpose: str) -> FloatArray:
    return _hashed(pd.DatetimeIndex(candles.index), purpose)


def _hashed(moments: pd.DatetimeIndex, purpose: str) -> FloatArray:
    """Return a number in [0, 1) for each moment, the same on every machine."""
    return np.array([zlib.crc32(f"{purpose}/{one.isoformat()}".encode()) / 2**32 for one in moments])


def _late(sides: IntArray, candles: int) -> IntArray:
    return np.concatenate([np.zeros(candles, np.int64), sides[:-candles]])
