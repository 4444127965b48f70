"""Candles: timeframes, the checks and repairs of a frame, and the hashes of windows.

A candle is stamped by its OPEN time in UTC and closes one timeframe later. Checked candles are a DataFrame of float64
`open high low close volume` (and `bid_*`/`ask_*`, all eight or none), indexed by `timestamp`: datetime64[ns, UTC],
increasing, unique. Missing candles are counted but not filled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.errors import InvalidCandles, InvalidTimeframe
from strategy_core.domain.lifecycle import utc

TIMEFRAMES: Mapping[str, timedelta] = MappingProxyType(
    {
        "1m": timedelta(minutes=1),
        "3m": timedelta(minutes=3),
        "5m": timedelta(minutes=5),
        "15m": timedelta(minutes=15),
        "30m": timedelta(minutes=30),
        "1h": timedelta(hours=1),
        "2h": timedelta(hours=2),
        "4h": timedelta(hours=4),
        "6h": timedelta(hours=6),
        "8h": timedelta(hours=8),
        "12h": timedelta(hours=12),
        "1d": timedelta(days=1),
        "1w": timedelta(weeks=1),
    }
)
PRICES = ("open", "high", "low", "close")
SIDES = tuple(f"{side}_{price}" for side in ("bid", "ask") for price in PRICES)
COLUMNS = (*PRICES, "volume", *SIDES)
LATE_CANDLES = 24  # a candle that the vendor delivers this late is still decided, and its slot booked
GRID = datetime(1970, 1, 5, tzinfo=UTC)  # a Monday: an open time of every timeframe
NOISE = 1e-9  # of the price: a smaller contradiction between prices is rounding
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_SESSION = timedelta(hours=4)  # from this timeframe on, vendors open candles by a local clock
_BETWEEN_CLOCK_CHANGES = timedelta(days=300)  # clocks go forward once a year
_ZONED = r"[Tt ]\d{2}.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"  # a time of day with its offset from UTC


@dataclass(frozen=True, slots=True)
class Repairs:
    """Repairs, counted in rows. Any other problem is an error.

    Attributes:
        duplicates: rows dropped because an earlier row has the same values.
        moved: rows that came after a later candle and were sorted into place.
        unclosed: 1 when the last candle had not closed by `now` and was dropped.
        noise: rows whose prices contradicted each other by less than NOISE, such as a close one bit above the high.
            The high, the low or the ask was moved by as much.
    """

    duplicates: int = 0
    moved: int = 0
    unclosed: int = 0
    noise: int = 0

    def __bool__(self) -> bool:
        return bool(self.duplicates or self.moved or self.unclosed or self.noise)


@dataclass(frozen=True, slots=True)
class Checked:
    """Checked candles, and what the checks found.

    Attributes:
        candles: as described at the top of this module.
        gaps: places where one or more candles are missing, weekends and daily breaks included.
        unread: columns of the source that are not part of a candle.
    """

    candles: pd.DataFrame
    repairs: Repairs
    gaps: int
    unread: tuple[str, ...]


def timeframe_delta(timeframe: str) -> timedelta:
    """Return the length of a candle of *timeframe*, or raise InvalidTimeframe."""
    try:
        return TIMEFRAMES[timeframe]
    except KeyError:
        raise InvalidTimeframe(timeframe, TIMEFRAMES) from None


def checked_candles(
    frame: pd.DataFrame,
    *,
    timeframe: str,
    source: str,
    now: datetime | None = None,
    first_row: int = 1,
    row_numbers: IntArray | None = None,
    sparse: bool = False,
    negative: bool = False,
) -> Checked:
    """Check and repair the candles of *frame*.

    Times are the column `timestamp` or the index, with a time zone. They are whole multiples of the timeframe (above
    1h: whole hours, because vendors open their day at different hours) and at least one timeframe apart. From 4h on,
    two may be an hour closer once a year, when a clock goes forward. Among three or more candles, two must be exactly
    one timeframe apart, or the file has another timeframe. Prices are finite and above zero, open and close lie within
    low..high, and bid is at most ask, apart from NOISE. A missing `volume` becomes NaN.

    Args:
        frame: as read. It is not changed.
        timeframe: a name in TIMEFRAMES.
        source: named in errors, such as the file.
        now: drop a last candle that has not closed by then, and refuse more than one. None: all have closed.
        first_row: number of the frame's first row in its source, 2 below a header line.
        row_numbers: the number of each row in its source, if the rows do not follow each other there.
        sparse: the source is known to have this timeframe, so its candles may all be further apart.
        negative: prices may be zero or below.

    Raises:
        InvalidCandles: names the first invalid row.
        InvalidTimeframe, NaiveTime (of *now*).
    """
    delta = pd.Timedelta(timeframe_delta(timeframe)).as_unit("ns")
    rows = Rows(source, first_row, row_numbers)
    _check_columns(frame, rows)
    times = _times(frame, rows)
    values, noisy = _values(frame, rows, negative)
    off_grid = times.asi8 % min(delta, pd.Timedelta(_HOUR)).value != 0
    rows.refuse(
        off_grid, lambda at: f"{times[at]} is not the open of a {timeframe} candle{_off_grid(times, timeframe)}"
    )

    order = np.argsort(times.asi8, kind="stable")
    kept = order[_first_of_each(times, values, order, rows)]
    as_read = times.asi8[np.sort(kept)]
    moved = int((as_read < np.maximum.accumulate(as_read)).sum())
    repairs = Repairs(duplicates=len(times) - len(kept), moved=moved, noise=int(noisy[kept].sum()))
    times = times[kept]
    spacing = np.diff(times.asi8)
    slack = pd.Timedelta(_HOUR).value if delta >= _SESSION else 0  # a session of local time follows its clock
    overlaps = np.append(False, (spacing < delta.value) & ~_at_clock_changes(times, spacing, delta.value, slack))
    rows.refuse(
        overlaps,
        lambda at: f"{times[at]} is inside the {timeframe} candle before it{_looks_like(times, timeframe)}",
        kept,
    )
    if not sparse and len(times) >= 3 and not (spacing == delta.value).any():
        raise InvalidCandles(
            source, f"no two candles are {timeframe} apart{_looks_like(times, timeframe)}", rows.number(0)
        )
    candles = pd.DataFrame({name: column[kept] for name, column in values.items()}, index=times)
    if now is not None:
        closed = count_closed(candles, now, timeframe)
        unclosed = np.arange(len(candles)) >= closed
        unclosed[-1] = False  # the last candle may still be open
        rows.refuse(unclosed, lambda at: f"{times[at]} and candles after it had not closed by {now}", kept)
        repairs = replace(repairs, unclosed=len(candles) - closed)
        candles, spacing = candles.iloc[:closed], spacing[: max(closed - 1, 0)]
    unread = tuple(str(name) for name in frame.columns if name not in (*COLUMNS, "timestamp"))
    return Checked(candles, repairs, int((spacing > delta.value + slack).sum()), unread)


def _at_clock_changes(times: pd.DatetimeIndex, spacing: IntArray, delta: int, slack: int) -> BoolArray:
    """Return which steps are shorter than *delta* by at most *slack*, and rare enough for a clock that goes forward."""
    short = np.flatnonzero((spacing < delta) & (spacing >= delta - slack))
    rare = np.diff(times.asi8[short], prepend=-(2**62)) >= pd.Timedelta(_BETWEEN_CLOCK_CHANGES).value
    found = np.zeros(len(spacing), dtype=bool)
    found[short] = rare
    return found


def closed_by(candles: pd.DataFrame, now: datetime, timeframe: str) -> pd.DataFrame:
    """Return the candles that have closed by *now*: those whose open time + timeframe <= now."""
    return candles.iloc[: count_closed(candles, now, timeframe)]


def count_closed(candles: pd.DataFrame, now: datetime, timeframe: str) -> int:
    """Return how many of the sorted *candles* have closed by *now*."""
    newest_open = pd.Timestamp(utc(now, "now")) - timeframe_delta(timeframe)
    return int(candles.index.searchsorted(newest_open, side="right"))


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of one source, numbered as in the source."""

    source: str
    first: int
    numbers: IntArray | None = None

    def number(self, at: int) -> int:
        return self.first + at if self.numbers is None else int(self.numbers[at])

    def refuse(self, bad: BoolArray, problem: Callable[[int], str], places: IntArray | None = None) -> None:
        """Raise InvalidCandles for the first bad row, if any. *places* are the positions of the rows before sorting."""
        if bad.any():
            at = int(bad.argmax())
            raise InvalidCandles(self.source, problem(at), self.number(int(at if places is None else places[at])))


