"""A market of many symbols that lies in memory: what is timed on it is the run, not a vendor or a file."""

from collections.abc import Sequence
from datetime import datetime

import numpy as np
import pandas as pd

from strategy_core.market.source import newest_open, window
from tests.builders import MONDAY

BARS = 400


class Walks:
    """A seeded random walk a symbol, hourly until a day after Monday."""

    name = "walks"
    timeframe = "1h"

    def __init__(self, symbols: Sequence[str]) -> None:
        self._candles = {symbol: _walk(seed) for seed, symbol in enumerate(symbols)}

    def symbols(self) -> tuple[str, ...]:
        return tuple(self._candles)

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        return window(self._candles[symbol], self.timeframe, closed_by=closed_by, since=since, bars=bars)

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        return newest_open(self._candles[symbol], self.timeframe, now)


def _walk(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    close = 1800.0 + rng.normal(0.0, 2.0, BARS).cumsum()
    opened = np.append(1800.0, close[:-1])
    high, low = np.maximum(opened, close) + 1.0, np.minimum(opened, close) - 1.0
    frame = {"open": opened, "high": high, "low": low, "close": close, "volume": rng.integers(1, 9, BARS) * 1.0}
    index = pd.date_range(end=MONDAY + pd.Timedelta("1D"), periods=BARS, freq="h", unit="ns", name="timestamp")
    return pd.DataFrame(frame, index=index)
