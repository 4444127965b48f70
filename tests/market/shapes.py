"""Candles as other programs write them: one writer per shape."""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from strategy_core.domain.candles import PRICES

OHLCV = (*PRICES, "volume")
Text = Callable[[pd.DataFrame], str]
EASTERN = "-05:00"


@dataclass(frozen=True)
class Shape:
    """How a program writes candles.

    Attributes:
        suffix: of the file.
        write: from candles to the bytes of the file.
        options: that a feed of it needs.
        volume: False if the file has none.
    """

    suffix: str
    write: Callable[[pd.DataFrame, Path], None]
    options: str = ""
    volume: bool = True


def table(rows: Iterable[Iterable[object]], separator: str = ",", *, quoted: bool = False) -> str:
    out = io.StringIO()
    csv.writer(
        out, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
    ).writerows(rows)
    return out.getvalue()


def rows_of(
    candles: pd.DataFrame, time: Callable[[pd.Timestamp], object], number: Callable[[float], str] = repr
) -> list[list[object]]:
    return [
        [time(at), *map(number, values)]
        for at, values in zip(pd.DatetimeIndex(candles.index), candles[list(OHLCV)].to_numpy().tolist(), strict=True)
    ]


def at(form: str, zone: str = "UTC") -> Callable[[pd.Timestamp], str]:
    return lambda moment: moment.tz_convert(zone).strftime(form)


def text(make: Text, suffix: str = ".csv", options: str = "", *, encoding: str = "utf-8", volume: bool = True) -> Shape:
    return Shape(suffix, lambda candles, path: void(path.write_bytes(make(candles).encode(encoding))), options, volume)


def void(_: object) -> None: ...


def headed(header: str, time: Callable[[pd.Timestamp], object], separator: str = ",") -> Text:
    return lambda candles: table([header.split(","), *rows_of(candles, time)], separator)


def bare(time: Callable[[pd.Timestamp], object], separator: str = ",", number: Callable[[float], str] = repr) -> Text:
    return lambda candles: table(rows_of(candles, time, number), separator)


def epoch(unit: int) -> Callable[[pd.Timestamp], object]:
    return lambda moment: moment.value // unit


def german(value: float) -> str:
    whole, _, rest = f"{value:,.6f}".partition(".")
    return f"{whole.replace(',', '.')},{rest}"


def metatrader(candles: pd.DataFrame) -> str:
    header = ["<DATE>", "<TIME>", "<OPEN>", "<HIGH>", "<LOW>", "<CLOSE>", "<TICKVOL>", "<VOL>", "<SPREAD>"]
    rows = [[*str(time).split(), *rest, 0, 12] for time, *rest in rows_of(candles, at("%Y.%m.%d %H:%M:%S"))]
    return table([header, *rows], "\t")


def clock_apart(candles: pd.DataFrame) -> str:
    return table([[*str(time).split(), *rest] for time, *rest in rows_of(candles, at("%Y.%m.%d %H:%M"))])


def stooq(candles: pd.DataFrame) -> str:
    header = ["<TICKER>", "<PER>", "<DATE>", "<TIME>", "<OPEN>", "<HIGH>", "<LOW>", "<CLOSE>", "<VOL>", "<OPENINT>"]
    rows = [["X", 60, *str(time).split(), *rest, 0] for time, *rest in rows_of(candles, at("%Y%m%d %H%M%S"))]
    return table([header, *rows])


def klines(unit: int, header: bool) -> Text:
    names = ["open_time", *OHLCV, "close_time", "quote_volume", "count", "taker_buy_volume", "taker_quote", "ignore"]

    def write(candles: pd.DataFrame) -> str:
        lasts = (candles.index[1] - candles.index[0]).value // unit - 1
        rows = [[*row, int(str(row[0])) + lasts, 1, 2, 3, 4, 0] for row in rows_of(candles, epoch(unit))]
        return table([names, *rows] if header else rows)

    return write


def yfinance(candles: pd.DataFrame) -> str:
    order = ["close", "high", "low", "open", "volume"]
    rows = [[at("%Y-%m-%d %H:%M:%S+00:00")(time), *row[order]] for time, row in candles.iterrows()]  # type: ignore[arg-type]
    return table([["Price", *map(str.capitalize, order)], ["Ticker", *["GC=F"] * 5], ["Datetime", *[""] * 5], *rows])


