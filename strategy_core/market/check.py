"""What a file of candles holds, and how a feed has to name it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from strategy_core.domain.candles import COLUMNS, Checked, Repairs, timeframe_delta
from strategy_core.domain.errors import InvalidCandles
from strategy_core.market.calendars import CALENDARS, DAY_ZONES, WeeklySession
from strategy_core.market.files import CandleFile, FileOptions, FileSource, symbol_in
from strategy_core.market.open import read_file_feed
from strategy_core.market.timestamps import likely_timeframe

SAFE = "/:,=+-._ "  # need no percent sign in the query of a feed
_ORDER = ("timestamp", "date", "clock", "symbol", *COLUMNS)
_FEW = 3  # candles in closed hours that may be chance
_SESSION_BREAK = pd.Timedelta(hours=1)
_LONGEST_CLOSURE = pd.Timedelta(days=7)
_SOME_WEEKENDS = 2  # with candles, which show that a market does not close on weekends


@dataclass(frozen=True, slots=True)
class SymbolCheck:
    """The candles of one symbol.

    Attributes:
        candles: as strategies will see them.
        gaps: places where candles are missing although the market was open.
        first_gap: the open time of the first missing candle of these.
        closures: places where candles are missing because the market was closed: weekends, breaks and holidays.
        held_back: why the last row is left out, if it is.
    """

    symbol: str
    candles: pd.DataFrame
    gaps: int
    first_gap: datetime | None
    closures: int
    repairs: Repairs
    held_back: str

    @classmethod
    def of(cls, symbol: str, checked: Checked, held_back: str, timeframe: str, calendar: str) -> "SymbolCheck":
        gaps = open_gaps(checked.candles, timeframe, calendar)
        first = gaps[0].to_pydatetime() if len(gaps) else None
        closures = checked.gaps - len(gaps)
        return cls(symbol, checked.candles, len(gaps), first, closures, checked.repairs, held_back)


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What was understood of one file.

    Attributes:
        feed: the value of ROLLOUT_FEED.
        timeframe: the value of ROLLOUT_TIMEFRAME.
        calendar: the value of ROLLOUT_CALENDAR: `always` for candles on weekends.
        form: how the file is written.
        times: how its times are written.
        zone: the zone of its times, and where that is known from.
        stamp: whether times are those of opens or closes, and where that is known from.
        columns: the file's name of each column that is read.
        unread: columns that are not part of a candle.
        doubts: what looks wrong although it can be read.
    """

    feed: str
    timeframe: str
    calendar: str
    form: str
    times: str
    zone: str
    stamp: str
    columns: dict[str, str]
    unread: tuple[str, ...]
    symbols: tuple[SymbolCheck, ...]
    doubts: tuple[str, ...]


def check_file(feed: str, *, now: datetime | None, calendar: str, timeframe: str) -> FileCheck:
    """Read a file as a feed would.

    Args:
        feed: path of the file, with options after a `?`.
        now: a last candle that has not closed by then is dropped. None: all candles have closed.
        calendar: name of the market's calendar, as in `calendars.CALENDARS`. Candles on weekends are read with
            `always` instead.
        timeframe: of a file whose times are not spaced like any timeframe.

    Raises:
        InvalidCandles: the file cannot be read as it is. The message names the option to add.
        InvalidSetting, UnknownSymbol, MissingExtra.
    """
    path, options = read_file_feed(feed)
    if path.is_dir():
        raise InvalidCandles(str(path), "is a folder; check its files one at a time")
    found = FileSource(path, options=options, day_zone=DAY_ZONES[calendar])
    file = found.files[0]
    timeframe = _timeframe(found) or timeframe
    source = FileSource(path, timeframe=timeframe, now=now, options=options, day_zone=DAY_ZONES[calendar])
    symbols = tuple(
        SymbolCheck.of(name, source.checked(name), source.held_back(name), timeframe, calendar)
        for name in source.symbols()
    )
    if calendar != "always" and any(trades_on_weekends(each.candles, timeframe) for each in symbols):
        return check_file(feed, now=now, calendar="always", timeframe=timeframe)
    close_stamped = options.stamp == "close"
    doubts = [doubt_of(each.candles, timeframe, calendar, close_stamped=close_stamped) for each in symbols]
    return FileCheck(
        feed=_feed(path, options, source.symbols()),
        timeframe=timeframe,
        calendar=calendar,
        form=file.table.form,
        times=file.written.form,
        zone=_zone(file, options, calendar),
        stamp="close" if close_stamped else "open (if a time is that of a candle's close: add stamp=close)",
        columns={name: file.table.named[name] for name in _ORDER if name in file.table.named},
        unread=file.table.unread,
        symbols=symbols,
        doubts=tuple(filter(None, doubts)),
    )


