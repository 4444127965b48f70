"""Candles from files: which symbols they hold, and the checked candles of each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import Checked, Rows, checked_candles, timeframe_delta
from strategy_core.domain.errors import InvalidCandles, InvalidSetting, RolloutError, UnknownSymbol
from strategy_core.market.calendars import NEW_YORK, Calendar, last_session_candle
from strategy_core.market.formats import MAYBE, SUFFIXES, Decimal, Table, may_hold_symbols, read_table
from strategy_core.market.source import log_repairs, newest_open, window
from strategy_core.market.timestamps import DateOrder, Written, in_future, open_times, read_written, read_zone

log = structlog.get_logger(__name__)
SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_CLOSE_OF_SESSION = 17  # New York time
_EXPORTED = tuple(  # how programs name the files that they export: where the symbol is
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?:\w+_)?([^_,]+), ?\d*[smhdw]?(?:[ _(].*)?",  # TradingView: `OANDA_XAUUSD, 60`
        r"DAT_[A-Z]+_([A-Z0-9]+)_(?:M1|T).*",  # HistData: `DAT_ASCII_XAUUSD_M1_2024`
        r"([A-Z0-9.]+)_(?:Candlestick|Ticks|\d+ (?:sec|min|hour)\w*|Hourly|Daily|Weekly)_.*",  # Dukascopy
        r"([A-Z0-9.]+)-(?:s1|m\d+|h\d+|d1|mn1)-(?:bid|ask)-.*",  # dukascopy-node: `xauusd-h1-bid-2025-01-01`
        r"(.+?)[_-](?:M\d+|H\d+|D1|W1|MN1?|Daily|Weekly|Monthly)(?:_\d{8,12}_\d{8,12})?",  # MetaTrader 5
        r"([A-Z]{6}[a-z.]*?)(?:1|5|15|30|60|240|1440|10080|43200)",  # MetaTrader 4: `XAUUSD60`
        r"(.+?)-\d+(?:s|m|h|d|w|mo)(?:-.+)?",  # Binance: `BTCUSDT-1h-2025-01`
        r"[A-Z]+_([A-Z0-9]+)_(?:\d+(?:h|m|min)|d|hour|minute|\d{4}_1min|\d{4}_minute)",  # CryptoDataDownload
        r"([A-Z0-9.]+)_(?:\d+|d|w|m)",  # Kraken: `XBTUSD_60`, Stooq: `xauusd_d`
    )
)


def _zone(text: str) -> str:
    read_zone(text)
    return text.replace(" ", "+")


class FileOptions(BaseModel):
    """Options after the `?` of a file or folder: what the files cannot say themselves.

    Attributes:
        tz: zone of times without an offset.
        stamp: whether times are those of a candle's open or close.
        symbol: name of the file's symbol. Of a file or folder with several: those to use, separated by commas, each as
            NAME or as NAME=NAME_IN_THE_FILE.
        dates: order of day and month in dates such as 06.01.2025.
        decimal: sign before the decimals, of numbers such as 1,085.
        volume: column to read as volume.
        negative: prices may be zero or below.
    """

    model_config = ConfigDict(extra="forbid")

    tz: Annotated[str, AfterValidator(_zone)] | None = None
    stamp: Literal["open", "close"] = "open"
    symbol: str | None = None
    dates: DateOrder | None = None
    decimal: Decimal | None = None
    volume: str | None = None
    negative: bool = False


def spelling(symbol: str) -> str:
    """Return how a vendor's symbol is spelled here: `BTC/USDT` becomes `BTC-USDT`."""
    return re.sub(r"[^A-Za-z0-9._+-]", "-", symbol).lstrip("-._+")[:64] or "SYMBOL"


def symbol_in(stem: str) -> str:
    """Return the symbol in the name of a file, without the exchange, timeframe and dates that programs add to it."""
    found = next((match[1] for pattern in _EXPORTED if (match := pattern.fullmatch(stem))), stem)
    return spelling(found.upper() if found.islower() and found != stem else found).rstrip("-._+") or "SYMBOL"


