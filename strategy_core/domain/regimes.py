"""Which market a candle was decided in: its volatility and its trend, known at its close; never from later candles."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from math import ceil

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.volatility import atr, atr_bars, trailing

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