def _check_columns(frame: object, rows: Rows) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise InvalidCandles(rows.source, f"is a {type(frame).__name__}, not a DataFrame of candles")
    names = [str(name) for name in frame.columns]
    twice = sorted({name for name in names if names.count(name) > 1 and name in (*COLUMNS, "timestamp")})
    if twice:
        raise InvalidCandles(rows.source, f"has more than one column {', '.join(twice)}")
    needed = [*PRICES, *(SIDES if any(side in names for side in SIDES) else ())]
    missing = [name for name in needed if name not in names]
    if "timestamp" not in names and not isinstance(frame.index, pd.DatetimeIndex) and frame.index.name != "timestamp":
        missing.insert(0, "timestamp")
    if missing:
        raise InvalidCandles(rows.source, f"has no column {', '.join(missing)}; found: {', '.join(names) or 'none'}")
    if frame.empty:
        raise InvalidCandles(rows.source, "has no candles")


def _times(frame: pd.DataFrame, rows: Rows) -> pd.DatetimeIndex:
    written = frame["timestamp"] if "timestamp" in frame.columns else frame.index.to_series()
    rows.refuse(written.isna().to_numpy(), lambda _: "timestamp is missing; is the line empty?")
    if pd.api.types.is_datetime64_any_dtype(written.dtype):
        times = pd.DatetimeIndex(written)
        naive = np.full(len(times), times.tz is None)
    else:
        text = (written.map(str) if written.dtype == object else written).astype(str)  # bytes may not be text
        times = pd.DatetimeIndex(pd.to_datetime(text, format="ISO8601", errors="coerce", utc=True))
        rows.refuse(np.asarray(times.isna()), lambda at: f"timestamp {text.iloc[at]!r} is not an ISO 8601 time")
        naive = ~text.str.contains(_ZONED, regex=True).to_numpy(dtype=bool)
    rows.refuse(naive, lambda at: f"timestamp '{written.iloc[at]}' has no time zone; write it with its offset or Z")
    years = times.year.to_numpy()
    rows.refuse((years < 1678) | (years > 2261), lambda at: f"timestamp '{written.iloc[at]}' is out of range")
    return times.tz_convert("UTC").as_unit("ns").rename("timestamp")


