"""Trading calendars: when a market is open, by weekly session and holidays."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Protocol
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from pandas import Timestamp
from pandas.tseries.holiday import (
    GoodFriday,
    Holiday,
    USLaborDay,
    USMartinLutherKingJr,
    USMemorialDay,
    USPresidentsDay,
    USThanksgivingDay,
    nearest_workday,
    previous_friday,
    sunday_to_monday,
)
from pandas.tseries.offsets import Day, WeekOfMonth

from strategy_core.domain.arrays import BoolArray, IntArray
from strategy_core.domain.candles import GRID
from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.lifecycle import utc

NEW_YORK = ZoneInfo("America/New_York")
_HOUR = timedelta(hours=1)
_EDGE = timedelta(minutes=5)
_FRIDAY, _SATURDAY, _SUNDAY = 4, 5, 6
ALL_SESSION = 0  # the whole session is closed, from the evening before
NOON = 12
_LAST_HOUR = 17  # New York time, at which every session ends

_CLOSED = (
    Holiday("New Year's Day", month=1, day=1, observance=sunday_to_monday),
    GoodFriday,
    Holiday("Christmas Day", month=12, day=25, observance=nearest_workday),
)
_EARLY = (
    USMartinLutherKingJr,
    USPresidentsDay,
    USMemorialDay,
    Holiday("Juneteenth", month=6, day=19, observance=nearest_workday, start_date=Timestamp(2022, 1, 1)),
    Holiday("day before Independence Day", month=7, day=3, observance=previous_friday),
    Holiday("Independence Day", month=7, day=4, observance=nearest_workday),
    USLaborDay,
    USThanksgivingDay,
    Holiday("day after Thanksgiving", month=11, day=1, offset=[WeekOfMonth(week=3, weekday=3), Day(1)]),
    Holiday("Christmas Eve", month=12, day=24, observance=previous_friday),
    Holiday("New Year's Eve", month=12, day=31, observance=previous_friday),
)
_ENTRY = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[ T](\d{2}:\d{2}))?")
_ALLOWED = (
    "dates such as 2026-12-26 (closed) or 2026-12-24 13:45 (closed from then on, New York time, 17:00 at the latest), "
    "separated by commas or lines, or the path of a file with such dates"
)


@dataclass(frozen=True, slots=True)
class Holidays:
    """The holidays of the built-in rules, and those that an owner adds.

    Attributes:
        listed: by day, the hour in New York from which the market is closed, or ALL_SESSION.
    """

    listed: Mapping[date, int] = field(default_factory=lambda: MappingProxyType({}))

    def closed_from(self, day: date) -> int | None:
        """Return the hour from which the session that ends on *day* is closed, or None on a normal day."""
        hours = [each[day] for each in (self.listed, _by_rule(day.year)) if day in each]
        return min(hours, default=None)


def read_holidays(text: str) -> Holidays:
    """Return the holidays in *text*, or in the file that it names. In a file, `#` starts a comment.

    Raises:
        InvalidSetting: an entry is not a date, or the file cannot be read.
    """
    if not _ENTRY.match(text.strip()):
        try:
            text = Path(text).read_text()
        except (OSError, ValueError) as error:  # text that is not UTF-8, or a path with a NUL
            raise InvalidSetting("ROLLOUT_HOLIDAYS", text, f"{_ALLOWED} ({type(error).__name__})") from None
    lines = [line.partition("#")[0] for line in text.splitlines()]
    entries = [entry.strip() for line in lines for entry in line.split(",") if entry.strip()]
    return Holidays(MappingProxyType(dict(sorted(map(_entry, entries), key=lambda pair: (pair[0], -pair[1])))))


def _entry(written: str) -> tuple[date, int]:
    found = _ENTRY.fullmatch(written)
    try:
        day = date.fromisoformat(found[1] if found else "")
        closes = time.fromisoformat((found and found[2]) or "00:00")
    except ValueError:
        raise InvalidSetting("ROLLOUT_HOLIDAYS", written, _ALLOWED) from None
    if closes > time(_LAST_HOUR):
        raise InvalidSetting("ROLLOUT_HOLIDAYS", written, _ALLOWED)
    return day, closes.hour  # rounded down: there may be no candle in the hour in which it closes


@lru_cache(maxsize=256)
def _by_rule(year: int) -> Mapping[date, int]:
    first, last = datetime(year, 1, 1), datetime(year, 12, 31)  # noqa: DTZ001  pandas' rules take dates without a time zone
    found = {moment.date(): NOON for rule in _EARLY for moment in rule.dates(first, last)}
    found |= {moment.date(): ALL_SESSION for rule in _CLOSED for moment in rule.dates(first, last)}
    return MappingProxyType(found)


class Calendar(Protocol):
    """The trading hours of a market."""

    def is_open(self, moment: datetime) -> bool: ...

    def open_candles(self, opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
        """Return for each candle of length *delta* whether the market is open at some time during it."""
        ...

    def last_open_candle(self, now: datetime, delta: timedelta, grid: datetime = GRID) -> datetime:
        """Return the open time of the newest candle that has closed by *now* and had the market open.

        Candles open at *grid* and at whole multiples of *delta* before and after it.
        """
        ...


class AlwaysOpen:
    """A market that is always open."""

    def is_open(self, moment: datetime) -> bool:
        utc(moment)
        return True

    def open_candles(self, opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
        return np.ones(len(opens), dtype=bool)

    def last_open_candle(self, now: datetime, delta: timedelta, grid: datetime = GRID) -> datetime:
        return _newest_closed(now, delta, grid)


class WeeklySession:
    """Metals: open from Sunday 18:00 to Friday 17:00 New York time, closed daily from 17:00 to 18:00 and on holidays.

    The hours in UTC follow New York's daylight saving time.

    Args:
        holidays: leave it out for a synthetic market, which has no holidays and opens and closes on the minute.
    """

    def __init__(self, holidays: Holidays | None = None) -> None:
        self._holidays = holidays

    def is_open(self, moment: datetime) -> bool:
        return bool(self._in_session(pd.DatetimeIndex([utc(moment)]))[0])

    def open_candles(self, opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
        in_any = np.zeros(len(opens), dtype=bool)
        for hour in range(max(1, delta // _HOUR)):  # sessions begin and end on whole hours
            in_any |= self._in_session(opens + hour * _HOUR)
        if self._holidays is not None and delta < _HOUR:
            in_any &= ~_at_an_edge(opens, delta)
        return in_any

    def last_open_candle(self, now: datetime, delta: timedelta, grid: datetime = GRID) -> datetime:
        newest, days = _newest_closed(now, delta, grid), 4  # longer than any weekend
        while True:  # ends, because the number of listed holidays is finite
            opens = pd.date_range(end=newest, periods=timedelta(days=days) // delta + 1, freq=delta)
            in_session = self.open_candles(opens, delta)
            if in_session.any():
                return opens[in_session][-1].to_pydatetime()
            days *= 2

    def _in_session(self, moments: pd.DatetimeIndex) -> BoolArray:
        local = moments.tz_convert(NEW_YORK)
        day, hour = local.day_of_week.to_numpy(), local.hour.to_numpy()
        weekend = (day == _SATURDAY) | ((day == _FRIDAY) & (hour >= 17)) | ((day == _SUNDAY) & (hour < 18))
        in_session: BoolArray = ~weekend & (hour != 17)
        if self._holidays is not None:
            in_session &= hour < self._closed_from(local)
        return in_session

    def _closed_from(self, local: pd.DatetimeIndex) -> IntArray:
        """Return for each moment the hour of its day from which its session is closed, or 24 if it is open."""
        assert self._holidays is not None
        wall_clock = local.tz_localize(None)
        sessions = (wall_clock + 6 * _HOUR).normalize()  # from 18:00 on, the session belongs to the next day
        days, which = np.unique(sessions.to_numpy(), return_inverse=True)
        found = [self._holidays.closed_from(pd.Timestamp(day).date()) for day in days]
        closed_from = np.array([24 if hour is None else hour for hour in found], dtype=np.int64)[which]
        the_evening_before = (sessions > wall_clock) & (closed_from > ALL_SESSION)
        return np.where(the_evening_before, 24, closed_from)


CALENDARS: Mapping[str, Calendar] = {"metals": WeeklySession(Holidays()), "always": AlwaysOpen()}
DAY_ZONES: Mapping[str, str] = {  # in which a day of the market begins at midnight: a session ends at 17:00 New York
    "metals": "America/New_York+07:00",
    "always": "UTC",
}


SESSION_GRID = datetime(1970, 1, 2, 22, tzinfo=UTC)  # a Friday, 17:00 in New York


def last_session_candle(calendar: Calendar, now: datetime, delta: timedelta, grid: datetime = SESSION_GRID) -> datetime:
    """Like `Calendar.last_open_candle`, for candles that open by the clock of New York, one of them at *grid*."""

    def last(offset: timedelta) -> datetime:
        return calendar.last_open_candle(now, delta, grid + _new_york_offset(grid) - offset)

    offset = _new_york_offset(now)
    found = last(offset)
    earlier = _new_york_offset(found)
    return found if earlier == offset else last(earlier)  # no candle has closed since the clock changed


def _new_york_offset(moment: datetime) -> timedelta:
    offset = utc(moment).astimezone(NEW_YORK).utcoffset()
    assert offset is not None
    return offset


def _at_an_edge(opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
    """Return which candles lie within _EDGE of the start or end of a session, when brokers may be closed.

    Without this, one missing minute before the weekend would blind the gates for two days.
    """
    local = opens.tz_convert(NEW_YORK)
    clock = (local.hour * 60 + local.minute).to_numpy() * timedelta(minutes=1)
    end, beginning = 17 * _HOUR, 18 * _HOUR
    at_edge: BoolArray = ((clock >= end - _EDGE) & (clock < end)) | (
        (clock >= beginning) & (clock + delta <= beginning + _EDGE)
    )
    return at_edge


def _newest_closed(now: datetime, delta: timedelta, grid: datetime) -> datetime:
    return utc(grid, "grid") + ((utc(now, "now") - grid) // delta - 1) * delta