class CandleFile:
    """One file, read on first use, and the candles of each symbol in it.

    Args:
        day_zone: name of the zone of dates alone.
    """

    def __init__(self, path: Path, options: FileOptions, day_zone: str | None = None) -> None:
        self.path = path
        self._options = options
        self._day_zone = None if day_zone is None else read_zone(day_zone)
        self._held: InvalidCandles | None = None

    @cached_property
    def table(self) -> Table:
        return read_table(self.path, decimal=self._options.decimal, volume=self._options.volume)

    @cached_property
    def written(self) -> Written:
        """The times as written. A last row whose time cannot be read is left out, since it may be incomplete."""
        table = self.table
        try:
            return self._read_times(table)
        except InvalidCandles as error:
            if len(table.frame) < 2 or error.row != table.row_numbers[-1]:
                raise
            self._held = error
            return self._read_times(table.head(-1))

    def _read_times(self, table: Table) -> Written:
        rows = Rows(str(self.path), 1, table.row_numbers)
        written = read_written(table.frame["timestamp"], rows, dates=self._options.dates)
        if table.in_utc and not written.has_zone:
            return Written(written.times.tz_localize("UTC"), f"{written.form}, {table.named['timestamp']}")
        return written

    def symbols(self) -> tuple[str, ...] | None:
        """Return the symbols that the file names, or None if it names none.

        Raises:
            InvalidCandles: a row has no symbol.
        """
        if not may_hold_symbols(self.path, volume=self._options.volume) or "symbol" not in self.table.frame.columns:
            return None
        names = self.table.frame["symbol"]
        blank = names.isna() | (names.astype(str).str.strip() == "")
        rows = Rows(str(self.path), 1, self.table.row_numbers)
        rows.refuse(blank.iloc[:-1].to_numpy(), lambda _: "symbol is missing")  # the last row may be incomplete
        return tuple(dict.fromkeys(names[~blank].map(str).str.strip()))

    def _refuse_symbols(self) -> None:
        """Raise InvalidCandles if the file names symbols: its rows are then not one series."""
        if "symbol" in self.table.frame.columns:
            found = ", ".join(self.symbols() or ())
            raise InvalidCandles(str(self.path), f"has a column of symbols ({found}); choose one with symbol=NAME")

    def candles(self, symbol: str | None, timeframe: str, now: datetime | None) -> "Loaded":
        """Return the checked candles of *symbol*, as the file names it, or of a file without symbols."""
        if symbol is None:
            self._refuse_symbols()
        written, delta = self.written, timeframe_delta(timeframe)
        table = self.table.head(len(written.times))
        self._refuse_closes(table, written)
        opens = open_times(
            written,
            Rows(str(self.path), 1, table.row_numbers),
            delta=delta,
            zone=None if self._options.tz is None else read_zone(self._options.tz),
            day_zone=self._day_zone,
            close_stamped=self._options.stamp == "close",
        )
        frame = table.frame.assign(timestamp=opens).drop(columns="symbol", errors="ignore")
        numbers = table.row_numbers
        if symbol is not None:
            chosen = (table.frame["symbol"].map(str).str.strip() == symbol).to_numpy()
            frame, numbers = frame[chosen], numbers[chosen]
        if now is not None and in_future(pd.DatetimeIndex(frame["timestamp"]), now, delta):
            latest = frame["timestamp"].max()
            problem = f"{latest} lies in the future; if candles are stamped by their close, add stamp=close to the feed"
            raise InvalidCandles(str(self.path), f"{problem}, else check the zone and the clock")
        return self._checked(frame, numbers, timeframe, now)

    def _refuse_closes(self, table: Table, written: Written) -> None:
        """Raise InvalidCandles if the file shows that its times are those of closes, and no option says so."""
        if table.close_times is None or self._options.stamp == "close":
            return
        try:
            closes = read_written(table.close_times, Rows(str(self.path), 1, table.row_numbers)).times
        except InvalidCandles:  # a column that is not read otherwise
            return
        apart = np.abs(closes.asi8 - written.times.asi8)
        if closes.tz == written.times.tz and (apart < pd.Timedelta(seconds=2).value).all():
            problem = "its times are those at which candles close; add stamp=close to the feed"
            raise InvalidCandles(str(self.path), problem)

    def _checked(self, frame: pd.DataFrame, numbers: IntArray, timeframe: str, now: datetime | None) -> "Loaded":
        def check(rows: int) -> Checked:
            return checked_candles(
                frame.iloc[:rows],
                timeframe=timeframe,
                source=str(self.path),
                now=now,
                row_numbers=numbers[:rows],
                negative=self._options.negative,
            )

        try:
            return Loaded(replace(check(len(frame)), unread=self.table.unread), self._held, None)
        except InvalidCandles as error:
            if len(frame) < 2 or self._held is not None or error.row != self.table.row_numbers[-1]:
                raise
            held_at = frame["timestamp"].iloc[-1].to_pydatetime()
            return Loaded(replace(check(len(frame) - 1), unread=self.table.unread), error, held_at)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The checked candles of one symbol.

    Attributes:
        held_back: why the last row is left out, if it is. It may still be being written.
        held_at: the open time of that row, if it can be read.
    """

    checked: Checked
    held_back: InvalidCandles | None
    held_at: datetime | None


class FileSource:
    """The candles of one file, or of a folder of files.

    A file without a column of symbols has one symbol, named after the file. One with such a column has several.
    A file is read and checked on first use and then kept in memory. Open the source again to see a file that has grown.
    Up to its last row, a file shows its own gaps and holidays. After it, `expected_at` follows the calendar, so that a
    stopped feed is noticed. Without a calendar, the last row is the newest expected candle.

    A last row that is invalid may still be being written. It is held back: expected, but not returned.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        timeframe: str = "1h",
        symbol: str | None = None,
        now: datetime | None = None,
        calendar: Calendar | None = None,
        options: FileOptions | None = None,
        day_zone: str | None = None,
    ) -> None:
        """Find the symbols. Only files with a column of symbols are read for it.

        Args:
            path: a file of candles, or a folder of them.
            timeframe: timeframe of every file.
            symbol: name of a single file's symbol, or the only symbol to use.
            now: time of opening. A last candle that has not closed by then is dropped.
            calendar: trading hours, if the files are a feed that continues. Leave it out for a replay.
            options: what the files do not say themselves.
            day_zone: zone in which days begin at midnight, for daily candles with dates alone, as in DAY_ZONES.
                Without it, they need the option tz.

        Raises:
            InvalidCandles: the path does not exist or has no candle files, or a symbol cannot be a name here.
            InvalidSetting: a symbol that is asked for cannot be a name here.
            UnknownSymbol: the files have no such symbol.
        """
        timeframe_delta(timeframe)
        options = options or FileOptions()
        self.name = str(path)
        self.timeframe = timeframe
        self._now = now
        self._calendar = calendar
        for asked, where in ((symbol, "symbol"), *((each, "feed option symbol") for each in _asked(options.symbol))):
            if asked is not None and not SYMBOL.fullmatch(asked):
                raise InvalidSetting(where, asked, f"letters, digits and ._+-, such as {spelling(asked)}")
        self.files = [CandleFile(each, options, day_zone) for each in _paths(Path(path))]
        self._series = _chosen(_all_series(self.files, Path(path).is_dir()), options.symbol, str(path))
        if symbol is not None:
            self._series = _one(self._series, symbol)
        self._loaded: dict[str, Loaded] = {}

    def symbols(self) -> tuple[str, ...]:
        return tuple(self._series)

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        candles = self._load(symbol).checked.candles
        return window(candles, self.timeframe, closed_by=closed_by, since=since, bars=bars)

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        loaded, delta = self._load(symbol), timeframe_delta(self.timeframe)
        candles, held_at = loaded.checked.candles, loaded.held_at
        newest = newest_open(candles, self.timeframe, now)
        if held_at is not None and held_at + delta <= now:
            newest = held_at if newest is None else max(newest, held_at)
        if self._calendar is None or newest is None or (not candles.empty and newest < candles.index[-1]):
            return newest
        return max(newest, _last_open_candle(self._calendar, newest, now, delta))

    def held_back(self, symbol: str) -> str:
        """Return why the last row of the symbol's file is held back, or an empty text."""
        found = self._load(symbol).held_back
        return "" if found is None else str(found)

    def checked(self, symbol: str) -> Checked:
        """Return all candles of the symbol, and what the checks found."""
        return self._load(symbol).checked

    def _load(self, symbol: str) -> Loaded:
        if symbol not in self._series:
            raise UnknownSymbol(symbol, self._series)
        if symbol not in self._loaded:
            one = self._series[symbol]
            self._loaded[symbol] = _load(one, self.timeframe, self._now)
        return self._loaded[symbol]


