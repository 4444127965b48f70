"""A file of candles, however damaged, is read or refused in one line; never a traceback, never a wrong candle."""

import gzip
import io
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.errors import InvalidCandles
from strategy_core.market.files import FileSource
from tests.fuzz.damage import damaged, rules

LATER = datetime(2100, 1, 1, tzinfo=UTC)
ROWS = [f"2024-01-08T0{hour}:00:00Z,{100 + hour},{102 + hour},{99 + hour},{101 + hour},{hour}" for hour in range(9)]
CSV = "\n".join(["timestamp,open,high,low,close,volume", *ROWS, ""]).encode()
FRAME = pd.read_csv(io.BytesIO(CSV), parse_dates=["timestamp"])
ODD: dict[str, Callable[[], Any]] = {
    "text": lambda: "x",
    "bytes": lambda: [b"\xff\x00"] * 9,
    "lists": lambda: [[1, 2]] * 9,
    "mappings": lambda: [{"a": 1}] * 9,
    "days": lambda: [datetime(2024, 1, 8, tzinfo=UTC).date()] * 9,
    "truth": lambda: True,
    "nothing": lambda: None,
    "spans": lambda: pd.to_timedelta(range(9), unit="h"),
    "far times": lambda: pd.Series([datetime(9999, 1, 1, hour, tzinfo=UTC) for hour in range(9)]).dt.as_unit("us"),
    "times without a zone": lambda: FRAME["timestamp"].dt.tz_localize(None),
    "times of New York": lambda: FRAME["timestamp"].dt.tz_convert("America/New_York"),
    "huge numbers": lambda: pd.Series([2**64 - 1] * 9, dtype="uint64"),
}


def parquet(frame: pd.DataFrame) -> bytes:
    written = io.BytesIO()
    frame.to_parquet(written)
    return written.getvalue()


def check(file: Path, content: bytes) -> None:
    """Read it: what comes is candles, or one line."""
    file.write_bytes(content)
    try:
        candles = FileSource(file).candles("GOLD", closed_by=LATER)
    except InvalidCandles as refused:
        line = str(refused)
    else:
        check_candles(candles)
        return
    assert "\n" not in line
    assert line.startswith(str(file))


def check_candles(candles: pd.DataFrame) -> None:
    assert candles.index.is_monotonic_increasing
    assert candles.index.is_unique
    assert np.isfinite(candles[["open", "high", "low", "close"]].to_numpy()).all()
    assert (candles["low"] <= candles[["open", "close"]].min(axis=1)).all()
    assert (candles["high"] >= candles[["open", "close"]].max(axis=1)).all()


@rules(150)
@given(content=damaged(CSV))
def test_csv(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "GOLD.csv", content)


@pytest.mark.parametrize("cell", [b"9" * 5_000, b"-" + b"9" * 400, b'"1\n2\n3"', b'"\r\n"'], ids=len)
@pytest.mark.parametrize("field", range(6))
def test_a_cell_that_no_candle_has(tmp_path: Path, field: int, cell: bytes) -> None:
    lines = CSV.split(b"\n")
    cells = lines[4].split(b",")
    cells[field] = cell
    lines[4] = b",".join(cells)

    check(tmp_path / "GOLD.csv", b"\n".join(lines))


@rules(60)
@given(content=st.one_of(damaged(CSV).map(gzip.compress), damaged(gzip.compress(CSV))))
def test_zipped_csv(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "GOLD.csv.gz", content)


@rules(120)
@given(content=damaged(parquet(FRAME), parquet(FRAME.set_index("timestamp"))))
def test_parquet(tmp_path: Path, content: bytes) -> None:
    check(tmp_path / "GOLD.parquet", content)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("column", ["timestamp", "open", "volume"])
def test_parquet_of_columns_that_no_candle_has(tmp_path: Path, column: str, odd: str) -> None:
    check(tmp_path / "GOLD.parquet", parquet(FRAME.assign(**{column: ODD[odd]()})))


@pytest.mark.parametrize("known", [b'"numpy_type"', b'"metadata"', b"int64"])
def test_parquet_whose_notes_for_pandas_are_damaged(tmp_path: Path, known: bytes) -> None:
    """They are JSON within the file, and pandas believes them."""
    check(tmp_path / "GOLD.parquet", parquet(FRAME).replace(known, known.replace(b"t", b"z")))