def _zone(file: CandleFile, options: FileOptions, calendar: str) -> str:
    if file.table.in_utc:
        return "UTC, as its header says"
    if file.written.has_zone:
        return "UTC" if file.written.form.endswith("since 1970") else "in the file"
    if options.tz is not None:
        return options.tz
    days = "days of UTC" if DAY_ZONES[calendar] == "UTC" else "days that end at 17:00 New York"
    return f"{days}, by the calendar {calendar}; tz=ZONE changes it"


def _feed(path: Path, options: FileOptions, symbols: Sequence[str]) -> str:
    """Return the feed, with a symbol if the name of the file is more than one."""
    if len(symbols) == 1 and options.symbol is None and symbol_in(symbols[0]) != symbols[0]:
        options = options.model_copy(update={"symbol": symbol_in(symbols[0])})
    given = options.model_dump(exclude_defaults=True)
    texts = {name: "yes" if value is True else str(value) for name, value in given.items()}
    query = "&".join(f"{name}={quote(value, safe=SAFE)}" for name, value in texts.items())
    return f"{path}?{query}" if query else str(path)


def _timeframe(source: FileSource) -> str | None:
    """Return the timeframe of the symbol with the most rows."""
    file = source.files[0]
    times = file.written.times
    names = file.table.frame.get("symbol")
    if names is not None:
        most = names.iloc[: len(times)].value_counts().index[0]
        times = times[(names.iloc[: len(times)] == most).to_numpy()]
    return likely_timeframe(times)


def open_gaps(candles: pd.DataFrame, timeframe: str, calendar: str) -> pd.DatetimeIndex:
    """Return the first missing candle of each gap in which the market was open at some time."""
    delta, opens = pd.Timedelta(timeframe_delta(timeframe)), pd.DatetimeIndex(candles.index)
    steps = opens[1:] - opens[:-1]
    at = np.flatnonzero(steps >= delta + delta / 2)  # a day of New York may be an hour longer
    firsts, missing = opens[at] + delta, (steps[at] - delta).ceil(delta) // delta
    looked = np.minimum(missing, _LONGEST_CLOSURE // delta)
    gap = np.repeat(np.arange(len(at)), looked)
    within = np.arange(len(gap)) - np.repeat(np.cumsum(looked) - looked, looked)
    market_open = CALENDARS[calendar].open_candles(firsts[gap] + within * delta, delta.to_pytimedelta())
    return firsts[np.unique(gap[market_open])]


def trades_on_weekends(candles: pd.DataFrame, timeframe: str) -> bool:
    """Return whether *candles* cover the noon (UTC) of two Saturdays or more, and of most."""
    delta, opens = pd.Timedelta(timeframe_delta(timeframe)), pd.DatetimeIndex(candles.index)
    if opens.empty or delta > pd.Timedelta(days=1):
        return False
    days = pd.date_range(opens[0].normalize(), opens[-1], freq="W-SAT")
    noons = days + pd.Timedelta(hours=12)
    covered = opens.searchsorted(noons, side="right") > opens.searchsorted(noons - delta, side="right")
    return bool(covered.sum() >= max(_SOME_WEEKENDS, len(days) / 2))


def doubt_of(candles: pd.DataFrame, timeframe: str, calendar: str, *, close_stamped: bool) -> str:
    """Return what the trading hours say against the times of *candles*, or an empty text.

    Candles in the daily break of metals have another zone, or are stamped by their close if none are without that.
    """
    delta = timeframe_delta(timeframe)
    if calendar != "metals" or delta > _SESSION_BREAK or candles.empty:
        return ""
    market, opens = WeeklySession(), pd.DatetimeIndex(candles.index)
    closed = ~market.open_candles(opens, delta)
    if closed.sum() < _FEW:
        return ""
    where = f"in hours in which the market of metals is closed, the first at {opens[closed][0]:%Y-%m-%d %H:%M}"
    what = f"{int(closed.sum()):,} candles lie {where}"
    if not close_stamped and market.open_candles(opens - delta, delta).all():
        return f"{what}, and none would if candles are stamped by their close: add stamp=close"
    return f"{what}: check the zone, or set ROLLOUT_CALENDAR=always for a market that never closes"
