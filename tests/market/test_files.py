"""Files of candles: every fault is one error with the file and the row, every repair is logged."""

import gzip
import sys
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from structlog.testing import capture_logs

from strategy_core.domain.errors import InvalidCandles, InvalidTimeframe, MissingExtra, UnknownSymbol
from strategy_core.market.calendars import AlwaysOpen, WeeklySession
from strategy_core.market.files import FileSource, read_candles

HEADER = "timestamp,open,high,low,close,volume\n"
ROWS = [f"2024-01-08T0{hour}:00:00Z,{100 + hour},{102 + hour},{99 + hour},{101 + hour},\n" for hour in range(6)]
START = datetime(2024, 1, 8, tzinfo=UTC)
END = datetime(2100, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture
def gold(tmp_path: Path) -> Path:
    file = tmp_path / "GOLD.csv"
    file.write_text(HEADER + "".join(ROWS))
    return file


def parquet_of(csv: Path, *, index: bool, unit: str = "us") -> Path:
    frame = pd.read_csv(csv, parse_dates=["timestamp"])
    frame["timestamp"] = frame["timestamp"].dt.as_unit(unit)
    file = csv.with_suffix(".parquet")
    (frame.set_index("timestamp") if index else frame).to_parquet(file)
    csv.unlink()
    return file


def test_a_csv_file_is_read_with_its_stem_as_symbol(gold: Path) -> None:
    source = FileSource(gold)

    candles = source.candles("GOLD", closed_by=END)

    assert source.symbols() == ("GOLD",)
    assert source.name == str(gold)
    assert candles.index.tolist() == [START + hour * HOUR for hour in range(6)]
    assert candles["close"].tolist() == [101.0, 102.0, 103.0, 104.0, 105.0, 106.0]
    assert candles["volume"].isna().all()


def test_every_kind_of_file_gives_the_same_candles(gold: Path, tmp_path: Path) -> None:
    plain = read_candles(gold, timeframe="1h")
    zipped = tmp_path / "GOLD.csv.gz"
    zipped.write_bytes(gzip.compress(gold.read_bytes()))

    assert read_candles(zipped, timeframe="1h").equals(plain)
    assert read_candles(parquet_of(gold, index=True), timeframe="1h").equals(plain)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("index", [True, False])
def test_parquet_times_are_the_index_or_a_column_in_any_unit(gold: Path, index: bool, unit: str) -> None:
    plain = read_candles(gold, timeframe="1h")

    assert read_candles(parquet_of(gold, index=index, unit=unit), timeframe="1h").equals(plain)


def test_prices_are_read_to_the_last_bit(tmp_path: Path) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text(f"{HEADER}2024-01-08T00:00Z,1572.4389999999999,1680.5295,1565.453,1573.7010000000002,\n")

    assert read_candles(file, timeframe="1h").iloc[0].tolist()[:4] == [
        1572.4389999999999,
        1680.5295,
        1565.453,
        1573.7010000000002,
    ]


def test_a_window_is_cut_at_its_ends_and_is_the_callers_own(gold: Path) -> None:
    source = FileSource(gold)

    window = source.candles("GOLD", closed_by=START + 5 * HOUR, since=START + HOUR, bars=3)
    window["close"] = 0.0

    assert window.index.tolist() == [START + hour * HOUR for hour in (2, 3, 4)]
    assert source.candles("GOLD", closed_by=START + 5 * HOUR)["close"].iloc[-1] == 105.0
    assert len(source.candles("GOLD", closed_by=END, since=START + HOUR, bars=9)) == 5
    assert source.candles("GOLD", closed_by=END, bars=0).empty
    assert source.candles("GOLD", closed_by=START, since=END).empty


def test_a_file_that_ends_expects_what_it_holds(gold: Path) -> None:
    source = FileSource(gold)

    assert source.expected_at("GOLD", START + timedelta(minutes=59)) is None
    assert source.expected_at("GOLD", START + HOUR) == START
    assert source.expected_at("GOLD", END) == START + 5 * HOUR


def test_a_file_that_stopped_growing_is_missed(gold: Path) -> None:
    """Else a dead feed were fresh for ever, and users stayed on a canary that nobody watches."""
    source = FileSource(gold, calendar=WeeklySession())

    assert source.expected_at("GOLD", START + timedelta(minutes=59)) is None
    assert source.expected_at("GOLD", START + 6 * HOUR) == START + 5 * HOUR
    assert source.expected_at("GOLD", START + 7 * HOUR - timedelta(minutes=1)) == START + 5 * HOUR
    assert source.expected_at("GOLD", START + 7 * HOUR) == START + 6 * HOUR
    assert source.expected_at("GOLD", START + timedelta(days=365)) == START + timedelta(days=365) - HOUR


def test_past_its_end_a_file_is_expected_to_grow_in_open_hours_alone(tmp_path: Path) -> None:
    friday = pd.date_range("2024-01-12T16:00Z", "2024-01-12T21:00Z", freq="h")
    file = tmp_path / "GOLD.csv"
    file.write_text(HEADER + "".join(f"{hour.isoformat()},1,1,1,1,\n" for hour in friday))
    metals, always = FileSource(file, calendar=WeeklySession()), FileSource(file, calendar=AlwaysOpen())
    sunday_opens = datetime(2024, 1, 14, 23, tzinfo=UTC)

    assert metals.expected_at("GOLD", sunday_opens) == friday[-1]
    assert metals.expected_at("GOLD", sunday_opens + HOUR) == sunday_opens
    assert always.expected_at("GOLD", sunday_opens) == sunday_opens - HOUR


def test_up_to_its_last_row_a_file_knows_its_own_holidays(tmp_path: Path) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text(HEADER + ROWS[0] + ROWS[1] + ROWS[5])

    assert FileSource(file, calendar=AlwaysOpen()).expected_at("GOLD", START + 5 * HOUR) == START + HOUR


def test_candles_that_open_off_midnight_are_expected_on_their_own_grid(tmp_path: Path) -> None:
    """Vendors open their day at different hours; another grid would miss candles of a feed that is well."""
    file = tmp_path / "GOLD.csv"
    file.write_text(HEADER + "".join(f"2024-01-0{day}T22:00Z,1,1,1,1,\n" for day in (7, 8, 9)))
    source = FileSource(file, timeframe="1d", calendar=AlwaysOpen())
    last = datetime(2024, 1, 9, 22, tzinfo=UTC)

    assert source.expected_at("GOLD", last + 47 * HOUR) == last
    assert source.expected_at("GOLD", last + 48 * HOUR) == last + 24 * HOUR


def test_a_folder_serves_its_files_by_stem(gold: Path) -> None:
    (gold.parent / "SILVER.csv.gz").write_bytes(gzip.compress(gold.read_bytes()))
    (gold.parent / "notes.txt").write_text("not candles")

    assert FileSource(gold.parent).symbols() == ("GOLD", "SILVER")
    assert FileSource(gold.parent, symbol="SILVER").symbols() == ("SILVER",)
    assert FileSource(gold, symbol="XAUUSD").symbols() == ("XAUUSD",)
    with pytest.raises(UnknownSymbol, match="no candles of 'TIN'; known symbols: GOLD, SILVER"):
        FileSource(gold.parent, symbol="TIN")
    with pytest.raises(UnknownSymbol, match="no candles of 'TIN'"):
        FileSource(gold.parent).candles("TIN", closed_by=END)


def test_a_bad_file_harms_only_its_own_symbol(gold: Path) -> None:
    (gold.parent / "SILVER.csv").write_text("")
    source = FileSource(gold.parent)

    assert len(source.candles("GOLD", closed_by=END)) == 6
    with pytest.raises(InvalidCandles, match=r"SILVER\.csv: has no candles: the file is empty"):
        source.candles("SILVER", closed_by=END)


def test_what_is_no_source_is_refused(gold: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "GOLD.csv.gz").write_bytes(gzip.compress(gold.read_bytes()))

    with pytest.raises(InvalidCandles, match="nowhere: no such file or folder"):
        FileSource(tmp_path / "nowhere")
    with pytest.raises(InvalidCandles, match=r"empty: no files of candles in this folder; allowed: \.csv, \.txt"):
        FileSource(tmp_path / "empty")
    with pytest.raises(InvalidCandles, match=r"notes\.md: is not a file of candles; allowed: "):
        FileSource(tmp_path / "notes.md")
    with pytest.raises(InvalidCandles, match=r"two files for GOLD: GOLD\.csv and GOLD\.csv\.gz"):
        FileSource(tmp_path)
    with pytest.raises(InvalidTimeframe):
        FileSource(gold, timeframe="7m")


@pytest.mark.parametrize(
    ("text", "row", "problem"),
    [
        ("", None, "has no candles: the file is empty"),
        (HEADER, None, "has no candles"),
        ((HEADER + ROWS[0]).replace("low", "least"), None, "has no column low; found: timestamp, open, high, least"),
        ((HEADER + ROWS[0]).replace("time", "name"), None, "has no column timestamp; found: namestamp, open"),
        (HEADER + ROWS[0] + "\n" + ROWS[1], 3, "timestamp is missing; is the line empty?"),
        (HEADER + ROWS[0] + "2024-01-08T01:00Z,101,103\n" + ROWS[2], 3, "low is nan; a price is a number above zero"),
        (HEADER + ROWS[0] + ROWS[1].replace("\n", ",9\n"), 3, "is not CSV: Expected 6 fields in line 3, saw 7"),
        (HEADER + ROWS[0].replace("\n", ",9\n"), 2, "has more fields than the header names"),
        (HEADER + ROWS[0] + '2024-01-08T01:00Z,"101', None, "is not CSV: EOF inside string"),
        (
            HEADER + "".join(ROWS).replace("Z", ""),
            2,
            "timestamp '2024-01-08 00:00:00' has no time zone; add tz=ZONE to the feed",
        ),
        (HEADER + "".join(ROWS).replace("103,105,", "103,top,"), 5, "high is 'top', not a number"),
        (HEADER + "".join(ROWS).replace("101,103,", "101,,"), 3, "high is nan"),
        (
            HEADER + "".join(ROWS) + ROWS[2].replace("103", "102") + ROWS[5],
            8,
            "2024-01-08 02:00:00+00:00 is also in row",
        ),
    ],
)
def test_a_bad_csv_is_refused_by_file_and_row(tmp_path: Path, text: str, row: int | None, problem: str) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text(text)

    with pytest.raises(InvalidCandles) as caught:
        read_candles(file, timeframe="1h")

    where = str(file) if row is None else f"{file}, row {row}"
    assert str(caught.value).startswith(f"{where}: {problem}")


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        ("2024-01-08T06:00Z,106,108", "low is nan; a price is a number above zero"),
        ("2024-01-08T06:00Z,106,nan,105,107,\n", "high is nan; a price is a number above zero"),
        ("2024-01-08T06:00Z,106,104,105,104,\n", "high 104 is below low 105"),
        ("2024-01-08T05:00Z,105,107,104,105,\n", "2024-01-08 05:00:00+00:00 is also in row 7, with other values"),
        ("2024-01-0", "timestamp '2024-01-0' is not a time; allowed: ISO 8601"),
        ("\n", "timestamp is missing; is the line empty?"),
    ],
)
def test_a_last_row_that_is_being_written_waits_and_holds_back_no_other(gold: Path, last: str, problem: str) -> None:
    with gold.open("a") as file:
        file.write(last)
    source = FileSource(gold, calendar=AlwaysOpen())
    with capture_logs() as entries:
        candles = source.candles("GOLD", closed_by=END)

    assert candles.index.tolist() == [START + hour * HOUR for hour in range(6)]
    assert source.held_back("GOLD").startswith(f"{gold}, row 8: {problem}")
    assert [entry["why"] for entry in logged(entries, "candles.held_back")] == [source.held_back("GOLD")]
    gold.write_text(HEADER + "".join(ROWS) + "2024-01-08T06:00Z,106,108,105,107,\n")
    complete = FileSource(gold)
    assert (len(complete.candles("GOLD", closed_by=END)), complete.held_back("GOLD")) == (7, "")


