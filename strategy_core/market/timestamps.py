"""Times as files write them, and the open times in UTC that they mean."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray, IntArray
from strategy_core.domain.candles import TIMEFRAMES, Rows
from strategy_core.domain.errors import InvalidCandles

DateOrder = Literal["day-first", "month-first"]
_DAY = timedelta(days=1)
_EPOCH_UNITS = (10**11, 10**14, 10**17)  # seconds below the first, then milli-, micro- and nanoseconds
_FIRST_EPOCH = 10**8  # 1973: a smaller number is a row number or a price
_EXCEL = (20_000, 80_000)  # days since 1899-12-30: the years 1954 to 2119
_OFFSET = re.compile(r"([+-])(\d{1,2})(?::?(\d{2}))?")
_COMPACT = {8: "%Y%m%d", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_ZONED = r"[Tt ]\d{1,2}.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"
_NAMED_UTC = re.compile(r"\s*(?:UTC|GMT)\s*(?=[+-]\d|$)", re.IGNORECASE)
_ISO = r"\d{4}-\d{2}-\d{2}(?:[Tt ].*)?$"
_DOTTED = r"^(\d{4})[./](\d{2})[./](\d{2})(?=[Tt ]\d{2}:|$)"
_SOLID = r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2})[T ](?P<hour>\d{2}):?(?P<minute>\d{2}):?(?P<second>\d{2})?$"
_PARTS = (
    r"(?P<a>\d{1,4})[-./](?P<b>\d{1,2})[-./](?P<c>\d{1,4})"
    r"(?:[T ,]+(?P<clock>\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?)\s*(?P<half>[AaPp][Mm])?)?"
    r"\s*(?P<offset>[Zz]|[+-]\d{2}(?::?\d{2})?)?$"
)
_UNREADABLE = (
    "is not a time; allowed: ISO 8601, 06.01.2025 13:00, 1/6/2025 1:00 PM, 20250106 130000 or seconds since 1970"
)


@dataclass(frozen=True, slots=True)
class Zone:
    """A clock: that of a zone, or one that is always *ahead* of a zone's by the same time.

    Many brokers run 7 hours ahead of New York, so that their day ends at 17:00 New York.
    """

    name: str
    zone: tzinfo
    ahead: timedelta = timedelta()


@lru_cache
def read_zone(text: str) -> Zone:
    """Return the zone that *text* names: `Europe/Athens`, `+02:00` or `America/New_York+07:00`.

    Raises:
        ValueError: it names none.
    """
    text = text.replace(" ", "+")  # a `+` in the query of a feed reads as a blank
    named, sign, rest = (text, "", "") if text.startswith("Etc/") else _split_offset(text)
    try:
        ahead = timedelta() if named and not sign else _offset(sign + rest)
        if not named:
            return Zone(text, timezone(ahead))
        return Zone(text, ZoneInfo(named), ahead)
    except (ValueError, OSError, KeyError):  # also a name that is a path or a folder
        raise ValueError(
            "a zone such as Europe/Athens, an offset such as +02:00, or both: America/New_York+07:00 is 7 h ahead"
        ) from None


def _split_offset(text: str) -> tuple[str, str, str]:
    at = next((place for place, char in enumerate(text) if char in "+-"), None)
    if at is None or not text[at + 1 : at + 2].isdigit():
        return text, "", ""
    return text[:at], text[at], text[at + 1 :]


def _offset(text: str) -> timedelta:
    found = _OFFSET.fullmatch(text)
    if found is None:
        raise ValueError(text)
    length = timedelta(hours=int(found[2]), minutes=int(found[3] or 0))
    return -length if found[1] == "-" else length


@dataclass(frozen=True, slots=True)
class Written:
    """Times as a file writes them.

    Attributes:
        times: in UTC if the file gives their offset, else without a zone. Not sorted.
        form: how they are written, for people.
    """

    times: pd.DatetimeIndex
    form: str

    @property
    def has_zone(self) -> bool:
        return self.times.tz is not None

    @property
    def are_dates(self) -> bool:
        """Whether they are dates without a time of day."""
        return not self.has_zone and bool((self.times == self.times.normalize()).all())


def read_written(column: pd.Series, rows: Rows, *, dates: DateOrder | None = None) -> Written:
    """Return the times in *column*: text, numbers, dates or times.

    Args:
        column: one time per row.
        dates: the order of day and month in dates such as 06.01.2025. None: as the data show.

    Raises:
        InvalidCandles: names the first row whose time cannot be read, or the option that is needed.
    """
    rows.refuse(column.isna().to_numpy(), lambda _: "timestamp is missing; is the line empty?")
    if isinstance(column.dtype, pd.DatetimeTZDtype) or pd.api.types.is_datetime64_dtype(column.dtype):
        times = pd.DatetimeIndex(column)
        return _in_range(Written(times if times.tz is None else times.tz_convert("UTC"), "times"), column, rows)
    if pd.api.types.is_integer_dtype(column.dtype) or pd.api.types.is_float_dtype(column.dtype):
        return _in_range(_from_numbers(column, rows), column, rows)
    text = (column if isinstance(column.dtype, pd.StringDtype) else column.map(str)).astype("str").str.strip()
    if _is_number(text.iloc[0]):
        numbers = pd.to_numeric(text, errors="coerce")
        rows.refuse(numbers.isna().to_numpy(), lambda at: f"timestamp {text.iloc[at]!r} {_UNREADABLE}")
        return _in_range(_from_numbers(numbers, rows), text, rows)
    return _in_range(_from_text(text, rows, dates), text, rows)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _in_range(written: Written, column: pd.Series, rows: Rows) -> Written:
    years = written.times.year.to_numpy()
    rows.refuse((years < 1678) | (years > 2261), lambda at: f"timestamp '{column.iloc[at]}' is out of range")
    return Written(written.times.as_unit("ns"), written.form)


def _from_numbers(numbers: pd.Series, rows: Rows) -> Written:
    values = numbers.to_numpy()
    whole = bool((values == np.floor(values)).all())
    for length, form in _COMPACT.items():
        if whole and (values >= 19 * 10 ** (length - 2)).all() and (values < 22 * 10 ** (length - 2)).all():
            times = pd.to_datetime(numbers.astype(np.int64).astype("str"), format=form, errors="coerce")
            if times.notna().all():
                return Written(pd.DatetimeIndex(times), "YYYYMMDDHHMMSS"[:length])
    if ((values >= _EXCEL[0]) & (values < _EXCEL[1])).all():
        seconds = np.round(values * 86_400).astype(np.int64)
        return Written(pd.DatetimeIndex(pd.Timestamp("1899-12-30") + pd.to_timedelta(seconds, "s")), "days of Excel")
    size = np.searchsorted(_EPOCH_UNITS, values, side="right")
    factors = np.array([10**9, 10**6, 10**3, 1], dtype=np.int64)[size]
    readable = (values >= _FIRST_EPOCH) & (values < (2**63 - 1) / factors)
    rows.refuse(~readable, lambda at: f"timestamp {numbers.iloc[at]} {_UNREADABLE}")
    if pd.api.types.is_integer_dtype(numbers.dtype):
        nanoseconds = values * factors
    else:
        nanoseconds = np.round(values * (factors / 1000)).astype(np.int64) * 1000  # a float has no nanoseconds
    units = [["seconds", "milliseconds", "microseconds", "nanoseconds"][at] for at in np.unique(size)]
    return Written(
        pd.DatetimeIndex(nanoseconds.astype("datetime64[ns]"), tz="UTC"), f"{' and '.join(units)} since 1970"
    )


def _from_text(text: pd.Series, rows: Rows, dates: DateOrder | None) -> Written:
    first, plain, form = text.iloc[0], text, "ISO 8601"
    if _NAMED_UTC.search(first):
        plain = text.str.replace(_NAMED_UTC, "+00:00", regex=True)
        plain = plain.str.replace(r"\+00:00(?=[+-]\d)", "", regex=True)  # GMT+0100 is an offset, not GMT
    if re.match(_DOTTED, first):
        plain, form = plain.str.replace(_DOTTED, r"\1-\2-\3", regex=True), "year first"
    elif not re.match(_ISO, first):
        plain, form = _as_iso(plain, rows, dates)
    times = pd.DatetimeIndex(pd.to_datetime(plain, format="ISO8601", errors="coerce", utc=True))
    rows.refuse(np.asarray(times.isna()), lambda at: f"timestamp {text.iloc[at]!r} {_UNREADABLE}")
    zoned = plain.str.contains(_ZONED, regex=True).to_numpy(dtype=bool)
    if zoned.any():
        rows.refuse(~zoned, lambda at: f"timestamp {text.iloc[at]!r} has no time zone, unlike other rows")
        return Written(times, f"{form} with offset")
    return Written(times.tz_localize(None), form)


def _as_iso(plain: pd.Series, rows: Rows, dates: DateOrder | None) -> tuple[pd.Series, str]:
    """Return the texts as ISO 8601. What is none of the known forms stays as it is."""
    first = plain.iloc[0]
    if re.match(_SOLID, first):
        solid = plain.str.extract("^" + _SOLID)
        clock = solid["hour"] + ":" + solid["minute"] + ":" + solid["second"].fillna("00")
        iso = solid["year"] + "-" + solid["month"] + "-" + solid["day"] + "T" + clock
        return iso.where(iso.notna(), plain), "YYYYMMDD HHMMSS"
    if re.search("[A-Za-z]{3}", first):  # a month by its name
        named = pd.to_datetime(plain, format="mixed", errors="coerce")
        if isinstance(named.dtype, np.dtype) and named.notna().any():
            return named.map(lambda at: at.isoformat() if pd.notna(at) else "").astype("str"), "month by name"
    parts = plain.str.extract("^" + _PARTS)
    year_first = parts["a"].str.len() == 4
    year_last = (parts["c"].str.len() == 4) & (parts["a"].str.len() <= 2)
    two_digits = (parts["a"].notna() & ~year_first & ~year_last).to_numpy(dtype=bool)
    rows.refuse(two_digits, lambda at: f"timestamp {plain.iloc[at]!r} is ambiguous: write years with four digits")
    form = "year first"
    year, month, day = parts["a"].where(year_first, parts["c"]), parts["b"], parts["c"].where(year_first, parts["a"])
    if year_last.any():
        order = dates or _order(parts[year_last], rows, plain, np.flatnonzero(year_last))
        form = order
        if order == "month-first":
            month, day = parts["b"].where(year_first, parts["a"]), parts["c"].where(year_first, parts["b"])
    clock = parts["clock"].fillna("00:00").str.replace(",", ".")
    half = parts["half"].str.lower()
    hour = pd.to_numeric(clock.str.split(":").str[0])
    hour = hour.where(half.isna(), hour % 12 + np.where(half == "pm", 12, 0))
    clock = hour.map("{:02.0f}".format) + ":" + clock.str.split(":", n=1).str[1]
    iso = year + "-" + month.str.zfill(2) + "-" + day.str.zfill(2) + "T" + clock + parts["offset"].fillna("")
    return iso.where(parts["a"].notna(), plain), form


def _order(parts: pd.DataFrame, rows: Rows, plain: pd.Series, places: IntArray) -> DateOrder:
    """Return whether the day or the month is first in dates that end with the year.

    A number above 12 is a day. Without one, the right order is that in which the dates lie closer together.
    """
    first, second = parts["a"].astype(int).to_numpy(), parts["b"].astype(int).to_numpy()
    if (first > 12).any():
        rows.refuse(
            second > 12, lambda at: f"timestamp {plain.iloc[places[at]]!r} has its month first, unlike others", places
        )
        return "day-first"
    if (second > 12).any():
        return "month-first"
    years = parts["c"].astype(int).to_numpy() * 372
    spans = [int(np.ptp(years + month * 31 + day)) for day, month in ((first, second), (second, first))]
    if spans[0] == spans[1] and (first != second).any():
        problem = (
            f"timestamp {plain.iloc[places[0]]!r} is ambiguous: add dates=day-first or dates=month-first to the feed"
        )
        raise InvalidCandles(rows.source, problem, rows.number(int(places[0])))
    return "day-first" if spans[0] <= spans[1] else "month-first"


def open_times(
    written: Written, rows: Rows, *, delta: timedelta, zone: Zone | None, day_zone: Zone | None, close_stamped: bool
) -> pd.DatetimeIndex:
    """Return the open times in UTC, datetime64[ns, UTC].

    Args:
        written: as read.
        delta: length of a candle.
        zone: of times without an offset.
        day_zone: of dates alone, if *zone* is None and candles are a day or longer.
        close_stamped: the times are those at which candles close.

    Raises:
        InvalidCandles: a zone is needed, or is given although the file has offsets, or its clock never shows a time.
    """
    times = written.times.ceil("min") if close_stamped else written.times  # 12:59:59.999 closes at 13:00
    before = delta if close_stamped else timedelta()
    if written.has_zone:
        if zone is not None:
            raise InvalidCandles(rows.source, f"its times say their zone ({written.form}); leave tz={zone.name} out")
        return pd.DatetimeIndex(times - before).rename("timestamp")
    days = written.are_dates and delta >= _DAY
    zone = zone or (day_zone if days else None)
    if zone is None:
        what = f"timestamp '{written.times[0]}' has no time zone; add tz=ZONE to the feed, as in"
        problem = f"{what} ?tz=Europe/Athens, ?tz=-05:00 or ?tz=America/New_York+07:00, or write the offset"
        raise InvalidCandles(rows.source, problem, rows.number(0))
    return _localized(pd.DatetimeIndex(times - before), zone, rows, days).rename("timestamp")


def _localized(times: pd.DatetimeIndex, zone: Zone, rows: Rows, days: bool) -> pd.DatetimeIndex:
    wall = times - zone.ahead
    if days:  # where midnight does not exist or comes twice, a day begins with its first moment
        first = np.ones(len(wall), dtype=bool)
        return wall.tz_localize(zone.zone, ambiguous=first, nonexistent="shift_forward").tz_convert("UTC").as_unit("ns")
    never = wall.tz_localize(zone.zone, ambiguous=np.ones(len(wall), dtype=bool), nonexistent="NaT").isna()
    rows.refuse(
        np.asarray(never),
        lambda at: f"timestamp '{times[at]}' does not exist in {zone.name}: its clock goes forward then",
    )
    newest_first = len(wall) > 1 and wall[0] > wall[-1]
    ordered = wall[::-1] if newest_first else wall
    try:
        found = ordered.tz_localize(zone.zone, ambiguous="infer")
    except ValueError:
        twice: BoolArray = np.asarray(wall.tz_localize(zone.zone, ambiguous="NaT").isna())
        rows.refuse(twice, lambda at: f"timestamp '{times[at]}' comes twice in {zone.name}: write it with its offset")
        raise
    return (found[::-1] if newest_first else found).tz_convert("UTC").as_unit("ns")


def likely_timeframe(times: pd.DatetimeIndex) -> str | None:
    """Return the timeframe that most of *times* are apart, if there is one."""
    steps = np.diff(np.sort(times.asi8))
    if not (steps > 0).any():
        return None
    lengths, counts = np.unique(steps[steps > 0], return_counts=True)
    most = timedelta(microseconds=int(lengths[counts.argmax()]) // 1000)
    return next((name for name, delta in TIMEFRAMES.items() if delta == most), None)


def in_future(opens: pd.DatetimeIndex, now: datetime, delta: timedelta) -> bool:
    """Return whether a candle opens clearly after *now*, which a clock that is a little off does not explain."""
    limit = pd.Timestamp(now.astimezone(UTC) + min(delta / 2, timedelta(minutes=5)))
    return len(opens) > 0 and bool(opens.max() > limit)