def _values(frame: pd.DataFrame, rows: Rows, negative: bool) -> tuple[dict[str, FloatArray], BoolArray]:
    """Return the columns of COLUMNS, and which rows were repaired for NOISE."""
    values = {name: _floats(frame[name], name, rows) for name in COLUMNS if name in frame.columns}
    values.setdefault("volume", np.full(len(frame), np.nan))
    for name, column in values.items():
        _check_numbers(name, column, rows, negative)
    noisy = np.zeros(len(frame), dtype=bool)
    sided = SIDES[0] in values
    for side in ("", "bid_", "ask_") if sided else ("",):
        noisy |= _mend_range(side, values, rows)
    if sided:
        for price in PRICES:
            noisy |= _mend_spread(price, values, rows)
        _mend_range("ask_", values, rows)  # of asks that were raised
    return {name: values[name] for name in COLUMNS if name in values}, noisy


def _check_numbers(name: str, column: FloatArray, rows: Rows, negative: bool) -> None:
    if name == "volume":
        rows.refuse(np.isinf(column) | (column < 0), lambda at: f"volume is {column[at]:g}")
        return
    above = "a price is a number" if negative else "a price is a number above zero"
    option = "; the option negative=yes of a file allows it"
    bad = ~np.isfinite(column) | ((column <= 0) & (not negative))
    rows.refuse(bad, lambda at: f"{name} is {column[at]:g}; {above}{option if -np.inf < column[at] < 0 else ''}")


