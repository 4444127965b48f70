"""When a market is open, so that silence can be told from a closed market; never what is traded in it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray
from strategy_core.domain.lifecycle import utc

NEW_YORK = ZoneInfo("America/New_York")
_HOUR = timedelta(hours=1)
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
    """Metals: from Sunday 18:00 to Friday 17:00 New York time, closed daily from 17:00 to 18:00; holidays unknown.

    The UTC hours follow New York's summer time.
    """

    def is_open(self, moment: datetime) -> bool:
        return bool(_in_session(pd.DatetimeIndex([utc(moment)]))[0])

    def open_candles(self, opens: pd.DatetimeIndex, delta: timedelta) -> BoolArray:
        in_any = np.zeros(len(opens), dtype=bool)
        for hour in range(max(1, delta // _HOUR)):  # the session turns on whole hours only
            in_any |= _in_session(opens + hour * _HOUR)
        return in_any

    def last_open_candle(self, now: datetime, delta: timedelta, grid: datetime = _EPOCH) -> datetime:
        newest = _newest_closed(now, delta, grid)
        opens = pd.date_range(newest - timedelta(days=4), newest, freq=delta)  # longer than any weekend
        return opens[self.open_candles(opens, delta)][-1].to_pydatetime()


CALENDARS: Mapping[str, Calendar] = {"metals": WeeklySession(), "always": AlwaysOpen()}


def _newest_closed(now: datetime, delta: timedelta, grid: datetime) -> datetime:
    return utc(grid, "grid") + ((utc(now, "now") - grid) // delta - 1) * delta


def _in_session(moments: pd.DatetimeIndex) -> BoolArray:
    local = moments.tz_convert(NEW_YORK)
    day, hour = local.day_of_week.to_numpy(), local.hour.to_numpy()
    weekend = (day == _SATURDAY) | ((day == _FRIDAY) & (hour >= 17)) | ((day == _SUNDAY) & (hour < 18))
    in_session: BoolArray = ~weekend & (hour != 17)
    return in_session
