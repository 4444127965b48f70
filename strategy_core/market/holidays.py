"""On which days metals may be closed, or close early; when in doubt closed, for nothing here ever stops a trade.

CME's metals are shut for the sessions of New Year's Day, Good Friday and Christmas Day, and close early on the other
holidays of the United States and around them: at 12:00, 12:45, 13:30 or 13:45 Chicago or New York time, which changed
over the years and differs between brokers. Here such a day may be closed from noon in New York, whatever the year.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

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

from strategy_core.domain.errors import InvalidSetting

ALL_SESSION = 0  # closed from its first hour, the evening before
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
    "with commas or lines between them; or the path of a file of them"
)


@dataclass(frozen=True, slots=True)
class Holidays:
    """The days of the rules above, and those that an owner lists beside them.

    Attributes:
        listed: by day, the hour in New York from which it is closed; ALL_SESSION is the whole session.
    """

    listed: Mapping[date, int] = field(default_factory=lambda: MappingProxyType({}))

    def closed_from(self, day: date) -> int | None:
        """Return the hour from which the session that ends on *day* may be closed; None when it is a day as any."""
        hours = [each[day] for each in (self.listed, _by_rule(day.year)) if day in each]
        return min(hours, default=None)


def read_holidays(text: str) -> Holidays:
    """Return the holidays that *text*, or the file it names, lists; in a file `#` begins a remark.

    Raises:
        InvalidSetting: an entry is no day, or there is no such file.
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
    return day, closes.hour  # the hour in which it closes may have no candle


@lru_cache(maxsize=256)
def _by_rule(year: int) -> Mapping[date, int]:
    first, last = datetime(year, 1, 1), datetime(year, 12, 31)  # noqa: DTZ001  days, as the rules want them
    found = {moment.date(): NOON for rule in _EARLY for moment in rule.dates(first, last)}
    found |= {moment.date(): ALL_SESSION for rule in _CLOSED for moment in rule.dates(first, last)}
    return MappingProxyType(found)
