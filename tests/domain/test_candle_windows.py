"""Windows of candles are cut at their close and hashed alike everywhere."""

from collections.abc import Callable
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.candles import TIMEFRAMES, Windows, closed_by, count_closed, timeframe_delta, window_hash
from tests.domain.hourly import MONDAY, hourly

HOUR = timedelta(hours=1)


@given(st.integers(-120, 900), st.sampled_from(sorted(TIMEFRAMES)))
def test_no_candle_is_seen_before_its_close_and_none_is_kept_back_after(minutes: int, timeframe: str) -> None:
    delta = timeframe_delta(timeframe)
    candles = hourly(8)
    candles.index = pd.DatetimeIndex([MONDAY + i * delta for i in range(8)])
    now = MONDAY + timedelta(minutes=minutes)

    seen = closed_by(candles, now, timeframe)

    assert all(opened + delta <= now for opened in seen.index)
    assert all(opened + delta > now for opened in candles.index[len(seen) :])
    assert count_closed(candles, now, timeframe) == len(seen)


def as_microseconds(candles: pd.DataFrame) -> pd.DataFrame:
    return candles.set_axis(pd.DatetimeIndex(candles.index).as_unit("us"))


def in_new_york(candles: pd.DataFrame) -> pd.DataFrame:
    return candles.set_axis(pd.DatetimeIndex(candles.index).tz_convert("America/New_York"))


def columns_turned_round(candles: pd.DataFrame) -> pd.DataFrame:
    return candles[list(reversed(candles.columns))]


def other_bits_of_nan(candles: pd.DataFrame) -> pd.DataFrame:
    return candles.assign(volume=np.full(len(candles), 0x7FF8000000000123, dtype=np.int64).view(np.float64))


def with_a_note(candles: pd.DataFrame) -> pd.DataFrame:
    return candles.assign(note="seen")


@pytest.mark.parametrize(
    "changed", [as_microseconds, in_new_york, columns_turned_round, other_bits_of_nan, with_a_note]
)
def test_a_window_hash_depends_on_the_candles_alone(changed: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    assert window_hash(changed(hourly(sides=True))) == window_hash(hourly(sides=True))


def test_a_zero_below_zero_is_zero() -> None:
    assert window_hash(hourly().assign(volume=-0.0)) == window_hash(hourly().assign(volume=0.0))


@given(st.integers(0, 5), st.sampled_from(["open", "high", "low", "close", "volume"]))
def test_a_revised_value_changes_the_window_hash(row: int, column: str) -> None:
    revised = hourly()
    revised.loc[revised.index[row], column] = 1.0

    assert window_hash(revised) != window_hash(hourly())


def test_a_moved_or_missing_candle_changes_the_window_hash() -> None:
    moved = hourly().set_axis(hourly().index + HOUR)

    assert len({window_hash(moved), window_hash(hourly()), window_hash(hourly().iloc[1:])}) == 3


def test_a_window_hash_never_changes() -> None:
    """It is stored with every decision. Another value would mean that the vendor revised the candles."""
    assert window_hash(hourly(3)) == "5d64700af6dbfbe4d2d9ebf96380a8743017f22e47abe9b61a43afcc92932c29"
    assert window_hash(hourly(3, sides=True)) == "1451f530946b016aebea1e514e39d13afbd7db46973424d6f926e9af067c4ce8"
    assert window_hash(hourly(3).iloc[:0]) == "ba963fd850b5a1a17f726aba922299e1bd9e1d6eca725c3504f316cf35f41a88"


@given(st.integers(1, 10), st.lists(st.integers(0, 7), max_size=8))
def test_hashing_many_windows_is_hashing_each(bars: int, positions: list[int]) -> None:
    candles = hourly(8)

    windows = Windows(candles)
    hashes = [windows.hash_of(at, bars) for at in positions]

    assert hashes == [window_hash(candles.iloc[max(0, at + 1 - bars) : at + 1]) for at in positions]
