"""Candles for tests: by hand, drawn by hypothesis on a coarse grid (so that prices tie), or a seeded walk."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategy_core.domain.arrays import FloatArray

PRICES = ["open", "high", "low", "close"]
START = "2024-01-01"


def candles_of(prices: Sequence[Sequence[float]] | FloatArray) -> pd.DataFrame:
    """Return hourly candles of (open, high, low, close) rows."""
    index = pd.date_range(START, periods=len(prices), freq="h", tz="UTC")
    return pd.DataFrame(np.asarray(prices, dtype=np.float64), columns=PRICES, index=index)


def with_sides(bid: pd.DataFrame, ask: pd.DataFrame) -> pd.DataFrame:
    """Return mid candles that carry both sides."""
    return pd.concat([(bid + ask) / 2, bid.add_prefix("bid_"), ask.add_prefix("ask_")], axis=1)


@st.composite
def markets(draw: st.DrawFn, bars: int) -> pd.DataFrame:
    """Draw candles in steps of 0.25 around 500: gaps, dead candles, stops and targets touched to the tick."""
    moves = draw(hnp.arrays(np.int64, (bars, 4), elements=st.integers(-8, 8), fill=st.integers(-1, 2)))
    gap, body, above, below = (moves * 0.25).T
    closed = 500 + np.cumsum(gap + body)
    opened = closed - body
    high = np.maximum(opened, closed) + np.abs(above)
    low = np.minimum(opened, closed) - np.abs(below)
    return candles_of(np.column_stack((opened, high, low, closed)))


def walk(bars: int, seed: int) -> pd.DataFrame:
    """Return a seeded random walk with gaps, around 1000."""
    draws = np.random.default_rng(seed).normal(size=(bars, 4))
    gap, body, above, below = (draws * [0.3, 1.0, 0.7, 0.7]).T
    closed = 1000 + np.cumsum(gap + body)
    opened = closed - body
    high = np.maximum(opened, closed) + np.abs(above)
    low = np.minimum(opened, closed) - np.abs(below)
    return candles_of(np.column_stack((opened, high, low, closed)))
