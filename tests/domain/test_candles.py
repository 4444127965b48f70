"""Valid candles are returned in one form. Invalid ones are refused with the row."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.candles import COLUMNS, SIDES, TIMEFRAMES, checked_candles, timeframe_delta
from strategy_core.domain.errors import InvalidCandles, InvalidTimeframe
from tests.domain.hourly import hourly, refused


def written(**changes: Any) -> pd.DataFrame:
    """Return three candles as read from text, with the second one's *changes*."""
    frame = hourly(3).reset_index()
    frame["timestamp"] = [f"2024-01-08T0{hour}:00:00Z" for hour in range(3)]
    frame = frame.astype(object)
    for name, value in changes.items():
        frame.loc[1, name] = value
    return frame


def test_every_timeframe_has_its_length() -> None:
    assert {name: timeframe_delta(name) for name in TIMEFRAMES} == dict(TIMEFRAMES)
    assert timeframe_delta("4h") == timedelta(hours=4)


def test_an_unknown_timeframe_is_refused_with_those_allowed() -> None:
    with pytest.raises(InvalidTimeframe, match="'3h' is not a timeframe; allowed: 1m, 3m, 5m, 15m, 30m, 1h, 2h"):
        checked_candles(hourly(), timeframe="3h", source="gold.csv")


@pytest.mark.parametrize("unit", ["s", "us", "ns"])
def test_good_candles_come_back_in_one_form(unit: str) -> None:
    frame = hourly(sides=True)[list(reversed(COLUMNS))]
    frame.index = frame.index.as_unit(unit).tz_convert("Asia/Tokyo")  # type: ignore[attr-defined]

    checked = checked_candles(frame, timeframe="1h", source="gold.csv")

    assert list(checked.candles.columns) == list(COLUMNS)
    assert set(checked.candles.dtypes) == {np.dtype("float64")}
    assert checked.candles.index.dtype == pd.DatetimeTZDtype("ns", "UTC")
    assert checked.candles.index.name == "timestamp"
    assert not checked.repairs
    pd.testing.assert_frame_equal(checked.candles, hourly(sides=True), check_index_type=False, check_freq=False)


def test_whole_numbers_decimals_and_text_become_floats() -> None:
    frame = written(open=101, high=Decimal(102), close="101.5")

    candles = checked_candles(frame, timeframe="1h", source="gold.csv").candles

    assert candles.iloc[1].tolist()[:4] == [101.0, 102.0, 100.0, 101.5]


def test_a_missing_volume_is_not_a_number_throughout() -> None:
    candles = checked_candles(hourly().drop(columns="volume"), timeframe="1h", source="gold.csv").candles

    assert candles["volume"].isna().all()


def test_columns_that_are_no_part_of_a_candle_are_named() -> None:
    checked = checked_candles(hourly().assign(broker="x", spread=1), timeframe="1h", source="gold.csv")

    assert checked.unread == ("broker", "spread")
    assert list(checked.candles.columns) == ["open", "high", "low", "close", "volume"]


