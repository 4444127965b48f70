"""When a market is open, so that silence can be told from a closed market; never what is traded in it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray, IntArray
from strategy_core.domain.lifecycle import utc
from strategy_core.market.holidays import ALL_SESSION, Holidays

NEW_YORK = ZoneInfo("America/New_York")
_HOUR = timedelta(hours=1)
_EDGE = timedelta(minutes=5)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FRIDAY, _SATURDAY, _SUNDAY = 4, 5, 6


class Calendar(Protocol):
    def is_open(self, moment: datetime) -> bool: ...

    def open_candles(self, opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
        """Return, for each candle that opens at *opens* and lasts *delta*, whether the market is open in any of it."""
        ...

    def last_open_candle(self, now: datetime, delta: timedelta, grid: datetime = _EPOCH) -> datetime:
        """Return when the newest candle that has closed by *now*, with the market open in any of it, opened.

        Candles open at *grid*, and at whole multiples of *delta* before and after it.
        """
        ...


class AlwaysOpen:
    """A market that never closes."""

    def is_open(self, moment: datetime) -> bool:
        utc(moment)
        return True

    def open_candles(self, opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
        return np.ones(len(opens), dtype=bool)

    def last_open_candle(self, now: datetime, delta: timedelta, grid: datetime = _EPOCH) -> datetime:
        return _newest_closed(now, delta, grid)


class WeeklySession:
    """Metals: from Sunday 18:00 to Friday 17:00 New York time, closed daily from 17:00 to 18:00, and on *holidays*.

    The UTC hours follow New York's summer time.

    Args:
        holidays: None for a market without any that keeps its hours to the minute, such as a made-up one.
    """

    def __init__(self, holidays: Holidays | None = None) -> None:
        self._holidays = holidays

    def is_open(self, moment: datetime) -> bool:
        return bool(self._in_session(pd.DatetimeIndex([utc(moment)]))[0])

    def open_candles(self, opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
        in_any = np.zeros(len(opens), dtype=bool)
        for hour in range(max(1, delta // _HOUR)):  # the session turns on whole hours only
            in_any |= self._in_session(opens + hour * _HOUR)
        if self._holidays is not None and delta < _HOUR:
            in_any &= ~_at_an_edge(opens, delta)
        return in_any

    def last_open_candle(self, now: datetime, delta: timedelta, grid: datetime = _EPOCH) -> datetime:
        newest, days = _newest_closed(now, delta, grid), 4  # longer than any weekend
        while True:  # holidays are listed one by one: some day before them is none
            opens = pd.date_range(newest - timedelta(days=days), newest, freq=delta)
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
        """Return, for each moment, the hour of its own day from which its session is closed; 24 when it is not."""
        assert self._holidays is not None
        wall_clock = local.tz_localize(None)
        sessions = (wall_clock + 6 * _HOUR).normalize()  # from 18:00 on, the session is the next day's
        days, which = np.unique(sessions.to_numpy(), return_inverse=True)
        found = [self._holidays.closed_from(pd.Timestamp(day).date()) for day in days]
        closed_from = np.array([24 if hour is None else hour for hour in found], dtype=np.int64)[which]
        the_evening_before = (sessions > wall_clock) & (closed_from > ALL_SESSION)
        return np.where(the_evening_before, 24, closed_from)


CALENDARS: Mapping[str, Calendar] = {"metals": WeeklySession(Holidays()), "always": AlwaysOpen()}


def _at_an_edge(opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
    """Return which candles lie within _EDGE of a session's end or beginning, where brokers pause already or still.

    One missing minute before the weekend would else be two days of blindness.
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
