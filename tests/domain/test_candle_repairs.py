"""Repairs of candles: what is repaired and counted, and similar input that is refused."""

from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.candles import Repairs, checked_candles
from strategy_core.domain.errors import NaiveTime
from tests.domain.hourly import MONDAY, hourly, refused

HOUR = timedelta(hours=1)


def test_exact_duplicates_are_dropped_and_counted() -> None:
    frame = pd.concat([hourly(4), hourly(4).iloc[1:3]])

    checked = checked_candles(frame, timeframe="1h", source="gold.csv")

    assert checked.repairs == Repairs(duplicates=2)
    assert len(checked.candles) == 4


def test_a_duplicate_with_other_values_is_refused_and_names_both_rows() -> None:
    again = hourly(4).iloc[[1]].assign(close=101.5)

    error = refused(pd.concat([hourly(4), again]), first_row=2)

    assert str(error) == ("gold.csv, row 6: 2024-01-08 01:00:00+00:00 is also in row 3, with other values")


def test_rows_out_of_order_are_sorted_and_counted() -> None:
    checked = checked_candles(hourly(5).iloc[[0, 3, 1, 2, 4]], timeframe="1h", source="gold.csv")

    assert checked.repairs == Repairs(moved=2)
    assert checked.candles["close"].tolist() == [100.0, 101.0, 102.0, 103.0, 104.0]


@pytest.mark.parametrize(("minutes", "kept", "unclosed"), [(0, 6, 0), (-1, 5, 1), (-60, 5, 1)])
def test_a_candle_still_being_made_is_dropped_and_counted(minutes: int, kept: int, unclosed: int) -> None:
    now = MONDAY + 6 * HOUR + timedelta(minutes=minutes)

    checked = checked_candles(hourly(6), timeframe="1h", source="gold.csv", now=now)

    assert len(checked.candles) == kept
    assert checked.repairs == Repairs(unclosed=unclosed)


def test_more_than_one_candle_that_has_not_closed_is_refused() -> None:
    """A file that runs ahead of the clock was stamped in another zone."""
    error = refused(hourly(6), now=MONDAY + 4 * HOUR)

    assert "2024-01-08 04:00:00+00:00 and candles after it had not closed by 2024-01-08 04:00:00+00:00" in str(error)
    assert error.row == 5


def test_a_lone_candle_still_being_made_leaves_none() -> None:
    checked = checked_candles(hourly(1), timeframe="1h", source="gold.csv", now=MONDAY)

    assert checked.candles.empty
    assert checked.gaps == 0


def test_the_gap_before_an_unclosed_candle_is_not_counted() -> None:
    frame = hourly(6).drop(hourly(6).index[4])

    checked = checked_candles(frame, timeframe="1h", source="gold.csv", now=MONDAY + 5 * HOUR)

    assert checked.gaps == 0


def test_a_naive_now_is_refused() -> None:
    with pytest.raises(NaiveTime):
        checked_candles(hourly(), timeframe="1h", source="gold.csv", now=datetime(2024, 1, 9))  # noqa: DTZ001


@pytest.mark.parametrize(("column", "moved"), [("close", "high"), ("open", "high"), ("high", "low")])
def test_a_price_one_bit_outside_its_range_widens_the_range_and_is_counted(column: str, moved: str) -> None:
    frame = hourly(4)
    frame.loc[frame.index[1], ["open", "high", "low", "close"]] = 0.3
    frame.loc[frame.index[1], column] = np.nextafter(0.3, 1.0 if column != "high" else 0.0)

    checked = checked_candles(frame, timeframe="1h", source="gold.csv")

    row = checked.candles.iloc[1]
    assert checked.repairs == Repairs(noise=1)
    assert row["low"] <= min(row["open"], row["close"]) <= max(row["open"], row["close"]) <= row["high"]
    assert row["close"] == frame["close"].iloc[1]
    assert row[moved] == frame[column].iloc[1]


def test_a_bid_one_bit_above_the_ask_raises_the_ask() -> None:
    frame = hourly(3, sides=True)
    frame["ask_high"] = frame["bid_high"]
    frame.loc[frame.index[1], "bid_high"] = np.nextafter(frame["ask_high"].iloc[1], np.inf)
    frame["ask_close"] = frame["bid_close"]
    frame["ask_open"] = frame["bid_open"]

    checked = checked_candles(frame, timeframe="1h", source="gold.csv")

    assert checked.repairs == Repairs(noise=1)
    assert checked.candles["ask_high"].iloc[1] == frame["bid_high"].iloc[1]


def test_more_than_noise_is_refused_with_numbers_that_differ() -> None:
    frame = hourly(3)
    frame.loc[frame.index[1], "close"] = frame["high"].iloc[1] * (1 + 3e-9)

    assert "close 102.000000306 is outside 100..102, its range" in str(refused(frame))


def test_checking_leaves_the_frame_as_it_was() -> None:
    frame = hourly().iloc[::-1]
    before = frame.copy()

    checked_candles(frame, timeframe="1h", source="gold.csv")

    pd.testing.assert_frame_equal(frame, before)


@given(st.permutations(range(12)), st.lists(st.integers(0, 11), max_size=5))
def test_mending_gives_what_a_tidy_file_would_have_given(places: list[int], doubled: list[int]) -> None:
    checked = checked_candles(hourly(12).iloc[places + doubled], timeframe="1h", source="gold.csv")

    pd.testing.assert_frame_equal(checked.candles, hourly(12), check_index_type=False, check_freq=False)
    assert checked.repairs.duplicates == len(doubled)
    assert (checked.repairs.moved == 0) == (places == sorted(places))
