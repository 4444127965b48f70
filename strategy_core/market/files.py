"""Candles from CSV and Parquet files."""

import warnings
import zlib
from datetime import datetime
from pathlib import Path
from re import search

import pandas as pd
import structlog

from strategy_core.domain.candles import Checked, checked_candles, timeframe_delta
from strategy_core.domain.errors import InvalidCandles, MissingExtra, UnknownSymbol, reason_of
from strategy_core.market.calendars import Calendar
from strategy_core.market.source import log_repairs, newest_open, window

log = structlog.get_logger(__name__)
SUFFIXES = (".csv", ".csv.gz", ".parquet")


class FileSource:
    """The candles of one file, or of a folder with one file per symbol, named after the symbol.

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
    ) -> None:
        """Find the files, without reading them.

        Args:
            path: a .csv, .csv.gz or .parquet file, or a folder of them.
            timeframe: timeframe of every file.
            symbol: name of a single file's symbol, or the only symbol to use from a folder.
            now: time of opening. A last candle that has not closed by then is dropped.
            calendar: trading hours, if the files are a feed that continues. Leave it out for a replay.

        Raises:
            InvalidCandles: the path does not exist or has no candle files.
        """
        timeframe_delta(timeframe)
        self.name = str(path)
        self.timeframe = timeframe
        self._now = now
        self._calendar = calendar
        self._paths = _paths_by_symbol(Path(path), symbol)
        self._checked: dict[str, Checked] = {}

    def symbols(self) -> tuple[str, ...]:
        return tuple(self._paths)

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        return window(self._load(symbol).candles, self.timeframe, closed_by=closed_by, since=since, bars=bars)

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        checked = self._load(symbol)
        candles, held_at = checked.candles, checked.held_at
        newest = newest_open(candles, self.timeframe, now)
        if held_at is not None and held_at + timeframe_delta(self.timeframe) <= now:
            newest = held_at if newest is None else max(newest, held_at)
        if self._calendar is None or newest is None or (not candles.empty and newest < candles.index[-1]):
            return newest
        return max(newest, self._calendar.last_open_candle(now, timeframe_delta(self.timeframe), newest))

    def held_back(self, symbol: str) -> str:
        """Return why the last row of the symbol's file is held back, or an empty text."""
        found = self._load(symbol).held_back
        return "" if found is None else str(found)

    def _load(self, symbol: str) -> Checked:
        if symbol not in self._paths:
            raise UnknownSymbol(symbol, self._paths)
        if symbol not in self._checked:
            self._checked[symbol] = _read(self._paths[symbol], self.timeframe, self._now)
        return self._checked[symbol]


def read_candles(path: Path, *, timeframe: str, now: datetime | None = None) -> pd.DataFrame:
    """Return the checked candles of one file. Logs their number, gaps and repairs, and a last row that is held back.

    Raises:
        InvalidCandles: with the file and, if known, the row (the header line of a CSV is row 1).
        MissingExtra: the file is Parquet and pyarrow is not installed.
    """
    return _read(path, timeframe, now).candles


def _read(path: Path, timeframe: str, now: datetime | None) -> Checked:
    parquet = path.name.endswith(".parquet")
    frame = _parquet(path) if parquet else _csv(path)
    checked = checked_candles(
        frame, timeframe=timeframe, source=str(path), now=now, first_row=1 if parquet else 2, hold_last=True
    )
    log.info("candles.read", source=str(path), candles=len(checked.candles), gaps=checked.gaps, unread=checked.unread)
    log_repairs(str(path), checked.repairs)
    if checked.held_back is not None:
        log.warning("candles.held_back", why=str(checked.held_back))
    return checked


def _paths_by_symbol(path: Path, symbol: str | None) -> dict[str, Path]:
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise InvalidCandles(str(path), f"is not a file of candles; allowed: {', '.join(SUFFIXES)}")
        return {symbol or _stem(path): path}
    if not path.is_dir():
        raise InvalidCandles(str(path), "no such file or folder")
    found: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if not file.name.endswith(SUFFIXES):
            continue
        if _stem(file) in found:
            raise InvalidCandles(str(path), f"two files for {_stem(file)}: {found[_stem(file)].name} and {file.name}")
        found[_stem(file)] = file
    if not found:
        raise InvalidCandles(str(path), f"no files of candles in this folder; allowed: {', '.join(SUFFIXES)}")
    if symbol is None:
        return found
    if symbol not in found:
        raise UnknownSymbol(symbol, found)
    return {symbol: found[symbol]}


def _stem(path: Path) -> str:
    return next(path.name.removesuffix(suffix) for suffix in reversed(SUFFIXES) if path.name.endswith(suffix))


def _csv(path: Path) -> pd.DataFrame:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else extra fields are silently dropped
            # keep empty lines: without them, the row numbers in error messages would be wrong
            return pd.read_csv(path, index_col=False, skip_blank_lines=False, low_memory=False)
    except pd.errors.EmptyDataError:
        raise InvalidCandles(str(path), "has no candles: the file is empty") from None
    except pd.errors.ParserWarning:
        raise InvalidCandles(str(path), "has more fields than the header names", 2) from None
    except pd.errors.ParserError as error:
        line = search(r"in line (\d+)", str(error))
        problem = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise InvalidCandles(str(path), f"is not CSV: {problem}", int(line[1]) if line else None) from None
    except UnicodeDecodeError as error:
        raise InvalidCandles(str(path), f"is not UTF-8 text: {error.reason}") from None
    except (OSError, EOFError, zlib.error) as error:  # also a damaged or truncated .gz
        raise InvalidCandles(str(path), f"cannot be read: {reason_of(error)}") from None


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise MissingExtra(f"reading {path}", "parquet") from None
    except Exception as error:  # noqa: BLE001  pyarrow and pandas raise many types for a damaged file
        raise InvalidCandles(str(path), f"is not Parquet: {reason_of(error)[:200]}") from None
