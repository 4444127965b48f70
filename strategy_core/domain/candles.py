"""Candles: timeframes, the checks and repairs of a frame, and the hashes of windows.

A candle is stamped by its OPEN time in UTC and closes one timeframe later. Checked candles are a DataFrame of float64
`open high low close volume` (and `bid_*`/`ask_*`, all eight or none), indexed by `timestamp`: datetime64[ns, UTC],
increasing, unique. Missing candles are counted but not filled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from types import MappingProxyType

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.errors import InvalidCandles, InvalidTimeframe
from strategy_core.domain.lifecycle import utc

TIMEFRAMES: Mapping[str, timedelta] = MappingProxyType(
    {
        "1m": timedelta(minutes=1),
        "5m": timedelta(minutes=5),
        "15m": timedelta(minutes=15),
        "30m": timedelta(minutes=30),
        "1h": timedelta(hours=1),
        "2h": timedelta(hours=2),
        "4h": timedelta(hours=4),
        "1d": timedelta(days=1),
    }
)
PRICES = ("open", "high", "low", "close")
SIDES = tuple(f"{side}_{price}" for side in ("bid", "ask") for price in PRICES)
COLUMNS = (*PRICES, "volume", *SIDES)
LATE_CANDLES = 24  # a candle that the vendor delivers this late is still decided, and its slot booked
_HOUR = timedelta(hours=1)
_ZONED = r"[Tt ]\d{2}.*(?:[Zz]|[+-]\d{2}(?::?\d{2})?)$"  # a time of day with its offset from UTC


@dataclass(frozen=True, slots=True)
class Repairs:
    """Repairs, counted in rows. Any other problem is an error.

    Attributes:
        duplicates: rows dropped because an earlier row has the same values.
        moved: rows that came after a later candle and were sorted into place.
        unclosed: 1 when the last candle had not closed by `now` and was dropped.
    """

    duplicates: int = 0
    moved: int = 0
    unclosed: int = 0

    def __bool__(self) -> bool:
        return bool(self.duplicates or self.moved or self.unclosed)


@dataclass(frozen=True, slots=True)
class Checked:
    """Checked candles, and what the checks found.

    Attributes:
        candles: as described at the top of this module.
        gaps: places where one or more candles are missing, weekends and daily breaks included.
        unread: columns of the source that are not part of a candle.
        held_back: why the last row is left out, if it is.
        held_at: the open time of that row, if it can be read.
    """

    candles: pd.DataFrame
    repairs: Repairs
    gaps: int
    unread: tuple[str, ...]
    held_back: InvalidCandles | None = None
    held_at: datetime | None = None


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
    sparse: bool = False,
    hold_last: bool = False,
) -> Checked:
    """Check and repair the candles of *frame*.

    Times are the column `timestamp` or the index, with a time zone. They are whole multiples of the timeframe (above
    1h: whole hours, because vendors open their day at different hours) and at least one timeframe apart. Among three
    or more candles, two must be exactly one timeframe apart, or the file has another timeframe. Prices are finite and
    above zero, open and close lie within low..high, and bid is at most ask. A missing `volume` becomes NaN.

    Args:
        frame: as read. It is not changed.
        timeframe: a name in TIMEFRAMES.
        source: named in errors, such as the file.
        now: drop a last candle that has not closed by then, and refuse more than one. None: all have closed.
        first_row: number of the frame's first row in its source, 2 below a header line.
        sparse: the source is known to have this timeframe, so its candles may all be further apart.
        hold_last: leave out a last row that is invalid, because it may still be being written.

    Raises:
        InvalidCandles: names the first invalid row.
        InvalidTimeframe, NaiveTime (of *now*).
    """
    try:
        return _check(frame, timeframe, source, now, first_row, sparse)
    except InvalidCandles as error:
        if not hold_last or len(frame) < 2 or error.row != first_row + len(frame) - 1:
            raise
        checked = _check(frame.iloc[:-1], timeframe, source, now, first_row, sparse)
        return replace(checked, held_back=error, held_at=_time_of(frame.iloc[-1:]))


def _time_of(row: pd.DataFrame) -> datetime | None:
    """Return the time of a frame of one row, or None if it cannot be read."""
    try:
        return _times(row, _Rows("", 1))[0].to_pydatetime()
    except InvalidCandles:
        return None


def _check(
    frame: pd.DataFrame, timeframe: str, source: str, now: datetime | None, first_row: int, sparse: bool
) -> Checked:
    delta = pd.Timedelta(timeframe_delta(timeframe)).as_unit("ns")
    rows = _Rows(source, first_row)
    _check_columns(frame, rows)
    times = _times(frame, rows)
    values = _values(frame, rows)
    off_grid = times.asi8 % min(delta, pd.Timedelta(_HOUR)).value != 0
    rows.refuse(off_grid, lambda at: f"{times[at]} is not the open of a {timeframe} candle{_looks_like(times)}")

    order = np.argsort(times.asi8, kind="stable")
    kept = order[_first_of_each(times, values, order, rows)]
    as_read = times.asi8[np.sort(kept)]
    repairs = Repairs(len(times) - len(kept), int((as_read < np.maximum.accumulate(as_read)).sum()))
    times = times[kept]
    spacing = np.diff(times.asi8)
    overlaps = np.append(False, spacing < delta.value)
    rows.refuse(
        overlaps, lambda at: f"{times[at]} is inside the {timeframe} candle before it{_looks_like(times)}", kept
    )
    if not sparse and len(times) >= 3 and not (spacing == delta.value).any():
        raise InvalidCandles(source, f"no two candles are {timeframe} apart{_looks_like(times)}", first_row)
    candles = pd.DataFrame({name: column[kept] for name, column in values.items()}, index=times)
    if now is not None:
        closed = count_closed(candles, now, timeframe)
        unclosed = np.arange(len(candles)) >= closed
        unclosed[-1] = False  # the last candle may still be open
        rows.refuse(unclosed, lambda at: f"{times[at]} and candles after it had not closed by {now}", kept)
        repairs = replace(repairs, unclosed=len(candles) - closed)
        candles, spacing = candles.iloc[:closed], spacing[: max(closed - 1, 0)]
    unread = tuple(str(name) for name in frame.columns if name not in (*COLUMNS, "timestamp"))
    return Checked(candles, repairs, int((spacing > delta.value).sum()), unread)


def closed_by(candles: pd.DataFrame, now: datetime, timeframe: str) -> pd.DataFrame:
    """Return the candles that have closed by *now*: those whose open time + timeframe <= now."""
    return candles.iloc[: count_closed(candles, now, timeframe)]


def count_closed(candles: pd.DataFrame, now: datetime, timeframe: str) -> int:
    """Return how many of the sorted *candles* have closed by *now*."""
    newest_open = pd.Timestamp(utc(now, "now")) - timeframe_delta(timeframe)
    return int(candles.index.searchsorted(newest_open, side="right"))


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of one source, numbered as in the source."""

    source: str
    first: int

    def refuse(self, bad: BoolArray, problem: Callable[[int], str], places: IntArray | None = None) -> None:
        """Raise InvalidCandles for the first bad row, if any. *places* are the positions of the rows before sorting."""
        if bad.any():
            at = int(bad.argmax())
            raise InvalidCandles(self.source, problem(at), self.first + int(at if places is None else places[at]))


