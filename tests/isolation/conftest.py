from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from strategy_core.isolation.client import IsolatedStrategy

UNDER_TEST = "tests.isolation.strategies_under_test"


def walk(bars: int) -> pd.DataFrame:
    """Return hourly candles of a seeded random walk."""
    rng = np.random.default_rng(7)
    close = 1800.0 + rng.normal(0.0, 2.0, bars).cumsum()
    opened = np.concatenate([[1800.0], close[:-1]])
    frame = pd.DataFrame({"open": opened, "close": close, "volume": np.nan})
    frame["high"] = frame[["open", "close"]].max(axis=1) + rng.exponential(1.0, bars)
    frame["low"] = frame[["open", "close"]].min(axis=1) - rng.exponential(1.0, bars)
    frame.index = pd.date_range("2026-01-05", periods=bars, freq="h", tz="UTC", unit="us")
    return frame[["open", "high", "low", "close", "volume"]]


@pytest.fixture(scope="session")
def candles() -> pd.DataFrame:
    return walk(400)


@pytest.fixture(scope="session")
def long_history() -> pd.DataFrame:
    return walk(2000)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file, which no version may change."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "kept.txt").write_text("kept")
    return folder


@pytest.fixture(scope="module")
def version(outside: Path) -> Iterator[IsolatedStrategy]:
    with IsolatedStrategy(f"{UNDER_TEST}:Tricks", {"target": str(outside)}) as isolated:
        yield isolated
