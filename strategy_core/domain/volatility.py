"""How far a market moves: Wilder's average true range over a fixed window; never from candles after the one asked."""

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import FloatArray

WINDOW_PERIODS = 10  # the seed's weight is then (1 - 1/period)^(9 * period), about 1e-4: nothing a stop could notice


def atr_bars(period: int) -> int:
    """Return how many candles, the last included, `atr` looks at: one more than its true ranges, for a first close."""
    return WINDOW_PERIODS * period + 1


def atr(candles: pd.DataFrame, period: int) -> FloatArray:
    """Return the average true range of mid prices, known at the close of each candle.

    Wilder's smoothing, started afresh `atr_bars(period)` candles back with the mean of the first *period* true ranges.
    The window is fixed so that a late slice and the whole history give the same bits for the same candle, which the
    usual recursion from the first candle on does not.

    Returns:
        Shape (candles,), price units; NaN where fewer than `atr_bars(period)` candles end.

    Source: Wilder (1978), "New Concepts in Technical Trading Systems"; equals TA-Lib's ATR on each window.
    """
    ranges = true_range(candles)
    decay = 1.0 - 1.0 / period
    smoothed = decay ** np.arange((WINDOW_PERIODS - 1) * period, dtype=np.float64)
    seed = np.full(period, decay ** ((WINDOW_PERIODS - 1) * period))
    return trailing(ranges, np.concatenate((smoothed, seed)) / period)


def true_range(candles: pd.DataFrame) -> FloatArray:
    """Return max(high, previous close) - min(low, previous close); shape (candles,), NaN at the first candle."""
    high, low, close = (candles[name].to_numpy(dtype=np.float64) for name in ("high", "low", "close"))
    ranges = np.full(len(close), np.nan)
    ranges[1:] = np.maximum(high[1:], close[:-1]) - np.minimum(low[1:], close[:-1])
    return ranges


def trailing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the weighted sum of the values that end at each place; *weights* start with that of the newest.

    Added lag by lag, so that a sum depends on nothing but its own window, to the last bit: running sums carry the
    rounding of all that came before, and dot products that of how the array was laid out.

    Returns:
        The shape of *values*, NaN where fewer values than *weights* end.
    """
    sums = np.full(len(values), np.nan)
    count = len(values) - len(weights) + 1
    if count > 0:
        window = np.zeros(count)
        for lag, weight in enumerate(weights):
            start = len(weights) - 1 - lag
            window += weight * values[start : start + count]
        sums[len(weights) - 1 :] = window
    return sums