def _check_columns(frame: object, rows: _Rows) -> None:
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


def _times(frame: pd.DataFrame, rows: _Rows) -> pd.DatetimeIndex:
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


def _values(frame: pd.DataFrame, rows: _Rows) -> dict[str, FloatArray]:
    values = {name: _floats(frame[name], name, rows) for name in COLUMNS if name in frame.columns}
    values.setdefault("volume", np.full(len(frame), np.nan))
    for name, column in values.items():
        _check_numbers(name, column, rows)
    for side in ("", "bid_", "ask_"):
        if f"{side}open" in values:
            _check_range(side, values, rows)
    if SIDES[0] in values:
        for price in PRICES:
            _check_spread(price, values, rows)
    return {name: values[name] for name in COLUMNS if name in values}


def _check_numbers(name: str, column: FloatArray, rows: _Rows) -> None:
    if name == "volume":
        rows.refuse(np.isinf(column) | (column < 0), lambda at: f"volume is {column[at]:g}")
    else:
        bad = ~(np.isfinite(column) & (column > 0))
        rows.refuse(bad, lambda at: f"{name} is {column[at]:g}; a price is a number above zero")


def _check_range(side: str, values: Mapping[str, FloatArray], rows: _Rows) -> None:
    high, low = values[f"{side}high"], values[f"{side}low"]
    rows.refuse(high < low, lambda at: f"{side}high {high[at]:.12g} is below {side}low {low[at]:.12g}")
    outside = np.zeros(len(high), dtype=bool)
    for price in (values[f"{side}open"], values[f"{side}close"]):
        outside |= (price < low) | (price > high)
    rows.refuse(outside, lambda at: f"{side}open or {side}close is outside {low[at]:.12g}..{high[at]:.12g}, its range")


def _check_spread(price: str, values: Mapping[str, FloatArray], rows: _Rows) -> None:
    bid, ask = values[f"bid_{price}"], values[f"ask_{price}"]
    rows.refuse(bid > ask, lambda at: f"bid_{price} {bid[at]:.12g} is above ask_{price} {ask[at]:.12g}")


def _floats(column: pd.Series, name: str, rows: _Rows) -> FloatArray:
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


def _first_of_each(
    times: pd.DatetimeIndex, values: Mapping[str, FloatArray], order: IntArray, rows: _Rows
) -> BoolArray:
    """Return which rows in *order* are the first with their time. Refuse a later one with other values."""
    repeated = np.append(False, np.diff(times.asi8[order]) == 0)
    differs = np.zeros(len(order), dtype=bool)
    for column in values.values():
        here, before = column[order][1:], column[order][:-1]
        differs[1:] |= (here != before) & ~(np.isnan(here) & np.isnan(before))
    rows.refuse(
        repeated & differs,
        lambda at: f"{times[order[at]]} is also in row {rows.first + order[at - 1]}, with other values",
        order,
    )
    return ~repeated


def _looks_like(times: pd.DatetimeIndex) -> str:
    if len(times) < 2:
        return ""
    steps, counts = np.unique(np.diff(np.sort(times.asi8)), return_counts=True)
    most_common = pd.Timedelta(int(steps[counts.argmax()]), unit="ns")
    return f"; most are {next((name for name, delta in TIMEFRAMES.items() if delta == most_common), most_common)} apart"


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