def test_a_row_that_waits_is_expected_and_two_of_them_are_refused(gold: Path) -> None:
    """Else a row that stays invalid were missed by nobody."""
    bad = "2024-01-08T06:00Z,106,104,105,104,\n"
    with gold.open("a") as file:
        file.write(bad)
    source = FileSource(gold)

    assert source.expected_at("GOLD", START + 7 * HOUR - timedelta(minutes=1)) == START + 5 * HOUR
    assert source.expected_at("GOLD", START + 7 * HOUR) == START + 6 * HOUR
    with gold.open("a") as file:
        file.write(bad.replace("06:00", "07:00"))
    with pytest.raises(InvalidCandles, match="row 8: high 104 is below low 105"):
        FileSource(gold).candles("GOLD", closed_by=END)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("GOLD.csv", HEADER.encode() + b"\xff\xfe,1,1,1,1,\n", "is not UTF-8 text"),
        ("GOLD.csv.gz", b"timestamp", "cannot be read: Not a gzipped file"),
        (
            "GOLD.csv.gz",
            gzip.compress((HEADER + ROWS[0]).encode(), mtime=0)[:-9],
            "cannot be read: Compressed file ended",
        ),
        (
            "GOLD.csv.gz",
            gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20,
            "cannot be read: Error -3 while decompressing",
        ),
        ("GOLD.parquet", b"", "is not Parquet: "),
        ("GOLD.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", "is not Parquet: "),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)

    with pytest.raises(InvalidCandles) as caught:
        read_candles(file, timeframe="1h")

    assert str(caught.value).startswith(f"{file}: {problem}")
    assert "\n" not in str(caught.value)


