"""A holiday is no dead feed: metals are not expected while they may be closed, and are again right after."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.domain.errors import InvalidSetting
from strategy_core.market.calendars import ALL_SESSION, CALENDARS, Holidays, WeeklySession, read_holidays
from strategy_core.market.files import FileSource
from strategy_core.settings import Settings

METALS = CALENDARS["metals"]
HOUR = timedelta(hours=1)
BLIND_LIMIT = timedelta(days=1)  # the plan's, unless it says otherwise


def new_york(text: str) -> datetime:
    return pd.Timestamp(text, tz="America/New_York").tz_convert("UTC").to_pydatetime()


@pytest.mark.parametrize(
    ("last", "back"),
    [
        ("2026-04-02 16:00", "2026-04-05 18:00"),  # Good Friday, and the weekend behind it
        ("2026-12-24 11:00", "2026-12-27 18:00"),  # Christmas Eve may end at noon, Christmas is a Friday
        ("2026-12-31 11:00", "2027-01-03 18:00"),
        ("2022-12-23 11:00", "2022-12-26 18:00"),  # Christmas on a Sunday is kept on Monday
        ("2021-12-23 16:00", "2021-12-26 18:00"),  # on a Saturday on Friday
        ("2022-12-30 11:00", "2023-01-02 18:00"),
        ("2026-11-26 11:00", "2026-11-26 18:00"),  # Thanksgiving, an early close: the evening is tomorrow's session
        ("2026-11-27 11:00", "2026-11-29 18:00"),
        ("2026-07-03 11:00", "2026-07-05 18:00"),
        ("2027-07-05 11:00", "2027-07-05 18:00"),  # Independence Day on a Sunday
        ("2026-06-19 11:00", "2026-06-21 18:00"),
        ("2021-06-18 16:00", "2021-06-20 18:00"),  # Juneteenth was none yet
        ("2026-01-19 11:00", "2026-01-19 18:00"),
        ("2026-02-16 11:00", "2026-02-16 18:00"),
        ("2026-05-25 11:00", "2026-05-25 18:00"),
        ("2026-09-07 11:00", "2026-09-07 18:00"),
        ("2026-03-06 16:00", "2026-03-08 18:00"),  # no holiday: New York's clock changes on the Sunday, Europe's later
        ("2026-10-30 16:00", "2026-11-01 18:00"),
    ],
)
def test_nothing_is_expected_from_the_last_sure_candle_until_trading_is_back(last: str, back: str) -> None:
    last_open, back_open = new_york(last), new_york(back)

    assert METALS.is_open(last_open)
    assert METALS.last_open_candle(last_open + HOUR, HOUR) == last_open
    assert METALS.last_open_candle(back_open + HOUR - timedelta(minutes=1), HOUR) == last_open
    assert METALS.last_open_candle(back_open + HOUR, HOUR) == back_open


def test_no_hour_is_expected_in_which_cme_was_closed() -> None:
    """In 2024, when its early closes were at 13:30 and at 12:45 Chicago time."""
    closed = ["2024-01-01", "2024-03-29", "2024-12-25"]
    early = [
        "2024-01-15",
        "2024-02-19",
        "2024-05-27",
        "2024-06-19",
        "2024-07-04",
        "2024-11-28",
        "2024-11-29",
        "2024-12-24",
    ]
    grid = pd.date_range("2024-01-02", "2025-01-01", freq="h", tz="UTC")
    local = grid.tz_convert("America/New_York")
    session = (local.tz_localize(None) + pd.Timedelta(hours=6)).normalize().strftime("%Y-%m-%d")
    day = local.strftime("%Y-%m-%d")
    trades = WeeklySession().open_candles(grid, HOUR) & ~session.isin(closed)
    trades &= ~(day.isin(early) & (local.hour >= 13) & (local.hour < 18))

    expected = METALS.open_candles(grid, HOUR)

    assert not (expected & ~trades).any()
    assert 0.97 < expected.sum() / trades.sum() < 1.0, "and little else is given up"


@pytest.mark.parametrize(
    ("minutes", "friday", "first"),
    [
        (1, "2026-03-06 16:54", "2026-03-08 18:05"),
        (5, "2026-03-06 16:50", "2026-03-08 18:05"),
        (15, "2026-03-06 16:45", "2026-03-08 18:00"),
        (30, "2026-03-06 16:30", "2026-03-08 18:00"),
        (60, "2026-03-06 16:00", "2026-03-08 18:00"),
    ],
)
def test_minutes_in_which_a_broker_may_pause_already_or_still_are_not_expected(
    minutes: int, friday: str, first: str
) -> None:
    """A broker that stops a minute before the exchange would be blind from Friday to Sunday, each week anew."""
    delta = timedelta(minutes=minutes)

    assert METALS.last_open_candle(new_york("2026-03-08 18:00"), delta) == new_york(friday)
    assert METALS.last_open_candle(new_york(first) + delta - timedelta(seconds=1), delta) == new_york(friday)
    assert METALS.last_open_candle(new_york(first) + delta, delta) == new_york(first)


@settings(deadline=None)  # a year of holidays is worked out at its first day
@given(st.dates(date(1990, 1, 1), date(2100, 12, 31)), st.integers(0, 23))
def test_holidays_only_ever_take_hours_away(day: date, hour: int) -> None:
    moment = datetime(day.year, day.month, day.day, hour, tzinfo=UTC)

    assert WeeklySession().is_open(moment) >= METALS.is_open(moment)


def test_an_owner_lists_days_that_no_rule_knows() -> None:
    listed = WeeklySession(read_holidays("2026-03-04, 2026-03-05 13:45"))

    assert listed.last_open_candle(new_york("2026-03-04 18:59"), HOUR) == new_york("2026-03-03 16:00")
    assert listed.last_open_candle(new_york("2026-03-05 18:59"), HOUR) == new_york("2026-03-05 12:00")
    assert METALS.last_open_candle(new_york("2026-03-04 18:59"), HOUR) == new_york("2026-03-04 16:00")
    assert not listed.is_open(new_york("2026-04-03 10:00")), "the rules stand beside the list"


def test_a_listed_day_never_opens_what_a_rule_closes() -> None:
    holidays = read_holidays("2026-12-25 13:00, 2026-12-24 10:00, 2026-12-24 14:00")

    assert holidays.closed_from(date(2026, 12, 25)) == ALL_SESSION
    assert holidays.closed_from(date(2026, 12, 24)) == 10
    assert holidays.closed_from(date(2026, 12, 23)) is None


def test_a_whole_month_of_holidays_is_looked_past() -> None:
    month = Holidays({date(2026, 3, day): ALL_SESSION for day in range(1, 32)})

    assert WeeklySession(month).last_open_candle(new_york("2026-03-31 12:00"), HOUR) == new_york("2026-02-27 16:00")


def test_a_file_lists_one_or_more_a_line_with_remarks(tmp_path: Path) -> None:
    file = tmp_path / "holidays.txt"
    file.write_text("# ours\n2026-03-04  # a flood\n\n2026-03-05T13:45, 2026-03-06\n")

    assert read_holidays(str(file)).listed == {date(2026, 3, 4): 0, date(2026, 3, 5): 13, date(2026, 3, 6): 0}


@pytest.mark.parametrize(
    "text",
    ["2026-02-30", "2026-03-04 25:00", "2026-03-04 17:30", "2026-03-04 13", "2026-03-04; 2026-03-05", "nowhere.txt"],
)
def test_what_is_no_holiday_is_refused_by_the_settings_name(text: str) -> None:
    with pytest.raises(InvalidSetting, match=r"ROLLOUT_HOLIDAYS = .* allowed: dates such as 2026-12-26"):
        read_holidays(text)


def test_an_installation_expects_nothing_of_a_growing_file_on_a_holiday(tmp_path: Path) -> None:
    """A holiday and the weekend behind it once looked like a dead feed, and took users off a healthy canary."""
    file = tmp_path / "GOLD.csv"
    hours = pd.date_range(new_york("2026-04-02 10:00"), new_york("2026-04-02 16:00"), freq="h")
    file.write_text("timestamp,open,high,low,close\n" + "".join(f"{hour.isoformat()},1,1,1,1\n" for hour in hours))
    easter, thursday = new_york("2026-04-05 18:30"), new_york("2026-04-02 16:00")

    kept = Settings(feed=str(file)).open_candles(easter)
    unknown = FileSource(file, calendar=WeeklySession())
    ours = Settings(feed=str(file), holidays="2026-04-02 15:00").open_candles(easter)

    assert kept.expected_at("GOLD", easter) == thursday
    assert unknown.expected_at("GOLD", easter) == new_york("2026-04-03 16:00")
    assert ours.expected_at("GOLD", new_york("2026-04-02 16:00")) == new_york("2026-04-02 15:00"), "it holds that row"
    assert easter - thursday > BLIND_LIMIT


def test_holidays_that_cannot_be_read_leave_a_tick_blind_not_dead(tmp_path: Path) -> None:
    source = Settings(feed="synthetic", holidays="nowhere.txt").candles_if_any(new_york("2026-04-05 18:30"))

    with pytest.raises(InvalidSetting, match="ROLLOUT_HOLIDAYS"):
        source.expected_at("GOLD", new_york("2026-04-05 18:30"))
