"""Candles from CSV and Parquet files: what they hold, checked; never a file written, never a candle made up."""

import warnings
import zlib
from datetime import datetime
from pathlib import Path
from re import search

import pandas as pd
import structlog

from strategy_core.domain.candles import checked_candles, timeframe_delta
from strategy_core.domain.errors import InvalidCandles, MissingExtra, UnknownSymbol
from strategy_core.market.calendars import Calendar
from strategy_core.market.source import log_repairs, newest_open, window

log = structlog.get_logger(__name__)
SUFFIXES = (".csv", ".csv.gz", ".parquet")


class FileSource:
    """The candles of one file, or of a folder with one file a symbol, whose stem is the symbol.

    A file is read, checked and logged when its symbol is first asked for, and held: to see a file that has grown, open
    it again. Up to its last row a file knows its own gaps and holidays. Past it, `expected_at` is what the calendar
    expects, so that a feed that stopped is missed; without a calendar the data simply end, and it is the last row.
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
        """Find the files; *symbol* names a single file's symbol, or picks one out of a folder.

        Args:
            path: a .csv, .csv.gz or .parquet file, or a folder of them.
            timeframe: of every file.
            symbol: see above.
            now: the moment of opening, when the files may end in a candle that is still being made: it is dropped.
            calendar: of the market, when the files are a feed that should go on; None for a replay, whose data end.

        Raises:
            InvalidCandles: no such path, or nothing in it that can be read.
        """
        timeframe_delta(timeframe)
        self.name = str(path)
        self.timeframe = timeframe
        self._now = now
        self._calendar = calendar
        self._paths = _paths_by_symbol(Path(path), symbol)
        self._candles: dict[str, pd.DataFrame] = {}

    def symbols(self) -> tuple[str, ...]:
        return tuple(self._paths)

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        return window(self._of(symbol), self.timeframe, closed_by=closed_by, since=since, bars=bars)

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        candles = self._of(symbol)
        newest = newest_open(candles, self.timeframe, now)
        if self._calendar is None or newest is None or newest < candles.index[-1]:
            return newest
        return max(newest, self._calendar.last_open_candle(now, timeframe_delta(self.timeframe), newest))

    def _of(self, symbol: str) -> pd.DataFrame:
        if symbol not in self._paths:
            raise UnknownSymbol(symbol, self._paths)
        if symbol not in self._candles:
            self._candles[symbol] = read_candles(self._paths[symbol], timeframe=self.timeframe, now=self._now)
        return self._candles[symbol]


def read_candles(path: Path, *, timeframe: str, now: datetime | None = None) -> pd.DataFrame:
    """Return the checked candles of one file; log how many there are, the gaps, and each kind of repair.

    Raises:
        InvalidCandles: with the file and, where one row is at fault, its number (a CSV's header line is row 1).
        MissingExtra: the file is Parquet and pyarrow is not installed.
    """
    parquet = path.name.endswith(".parquet")
    frame = _parquet(path) if parquet else _csv(path)
    checked = checked_candles(frame, timeframe=timeframe, source=str(path), now=now, first_row=1 if parquet else 2)
    log.info("candles.read", source=str(path), candles=len(checked.candles), gaps=checked.gaps, unread=checked.unread)
    log_repairs(str(path), checked.repairs)
    return checked.candles


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
            raise InvalidCandles(str(path), f"two files of {_stem(file)}: {found[_stem(file)].name} and {file.name}")
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
            warnings.simplefilter("error", pd.errors.ParserWarning)  # fields beyond the header would be lost
            # empty lines are kept as rows of nothing: skipped, they would shift the numbers of the rows after them
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
    except (OSError, EOFError, zlib.error) as error:  # a broken or cut .gz among them
        raise InvalidCandles(str(path), f"cannot be read: {error}") from None


def _parquet(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise MissingExtra(f"reading {path}", "parquet") from None
    except Exception as error:  # noqa: BLE001  a damaged file makes pyarrow and pandas raise whatever they stumble on
        said = " ".join(str(error).split()) or type(error).__name__
        raise InvalidCandles(str(path), f"is not Parquet: {said[:200]}") from None
