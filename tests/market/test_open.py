"""One string names a feed; what it cannot name is refused with what it could."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from strategy_core.domain.errors import InvalidCandles, InvalidSetting, InvalidTimeframe, RolloutError, UnknownSymbol
from strategy_core.market.calendars import CALENDARS
from strategy_core.market.open import open_source
from strategy_core.settings import Settings

END = datetime(2100, 1, 1, tzinfo=UTC)


def test_synthetic_alone_is_ten_symbols_gold_first() -> None:
    source = open_source("synthetic")

    assert len(source.symbols()) == 10
    assert source.symbols()[0] == "GOLD"
    assert source.timeframe == "1h"


@pytest.mark.parametrize(
    ("feed", "symbols"),
    [
        ("synthetic:?symbols=2", ("GOLD", "SILVER")),
        ("synthetic?symbols=2", ("GOLD", "SILVER")),
        ("synthetic:SILVER?symbols=3", ("SILVER", "GOLD", "PLATINUM")),
        ("synthetic:ZINC?symbols=1", ("ZINC",)),
    ],
)
def test_a_feed_names_its_first_symbol_and_how_many(feed: str, symbols: tuple[str, ...]) -> None:
    assert open_source(feed).symbols() == symbols


def test_a_symbol_asked_for_is_served_alone() -> None:
    assert open_source("synthetic:GOLD?symbols=5", symbol="COPPER").symbols() == ("COPPER",)


def test_options_reach_the_market() -> None:
    source = open_source("synthetic:GOLD?seed=3&start=2025-03-03&days=7", timeframe="15m")

    candles = source.candles("GOLD", closed_by=END)

    assert source.name == "synthetic, seed 3"
    assert candles.index[0] == datetime(2025, 3, 3, tzinfo=UTC)
    assert candles.index[-1] == datetime(2025, 3, 9, 23, 45, tzinfo=UTC)


@pytest.mark.parametrize(
    ("feed", "error", "says"),
    [
        ("synthetic:GOLD?sead=3", InvalidSetting, "feed option sead = '3' is not valid; allowed: seed, symbols, start"),
        ("synthetic:GOLD?seed=many", InvalidSetting, "feed option seed = 'many'"),
        ("synthetic:GOLD?seed=", InvalidSetting, "feed option seed = ''"),
        ("synthetic:GOLD?seed=-1", InvalidSetting, "seed = -1 is not valid; allowed: 0 or more"),
        ("synthetic:GOLD?symbols=13", InvalidSetting, "feed option symbols = '13'"),
        ("synthetic:GOLD?days=0", InvalidSetting, "days = 0 is not valid; allowed: 1 to 3660"),
        ("synthetic:GOLD?start=1766-10-14", InvalidSetting, "the years 1970 to 2200"),
        ("synthetic:TIN", UnknownSymbol, "no candles of 'TIN'; known symbols: ALUMINIUM, BRENT"),
        ("http://[x", InvalidSetting, "feed = 'http://[x' is not valid; allowed: synthetic:…, or the path of"),
        ("gold.csv", InvalidCandles, "gold.csv: no such file or folder"),
    ],
)
def test_a_feed_that_cannot_be_is_refused(feed: str, error: type[RolloutError], says: str) -> None:
    with pytest.raises(error) as caught:
        open_source(feed)

    assert says in str(caught.value)


@pytest.mark.parametrize("feed", ["synthetic", "."])
def test_an_unknown_timeframe_is_refused_at_once(feed: str) -> None:
    with pytest.raises(InvalidTimeframe):
        open_source(feed, timeframe="90m")


def test_a_path_is_read_as_of_the_moment_it_is_opened(tmp_path: Path) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text("timestamp,open,high,low,close\n2024-01-08T00:00Z,1,1,1,1\n2024-01-08T01:00Z,1,1,1,1\n")

    source = open_source(str(file), now=datetime(2024, 1, 8, 1, 59, tzinfo=UTC))

    assert source.symbols() == ("GOLD",)
    assert len(source.candles("GOLD", closed_by=END)) == 1


def test_a_path_is_missed_past_its_end_only_with_a_calendar(tmp_path: Path) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text("timestamp,open,high,low,close\n2024-01-08T00:00Z,1,1,1,1\n2024-01-08T01:00Z,1,1,1,1\n")

    live, ended = open_source(str(file), calendar=CALENDARS["metals"]), open_source(str(file))

    assert live.expected_at("GOLD", datetime(2024, 1, 8, 9, tzinfo=UTC)) == datetime(2024, 1, 8, 8, tzinfo=UTC)
    assert ended.expected_at("GOLD", datetime(2024, 1, 8, 9, tzinfo=UTC)) == datetime(2024, 1, 8, 1, tzinfo=UTC)


def test_an_installation_misses_candles_of_a_live_file_but_none_past_the_end_of_a_replay(tmp_path: Path) -> None:
    file = tmp_path / "GOLD.csv"
    file.write_text("timestamp,open,high,low,close\n2024-01-12T19:00Z,1,1,1,1\n2024-01-12T20:00Z,1,1,1,1\n")
    last, saturday = datetime(2024, 1, 12, 20, tzinfo=UTC), datetime(2024, 1, 13, 12, tzinfo=UTC)

    metals = Settings(feed=str(file)).open_candles(saturday)
    always = Settings(feed=str(file), calendar="always").open_candles(saturday)
    replayed = Settings(feed=str(file), replay_from=last).open_candles(saturday)

    assert metals.expected_at("GOLD", saturday) == last + timedelta(hours=1)
    assert always.expected_at("GOLD", saturday) == saturday - timedelta(hours=1)
    assert replayed.expected_at("GOLD", saturday) == last
