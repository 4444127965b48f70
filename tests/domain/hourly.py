"""Tidy candles for tests, and the refusal of untidy ones."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.candles import SIDES, checked_candles
from strategy_core.domain.errors import InvalidCandles

MONDAY = datetime(2024, 1, 8, tzinfo=UTC)


def hourly(size: int = 6, *, sides: bool = False, freq: str = "h") -> pd.DataFrame:
    """Return candles as a well-kept file has them: 100, 101, … with a range of one to either side."""
    close = 100.0 + np.arange(size)
    frame = pd.DataFrame(
        {"open": close, "high": close + 1, "low": close - 1, "close": close, "volume": np.nan},
        index=pd.date_range(MONDAY, periods=size, freq=freq, name="timestamp"),
    )
    if sides:
        for name in SIDES:
            frame[name] = frame[name[4:]] + (-0.25 if name.startswith("bid") else 0.25)
    return frame


def refused(frame: Any, timeframe: str = "1h", **kwargs: Any) -> InvalidCandles:
    with pytest.raises(InvalidCandles) as caught:
        checked_candles(frame, timeframe=timeframe, source="gold.csv", **kwargs)
    return caught.value