def read_candles(path: Path, *, timeframe: str, now: datetime | None = None) -> pd.DataFrame:
    """Return the checked candles of one file without a column of symbols.

    Logs their number, gaps and repairs, and a last row that is held back.

    Raises:
        InvalidCandles: with the file and, if known, the row (the header line of a CSV is row 1).
        MissingExtra: the file is Parquet and pyarrow is not installed.
    """
    return _load(_Series(CandleFile(path, FileOptions()), None), timeframe, now).checked.candles


@dataclass(frozen=True, slots=True)
class _Series:
    """One symbol of a file, under the file's name for it. None: the file has no others."""

    file: CandleFile
    symbol: str | None


def _load(one: _Series, timeframe: str, now: datetime | None) -> Loaded:
    loaded, source = one.file.candles(one.symbol, timeframe, now), str(one.file.path)
    checked, of = loaded.checked, {} if one.symbol is None else {"symbol": one.symbol}
    log.info(
        "candles.read", source=source, **of, candles=len(checked.candles), gaps=checked.gaps, unread=checked.unread
    )
    log_repairs(source, checked.repairs)
    if loaded.held_back is not None:
        log.warning("candles.held_back", why=str(loaded.held_back))
    return loaded


def _last_open_candle(calendar: Calendar, newest: datetime, now: datetime, delta: timedelta) -> datetime:
    """Return the newest candle that should exist. Those of a session of New York open by its clock."""
    hours = min(delta // timedelta(hours=1), 24)
    if hours >= 4 and (newest.astimezone(NEW_YORK).hour - _CLOSE_OF_SESSION) % hours == 0:
        return last_session_candle(calendar, now, delta, newest)
    return calendar.last_open_candle(now, delta, newest)


def _asked(symbols: str | None) -> list[str]:
    return [] if symbols is None else [each.partition("=")[0] for each in symbols.split(",")]


def _all_series(files: Sequence[CandleFile], folder: bool) -> dict[str, _Series]:
    """Return each symbol of *files* by the files' own name for it."""
    found: dict[str, _Series] = {}
    for file in files:
        try:
            inside = file.symbols()
        except RolloutError:  # told when its candles are read, so that a bad file harms only its own symbol
            if folder and any(kind in file.path.suffixes for kind in MAYBE):
                log.info("candles.ignored", source=str(file.path))
                continue
            inside = None
        for name in [_stem(file.path)] if inside is None else inside:
            if name in found:
                both = f"{found[name].file.path.name} and {file.path.name}"
                raise InvalidCandles(str(file.path.parent), f"two files for {name}: {both}")
            found[name] = _Series(file, None if inside is None else name)
    if not found:
        raise InvalidCandles(str(files[0].path.parent), f"no files of candles in this folder; allowed: {_allowed()}")
    return found


def _chosen(found: Mapping[str, _Series], asked: str | None, source: str) -> dict[str, _Series]:
    """Return the series that the option symbol asks for, by their names here."""
    if asked is None:
        for name, series in found.items():
            if series.symbol is not None and not SYMBOL.fullmatch(name):
                option = ",".join(spelling(each) for each in found)
                problem = f"symbol {name!r} cannot be a name here; add symbol={option} to the feed"
                raise InvalidCandles(source, problem)
        return dict(found)
    if "," not in asked and "=" not in asked and len(found) == 1 and next(iter(found.values())).symbol is None:
        return {asked: next(iter(found.values()))}
    spelled = {spelling(name): series for name, series in found.items()}
    chosen: dict[str, _Series] = {}
    for entry in asked.split(","):
        name, renamed, theirs = entry.partition("=")
        one = found.get(theirs) if renamed else found.get(name) or spelled.get(name)
        if one is None:
            raise UnknownSymbol(theirs or name, found)
        chosen[name] = one
    return chosen


def _one(series: Mapping[str, _Series], symbol: str) -> dict[str, _Series]:
    if symbol in series:
        return {symbol: series[symbol]}
    if len(series) == 1 and (only := next(iter(series.values()))).symbol is None:
        return {symbol: only}
    raise UnknownSymbol(symbol, series)


def _allowed() -> str:
    return f"{', '.join(each for each in SUFFIXES if each.count('.') == 1)}, and text with .gz or .zip after it"


def _paths(path: Path) -> list[Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InvalidCandles(str(path), f"is not a file of candles; allowed: {_allowed()}")
        return [path]
    if not path.is_dir():
        raise InvalidCandles(str(path), "no such file or folder")
    found = [file for file in sorted(path.iterdir()) if file.name.endswith(SUFFIXES)]
    if not found:
        raise InvalidCandles(str(path), f"no files of candles in this folder; allowed: {_allowed()}")
    return found


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(suffix) for suffix in SUFFIXES[::-1] if path.name.endswith(suffix))
