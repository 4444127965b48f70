"""How far a market moves: Wilder's average true range over a fixed window; never from candles after the one asked."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import FloatArray, IntArray

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


UNKNOWN = "unknown"
ATR_PERIOD = 14
VOLATILITY_BARS = 240  # an hourly market's fortnight: high and low are relative to it
TREND_BARS = 120
WARMUP_BARS = atr_bars(ATR_PERIOD) + VOLATILITY_BARS - 1  # candles that must end at one for its label


def regimes(candles: pd.DataFrame) -> "pd.Series[str]":
    """Return `high_vol/up`, `high_vol/down`, `low_vol/up` or `low_vol/down` for each candle.

    Volatility is high when the ATR exceeds its median over the last VOLATILITY_BARS candles, the trend is up when the
    close exceeds its mean over the last TREND_BARS. A label depends on the WARMUP_BARS candles that end at its own and
    on nothing else; with fewer it is `unknown`.
    """
    average_range = pd.Series(atr(candles, ATR_PERIOD))
    usual = average_range.rolling(VOLATILITY_BARS).median()
    close = candles["close"].to_numpy(dtype=np.float64)
    mean = trailing(close, np.full(TREND_BARS, 1.0 / TREND_BARS))
    high = (average_range > usual).to_numpy()
    labels = np.where(
        high,
        np.where(close > mean, "high_vol/up", "high_vol/down"),
        np.where(close > mean, "low_vol/up", "low_vol/down"),
    )
    labels = np.where(usual.isna().to_numpy(), UNKNOWN, labels)
    return pd.Series(labels, index=candles.index, dtype="str", name="regime")


@dataclass(frozen=True, slots=True)
class Runs:
    """Stretches of time with one label each, as a history of candles has them; together they are all of a period.

    Attributes:
        since: first moments, seconds since 1970, ascending: a stretch lasts until the next one; shape (runs,).
        labels: of the stretches; `unknown` where no candle stands.
    """

    since: IntArray
    labels: tuple[str, ...]


def runs(labels: "pd.Series[str]", *, start: datetime, timeframe: timedelta) -> Runs:
    """Return the stretches of *labels*, which stand at candles' open times in order, from *start* on."""
    labels = labels[labels.index >= pd.Timestamp(start)]
    begin = ceil(start.timestamp())
    if labels.empty:
        return Runs(np.array([begin], dtype=np.int64), (UNKNOWN,))
    opened, step = pd.DatetimeIndex(labels.index).as_unit("s").asi8, int(timeframe.total_seconds())
    said = labels.to_numpy(dtype=object)
    follows = np.diff(opened) == step
    first = np.append(True, ~follows | (said[1:] != said[:-1]))
    last = np.append(~follows, True)
    closed = np.append(np.minimum(opened[:-1] + step, opened[1:]), opened[-1] + step)
    since = np.concatenate(([begin], closed[last], opened[first]))
    names = np.concatenate((np.full(1 + int(last.sum()), UNKNOWN, dtype=object), said[first]))
    order = np.argsort(since, kind="stable")
    since, names = since[order], names[order]
    kept = np.append(since[1:] != since[:-1], True)  # of two at one moment the candle's: nothing is unknown before it
    return Runs(since[kept], tuple(names[kept].tolist()))
