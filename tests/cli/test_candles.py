"""`rollout candles check`: what is printed, as data, as a picture, and as a refusal."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pandas as pd
import pytest

from strategy_core.market.calendars import CALENDARS
from tests.cli.conftest import Rollout
from tests.market.shapes import SHAPES, candles_of, table

GOLDEN = """\
written as  text with tabs, a header
columns     <DATE> -> date, <TIME> -> clock, <OPEN> -> open, <HIGH> -> high, <LOW> -> low, <CLOSE> -> close, \
<TICKVOL> -> volume
not read    <VOL>, <SPREAD>
times       year first
time zone   Europe/Athens
stamped by  open (if a time is that of a candle's close: add stamp=close)
timeframe   1h

GOLD: 22 candles, 0 gaps, no repairs

  opens, UTC         open      high      low       close     volume
 ───────────────────────────────────────────────────────────────────
  2025-01-05 22:00   2650      2654.74   2642.97   2647.71   1867
  2025-01-05 23:00   2647.71   2650.38   2639.06   2641.73   3513
  2025-01-06 19:00   2695.65   2699.44   2691.95   2695.74   1727


export ROLLOUT_FEED='GOLD.csv?tz=Europe/Athens'
export ROLLOUT_TIMEFRAME=1h
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(shape: str, count: int = 22, name: str = "GOLD") -> str:
    file = Path(f"{name}{SHAPES[shape].suffix}")
    SHAPES[shape].write(candles_of(count), file)
    return str(file)


def trimmed(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def test_a_file_is_explained_with_the_feed_to_use(rollout: Rollout) -> None:
    said = rollout("candles", "check", f"{write('MetaTrader 5')}?tz=Europe/Athens")

    assert (said.code, said.err) == (0, "")
    assert trimmed(said.out) == GOLDEN


def test_a_refusal_is_one_line_with_the_option_to_add(rollout: Rollout) -> None:
    said = rollout("candles", "check", write("MetaTrader 5"))

    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: GOLD.csv, row 2: timestamp '2025-01-06 00:00:00' has no time zone; add tz=ZONE")
    assert said.err.count("\n") == 1


def test_a_program_gets_the_facts_of_each_symbol(rollout: Rollout) -> None:
    rows = [[name, f"2025-01-06T{at:02}:00Z", 1, 1, 1, 1, 9] for at in (0, 1, 3) for name in ("GLD", "BTC/USDT")]
    Path("two.csv").write_text(table([["symbol", "time", "open", "high", "low", "close", "vwap"], *rows]))

    said = rollout("candles", "check", "two.csv?symbol=GLD,BTC-USDT", "--json")

    assert said.data["feed"] == "two.csv?symbol=GLD,BTC-USDT"
    assert said.data["unread"] == ["vwap"]
    assert said.data["timeframe"] == "1h"
    assert [each["symbol"] for each in said.data["symbols"]] == ["GLD", "BTC-USDT"]
    assert said.data["symbols"][0] == {
        "symbol": "GLD",
        "candles": 3,
        "first": "2025-01-06T00:00:00+00:00",
        "last": "2025-01-06T03:00:00+00:00",
        "gaps": 1,
        "first_gap": "2025-01-06T02:00:00+00:00",
        "closures": 0,
        "repairs": {"duplicates": 0, "moved": 0, "unclosed": 0, "noise": 0},
        "held_back": "",
    }


def test_a_file_whose_name_is_no_symbol_is_given_one(rollout: Rollout) -> None:
    said = rollout("candles", "check", write("TradingView, ISO", name="OANDA_XAUUSD, 60"), "--json")

    assert said.data["feed"] == "OANDA_XAUUSD, 60.csv?symbol=XAUUSD"
    assert rollout("candles", "check", said.data["feed"], "--json").data["feed"] == said.data["feed"]


def test_hours_in_which_the_market_is_closed_are_no_gaps(rollout: Rollout) -> None:
    hours = pd.date_range("2025-01-06", "2025-01-27", freq="1h", tz="UTC", inclusive="left")
    week = hours[CALENDARS["metals"].open_candles(hours, pd.Timedelta("1h"))]
    lost = week.delete([100, 101, 102])
    rows = [[f"{at:%Y-%m-%dT%H:%MZ}", 1, 1, 1, 1] for at in lost]
    Path("GOLD.csv").write_text(table([["time", "open", "high", "low", "close"], *rows]))

    said = rollout("candles", "check", "GOLD.csv")

    gap = f"1 gap, the first at {week[100]:%Y-%m-%d %H:%M}"
    assert f"GOLD: {len(lost)} candles, {gap}, 15 weekends, breaks or holidays, no repairs" in said.out


@pytest.mark.parametrize(
    ("options", "doubt"),
    [
        ("", "3 candles lie in hours in which the market of metals is closed, the first at 2025-01-06 22:00, and none "
        "would if candles are stamped by their close: add stamp=close"),
        ("?stamp=close", ""),
    ],
)  # fmt: skip
def test_trading_hours_show_that_candles_are_stamped_by_their_close(rollout: Rollout, options: str, doubt: str) -> None:
    candles = candles_of(90)
    break_ends = candles.index.hour == 23  # type: ignore[attr-defined]
    SHAPES["our own"].write(candles[~break_ends], Path("GOLD.csv"))

    said = rollout("candles", "check", f"GOLD.csv{options}")

    assert said.code == 0
    assert said.err == (f"warning: {doubt}\n" if doubt else "")


def test_candles_in_closed_hours_are_told(rollout: Rollout) -> None:
    said = rollout("candles", "check", write("our own", 90))

    assert "check the zone, or set ROLLOUT_CALENDAR=always for a market that never closes" in said.err


@pytest.mark.parametrize("freq", ["1h", "1D"])
def test_candles_on_weekends_set_the_calendar(rollout: Rollout, freq: str) -> None:
    times = pd.date_range("2025-01-06", "2025-02-03", freq=freq, tz="UTC", inclusive="left")
    rows = [[f"{at:%Y-%m-%d}" if freq == "1D" else f"{at:%Y-%m-%dT%H:%MZ}", 1, 1, 1, 1] for at in times]
    Path("BTC.csv").write_text(table([["time", "open", "high", "low", "close"], *rows]))

    said = rollout("candles", "check", "BTC.csv")

    assert (said.code, said.err) == (0, "")
    assert said.out.endswith(f"export ROLLOUT_TIMEFRAME={freq.lower()}\nexport ROLLOUT_CALENDAR=always\n")
    assert f"BTC: {len(times)} candles, 0 gaps, no repairs" in said.out
    assert rollout("candles", "check", "BTC.csv", "--json").data["calendar"] == "always"


def test_dates_alone_and_a_row_that_is_held_back_are_told(rollout: Rollout) -> None:
    days = "".join(f"2025-01-{day:02},1,1,1,1\n" for day in range(6, 11))
    Path("GOLD.csv").write_text(f"Date,Open,High,Low,Close\n{days}2025-01-13,1,1\n")

    said = rollout("candles", "check", "GOLD.csv")

    assert said.err == ""  # what is printed is not logged too
    assert "time zone   days that end at 17:00 New York, by the calendar metals; tz=ZONE changes it" in said.out
    assert "last row held back: GOLD.csv, row 7: low is nan" in said.out
    assert "export ROLLOUT_TIMEFRAME=1d" in said.out


def test_a_picture_shows_the_closes_of_one_symbol(rollout: Rollout) -> None:
    said = rollout("candles", "check", write("our own", 20), "--picture", "gold.svg")

    assert said.code == 0
    texts = [label.text for label in ET.parse("gold.svg").getroot().iter("{http://www.w3.org/2000/svg}text")]
    assert "GOLD, 1h: 20 candles" in texts


@pytest.mark.parametrize(
    ("file", "picture", "problem"),
    [
        (".", "gold.svg", "is a folder; check its files one at a time"),
        ("GOLD.csv", "missing/gold.svg", "picture = 'missing/gold.svg' is not valid; allowed: a file in a folder"),
        ("none.csv", "gold.svg", "none.csv: no such file or folder"),
    ],
)
def test_what_cannot_be_checked_is_refused_and_draws_nothing(
    rollout: Rollout, folder: Path, file: str, picture: str, problem: str
) -> None:
    write("our own")

    said = rollout("candles", "check", file, "--picture", picture)

    assert (said.code, said.out) == (2, "")
    assert problem in said.err
    assert not list(folder.glob("**/*.svg"))


def test_a_picture_of_two_symbols_is_refused(rollout: Rollout) -> None:
    rows = [[name, f"2025-01-06T{at:02}:00Z", 1, 1, 1, 1] for at in range(3) for name in ("GLD", "SLV")]
    Path("two.csv").write_text(table([["symbol", "time", "open", "high", "low", "close"], *rows]))

    assert "one symbol: add symbol=NAME to the file" in rollout("candles", "check", "two.csv", "--picture", "x.svg").err


def test_repairs_are_told_by_the_check_alone(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(write("our own", 90))
    file.write_text(file.read_text() + file.read_text().splitlines()[-1] + "\n")
    monkeypatch.setenv("ROLLOUT_FEED", str(file))

    checked = rollout("candles", "check", str(file))
    decided = rollout("shadow")

    assert "duplicates dropped 1" in checked.out
    assert "candles.repaired" not in decided.err
    assert decided.code == 0
