"""Tables of candles as other programs write them: separators, encodings, headers, numbers and the kinds of files."""

import csv
import gzip
import io
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import pandas as pd

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import PRICES, SIDES
from strategy_core.domain.errors import InvalidCandles, MissingExtra, reason_of

Decimal = Literal["comma", "point"]
_TEXT, _PACKED = (".csv", ".txt", ".tsv", ".json"), ("", ".gz", ".zip")
SUFFIXES = (*(kind + packed for kind in _TEXT for packed in _PACKED), ".parquet", ".feather")
MAYBE = (".txt", ".json")  # in a folder, files of these kinds may be something else
_HEAD = 1 << 16  # bytes that show how a file is written
_HEADER_LINES = 10  # a header is within so many lines
_SEPARATORS = (";", "\t", ",", "|")
_NUMBER = re.compile(r"[-+]?[$€£]?[\d.,' \u00a0\u202f]*\d(?:[eE][-+]?\d+)?[KMB%]?")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?|\d{4}|\d{6}")
_DATE = re.compile(r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{4}|\d{8}")
_TIME = re.compile(
    r"\d{4}[-./]\d{1,2}[-./]\d{1,2}.*|\d{1,2}[-./]\d{1,2}[-./]\d{4}.*|\d{8}[ T]\d{4,6}|\d{9,19}(?:\.\d+)?"
)
_SUFFIX = re.compile(r"^([-+]?[\d.]+)([KMB])$")

# How columns are called, without blanks, signs and capitals; the first that a table has is read
_TIMES = (
    *("timestamp", "opentime", "timeopen", "gmttime", "timeutc", "timegmt", "dateutc", "dategmt", "datetimeutc"),
    *("unix", "unixtime", "unixtimestamp", "datetime", "localtime", "time", "date", "bartime", "starttime", "start"),
    *("begin", "ts", "t", "index", "unnamed0", "", "closetime", "timeclose", "endtime"),
)
_UTC_NAMES = {"gmttime", "timeutc", "timegmt", "dateutc", "dategmt", "datetimeutc"}
_CLOSE_TIMES = ("closetime", "timeclose", "endtime")
_SYMBOLS = ("symbol", "ticker", "instrument", "pair")
_VOLUMES = ("volume", "v", "tickvol", "tickvolume", "vol", "basevolume", "realvolume")
_PRICE_NAMES: Mapping[str, Sequence[str]] = {
    price: (price, price[0], f"{price}price", f"mid{price}", f"mid{price[0]}") for price in PRICES
} | {"close": ("close", "c", "closeprice", "midclose", "midc", "closelast", "last", "price")}
_KLINES = (
    *("open_time", *PRICES, "volume", "close_time"),
    *("quote_volume", "trades", "taker_base_volume", "taker_quote_volume", "ignore"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """One file, with its columns under our names.

    Attributes:
        frame: `timestamp` as written, the prices, `volume` and sides that the file has, `symbol` if it has one.
        row_numbers: number of each row in the file, its header lines included; shape (rows,).
        form: how the file is written, for people.
        named: the file's own name of each column.
        unread: columns that are not part of a candle.
        in_utc: the header says that times are in UTC.
        close_times: the times of closes, if the file has them; shape (rows,).
    """

    frame: pd.DataFrame
    row_numbers: IntArray
    form: str
    named: Mapping[str, str]
    unread: tuple[str, ...] = ()
    in_utc: bool = False
    close_times: pd.Series | None = None

    def head(self, rows: int) -> "Table":
        closes = None if self.close_times is None else self.close_times.iloc[:rows]
        return replace(self, frame=self.frame.iloc[:rows], row_numbers=self.row_numbers[:rows], close_times=closes)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which column holds what, by position."""

    columns: Mapping[str, int]  # our name -> position; `date` and `clock` instead of `timestamp` where they are apart
    header: tuple[str, ...]
    in_utc: bool = False

    @property
    def unread(self) -> tuple[str, ...]:
        used = set(self.columns.values())
        return tuple(name for at, name in enumerate(self.header) if at not in used and _key(name) not in ("", "index"))


@dataclass(frozen=True, slots=True)
class _TextForm:
    """How a text file is written."""

    layout: _Layout
    separator: str
    encoding: str
    first_line: int  # of the data, counted from 0
    epoch: bool = False  # times are whole numbers that a float holds exactly
    tickers: tuple[str, ...] = field(default=())  # of each column, where a header row names them

    def __str__(self) -> str:
        separator = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}[self.separator]
        lines = {0: "no header", 1: "a header"}.get(self.first_line, f"{self.first_line} header lines")
        return f"text with {separator}, {lines}" + ("" if self.encoding == "utf-8" else f", {self.encoding.upper()}")


def read_table(path: Path, *, decimal: Decimal | None = None, volume: str | None = None) -> Table:
    """Read a file of candles.

    Args:
        decimal: the decimal sign. None: as the numbers show.
        volume: the column to read as volume. None: the one with that name.

    Raises:
        InvalidCandles: it is no such file, or it needs one of the options.
        MissingExtra: it is Parquet or Feather, and pyarrow is not installed.
    """
    if path.name.endswith((".parquet", ".feather")):
        return _from_frame(path, _arrow(path), decimal, volume, path.suffix[1:].capitalize())
    if _kind(path) == ".json":
        return _from_json(path, decimal, volume)
    return _from_text(path, decimal, volume)


def may_hold_symbols(path: Path, *, volume: str | None = None) -> bool:
    """Return whether a file may name the symbol of each row, from its beginning alone. `read_table` knows for certain.

    Raises:
        InvalidCandles, MissingExtra: as `read_table`.
    """
    if path.name.endswith(".parquet"):
        return any(_key(name) in _SYMBOLS for name in _schema(path))
    if path.name.endswith(".feather") or _kind(path) == ".json":
        return True
    form = _text_form(path, volume)
    return "symbol" in form.layout.columns or len(set(form.tickers[1:])) > 1


def _kind(path: Path) -> str:
    return next(kind for kind in _TEXT if any(path.name.endswith(kind + packed) for packed in _PACKED))


def _key(name: object) -> str:
    text = str(name).strip()
    return re.sub(r"[^a-z0-9]", "", text.lower()) or text  # a name in another script stays as it is


def _find_columns(path: Path, header: Sequence[object], volume: str | None) -> _Layout | None:
    """Return the layout that *header* names, or None if it lacks prices. The time may be missing: see `_find_time`.

    Raises:
        InvalidCandles: two columns have the same name, or several could be the volume.
    """
    names = tuple(str(name).strip() for name in header)
    keys = [_key(name) for name in names]
    columns: dict[str, int] = {}
    for price, allowed in _PRICE_NAMES.items():
        if (at := _first(keys, allowed, path, names)) is None:
            return None
        columns[price] = at
    if (at := _volume(path, names, keys, volume)) is not None:
        columns["volume"] = at
    for side in SIDES:
        which, price = side.split("_")
        if (at := _first(keys, (which + price, which + price[0]), path, names)) is not None:
            columns[side] = at
    if (at := _first(keys, _SYMBOLS, path, names)) is not None:
        columns["symbol"] = at
    return _Layout(columns, names)


def _first(keys: Sequence[str], allowed: Iterable[str], path: Path, names: Sequence[str]) -> int | None:
    for wanted in allowed:
        places = [at for at, key in enumerate(keys) if key == wanted]
        if len(places) > 1:
            twice = ", ".join(names[at] for at in places)
            raise InvalidCandles(str(path), f"has more than one column {wanted}: {twice}")
        if places:
            return places[0]
    return None


def _volume(path: Path, names: Sequence[str], keys: Sequence[str], wanted: str | None) -> int | None:
    if wanted is not None:
        if (at := _first(keys, [_key(wanted)], path, names)) is None:
            raise InvalidCandles(str(path), f"has no column {wanted} for volume=; found: {', '.join(names)}")
        return at
    if (at := _first(keys, _VOLUMES, path, names)) is not None:
        return at
    others = [at for at, key in enumerate(keys) if "volume" in key or re.match(r"vol(?!at)", key)]
    if len(others) > 1:
        found = ", ".join(names[at] for at in others)
        raise InvalidCandles(str(path), f"has several columns of volume: {found}; add volume=NAME to the feed")
    return others[0] if others else None


def _find_time(layout: _Layout, samples: Sequence[str | None]) -> _Layout | None:
    """Return *layout* with its time: one column, or a date and a clock. *samples* is a row of the table."""
    free = {
        _key(name): at for at, name in reversed(list(enumerate(layout.header))) if at not in layout.columns.values()
    }
    at = next((free[key] for key in _TIMES if key in free), None)
    if at is None:
        return None
    date, clock = free.get("date"), free.get("time")
    if at in (date, clock) and date is not None and clock is not None:
        shown = [(samples[place] or "").strip() if place < len(samples) else "" for place in (date, clock)]
        if _DATE.fullmatch(shown[0]) and _CLOCK.fullmatch(shown[1]):
            return replace(layout, columns={**layout.columns, "date": date, "clock": clock})
        at = clock if _TIME.fullmatch(shown[1]) else date
    return replace(layout, columns={**layout.columns, "timestamp": at}, in_utc=_key(layout.header[at]) in _UTC_NAMES)


def _headless(cells: Sequence[str]) -> _Layout | None:
    """Return the layout of a file without a header, from its first row, if it is one of the known ones."""
    shown = [cell.strip() for cell in cells]
    numbers = [bool(_NUMBER.fullmatch(cell)) for cell in shown]
    count = len(shown)
    if count >= 6 and _DATE.fullmatch(shown[0]) and _CLOCK.fullmatch(shown[1]) and all(numbers[2:6]):
        names = ("date", "clock", *PRICES, "volume")[:count]
        return _positions(names, count) if count <= 7 else None
    if count < 5 or not _TIME.fullmatch(shown[0]) or not all(numbers[1:5]):
        return None
    epoch = shown[0].isdigit()
    if count in (11, 12) and epoch and shown[6].isdigit() and int(shown[6]) > int(shown[0]):
        return _positions(("timestamp", *PRICES, "volume"), count, _KLINES)
    if count <= 6 or (count == 7 and epoch and shown[6].isdigit()):  # 7: the last is the number of trades
        return _positions(("timestamp", *PRICES, "volume")[:count], count)
    return None


def _positions(names: Sequence[str], count: int, header: Sequence[str] = ()) -> _Layout:
    known = tuple(header[:count]) or tuple(names)
    shown = (*known, *(f"column {at + 1}" for at in range(len(known), count)))
    return _Layout({name: at for at, name in enumerate(names)}, shown)


def _open_bytes(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".zip":
        archive = zipfile.ZipFile(path)
        members = [each for each in archive.namelist() if not each.startswith("__MACOSX") and not each.endswith("/")]
        if len(members) != 1:
            raise InvalidCandles(str(path), f"holds {len(members)} files; allowed: one")
        return archive.open(members[0])
    return path.open("rb")


_BROKEN = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)  # damaged or encrypted


def _text_form(path: Path, volume: str | None) -> _TextForm:
    """Return how a text file is written, from its first lines."""
    try:
        with _open_bytes(path) as file:
            head = file.read(_HEAD)
    except _BROKEN as error:
        raise InvalidCandles(str(path), f"cannot be read: {reason_of(error)}") from None
    encoding = _encoding(head)
    lines = head.decode(encoding, errors="replace").splitlines()
    if not any(line.strip() for line in lines):
        raise InvalidCandles(str(path), "has no candles: the file is empty")
    if len(head) == _HEAD and len(lines) > 1:
        lines.pop()  # cut
    table = {separator: list(csv.reader(lines[:40], delimiter=separator)) for separator in _SEPARATORS}
    for at in range(min(_HEADER_LINES, len(lines))):
        for separator in _SEPARATORS:
            cells = table[separator][at] if at < len(table[separator]) else []
            layout = _find_columns(path, _once(cells), volume) if _is_header(cells) else None
            if layout is not None:
                layout = replace(layout, header=tuple(cell.strip() for cell in cells))
                form = _with_header(path, layout, table[separator], at, separator, encoding)
                if len(set(form.tickers[1:])) < 2:
                    _find_columns(path, cells, volume)  # refuses a name that comes twice
                return form
    for separator in _SEPARATORS:
        if headless := _headless(table[separator][0]):
            return _TextForm(headless, separator, encoding, 0, _is_epoch(headless, table[separator][0]))
    widest = max(_SEPARATORS, key=lambda separator: len(table[separator][0]))
    raise _no_columns(path, table[widest][0])


def _once(cells: Sequence[str]) -> Sequence[str]:
    """Return the names of a header without repetitions, which are columns of other tickers."""
    return [cell if cell not in cells[:at] else "" for at, cell in enumerate(cells)]


def _is_header(cells: Sequence[str]) -> bool:
    return len(cells) >= 5 and sum(bool(_NUMBER.fullmatch(cell.strip())) for cell in cells) == 0


def _with_header(
    path: Path, layout: _Layout, rows: Sequence[Sequence[str]], at: int, separator: str, encoding: str
) -> _TextForm:
    """Add the lines that belong to the header at line *at*, such as yfinance's tickers and name of the index."""
    first, more = at + 1, [rows[at - 1]] if at and len(rows[at - 1]) == len(rows[at]) else []
    while first < min(at + 4, len(rows)) and any(rows[first]) and not any(map(str.isdigit, "".join(rows[first][:1]))):
        if any(_NUMBER.fullmatch(cell.strip()) for cell in rows[first]):
            break
        more.append(rows[first])
        first += 1
    tickers: tuple[str, ...] = ()
    for row in more:
        if len(row) == len(layout.header) and all(cell.strip() for cell in row[1:]):
            tickers = tuple(cell.strip() for cell in row)
        elif row and _key(row[0]) in _TIMES and row[0].strip() and not any(row[1:]):
            layout = replace(layout, header=(row[0].strip(), *layout.header[1:]))
    data = rows[first] if first < len(rows) else []
    found = _find_time(layout, data)
    if found is None and tickers:
        found = replace(layout, columns={**layout.columns, "timestamp": 0})
    if found is None:
        raise _no_columns(path, layout.header)
    return _TextForm(found, separator, encoding, first, _is_epoch(found, data), tickers)


def _is_epoch(layout: _Layout, cells: Sequence[str]) -> bool:
    at = layout.columns.get("timestamp")
    return at is not None and at < len(cells) and bool(re.fullmatch(r"\d{9,16}", cells[at].strip()))


def _no_columns(path: Path, header: Sequence[object]) -> InvalidCandles:
    keys = [_key(name) for name in header]
    missing = [price for price, allowed in _PRICE_NAMES.items() if not any(each in keys for each in allowed)]
    if not any(key in keys for key in _TIMES):
        missing.insert(0, "timestamp")
    found = ", ".join(str(name).strip() or "''" for name in header)[:200]
    return InvalidCandles(str(path), f"has no column {', '.join(missing)}; found: {found or 'none'}")


def _encoding(head: bytes) -> str:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if head.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    if len(head) >= 4 and (head[1::2].count(0) > len(head) // 3 or head[::2].count(0) > len(head) // 3):
        return "utf-16-le" if head[1] == 0 else "utf-16-be"
    return "utf-8"


def _from_text(path: Path, decimal: Decimal | None, volume: str | None) -> Table:
    form = _text_form(path, volume)
    if len(set(form.tickers[1:])) > 1:
        return _wide(path, form, decimal)
    frame = _csv(path, form, as_text=False)
    numbers = [at for name, at in form.layout.columns.items() if name in (*PRICES, "volume", *SIDES)]
    written = [at for at in numbers if not pd.api.types.is_numeric_dtype(frame[at].dtype)]
    if decimal == "comma" or any(_is_dressed(frame[at]) for at in written):
        frame = _csv(path, form, as_text=True)
    return _table(path, frame, form.layout, decimal, str(form), form.first_line + 1)


def _csv(path: Path, form: _TextForm, *, as_text: bool) -> pd.DataFrame:
    width, columns = len(form.layout.header), form.layout.columns
    kept = ("date", "clock", "symbol") if form.epoch else ("timestamp", "date", "clock", "symbol")
    text = [columns[name] for name in kept if name in columns]
    try:
        with warnings.catch_warnings(), _open_bytes(path) as file:
            warnings.simplefilter("error", pd.errors.ParserWarning)  # else extra fields are silently dropped
            # keep empty lines: without them, the row numbers in error messages would be wrong
            return pd.read_csv(
                file,
                sep=form.separator,
                header=None,
                names=list(range(width)),
                skiprows=form.first_line,
                dtype=str if as_text else dict.fromkeys(text, str),
                encoding=form.encoding,
                index_col=False,
                skip_blank_lines=False,
                low_memory=False,
            )
    except pd.errors.EmptyDataError:
        raise InvalidCandles(str(path), "has no candles") from None
    except pd.errors.ParserWarning:
        raise InvalidCandles(str(path), "has more fields than the header names", form.first_line + 1) from None
    except pd.errors.ParserError as error:
        line = re.search(r"in line (\d+)", str(error))
        problem = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise InvalidCandles(str(path), f"is not CSV: {problem}", int(line[1]) if line else None) from None
    except UnicodeError as error:
        reason = getattr(error, "reason", "damaged")
        raise InvalidCandles(str(path), f"is not {form.encoding.upper()} text: {reason}") from None
    except _BROKEN as error:
        raise InvalidCandles(str(path), f"cannot be read: {reason_of(error)}") from None


def _wide(path: Path, form: _TextForm, decimal: Decimal | None) -> Table:
    """Return one row per time and ticker of a file that has a group of columns for each ticker."""
    frame = _csv(path, form, as_text=False)
    parts, numbers = [], []
    for ticker in dict.fromkeys(form.tickers[1:]):
        places = [0, *(at for at in range(1, len(form.tickers)) if form.tickers[at] == ticker)]
        layout = _find_columns(path, [form.layout.header[at] for at in places], None)
        if layout is None:
            raise _no_columns(path, [f"{form.layout.header[at]} of {ticker}" for at in places])
        layout = replace(layout, columns={**layout.columns, "timestamp": 0})
        part = frame[places].set_axis(range(len(places)), axis=1)
        traded = part.drop(columns=0).notna().any(axis=1).to_numpy()
        parts.append(_table(path, part, layout, decimal, str(form), form.first_line + 1))
        parts[-1] = replace(parts[-1], frame=parts[-1].frame.assign(symbol=ticker)[traded])
        numbers.append(parts[-1].row_numbers[traded])
    order = np.argsort(np.concatenate(numbers), kind="stable")
    frame = pd.concat([part.frame for part in parts], ignore_index=True).iloc[order].reset_index(drop=True)
    return replace(parts[0], frame=frame, row_numbers=np.concatenate(numbers)[order])


def _table(
    path: Path, frame: pd.DataFrame, layout: _Layout, decimal: Decimal | None, form: str, first_row: int
) -> Table:
    if frame.empty:
        raise InvalidCandles(str(path), "has no candles")
    made = {name: frame[at] for name, at in layout.columns.items() if name not in ("date", "clock")}
    if "date" in layout.columns:
        made["timestamp"] = _joined(frame[layout.columns["date"]], frame[layout.columns["clock"]])
    row_numbers = np.arange(first_row, first_row + len(frame))
    numbers = [name for name in (*PRICES, "volume", *SIDES) if name in made]
    text = {name: made[name] for name in numbers if not pd.api.types.is_numeric_dtype(made[name].dtype)}
    sign = _decimal(path, text.values(), decimal, row_numbers) if text else "."
    made |= {name: _numbers(column, sign, is_volume=name == "volume") for name, column in text.items()}
    named = {name: layout.header[at] for name, at in layout.columns.items()}
    read = pd.DataFrame(made).reset_index(drop=True)
    comma = ", decimal comma" if sign == "," else ""
    keys = [_key(name) for name in layout.header]
    closes = next((frame[keys.index(key)].reset_index(drop=True) for key in _CLOSE_TIMES if key in keys), None)
    return Table(read, row_numbers, form + comma, named, layout.unread, layout.in_utc, closes)


def _joined(date: pd.Series, clock: pd.Series) -> pd.Series:
    """Return date and time of day in one text. Digits alone are HHMM or HHMMSS."""
    solid = clock.str.fullmatch(r"\d{3,6}")
    padded = clock.where(~solid.fillna(False).astype(bool), clock.str.zfill(6 if clock.str.len().max() > 4 else 4))
    with_signs = padded.str.replace(r"^(\d{2})(\d{2})(\d{2})?$", r"\1:\2:\3", regex=True).str.removesuffix(":")
    dashed = date.str.replace(r"^(\d{4})(\d{2})(\d{2})$", r"\1-\2-\3", regex=True)
    return dashed + " " + with_signs


def _is_dressed(column: pd.Series) -> bool:
    """Return whether the texts of *column* have signs that pandas does not read as part of a number."""
    if not (pd.api.types.is_object_dtype(column.dtype) or pd.api.types.is_string_dtype(column.dtype)):
        return False
    return bool(column.dropna().map(str).str.contains(r"\d[,' \u00a0\u202f]\d|[$€£]|\d[KMB%]|^[-–—]$").any())


def _decimal(path: Path, columns: Iterable[pd.Series], given: Decimal | None, row_numbers: IntArray) -> str:
    """Return the decimal sign of all numbers of a file.

    Raises:
        InvalidCandles: each could be either, as in 1,085.
    """
    if given is not None:
        return "," if given == "comma" else "."
    text = pd.concat(list(columns)).dropna().map(str).str.replace(r"[^\d.,]", "", regex=True)
    commas = text[text.str.contains(",", regex=False)]
    if commas.empty:
        return "," if text.str.contains(r"\..*\.", regex=True).any() else "."
    both = commas[commas.str.contains(".", regex=False)]
    if not both.empty:
        return "," if (both.str.rfind(",") > both.str.rfind(".")).iloc[0] else "."
    if commas.str.count(",").max() > 1:
        return "."
    grouped = text.str.fullmatch(r"\d{1,3}(?:,\d{3})*")
    points = text[text.str.contains(".", regex=False)]
    if not points.empty and not points.str.fullmatch(r"\d{1,3}(?:\.\d{3})+").all():
        return "."  # as in 2650.5 beside 1,200
    if not commas.str.fullmatch(r"[1-9]\d{0,2}(?:,\d{3})+").all() or text.str.fullmatch(r"\d{4,}").any():
        return ","
    if not points.empty or text[grouped].str.fullmatch(r"\d{1,3}").any():
        return "," if not points.empty else "."  # 2.650 beside 1,085; 999 beside 1,005
    row = int(row_numbers[int(commas.index[0])])
    problem = f"{commas.iloc[0]} may be either: add decimal=comma or decimal=point to the feed"
    raise InvalidCandles(str(path), problem, row)


def _numbers(column: pd.Series, decimal: str, *, is_volume: bool) -> pd.Series:
    """Return texts as numbers. What is not a number stays text, so that it is refused with its row."""
    if not (pd.api.types.is_object_dtype(column.dtype) or pd.api.types.is_string_dtype(column.dtype)):
        return column
    known = column.notna()
    text = column[known].map(str).astype(object)
    plain = text.str.replace(r"[\s$€£'\u00a0\u202f]", "", regex=True).str.replace("." if decimal == "," else ",", "")
    plain = plain.str.replace(",", ".") if decimal == "," else plain
    if is_volume:
        plain = plain.mask(plain.isin(["-", "–", "—"]), "nan")
        scaled = plain.str.extract(_SUFFIX)
        factor = scaled[1].map({"K": 1e3, "M": 1e6, "B": 1e9})
        plain = plain.mask(scaled[0].notna(), (pd.to_numeric(scaled[0], errors="coerce") * factor).map(repr))
    numbers = pd.to_numeric(plain, errors="coerce")
    unreadable = numbers.isna() & (plain.str.lower() != "nan")
    if unreadable.any():
        return column.astype(object).mask(~unreadable.reindex(column.index, fill_value=False), numbers)
    return numbers.reindex(column.index).astype(np.float64)


def _from_frame(path: Path, frame: pd.DataFrame, decimal: Decimal | None, volume: str | None, form: str) -> Table:
    if isinstance(frame.columns, pd.MultiIndex):
        frame = _flat(path, frame)
    if not isinstance(frame.index, pd.RangeIndex) or frame.index.name is not None:
        frame = frame.reset_index()
    layout = _find_columns(path, frame.columns.tolist(), volume)
    first = ["" if value is None else str(value) for value in frame.iloc[0].tolist()] if len(frame) else []
    found = None if layout is None else _find_time(layout, first)
    if found is None:
        raise _no_columns(path, frame.columns.tolist())
    return _table(path, frame.set_axis(range(frame.shape[1]), axis=1), found, decimal, form, 1)


def _flat(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose columns are a price and a ticker under the prices alone."""
    for level in range(frame.columns.nlevels):
        names = frame.columns.get_level_values(level)
        if names.is_unique and _find_columns(path, names.tolist(), None):
            return frame.set_axis(names, axis=1)
    raise InvalidCandles(str(path), f"has columns of several levels, such as {frame.columns[0]}; stack its tickers")


def _arrow(path: Path) -> pd.DataFrame:
    kind = path.suffix[1:].capitalize()
    try:
        return pd.read_parquet(path, engine="pyarrow") if kind == "Parquet" else pd.read_feather(path)
    except ImportError:
        raise MissingExtra(f"reading {path}", "parquet") from None
    except Exception as error:  # noqa: BLE001  pyarrow and pandas raise many types for a damaged file
        raise InvalidCandles(str(path), f"is not {kind}: {reason_of(error)[:200]}") from None


def _schema(path: Path) -> list[str]:
    try:
        from pyarrow.parquet import read_schema  # type: ignore[import-untyped]

        return list(read_schema(path).names)
    except ImportError:
        raise MissingExtra(f"reading {path}", "parquet") from None
    except Exception as error:  # noqa: BLE001
        raise InvalidCandles(str(path), f"is not Parquet: {reason_of(error)[:200]}") from None


def _from_json(path: Path, decimal: Decimal | None, volume: str | None) -> Table:
    try:
        with _open_bytes(path) as file:
            written = file.read()
        text = written.decode(_encoding(written[:_HEAD]))
        found = _json(text)
    except (*_BROKEN, ValueError, RecursionError) as error:
        raise InvalidCandles(str(path), f"is not JSON: {reason_of(error)[:200]}") from None
    if isinstance(found, dict):
        lists = [
            value
            for value in found.values()
            if isinstance(value, list) and value and isinstance(value[0], (list, dict))
        ]
        found = lists[0] if len(lists) == 1 else found
    if not found:
        raise InvalidCandles(str(path), "has no candles")
    if isinstance(found, list) and all(isinstance(row, list) for row in found):
        layout = _headless(["" if cell is None else str(cell) for cell in found[0]])
        if layout is None or len({len(row) for row in found}) > 1:
            problem = "is a list of lists that are no candles; allowed: [time, open, high, low, close, volume]"
            raise InvalidCandles(str(path), problem, 1)
        return _table(path, pd.DataFrame(found), layout, decimal, "JSON, lists", 1)
    try:
        frame = pd.json_normalize(found) if isinstance(found, list) else pd.DataFrame(found)
    except (ValueError, AttributeError, TypeError) as error:
        raise InvalidCandles(str(path), f"is no JSON of candles: {reason_of(error)[:200]}") from None
    return _from_frame(path, frame, decimal, volume, "JSON, records" if isinstance(found, list) else "JSON, columns")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        lines = [line for line in io.StringIO(text) if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]  # one record a line