def test_a_bad_parquet_row_is_counted_from_one(gold: Path) -> None:
    gold.write_text(HEADER + "".join(ROWS).replace("101,103,", "101,1,"))

    with pytest.raises(InvalidCandles) as caught:
        read_candles(parquet_of(gold, index=True), timeframe="1h")

    assert caught.value.row == 2
    assert caught.value.problem == "high 1 is below low 100"


def test_parquet_without_its_reader_says_what_to_install(gold: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet_of(gold, index=True)
    monkeypatch.setitem(sys.modules, "pyarrow", None)

    with pytest.raises(MissingExtra, match=r"GOLD\.parquet needs .*: pip install 'strategy-rollout\[parquet\]'"):
        read_candles(file, timeframe="1h")


def logged(entries: list[Any], event: str) -> list[Mapping[str, Any]]:
    return [entry for entry in entries if entry["event"] == event]


def test_every_repair_is_logged_with_its_count(tmp_path: Path) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text(HEADER + "".join(ROWS[at] for at in (0, 2, 1, 2, 3, 5)))

    with capture_logs() as entries:
        candles = FileSource(file, now=START + 5 * HOUR + timedelta(minutes=30)).candles("GOLD", closed_by=END)

    assert candles.index.tolist() == [START + hour * HOUR for hour in range(4)]
    assert logged(entries, "candles.repaired") == [
        {
            "event": "candles.repaired",
            "log_level": "warning",
            "source": str(file),
            "duplicates": 1,
            "moved": 1,
            "unclosed": 1,
            "noise": 0,
        }
    ]


def test_gaps_and_unread_columns_are_logged_once_and_nothing_is_called_repaired(tmp_path: Path) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text("note," + HEADER + "".join(f"x,{ROWS[at]}" for at in (0, 1, 4)))
    source = FileSource(file)

    with capture_logs() as entries:
        source.candles("GOLD", closed_by=END)
        source.expected_at("GOLD", END)

    assert [(e["candles"], e["gaps"], e["unread"]) for e in logged(entries, "candles.read")] == [(3, 1, ("note",))]
    assert not logged(entries, "candles.repaired")