def test_missing_candles_are_counted_and_stay_missing() -> None:
    frame = hourly(60).drop(hourly(60).index[[3, 20, 21, 22]])

    checked = checked_candles(frame, timeframe="1h", source="gold.csv")

    assert checked.gaps == 2
    assert len(checked.candles) == 56


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ([1, 2], "is a list, not a DataFrame of candles"),
        (hourly().iloc[:0], "has no candles"),
        (hourly().drop(columns=["low", "close"]), "has no column low, close; found: open, high, volume"),
        (hourly().reset_index(drop=True), "has no column timestamp; found: open, high, low, close, volume"),
        (pd.DataFrame(), "has no column timestamp, open, high, low, close; found: none"),
        (hourly().assign(bid_open=1.0), f"has no column {', '.join(SIDES[1:])}"),
        (pd.concat([hourly(), hourly()[["open"]]], axis=1), "has more than one column open"),
        (hourly().assign(open=hourly().index), "open is of type datetime64"),
        (hourly().assign(open=True), "open is of type bool"),
    ],
)
def test_what_is_not_a_table_of_candles_is_refused(bad: Any, problem: str) -> None:
    error = refused(bad)

    assert str(error).startswith(f"gold.csv: {problem}")
    assert error.row is None


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("timestamp", None, "timestamp is missing"),
        ("timestamp", "noon", "timestamp 'noon' is not an ISO 8601 time"),
        ("timestamp", "1704672000", "is not an ISO 8601 time"),
        ("timestamp", "2024-01-08 01:00:00", "timestamp '2024-01-08 01:00:00' has no time zone"),
        ("timestamp", "2024-01-08", "timestamp '2024-01-08' has no time zone"),
        ("timestamp", datetime(2024, 1, 8, 1), "has no time zone"),  # noqa: DTZ001
        ("timestamp", "9999-01-01T00:00Z", "is out of range"),
        ("timestamp", "1066-10-14T00:00Z", "is out of range"),
        ("timestamp", "2024-01-08T01:15Z", "2024-01-08 01:15:00+00:00 is not the open of a 1h candle"),
        ("open", "abc", "open is 'abc', not a number"),
        ("open", 10**400, "open is inf; a price is a number above zero"),
        ("high", None, "high is nan; a price is a number above zero"),
        ("high", float("inf"), "high is inf; a price is a number above zero"),
        ("low", "-inf", "low is -inf; a price is a number above zero"),
        ("low", 0, "low is 0; a price is a number above zero"),
        ("close", -101.0, "close is -101; a price is a number above zero"),
        ("volume", "many", "volume is 'many', not a number"),
        ("volume", -1, "volume is -1"),
        ("volume", float("inf"), "volume is inf"),
        ("high", 99, "high 99 is below low 100"),
        ("open", 103, "open 103 is outside 100..102, its range"),
        ("close", 99.5, "close 99.5 is outside 100..102, its range"),
    ],
)
def test_a_bad_row_is_refused_by_its_number(column: str, value: object, problem: str) -> None:
    error = refused(written(**{column: value}), first_row=2)

    assert problem in str(error)
    assert str(error).startswith("gold.csv, row 3: ")
    assert error.row == 3


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("bid_low", None, "bid_low is nan"),
        ("ask_high", 98.0, "ask_high 98 is below ask_low 100.25"),
        ("bid_close", 103.0, "bid_close 103 is outside 99.75..101.75"),
        ("bid_high", 102.75, "bid_high 102.75 is above ask_high 102.25"),
    ],
)
def test_each_side_must_be_sane_and_bid_at_most_ask(column: str, value: float, problem: str) -> None:
    frame = hourly(3, sides=True)
    frame.loc[frame.index[1], column] = value

    error = refused(frame)

    assert problem in str(error)
    assert error.row == 2


def test_a_naive_index_is_refused() -> None:
    error = refused(hourly().tz_localize(None))

    assert error.row == 1
    assert "timestamp '2024-01-08 00:00:00' has no time zone; write it with its offset or Z" in str(error)


@pytest.mark.parametrize(
    ("text", "utc_hour"),
    [
        ("2024-01-08T01:00Z", 1),
        ("2024-01-08 01:00:00.000000000+00:00", 1),
        ("2024-01-08T03:00+0200", 1),
        ("2024-01-07T20:00-05", 1),
    ],
)
def test_times_are_read_with_any_offset(text: str, utc_hour: int) -> None:
    candles = checked_candles(written(timestamp=text), timeframe="1h", source="gold.csv").candles

    assert candles.index[1] == datetime(2024, 1, 8, utc_hour, tzinfo=UTC)


@pytest.mark.parametrize(
    ("file", "said", "problem"),
    [
        ("15min", "1h", "00:15:00+00:00 is not the open of a 1h candle; most are 15m apart: ROLLOUT_TIMEFRAME=15m"),
        ("h", "15m", "no two candles are 15m apart; most are 1h apart"),
        ("4h", "1h", "no two candles are 1h apart; most are 4h apart"),
        ("3h", "1h", "no two candles are 1h apart; most are 0 days 03:00:00 apart"),
        ("h", "2h", "2024-01-08 01:00:00+00:00 is inside the 2h candle before it; most are 1h apart"),
        ("h", "1d", "is inside the 1d candle before it; most are 1h apart"),
    ],
)
def test_a_file_of_another_timeframe_is_told_what_it_looks_like(file: str, said: str, problem: str) -> None:
    assert problem in str(refused(hourly(12, freq=file), said))