def _mend_range(side: str, values: dict[str, FloatArray], rows: Rows) -> BoolArray:
    """Widen high and low where the other prices lie outside by no more than NOISE. Return the widened rows."""
    opened, high, low, close = (values[f"{side}{price}"] for price in PRICES)
    noise = NOISE * np.maximum(np.abs(high), np.abs(low))
    rows.refuse(high < low - noise, lambda at: f"{side}high {high[at]:.12g} is below {side}low {low[at]:.12g}")
    _check_inside(f"{side}open", opened, low, high, rows)
    _check_inside(f"{side}close", close, low, high, rows)
    every = np.stack([opened, high, low, close])
    values[f"{side}high"], values[f"{side}low"] = every.max(axis=0), every.min(axis=0)
    widened: BoolArray = (values[f"{side}high"] > high) | (values[f"{side}low"] < low)
    return widened


def _check_inside(name: str, price: FloatArray, low: FloatArray, high: FloatArray, rows: Rows) -> None:
    noise = NOISE * np.maximum(np.abs(high), np.abs(low))
    outside = (price < low - noise) | (price > high + noise)
    rows.refuse(outside, lambda at: f"{name} {price[at]:.12g} is outside {low[at]:.12g}..{high[at]:.12g}, its range")


def _mend_spread(price: str, values: dict[str, FloatArray], rows: Rows) -> BoolArray:
    """Raise the ask to the bid where it is below by no more than NOISE. Return the raised rows."""
    bid, ask = values[f"bid_{price}"], values[f"ask_{price}"]
    beyond = bid > ask + NOISE * np.abs(ask)
    rows.refuse(beyond, lambda at: f"bid_{price} {bid[at]:.12g} is above ask_{price} {ask[at]:.12g}")
    values[f"ask_{price}"] = np.maximum(bid, ask)
    raised: BoolArray = bid > ask
    return raised


def _floats(column: pd.Series, name: str, rows: Rows) -> FloatArray:
    numeric = pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype)
    if not numeric and not (pd.api.types.is_object_dtype(column.dtype) or pd.api.types.is_string_dtype(column.dtype)):
        raise InvalidCandles(rows.source, f"{name} is of type {column.dtype}, not a number")
    try:
        numbers = pd.to_numeric(column, errors="coerce")
    except OverflowError:  # a whole number of hundreds of digits
        numbers = pd.to_numeric(column.map(_infinite_if_huge), errors="coerce")
    bad = (numbers.isna() & column.notna()).to_numpy()
    rows.refuse(bad, lambda at: f"{name} is {column.iloc[at]!r}, not a number")
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)


def _infinite_if_huge(cell: object) -> object:
    return np.inf if isinstance(cell, int) and abs(cell) > 10**300 else cell


def _first_of_each(times: pd.DatetimeIndex, values: Mapping[str, FloatArray], order: IntArray, rows: Rows) -> BoolArray:
    """Return which rows in *order* are the first with their time. Refuse a later one with other values."""
    repeated = np.append(False, np.diff(times.asi8[order]) == 0)
    differs = np.zeros(len(order), dtype=bool)
    for column in values.values():
        here, before = column[order][1:], column[order][:-1]
        differs[1:] |= (here != before) & ~(np.isnan(here) & np.isnan(before))
    rows.refuse(
        repeated & differs,
        lambda at: f"{times[order[at]]} is also in row {rows.number(order[at - 1])}, with other values",
        order,
    )
    return ~repeated


def _looks_like(times: pd.DatetimeIndex, timeframe: str) -> str:
    """Return how far apart most *times* are, and the setting for it, or an empty text if that is *timeframe*."""
    if len(times) < 2:
        return ""
    step = pd.Timedelta(_most_common(np.diff(np.sort(times.asi8))), unit="ns")
    name = next((name for name, delta in TIMEFRAMES.items() if delta == step), None)
    if name == timeframe:
        return ""
    return f"; most are {step} apart" if name is None else f"; most are {name} apart: ROLLOUT_TIMEFRAME={name}"


