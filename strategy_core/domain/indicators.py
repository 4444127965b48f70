"""Indicators: the average true range, and market regimes from volatility and trend."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import FloatArray, IntArray

WINDOW_PERIODS = 10  # the seed's weight is then (1 - 1/period)^(9 * period), about 1e-4: irrelevant for a stop


def atr_bars(period: int) -> int:
    """Return the number of candles that `atr` uses: its true ranges, plus one candle for the first previous close."""
    return WINDOW_PERIODS * period + 1


def atr(candles: pd.DataFrame, period: int) -> FloatArray:
    """Return the average true range of mid prices at the close of each candle. It does not use later candles.

    Wilder's smoothing, started `atr_bars(period)` candles back with the mean of the first *period* true ranges. With
    this fixed window, a slice and the whole history give the same bits for the same candle. The usual recursion from
    the first candle does not.

    Returns:
        Shape (candles,), in price units, NaN where fewer than `atr_bars(period)` candles end.

    Source: Wilder (1978), "New Concepts in Technical Trading Systems". Equals TA-Lib's ATR on each window.
    """
    ranges = true_range(candles)
    decay = 1.0 - 1.0 / period
    smoothed = decay ** np.arange((WINDOW_PERIODS - 1) * period, dtype=np.float64)
    seed = np.full(period, decay ** ((WINDOW_PERIODS - 1) * period))
    return trailing(ranges, np.concatenate((smoothed, seed)) / period)


def true_range(candles: pd.DataFrame) -> FloatArray:
    """Return max(high, previous close) - min(low, previous close), shape (candles,), NaN for the first candle."""
    high, low, close = (candles[name].to_numpy(dtype=np.float64) for name in ("high", "low", "close"))
    ranges = np.full(len(close), np.nan)
    ranges[1:] = np.maximum(high[1:], close[:-1]) - np.minimum(low[1:], close[:-1])
    return ranges


def trailing(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Return, for each position, the weighted sum of the values that end there. *weights* start with the newest.

    Values are added lag by lag, so that each bit of a sum depends only on its window. Running sums carry the rounding
    of earlier values, and the rounding of dot products depends on the memory layout.

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
VOLATILITY_BARS = 240  # two weeks of an hourly market, to which high and low are relative
TREND_BARS = 120
WARMUP_BARS = atr_bars(ATR_PERIOD) + VOLATILITY_BARS - 1  # candles that a label needs, its own included


def regimes(candles: pd.DataFrame) -> "pd.Series[str]":
    """Return `high_vol/up`, `high_vol/down`, `low_vol/up` or `low_vol/down` for each candle.

    Volatility is high if the ATR exceeds its median over the last VOLATILITY_BARS candles. The trend is up if the close
    exceeds its mean over the last TREND_BARS. A label depends only on the WARMUP_BARS candles that end at its own. With
    fewer candles it is `unknown`.
    """
    average_range = pd.Series(atr(candles, ATR_PERIOD))
    median_range = average_range.rolling(VOLATILITY_BARS).median()
    close = candles["close"].to_numpy(dtype=np.float64)
    mean = trailing(close, np.full(TREND_BARS, 1.0 / TREND_BARS))
    high = (average_range > median_range).to_numpy()
    labels = np.where(
        high,
        np.where(close > mean, "high_vol/up", "high_vol/down"),
        np.where(close > mean, "low_vol/up", "low_vol/down"),
    )
    labels = np.where(median_range.isna().to_numpy(), UNKNOWN, labels)
    return pd.Series(labels, index=candles.index, dtype="str", name="regime")


@dataclass(frozen=True, slots=True)
class Runs:
    """Consecutive periods with one label each, without gaps.

    Attributes:
        since: start of each period, seconds since 1970, ascending, shape (runs,). It lasts until the next start.
        labels: of the periods. `unknown` where there are no candles.
    """

    since: IntArray
    labels: tuple[str, ...]


def runs(labels: "pd.Series[str]", *, start: datetime, timeframe: timedelta) -> Runs:
    """Return the runs of equal *labels* from *start* on. The index holds the open times of candles, ascending."""
    labels = labels[labels.index >= pd.Timestamp(start)]
    begin = ceil(start.timestamp())
    if labels.empty:
        return Runs(np.array([begin], dtype=np.int64), (UNKNOWN,))
    opened, step = pd.DatetimeIndex(labels.index).as_unit("s").asi8, int(timeframe.total_seconds())
    values = labels.to_numpy(dtype=object)
    follows = np.diff(opened) == step
    first = np.append(True, ~follows | (values[1:] != values[:-1]))
    last = np.append(~follows, True)
    closed = np.append(np.minimum(opened[:-1] + step, opened[1:]), opened[-1] + step)
    since = np.concatenate(([begin], closed[last], opened[first]))
    names = np.concatenate((np.full(1 + int(last.sum()), UNKNOWN, dtype=object), values[first]))
    order = np.argsort(since, kind="stable")
    since, names = since[order], names[order]
    kept = np.append(since[1:] != since[:-1], True)  # of two at the same time, keep the one of a candle
    return Runs(since[kept], tuple(names[kept].tolist()))
