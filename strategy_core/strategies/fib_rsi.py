"""`fib_rsi`: buy exhaustion in the discount of the range, sell its mirror image; never sizes, stops or exits."""

from typing import Any

import numpy as np
import pandas as pd
import talib
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from strategy_core.domain.strategy import Action, Context, Decision

FloatArray = NDArray[np.float64]

LEVELS = np.array([0.5, 0.618, 0.786, 1.0])  # retracements of the range that are deep enough to matter
DEEP = 0.618  # the golden ratio: from here on a buy is in the discount, a sell in the premium
LEVEL_REACH = 0.1  # of the range: as far from a level as closeness still counts
WARM_UP_PERIODS = 10  # (1 - 1/n)^(9n), 0.01 %, is what is left of Wilder's first average
TIE_DIGITS = 9  # thresholds are met to this digit: the last bit of a float never decides
STILL = 1e-14  # TA-Lib's own: a smaller sum of gains and losses is no movement


class FibRsiParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rsi_period: int = Field(default=14, ge=2, le=200)
    rsi_overbought: float = Field(default=70.0, ge=50.0, lt=100.0)
    rsi_oversold: float = Field(default=30.0, gt=0.0, le=50.0)
    fib_lookback_bars: int = Field(default=55, ge=5, le=2000)

    @model_validator(mode="after")
    def _thresholds_are_apart(self) -> "FibRsiParams":
        if self.rsi_oversold >= self.rsi_overbought:
            raise ValueError("rsi_oversold must be below rsi_overbought")
        return self


class FibRsi:
    """Trade against exhaustion at the edge of the range.

    Buy on the candle that takes Wilder's RSI to `rsi_oversold` or below, when its close has given back 61.8 % or more
    of the range of the last `fib_lookback_bars` candles, counted from their high. Sell on the mirror image. Confidence
    is 0.5, plus up to 0.25 for RSI beyond its threshold, plus up to 0.25 for a close near a retracement level.

    Source: Wilder (1978), "New Concepts in Technical Trading Systems", for RSI and its smoothing.
    """

    Params = FibRsiParams

    def warmup_bars(self, params: FibRsiParams) -> int:
        return max(WARM_UP_PERIODS * params.rsi_period + 10, params.fib_lookback_bars)

    def decide(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> Decision:
        window = candles.iloc[-self.warmup_bars(params) :]  # RSI never forgets its start: more bars, another RSI
        close = window["close"].to_numpy(dtype=np.float64)
        rsi = talib.RSI(close, timeperiod=params.rsi_period)[-2:]
        if np.ptp(close) == 0.0:
            rsi = np.full(2, 50.0)  # TA-Lib says 0, as after an endless fall
        fib = window.iloc[-params.fib_lookback_bars :]
        low, high = fib["low"].to_numpy().min(keepdims=True), fib["high"].to_numpy().max(keepdims=True)
        return _decisions(rsi=rsi[1:], before=rsi[:1], close=close[-1:], low=low, high=high, params=params)[0]

    def decide_many(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> list[Decision]:
        """Decide on every window of `warmup_bars` at once; one decision per row from row `warmup_bars - 1` on."""
        bars = self.warmup_bars(params)
        if len(candles) < bars:
            return []
        close = candles["close"].to_numpy(dtype=np.float64)
        before, rsi = _rsi_of_windows(close, params.rsi_period, bars)
        skip = bars - params.fib_lookback_bars  # the first windows' rows that the range does not reach
        low = sliding_window_view(candles["low"].to_numpy()[skip:], params.fib_lookback_bars).min(axis=1)
        high = sliding_window_view(candles["high"].to_numpy()[skip:], params.fib_lookback_bars).max(axis=1)
        return _decisions(rsi=rsi, before=before, close=close[bars - 1 :], low=low, high=high, params=params)


def _rsi_of_windows(close: FloatArray, period: int, bars: int) -> tuple[FloatArray, FloatArray]:
    """Return Wilder's RSI at the last candle but one, and at the last, of every window of *bars* closes.

    The recursion starts afresh in each window, as TA-Lib's does, and takes TA-Lib's operations in TA-Lib's order; step
    t of all windows is one slice, so memory is a few arrays of the history's length.

    Args:
        close: shape (candles,), candles >= bars.
        period: Wilder's n, < bars - 1.
        bars: window length.

    Returns:
        Two arrays of shape (candles - bars + 1,), values in [0, 100]; 50 where the price never moved.
    """
    change = np.diff(close)
    moves = np.stack([np.maximum(change, 0.0), np.maximum(-change, 0.0)])  # gains, losses
    windows = len(close) - bars + 1
    averages = np.zeros((2, windows))
    for t in range(period):
        averages += moves[:, t : t + windows]
    averages /= period
    before = averages.copy()
    for t in range(period, bars - 1):
        before = averages.copy() if t == bars - 2 else before
        averages *= period - 1
        averages += moves[:, t : t + windows]
        averages /= period
    unmoved = np.ptp(sliding_window_view(close, bars), axis=1) == 0.0
    return _rsi(before, unmoved), _rsi(averages, unmoved)


def _rsi(averages: FloatArray, unmoved: NDArray[np.bool_]) -> FloatArray:
    gain, total = averages[0], averages.sum(axis=0)
    moved = total >= STILL
    rsi = np.where(moved, 100.0 * (gain / np.where(moved, total, 1.0)), 0.0)
    return np.where(unmoved, 50.0, rsi)


def _decisions(
    *, rsi: FloatArray, before: FloatArray, close: FloatArray, low: FloatArray, high: FloatArray, params: FibRsiParams
) -> list[Decision]:
    """Return one decision per element: the one rule, for a single candle and for a history alike."""
    width = high - low
    position = np.where(width > 0.0, (close - low) / np.where(width > 0.0, width, 1.0), 0.5)
    discount = position < 0.5
    depth = np.where(discount, 1.0 - position, position)  # retraced from the far end of the range
    nearest = np.abs(depth[:, None] - LEVELS).argmin(axis=1)
    distance = np.abs(depth - LEVELS[nearest])
    level = np.where(discount, 1.0 - LEVELS[nearest], LEVELS[nearest])

    now, then, deep = rsi.round(TIE_DIGITS), before.round(TIE_DIGITS), depth.round(TIE_DIGITS) >= DEEP
    low_line, high_line = params.rsi_oversold, params.rsi_overbought
    buys = (now <= low_line) & (then > low_line) & deep & discount
    sells = (now >= high_line) & (then < high_line) & deep & ~discount
    beyond = np.where(buys, (low_line - rsi) / low_line, (rsi - high_line) / (100.0 - high_line)).clip(0.0, 1.0)
    closeness = (1.0 - distance / LEVEL_REACH).clip(0.0, 1.0)
    confidence = np.where(buys | sells, 0.5 + 0.25 * beyond + 0.25 * closeness, 0.0)

    rows: list[list[Any]] = [a.tolist() for a in (buys, sells, confidence, rsi, position, level, distance)]
    decisions = []
    for buy, sell, sure, at_rsi, at, near, away in zip(*rows, strict=True):
        features = {"rsi": at_rsi, "fib_position": at, "fib_level": near, "fib_level_distance": away}
        if buy:
            decisions.append(Decision(Action.BUY, sure, features, "oversold in the discount"))
        elif sell:
            decisions.append(Decision(Action.SELL, sure, features, "overbought in the premium"))
        else:
            decisions.append(Decision(Action.HOLD, 0.0, features, "no exhaustion"))
    return decisions