def _off_grid(times: pd.DatetimeIndex, timeframe: str) -> str:
    """Return why *times* are off the grid of the timeframe that they look like, and what to use instead."""
    step = pd.Timedelta(_most_common(np.diff(np.sort(times.asi8))), unit="ns") if len(times) > 1 else pd.Timedelta(0)
    grid = min(step, pd.Timedelta(_HOUR))
    if step not in TIMEFRAMES.values() or (times.asi8 % grid.value != 0).mean() <= 0.5:
        return _looks_like(times, timeframe)
    past = pd.Timedelta(_most_common(times.asi8 % grid.value), unit="ns")
    names = [
        name for name, delta in TIMEFRAMES.items() if delta == grid or (delta < grid and past % delta == timedelta(0))
    ]
    *fitting, unit = names
    dates = "a column of plain dates, or " if step >= _DAY else ""
    use = f": use {dates}a file of {fitting[-1]} candles" if fitting else ""
    minutes, seconds = divmod(int(past.total_seconds()), 60)
    opens = f"{minutes:02}:{seconds:02}" if seconds else f"{minutes:02}"
    return f"; most open at :{opens}, and candles must open at whole multiples of {unit} in UTC{use}"


def _most_common(numbers: "np.ndarray[Any, np.dtype[Any]]") -> int:
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()])


class Windows:
    """Hashes of the windows of one symbol's candles that end at a position. Safe to use from several threads.

    The hashed bytes are the names in the order of COLUMNS, then row by row the open time as int64 nanoseconds since
    1970 and the values as float64, little-endian. All NaNs have the same bits, and -0.0 becomes 0.0.

    Attributes:
        columns: the names of COLUMNS that the candles have, in that order.
        table: open time and the bits of each value, shape (candles, 1 + columns).
    """

    def __init__(self, candles: pd.DataFrame) -> None:
        self.columns = [name for name in COLUMNS if name in candles.columns]
        ordered = candles if candles.columns.tolist() == self.columns else candles[self.columns]
        values = ordered.to_numpy(np.float64) + 0.0  # a copy, in which -0.0 becomes 0.0
        values[np.isnan(values)] = np.nan
        self.table: IntArray = np.empty((len(candles), 1 + len(self.columns)), dtype="<i8")
        self.table[:, 0] = opened_ns(candles)
        self.table[:, 1:] = np.ascontiguousarray(values).view(np.int64)
        self._names = sha256(" ".join(self.columns).encode())
        self._hashes: dict[tuple[int, int], str] = {}

    def __len__(self) -> int:
        return len(self.table)

    def opened_at(self, position: int) -> datetime:
        return pd.Timestamp(int(self.table[position, 0]), tz="UTC").to_pydatetime()

    def hash_of(self, position: int, bars: int) -> str:
        """Return the sha256, in hex, of the *bars* candles that end at *position*, or of fewer at the start."""
        known = self._hashes.get((position, bars))
        if known is None:
            digest = self._names.copy()
            digest.update(self.rows(max(0, position + 1 - bars), position + 1))
            known = self._hashes[position, bars] = digest.hexdigest()
        return known

    def rows(self, start: int, end: int) -> memoryview:
        """Return the bytes of the candles in [start, end), without a copy."""
        return self.table[start:end].reshape(-1).view(np.uint8).data


def opened_ns(candles: pd.DataFrame) -> IntArray:
    """Return the open times in nanoseconds since 1970 UTC, for any unit of the index."""
    index = candles.index if isinstance(candles.index, pd.DatetimeIndex) else pd.DatetimeIndex(candles.index)
    times: IntArray = index.as_unit("ns").asi8
    return times


def window_hash(candles: pd.DataFrame) -> str:
    """Return the hash of all *candles*. It is the same on every machine and for every time unit."""
    return Windows(candles).hash_of(len(candles) - 1, max(len(candles), 1))
