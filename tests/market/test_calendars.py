"""Metals close on New York's clock, through both changes to and from summer time."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.candles import TIMEFRAMES
from strategy_core.domain.errors import NaiveTime
from strategy_core.market.calendars import AlwaysOpen, WeeklySession

METALS = WeeklySession()
HOUR = timedelta(hours=1)
moments = st.datetimes(datetime(2023, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("closes", "opens"),
    [
        ("2024-01-12 22:00", "2024-01-14 23:00"),  # winter
        ("2024-03-08 22:00", "2024-03-10 22:00"),  # summer time begins on this Sunday
        ("2024-07-12 21:00", "2024-07-14 22:00"),  # summer
        ("2024-11-01 21:00", "2024-11-03 23:00"),  # summer time ends on this Sunday
        ("2024-01-10 22:00", "2024-01-10 23:00"),  # the daily break
        ("2024-07-10 21:00", "2024-07-10 22:00"),
    ],
)
def test_the_session_turns_on_the_minute(closes: str, opens: str) -> None:
    minute = timedelta(minutes=1)

    assert METALS.is_open(at(closes) - minute)
    assert not METALS.is_open(at(closes))
    assert not METALS.is_open(at(opens) - minute)
    assert METALS.is_open(at(opens))


@pytest.mark.parametrize("monday", ["2024-03-04", "2024-03-11", "2024-10-28", "2024-11-04"])
def test_every_week_has_its_hours(monday: str) -> None:
    """Sunday 18:00 to Friday 17:00 is 119 hours, four of them daily breaks, in the weeks of the clock changes too."""
    sunday = pd.Timestamp(monday, tz="America/New_York") - pd.Timedelta(hours=6)
    week = pd.date_range(sunday, periods=120, freq="h").tz_convert("UTC")

    assert METALS.open_candles(week, HOUR).sum() == 115


@given(moments)
def test_a_session_is_the_same_from_any_zone(moment: datetime) -> None:
    assert METALS.is_open(moment) == METALS.is_open(moment.astimezone(ZoneInfo("Asia/Tokyo")))


@given(moments, st.sampled_from(sorted(TIMEFRAMES)))
def test_the_last_open_candle_has_closed_and_had_an_open_market(now: datetime, timeframe: str) -> None:
    delta = TIMEFRAMES[timeframe]

    last = METALS.last_open_candle(now, delta)

    later = pd.date_range(last + delta, now - delta, freq=delta)
    assert last + delta <= now
    assert METALS.open_candles(pd.DatetimeIndex([last]), delta).all()
    assert not METALS.open_candles(later, delta).any()


@pytest.mark.parametrize(
    ("now", "hourly", "daily"),
    [
        ("2024-01-10 15:59", "2024-01-10 14:00", "2024-01-09 00:00"),
        ("2024-01-10 23:30", "2024-01-10 21:00", "2024-01-09 00:00"),  # the daily break has just passed
        ("2024-01-14 22:00", "2024-01-12 21:00", "2024-01-12 00:00"),  # Sunday: Saturday had no candle
    ],
)
def test_what_is_expected_over_breaks_and_weekends(now: str, hourly: str, daily: str) -> None:
    assert METALS.last_open_candle(at(now), HOUR) == at(hourly)
    assert METALS.last_open_candle(at(now), timedelta(days=1)) == at(daily)


def test_a_long_candle_is_open_when_any_of_it_is() -> None:
    """The four hours from 20:00 to 24:00 UTC hold the winter break, and three open hours around it."""
    opens = pd.DatetimeIndex([at("2024-01-10 20:00"), at("2024-01-13 20:00"), at("2024-01-14 20:00")])

    assert METALS.open_candles(opens, 4 * HOUR).tolist() == [True, False, True]


@given(moments, st.sampled_from(sorted(TIMEFRAMES)), st.integers(0, 23))
def test_the_last_open_candle_lies_on_the_grid_asked_for(now: datetime, timeframe: str, hour: int) -> None:
    delta, grid = TIMEFRAMES[timeframe], datetime(2030, 1, 1, hour, tzinfo=UTC)

    for calendar in (METALS, AlwaysOpen()):
        last = calendar.last_open_candle(now, delta, grid)

        assert (last - grid) % delta == timedelta()
        assert last + delta <= now


@given(moments)
def test_a_market_that_never_closes_expects_the_newest_candle(now: datetime) -> None:
    always = AlwaysOpen()

    last = always.last_open_candle(now, HOUR)

    assert always.is_open(now)
    assert always.open_candles(pd.DatetimeIndex([now, last]), HOUR).all()
    assert timedelta() <= now - (last + HOUR) < HOUR


@pytest.mark.parametrize("calendar", [METALS, AlwaysOpen()])
def test_a_naive_moment_is_refused(calendar: WeeklySession | AlwaysOpen) -> None:
    with pytest.raises(NaiveTime):
        calendar.is_open(datetime(2024, 1, 1))  # noqa: DTZ001
    with pytest.raises(NaiveTime):
        calendar.last_open_candle(datetime(2024, 1, 1), HOUR)  # noqa: DTZ001
