"""Which market a candle was decided in: its volatility and its trend, known at its close; never from later candles."""

import numpy as np
import pandas as pd

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