def old_yfinance(candles: pd.DataFrame) -> str:
    rows = [[time, *row[:4], row[3], row[4]] for time, *row in rows_of(candles, str)]
    return table([["Datetime", "Open", "High", "Low", "Close", "Adj Close", "Volume"], *rows])


def with_preamble(candles: pd.DataFrame) -> str:
    rows = [
        [*row[:1], at("%Y-%m-%d %H:%M:%S")(time), "X", *row[1:], 5]
        for time, row in zip(candles.index, rows_of(candles, epoch(10**9)), strict=True)
    ]
    header = ["unix", "date", "symbol", "open", "high", "low", "close", "Volume BTC", "Volume USDT"]
    return "https://www.example.org\n" + table([header, *rows[::-1]])


def as_json(make: Callable[[pd.DataFrame], Any], lines: bool = False) -> Shape:
    def write(candles: pd.DataFrame, path: Path) -> None:
        made = make(candles)
        path.write_text("\n".join(map(json.dumps, made)) if lines else json.dumps(made))

    return Shape(".json", write)


def records(time: Callable[[pd.Timestamp], object], name: str) -> Callable[[pd.DataFrame], Any]:
    return lambda candles: [
        {name: moment, **dict(zip(OHLCV, map(float, map(str, values)), strict=True))}
        for moment, *values in rows_of(candles, time)
    ]


def lists(candles: pd.DataFrame) -> Any:
    return [[moment, *map(float, map(str, values))] for moment, *values in rows_of(candles, epoch(10**6))]


def oanda_json(candles: pd.DataFrame) -> Any:
    rows = rows_of(candles, at("%Y-%m-%dT%H:%M:%S.000000000Z"), str)
    return {
        "instrument": "XAU_USD",
        "candles": [
            {"complete": True, "volume": float(str(v)), "time": t, "mid": {"o": o, "h": h, "l": low, "c": c}}
            for t, o, h, low, c, v in rows
        ],
    }


def columnar(name: str | None, *, index: bool, naive: bool = False, feather: bool = False) -> Callable[..., None]:
    def write(candles: pd.DataFrame, path: Path) -> None:
        frame = candles.tz_localize(None) if naive else candles
        frame = frame.rename_axis(name)
        frame = frame if index else frame.reset_index()
        (frame.to_feather if feather else frame.to_parquet)(path)

    return write


def gzipped(make: Text) -> Callable[[pd.DataFrame, Path], None]:
    return lambda candles, path: void(path.write_bytes(gzip.compress(make(candles).encode(), mtime=0)))


