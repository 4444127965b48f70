"""What a file cannot say is asked for by the name of its option; what it shows wrong is refused."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from structlog.testing import capture_logs

from strategy_core.domain.candles import Repairs
from strategy_core.domain.errors import InvalidCandles, InvalidSetting, RolloutError, UnknownSymbol
from strategy_core.market.calendars import CALENDARS, DAY_ZONES
from strategy_core.market.files import FileSource, symbol_in
from strategy_core.market.open import open_source
from tests.market.shapes import SHAPES, candles_of, table

END = datetime(2100, 1, 1, tzinfo=UTC)
HEADER = "timestamp,open,high,low,close,volume\n"


def written(folder: Path, *lines: str, header: str = HEADER, name: str = "GOLD.csv") -> Path:
    file = folder / name
    file.write_text(header + "".join(f"{line}\n" for line in lines))
    return file


def opens(feed: Path | str, *, timeframe: str = "1h", day_zone: str | None = None) -> list[str]:
    source = open_source(str(feed), timeframe=timeframe, day_zone=day_zone)
    index = pd.DatetimeIndex(source.candles(source.symbols()[0], closed_by=END).index)
    return [f"{at:%Y-%m-%d %H:%M}" for at in index]


def refusal(feed: Path | str, *, timeframe: str = "1h", now: datetime | None = None) -> str:
    def read() -> None:
        calendar = None if now is None else CALENDARS["always"]
        source = open_source(str(feed), timeframe=timeframe, now=now, calendar=calendar)
        source.candles(source.symbols()[0], closed_by=END)

    with pytest.raises(RolloutError) as caught:
        read()
    return str(caught.value)


def hours(*times: str, price: str = "1,1,1,1,1") -> list[str]:
    return [f"{time},{price}" for time in times]


def test_times_without_a_zone_are_refused_with_the_option(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("2025-01-06 00:00", "2025-01-06 01:00"))

    assert refusal(file) == (
        f"{file}, row 2: timestamp '2025-01-06 00:00:00' has no time zone; add tz=ZONE to the feed, as in "
        "?tz=Europe/Athens, ?tz=-05:00 or ?tz=America/New_York+07:00, or write the offset"
    )


@pytest.mark.parametrize(
    ("zone", "first"),
    [
        ("UTC", "2025-07-07 00:00"),
        ("Europe/Athens", "2025-07-06 21:00"),
        ("-05:00", "2025-07-07 05:00"),
        ("+0530", "2025-07-06 18:30"),
        ("America/New_York+07:00", "2025-07-06 21:00"),
        ("Etc/GMT+5", "2025-07-07 05:00"),
    ],
)
def test_a_zone_is_a_name_an_offset_or_both(tmp_path: Path, zone: str, first: str) -> None:
    file = written(tmp_path, *hours("2025-07-07 00:00", "2025-07-07 00:30"))

    assert opens(f"{file}?tz={zone}", timeframe="30m")[0] == first


@pytest.mark.parametrize("zone", ["Europe/Atens", "", "+25:00", "GMT+2x", "../etc", "Europe"])
def test_what_is_no_zone_is_refused_with_examples(tmp_path: Path, zone: str) -> None:
    file = written(tmp_path, *hours("2025-01-06 00:00"))

    assert "allowed: a zone such as Europe/Athens, an offset such as +02:00" in refusal(f"{file}?tz={zone}")


def test_a_zone_for_times_that_have_one_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("2025-01-06T00:00Z"))

    assert "its times say their zone (ISO 8601 with offset); leave tz=UTC out" in refusal(f"{file}?tz=UTC")


def test_times_with_and_without_a_zone_in_one_file_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("2025-01-06T00:00Z", "2025-01-06T01:00", "2025-01-06T02:00Z"))

    assert "row 3: timestamp '2025-01-06T01:00' has no time zone, unlike other rows" in refusal(file)


def test_local_hours_follow_their_clock(tmp_path: Path) -> None:
    """The hour from 01:00 comes twice on the first Sunday of November, and that from 02:00 not at all in March."""
    autumn = written(tmp_path, *hours(*(f"2025-11-02 {hour}" for hour in ("00:00", "01:00", "01:00", "02:00"))))
    found = opens(f"{autumn}?tz=America/New_York")

    assert found == ["2025-11-02 04:00", "2025-11-02 05:00", "2025-11-02 06:00", "2025-11-02 07:00"]
    backwards = written(tmp_path, *hours(*(f"2025-11-02 {hour}" for hour in ("02:00", "01:00", "01:00", "00:00"))))
    assert opens(f"{backwards}?tz=America/New_York") == found
    once = written(tmp_path, *hours("2025-11-02 00:00", "2025-11-02 01:00", "2025-11-02 03:00"))
    assert "row 3: timestamp '2025-11-02 01:00:00' comes twice in America/New_York" in refusal(
        f"{once}?tz=America/New_York"
    )
    spring = written(tmp_path, *hours("2025-03-09 01:00", "2025-03-09 02:00", "2025-03-09 03:00"))
    assert "row 3: timestamp '2025-03-09 02:00:00' does not exist in America/New_York" in refusal(
        f"{spring}?tz=America/New_York"
    )


@pytest.mark.parametrize(
    ("first", "second", "options", "found"),
    [
        ("06/01/2025 00:00", "06/01/2025 01:00", "&dates=day-first", "2025-01-06 00:00"),
        ("06/01/2025 00:00", "06/01/2025 01:00", "&dates=month-first", "2025-06-01 00:00"),
        ("13/01/2025 00:00", "13/01/2025 01:00", "", "2025-01-13 00:00"),
        ("01/13/2025 00:00", "01/13/2025 01:00", "", "2025-01-13 00:00"),
        ("06/01/2025 23:00", "07/01/2025 00:00", "", "2025-01-06 23:00"),  # a month apart otherwise
        ("01/06/2025 23:00", "01/07/2025 00:00", "", "2025-01-06 23:00"),
        ("05.05.2025 00:00", "05.05.2025 01:00", "", "2025-05-05 00:00"),
    ],
)
def test_the_order_of_day_and_month_is_that_of_the_data(
    tmp_path: Path, first: str, second: str, options: str, found: str
) -> None:
    file = written(tmp_path, *hours(first, second))

    assert opens(f"{file}?tz=UTC{options}")[0] == found


def test_dates_that_may_be_either_are_refused_with_the_option(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("06.01.2025 00:00", "06.01.2025 01:00"))
    assert "add dates=day-first or dates=month-first to the feed" in refusal(f"{file}?tz=UTC")

    both = written(tmp_path, *hours("13/01/2025 00:00", "01/14/2025 01:00", "13/01/2025 02:00"))
    assert "row 3: timestamp '01/14/2025 01:00' has its month first, unlike others" in refusal(f"{both}?tz=UTC")
    short = written(tmp_path, *hours("13/01/25 00:00", "13/01/25 01:00", "13/01/25 02:00"))
    assert "is ambiguous: write years with four digits" in refusal(f"{short}?tz=UTC")


def test_numbers_that_may_be_either_are_refused_with_the_option(tmp_path: Path) -> None:
    lines = [f'2025-01-06T0{hour}:00Z,"1,085","1,086","1,084","1,085"' for hour in range(3)]
    file = written(tmp_path, *lines, header="time,open,high,low,close\n")

    assert "row 2: 1,085 may be either: add decimal=comma or decimal=point to the feed" in refusal(file)
    for option, price in (("comma", 1.085), ("point", 1085.0)):
        candles = open_source(f"{file}?decimal={option}").candles("GOLD", closed_by=END)
        assert candles["close"].tolist() == [price] * 3


@pytest.mark.parametrize(
    ("volume", "found"),
    [("1.2K", 1200.0), ("3.45M", 3_450_000.0), ("12", 12.0), ("–", None), ("1B", 1e9)],
)
def test_volume_may_be_short_for_thousands_or_missing(tmp_path: Path, volume: str, found: float | None) -> None:
    file = written(tmp_path, f"2025-01-06T00:00Z,1,1,1,1,{volume}", "2025-01-06T01:00Z,1,1,1,1,2.5K")

    candles = open_source(str(file)).candles("GOLD", closed_by=END)

    assert candles["volume"].fillna(-1).tolist() == [found or -1, 2500.0]


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("time,open,high,low,close,Volume,volume", "has more than one column volume: Volume, volume"),
        ("time,open,OPEN,high,low,close,volume", "has more than one column open: open, OPEN"),
        (
            "time,open,high,low,close,Volume A,Volume B",
            "has several columns of volume: Volume A, Volume B; add volume=",
        ),
        ("time,open,high,low,close,Quote Volume,Vol (USD)", "has several columns of volume: Quote Volume, Vol (USD)"),
        ("time,open,high,low,Adj Close,volume,x", "has no column close; found: time, open, high, low, Adj Close"),
    ],
)
def test_a_column_that_could_be_ours_is_never_left_out_in_silence(tmp_path: Path, header: str, problem: str) -> None:
    file = written(tmp_path, "2025-01-06T00:00Z,1,1,1,1,1,1", header=f"{header}\n")

    assert problem in refusal(file)


def test_a_column_of_volume_is_chosen_by_its_name(tmp_path: Path) -> None:
    file = written(tmp_path, "2025-01-06T00:00Z,1,1,1,1,7,8", header="time,open,high,low,close,Volume A,Volume B\n")

    assert open_source(f"{file}?volume=volume b").candles("GOLD", closed_by=END)["volume"].tolist() == [8.0]
    assert "has no column c for volume=; found: time, open" in refusal(f"{file}?volume=c")


def test_candles_stamped_by_their_close_are_moved_back(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("2025-01-06 01:00:00+00:00", "2025-01-06 01:59:59.999+00:00"))

    assert opens(f"{file}?stamp=close") == ["2025-01-06 00:00", "2025-01-06 01:00"]


def test_a_file_whose_end_lies_in_the_future_is_refused_with_the_option(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("2025-01-06T01:00Z", "2025-01-06T02:00Z", "2025-01-06T03:00Z"))
    now = datetime(2025, 1, 6, 2, 10, tzinfo=UTC)

    assert "2025-01-06 03:00:00+00:00 lies in the future; if candles are stamped by their close, add stamp=close" in (
        refusal(file, now=now)
    )
    source = open_source(f"{file}?stamp=close", now=now, calendar=CALENDARS["always"])
    assert len(source.candles("GOLD", closed_by=END)) == 2


def test_times_that_equal_the_known_closes_are_refused_with_the_option(tmp_path: Path) -> None:
    header = "time,open,high,low,close,volume,close_time\n"
    rows = [f"{ms},1,1,1,1,1,{ms}" for ms in (1736125199999, 1736128799999)]
    file = written(tmp_path, *rows, header=header)
    assert "its times are those at which candles close; add stamp=close to the feed" in refusal(file)

    alone = written(tmp_path, *rows, header=header.replace("time,", "x,", 1))
    assert "add stamp=close to the feed" in refusal(alone)
    assert opens(f"{alone}?stamp=close") == ["2025-01-06 00:00", "2025-01-06 01:00"]


def test_of_a_date_and_a_whole_time_the_time_is_read(tmp_path: Path) -> None:
    rows = ["2025-01-06,1736121600,1,1,1,1", "2025-01-06,1736125200,1,1,1,1"]
    file = written(tmp_path, *rows, header="date,time,open,high,low,close\n")

    assert opens(file) == ["2025-01-06 00:00", "2025-01-06 01:00"]


def test_one_file_with_several_symbols_is_several_series(tmp_path: Path) -> None:
    lines = [
        f"{symbol},2025-01-06T0{hour}:00Z,{price},{price},{price},{price}"
        for hour in range(3)
        for symbol, price in (("GLD", 200), ("SLV", 30))
    ]
    file = written(tmp_path, *lines, header="symbol,timestamp,open,high,low,close\n", name="both.csv")
    source = open_source(str(file))

    assert source.symbols() == ("GLD", "SLV")
    assert source.candles("GLD", closed_by=END)["close"].tolist() == [200.0] * 3
    assert source.candles("SLV", closed_by=END)["close"].tolist() == [30.0] * 3
    assert open_source(str(file), symbol="SLV").symbols() == ("SLV",)
    assert open_source(f"{file}?symbol=SILVER=SLV,GLD").symbols() == ("SILVER", "GLD")
    assert "no candles of 'TIN'; known symbols: GLD, SLV" in refusal(f"{file}?symbol=TIN")
    with pytest.raises(UnknownSymbol, match="'GOLD'"):
        open_source(str(file), symbol="GOLD")


def test_a_file_that_grows_by_a_second_symbol_keeps_the_name_of_the_first(tmp_path: Path) -> None:
    header = "ticker,timestamp,open,high,low,close\n"
    one = written(tmp_path, "GLD,2025-01-06T00:00Z,1,1,1,1", header=header)

    assert open_source(str(one)).symbols() == ("GLD",)
    assert "no candles of 'GOLD'; known symbols: GLD" in refusal(f"{one}?symbol=GOLD")


def test_a_bad_row_of_one_symbol_is_named_as_in_the_file_and_harms_no_other(tmp_path: Path) -> None:
    rows = ["A,2025-01-06T00:00Z,1,1,1,1", "B,2025-01-06T00:00Z,1,0.5,1,1", "A,2025-01-06T01:00Z,1,1,1,1"]
    file = written(tmp_path, *rows, header="pair,timestamp,open,high,low,close\n")
    source = open_source(str(file))

    assert len(source.candles("A", closed_by=END)) == 2
    with pytest.raises(InvalidCandles, match=r"row 3: high 0\.5 is below low 1"):
        source.candles("B", closed_by=END)


@pytest.mark.parametrize(
    ("symbol", "spelled"),
    [("BTC/USDT", "BTC-USDT"), ("GC=F", "GC-F"), ("OANDA:XAUUSD", "OANDA-XAUUSD"), ("^GSPC", "GSPC")],
)
def test_a_symbol_that_cannot_be_a_name_is_refused_with_its_spelling(tmp_path: Path, symbol: str, spelled: str) -> None:
    file = written(tmp_path, f"{symbol},2025-01-06T00:00Z,1,1,1,1", header="symbol,timestamp,open,high,low,close\n")

    assert refusal(file).endswith(f"symbol {symbol!r} cannot be a name here; add symbol={spelled} to the feed")
    assert open_source(f"{file}?symbol={spelled}").symbols() == (spelled,)
    with pytest.raises(InvalidSetting, match="such as BTC-USDT"):
        open_source(str(file), symbol="BTC/USDT")


def test_a_row_without_a_symbol_is_refused(tmp_path: Path) -> None:
    rows = ["A,2025-01-06T00:00Z,1,1,1,1", ",2025-01-06T01:00Z,1,1,1,1", "A,2025-01-06T02:00Z,1,1,1,1"]
    file = written(tmp_path, *rows, header="symbol,timestamp,open,high,low,close\n")

    assert "row 3: symbol is missing" in refusal(file)


def test_groups_of_columns_by_ticker_are_several_series(tmp_path: Path) -> None:
    names = ["close", "high", "low", "open", "volume"]
    rows = [[f"2025-01-06 0{hour}:00:00+00:00", *[200.0, 30.0] * 5] for hour in range(2)]
    rows.append(["2025-01-06 02:00:00+00:00", *[201.0, ""] * 5])
    text = table(
        [
            ["Price", *(name for name in names for _ in "ab")],
            ["Ticker", *["GLD", "SLV"] * 5],
            ["Datetime", *[""] * 10],
            *rows,
        ]
    )
    file = tmp_path / "both.csv"
    file.write_text(text)
    source = open_source(str(file))

    assert source.symbols() == ("GLD", "SLV")
    assert source.candles("GLD", closed_by=END)["close"].tolist() == [200.0, 200.0, 201.0]
    assert source.candles("SLV", closed_by=END)["close"].tolist() == [30.0, 30.0]


def test_a_path_with_a_question_mark_opens_if_it_exists(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("2025-01-06T00:00Z"), name="GOLD?tz=x.csv")

    assert open_source(str(file)).symbols() == ("GOLD?tz=x",)
    assert open_source(f"{file}?symbol=GOLD").symbols() == ("GOLD",)


def test_an_unknown_option_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    file = written(tmp_path, *hours("2025-01-06T00:00Z"))

    assert "feed option zone = 'x' is not valid; allowed: tz, stamp, symbol, dates" in refusal(f"{file}?zone=x")
    assert "feed option stamp = 'end'" in refusal(f"{file}?stamp=end")


def test_prices_below_zero_need_their_option(tmp_path: Path) -> None:
    file = written(tmp_path, "2020-04-20T18:00Z,5,5,-40,-37.63,1", "2020-04-20T19:00Z,-37,2,-38,1,1")

    assert "low is -40; a price is a number above zero; the option negative=yes" in refusal(file)
    assert open_source(f"{file}?negative=yes").candles("GOLD", closed_by=END)["close"].tolist() == [-37.63, 1.0]


def test_dates_alone_are_days_of_the_market(tmp_path: Path) -> None:
    """A day of metals ends at 17:00 New York, and so does its candle."""
    days = [f"{day.date()}" for day in pd.date_range("2025-03-06", "2025-03-12", freq="B")]
    file = written(tmp_path, *hours(*days))

    metals = opens(file, timeframe="1d", day_zone=DAY_ZONES["metals"])
    assert metals[:2] == ["2025-03-05 22:00", "2025-03-06 22:00"]
    assert metals[-1] == "2025-03-11 21:00"
    assert opens(file, timeframe="1d", day_zone=DAY_ZONES["always"])[0] == "2025-03-06 00:00"
    assert opens(f"{file}?tz=Asia/Tokyo", timeframe="1d", day_zone=DAY_ZONES["metals"])[0] == "2025-03-05 15:00"
    assert "has no time zone; add tz=ZONE" in refusal(file, timeframe="1d")
    assert "has no time zone; add tz=ZONE" in refusal(file)


def test_a_day_of_new_york_is_expected_by_its_clock(tmp_path: Path) -> None:
    """The first day after a change of the clock opens an hour earlier in UTC, or later."""
    days = pd.date_range("2025-03-03 17:00", "2025-03-06 17:00", freq="D", tz="America/New_York")
    file = written(tmp_path, *hours(*(day.isoformat() for day in days)))
    source = FileSource(file, timeframe="1d", calendar=CALENDARS["metals"])

    assert source.expected_at("GOLD", datetime(2025, 3, 10, 20, 59, tzinfo=UTC)) == days[-1]
    assert source.expected_at("GOLD", datetime(2025, 3, 10, 21, 0, tzinfo=UTC)) == datetime(2025, 3, 9, 21, tzinfo=UTC)


def test_noise_is_mended_counted_and_logged(tmp_path: Path) -> None:
    file = written(tmp_path, "2025-01-06T00:00Z,0.2,0.3,0.1,0.30000000000000004,1", *hours("2025-01-06T01:00Z"))
    with capture_logs() as entries:
        source = FileSource(file)
        checked = source.checked("GOLD")

    assert checked.repairs == Repairs(noise=1)
    assert checked.candles["high"].iloc[0] == checked.candles["close"].iloc[0] == 0.30000000000000004
    assert [entry["noise"] for entry in entries if entry["event"] == "candles.repaired"] == [1]


def test_a_folder_takes_text_that_is_candles_and_leaves_the_rest(tmp_path: Path) -> None:
    written(tmp_path, *hours("2025-01-06T00:00Z"), name="GOLD.txt")
    (tmp_path / "readme.txt").write_text("How these files were made.\n")
    (tmp_path / "notes.json").write_text("{}")

    assert FileSource(tmp_path).symbols() == ("GOLD",)
    (tmp_path / "GOLD.txt").unlink()
    with pytest.raises(InvalidCandles, match="no files of candles in this folder"):
        FileSource(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("GOLD.json", "[1, 2", "is not JSON: "),
        ("GOLD.json", "[]", "has no candles"),
        ("GOLD.json", "[[1, 2, 3]]", "row 1: is a list of lists that are no candles; allowed: [time, open, high"),
        ("GOLD.json", '{"a": 1}', "is no JSON of candles: "),
        ("GOLD.json", '[{"a": 1}, {"a": 2}]', "has no column timestamp, open, high, low, close; found: a"),
        ("GOLD.csv.zip", "no zip", "cannot be read: File is not a zip file"),
        ("GOLD.feather", "no feather", "is not Feather: "),
        ("GOLD.csv", "a,b\n1,2\n", "has no column timestamp, open, high, low, close; found: a, b"),
        ("GOLD.csv", "1,2,3\n", "has no column timestamp, open, high, low, close; found: 1, 2, 3"),
        (
            "GOLD.csv",
            HEADER + "noon,1,1,1,1,1\n",
            "row 2: timestamp 'noon' is not a time; allowed: ISO 8601, 06.01.2025",
        ),
        ("GOLD.csv", HEADER + "17,1,1,1,1,1\n", "row 2: timestamp 17 is not a time"),
        ("GOLD.csv", HEADER + "1066-10-14T00:00Z,1,1,1,1,1\n", "row 2: timestamp '1066-10-14T00:00Z' is out of range"),
    ],
)
def test_what_is_no_file_of_candles_is_refused_in_one_line(
    tmp_path: Path, name: str, content: str, problem: str
) -> None:
    (tmp_path / name).write_text(content)

    assert problem in refusal(tmp_path / name)


def test_a_zip_of_two_files_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "GOLD.csv.zip", "w") as archive:
        archive.writestr("a.csv", HEADER)
        archive.writestr("b.csv", HEADER)

    assert "holds 2 files; allowed: one" in refusal(tmp_path / "GOLD.csv.zip")


@pytest.mark.parametrize("timeframe", ["3m", "6h", "8h", "12h", "1w"])
def test_files_of_every_timeframe_are_read(tmp_path: Path, timeframe: str) -> None:
    freq = {"3m": "3min", "1w": "7D"}.get(timeframe, timeframe)
    candles = candles_of(20, freq=freq)
    SHAPES["our own"].write(candles, tmp_path / "GOLD.csv")

    assert len(opens(tmp_path / "GOLD.csv", timeframe=timeframe)) == 20


def test_another_timeframe_is_named_with_its_setting(tmp_path: Path) -> None:
    SHAPES["our own"].write(candles_of(20, freq="3min"), tmp_path / "GOLD.csv")

    assert refusal(tmp_path / "GOLD.csv").endswith("most are 3m apart: ROLLOUT_TIMEFRAME=3m")


def test_a_growing_file_keeps_its_cut_last_row_back_in_any_shape(tmp_path: Path) -> None:
    SHAPES["MetaTrader 5"].write(candles_of(5), tmp_path / "GOLD.csv")
    whole = (tmp_path / "GOLD.csv").read_text()

    for cut in range(1, len(whole.splitlines()[-1])):
        (tmp_path / "GOLD.csv").write_text(whole[:-cut])
        source = open_source(f"{tmp_path}/GOLD.csv?tz=UTC", calendar=CALENDARS["always"])
        found = source.candles("GOLD", closed_by=END)
        assert found.index[-1] in (datetime(2025, 1, 6, 3, tzinfo=UTC), datetime(2025, 1, 6, 4, tzinfo=UTC))
        assert found.index.is_monotonic_increasing
        assert found.index[0] == datetime(2025, 1, 6, tzinfo=UTC) + timedelta()


@pytest.mark.parametrize(
    ("stem", "symbol"),
    [
        ("OANDA_XAUUSD, 60", "XAUUSD"),  # TradingView
        ("COMEX_DL_GC1!, 1D_3f4a2", "GC1"),
        ("BINANCE_BTCUSDT.P, 15 (1)", "BTCUSDT.P"),
        ("XAUUSD_H1_202501020100_202512312200", "XAUUSD"),  # MetaTrader
        ("XAUUSD.a_M15", "XAUUSD.a"),
        ("XAUUSD60", "XAUUSD"),
        ("XAUUSD_Candlestick_1_Hour_BID_01.01.2025-31.12.2025", "XAUUSD"),  # Dukascopy
        ("XAUUSD_1 Hour_Bid_2025.01.01_2025.12.31", "XAUUSD"),
        ("xauusd-h1-bid-2025-01-01-2025-12-31", "XAUUSD"),
        ("DAT_ASCII_XAUUSD_M1_2024", "XAUUSD"),  # HistData
        ("BTCUSDT-1h-2025-01", "BTCUSDT"),  # Binance
        ("BTC_USDT-1h", "BTC_USDT"),  # freqtrade
        ("Bitstamp_BTCUSD_d", "BTCUSD"),  # CryptoDataDownload
        ("XBTUSD_60", "XBTUSD"),  # Kraken
        ("xauusd_d", "XAUUSD"),  # Stooq
        ("gold", "gold"),
        ("US30", "US30"),
        ("my gold", "my-gold"),
    ],
)
def test_the_symbol_is_found_in_the_names_of_exports(stem: str, symbol: str) -> None:
    assert symbol_in(stem) == symbol
