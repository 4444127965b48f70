import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.indicators import atr, atr_bars, true_range
from tests.domain.markets import candles_of, markets, walk
from tests.effort import examples


def ta_libs_atr(candles: pd.DataFrame, period: int) -> FloatArray:
    high, low, close = (candles[name].to_numpy() for name in ("high", "low", "close"))
    return talib.ATR(high, low, close, timeperiod=period)


@settings(max_examples=examples(50))
@given(candles=markets(bars=45), period=st.integers(2, 4))
def test_the_atr_is_ta_libs_on_its_own_window(candles: pd.DataFrame, period: int) -> None:
    ours = atr(candles, period)

    bars = atr_bars(period)
    for end in range(bars, len(candles) + 1):
        window = candles.iloc[end - bars : end]
        assert ours[end - 1] == pytest.approx(ta_libs_atr(window, period)[-1], rel=1e-12, abs=1e-12)


def test_the_fixed_window_forgets_nothing_a_stop_would_notice() -> None:
    """Against Wilder's recursion from the first candle on, which no late slice could repeat."""
    candles = walk(bars=3_000, seed=1)

    ours = atr(candles, 14)

    assert np.nanmax(np.abs(ours / ta_libs_atr(candles, 14) - 1)) < 1e-4


@settings(max_examples=examples(50))
@given(candles=markets(bars=60), start=st.integers(0, 30))
def test_a_slice_gives_the_same_bits_as_the_whole_history(candles: pd.DataFrame, start: int) -> None:
    whole = atr(candles, 2)

    late = atr(candles.iloc[start:], 2)

    known = ~np.isnan(late)
    np.testing.assert_array_equal(late[known], whole[start:][known])
    assert known.sum() == len(late) - atr_bars(2) + 1


def test_the_range_reaches_back_over_a_gap_to_the_previous_close() -> None:
    candles = candles_of([(10, 11, 9, 10), (14, 15, 13, 14), (5, 6, 4, 5), (5, 8, 3, 5)])

    ranges = true_range(candles)

    np.testing.assert_array_equal(ranges, [np.nan, 5, 10, 5])  # up from 10 to 15, down from 14 to 4, 8 to 3 within


def test_too_short_a_history_has_no_atr() -> None:
    assert np.isnan(atr(walk(bars=140, seed=2), 14)).all()
    assert atr(candles_of(np.empty((0, 4))), 14).shape == (0,)


def test_a_period_of_one_is_the_candles_own_range() -> None:
    candles = walk(bars=30, seed=3)

    np.testing.assert_allclose(atr(candles, 1)[10:], true_range(candles)[10:])