def zipped(make: Text) -> Callable[[pd.DataFrame, Path], None]:
    def write(candles: pd.DataFrame, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("inside.csv", make(candles))

    return write


_ISO = at("%Y-%m-%dT%H:%M:%SZ")
_OURS = "timestamp,open,high,low,close,volume"
_TITLES = "Date,Open,High,Low,Close,Volume"

SHAPES: Mapping[str, Shape] = {
    "our own": text(headed(_OURS, _ISO)),
    "MetaTrader 5": text(metatrader, options="tz=UTC"),
    "MetaTrader 5 as UTF-16": text(metatrader, options="tz=UTC", encoding="utf-16"),
    "MetaTrader 4 history": text(clock_apart, options="tz=UTC"),
    "HistData": text(bare(at("%Y%m%d %H%M%S", "Etc/GMT+5"), ";"), options=f"tz={EASTERN}"),
    "TradingView, epoch": text(headed("time,open,high,low,close,Volume", epoch(10**9))),
    "TradingView, ISO": text(headed("time,open,high,low,close,Volume", _ISO)),
    "Binance klines, ms": text(klines(10**6, header=False)),
    "Binance klines, µs": text(klines(10**3, header=False)),
    "Binance klines with a header": text(klines(10**6, header=True)),
    "epoch in ns": text(headed("t,o,h,l,c,v", epoch(1))),
    "Kraken": text(lambda candles: table([[*row, 7] for row in rows_of(candles, epoch(10**9))])),
    "yfinance, three header rows": text(yfinance),
    "yfinance, adjusted": text(old_yfinance),
    "Dukascopy, GMT": text(headed("Gmt time,Open,High,Low,Close,Volume", at("%d.%m.%Y %H:%M:%S.000"))),
    "Dukascopy, local": text(
        headed("Local time,Open,High,Low,Close,Volume", at("%d.%m.%Y %H:%M:%S.000 GMT+0100", "Etc/GMT-1"))
    ),
    "JForex": text(headed("Time (UTC),Open,High,Low,Close,Volume ", at("%Y.%m.%d %H:%M:%S"))),
    "CryptoDataDownload": text(with_preamble, options="volume=Volume BTC"),
    "Stooq": text(stooq, ".txt", "tz=UTC"),
    "cTrader": text(headed("Date,Open,High,Low,Close,Tick Volume", at("%d/%m/%Y %H:%M")), options="tz=UTC"),
    "US dates and AM/PM": text(headed(_TITLES, at("%m/%d/%Y %I:%M:%S %p")), options="tz=UTC"),
    "days without zeros": text(
        headed(_TITLES, lambda moment: f"{moment.month}/{moment.day}/{moment.year} {moment.hour}:{moment.minute:02}"),
        options="tz=UTC",
    ),
    "months by name": text(headed(_TITLES, at("%d-%b-%Y %H:%M:%S")), options="tz=UTC"),
    "Excel in German": text(
        lambda candles: table([_TITLES.split(","), *rows_of(candles, at("%d.%m.%Y %H:%M"), german)], ";"),
        options="tz=UTC",
        encoding="utf-8-sig",
    ),
    "Excel's days": text(
        headed(
            _TITLES, lambda moment: repr((moment.tz_localize(None) - pd.Timestamp("1899-12-30")) / pd.Timedelta("1D"))
        ),
        options="tz=UTC",
    ),
    "thousands": text(
        lambda candles: table([_TITLES.split(","), *rows_of(candles, _ISO, "{:,.6f}".format)], quoted=True)
    ),
    "pandas index": text(lambda candles: candles.rename_axis(None).to_csv()),
    "pandas with row numbers": text(lambda candles: candles.reset_index().to_csv()),
    "pandas without a zone": text(lambda candles: candles.tz_localize(None).to_csv(), options="tz=UTC"),
    "New York with offset": text(lambda candles: candles.tz_convert("America/New_York").to_csv()),
    "capitals": text(headed(_OURS.upper(), _ISO)),
    "semicolons": text(headed(_OURS, _ISO, ";")),
    "tabs": text(headed(_OURS, _ISO, "\t"), ".tsv"),
    "bars": text(headed(_OURS, _ISO, "|"), ".txt"),
    "gzip": Shape(".csv.gz", gzipped(headed(_OURS, _ISO))),
    "zip": Shape(".csv.zip", zipped(headed(_OURS, _ISO))),
    "newest first": text(lambda candles: headed(_OURS, _ISO)(candles[::-1])),
    "freqtrade": Shape(".feather", columnar("date", index=False, feather=True)),
    "freqtrade, lists": as_json(lists),
    "records": as_json(records(_ISO, "datetime")),
    "records, one a line": as_json(records(epoch(10**6), "t"), lines=True),
    "OANDA's answer": as_json(oanda_json),
    "Parquet": Shape(".parquet", columnar("date", index=False)),
    "Parquet, unnamed index": Shape(".parquet", columnar(None, index=True)),
    "Parquet without a zone": Shape(".parquet", columnar("datetime", index=True, naive=True), "tz=UTC"),
    "no volume": text(lambda candles: candles.drop(columns="volume").to_csv(), volume=False),
}


def candles_of(count: int, *, start: str = "2025-01-06", freq: str = "h", price: float = 2650.0) -> pd.DataFrame:
    """Return made-up candles with prices of two decimals."""
    draw = np.random.default_rng(18)
    close = np.round(price * np.exp(np.cumsum(draw.normal(0, 0.002, count))), 2)
    opened = np.append(price, close[:-1])
    spread = np.round(draw.uniform(0.001, 0.002, count) * price, 2)
    index = pd.date_range(start, periods=count, freq=freq, tz="UTC", unit="ns", name="timestamp")
    return pd.DataFrame(
        {
            "open": opened,
            "high": np.round(np.maximum(opened, close) + spread, 2),
            "low": np.round(np.minimum(opened, close) - spread, 2),
            "close": close,
            "volume": draw.integers(1, 5000, count).astype(float),
        },
        index=index,
    )