@pytest.mark.parametrize(
    ("step", "opens", "said", "problem"),
    [
        ("1h", "14:30", "1h", "14:30:00+00:00 is not the open of a 1h candle; most open at :30, and candles must open "
         "at whole multiples of 1h in UTC: use a file of 30m candles"),
        ("1D", "14:30", "1h", "open at :30, and candles must open at whole multiples of 1h in UTC: use a column of "
         "plain dates, or a file of 30m candles"),
        ("30m", "14:45", "30m", "most open at :15, and candles must open at whole multiples of 30m in UTC: use a file "
         "of 15m candles"),
        ("1m", "14:30:20", "1m", "most open at :00:20, and candles must open at whole multiples of 1m in UTC"),
    ],
)  # fmt: skip
def test_candles_off_their_grid_are_told_the_cause(step: str, opens: str, said: str, problem: str) -> None:
    frame = hourly(12, freq=step.replace("m", "min"))
    frame.index = pd.date_range(f"2024-01-02T{opens}Z", periods=12, freq=step.replace("m", "min"))

    message = str(refused(frame, said))

    assert message.endswith(problem)
    assert "ROLLOUT_TIMEFRAME" not in message


def test_one_row_off_the_grid_gets_no_advice_that_changes_nothing() -> None:
    frame = hourly(12)
    frame.index = frame.index.insert(3, frame.index[3] + timedelta(minutes=15)).delete(4)

    assert str(refused(frame)) == "gold.csv, row 4: 2024-01-08 03:15:00+00:00 is not the open of a 1h candle"


def test_a_single_candle_off_the_grid_is_refused() -> None:
    frame = hourly(1)
    frame.index = frame.index + timedelta(minutes=1)

    assert str(refused(frame)) == "gold.csv, row 1: 2024-01-08 00:01:00+00:00 is not the open of a 1h candle"


def test_days_may_open_when_new_york_closes() -> None:
    """Vendors open a day at midnight UTC, or at 17:00 New York: 22:00 UTC in winter, 21:00 in summer."""
    frame = hourly(10, freq="D")
    frame.index = pd.date_range("2024-03-06 17:00", periods=10, freq="B", tz="America/New_York", name="timestamp")

    assert len(checked_candles(frame, timeframe="1d", source="gold.csv").candles) == 10


@pytest.mark.parametrize("freq", ["D", "4h"])
def test_candles_that_follow_a_local_clock_pass_both_of_its_changes(freq: str) -> None:
    """A session that opens at 17:00 New York is a candle of 23 hours in March, and of 25 in November."""
    frame = hourly(300 if freq == "D" else 2000, freq=freq)
    local = pd.date_range("2024-02-20 17:00", periods=len(frame), freq=freq, tz=None)
    frame.index = local.tz_localize(
        "America/New_York", ambiguous=np.ones(len(local), dtype=bool), nonexistent="shift_forward"
    ).rename("timestamp")

    checked = checked_candles(frame, timeframe="1d" if freq == "D" else "4h", source="gold.csv")

    assert len(checked.candles) == len(frame)
    assert checked.gaps == 0


def test_a_candle_an_hour_short_is_refused_when_no_clock_explains_it() -> None:
    frame = hourly(30, freq="D")
    days = pd.date_range("2024-01-08 22:00", periods=30, freq="D", tz="UTC", name="timestamp")
    frame.index = days - pd.to_timedelta(np.repeat([0, 1, 2], 10), "h")  # twice within a month

    assert "is inside the 1d candle before it" in str(refused(frame, "1d"))


def test_weeks_may_open_on_any_weekday() -> None:
    for day in ("2024-01-05 22:00", "2024-01-07", "2024-01-08"):
        frame = hourly(10, freq="7D")
        frame.index = pd.date_range(day, periods=10, freq="7D", tz="UTC", name="timestamp")

        assert len(checked_candles(frame, timeframe="1w", source="gold.csv").candles) == 10


def test_errors_number_rows_as_the_source_does() -> None:
    numbers = np.array([5, 9, 12])
    bad = hourly(3).assign(low=[99.0, 103.0, 99.0])

    with pytest.raises(InvalidCandles, match="row 9: high 102 is below low 103"):
        checked_candles(bad, timeframe="1h", source="gold.csv", row_numbers=numbers)


def test_prices_below_zero_are_read_where_they_are_allowed() -> None:
    oil = hourly(3).assign(low=-40.0, close=[0.0, -37.63, 101.0])

    found = checked_candles(oil, timeframe="1h", source="oil.csv", negative=True).candles

    assert found["close"].tolist() == [0.0, -37.63, 101.0]
    assert "low is -40; a price is a number above zero; the option negative=yes of a file allows it" in str(
        refused(oil)
    )
    with pytest.raises(InvalidCandles, match=r"low is -inf; a price is a number$"):
        checked_candles(oil.assign(low=-np.inf), timeframe="1h", source="oil.csv", negative=True)
