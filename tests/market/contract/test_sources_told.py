"""What is asked of every source that somebody else feeds: files and servers meet the same market, the same faults."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from strategy_core.domain.candles import TIMEFRAMES, window_hash
from strategy_core.domain.errors import EvidenceUnavailable, InvalidCandles, RolloutError
from strategy_core.market.calendars import CALENDARS
from tests.market.contract.conftest import Tell, Told

HOUR = timedelta(hours=1)
START = datetime(2024, 1, 8, tzinfo=UTC)
NOW = START + 48 * HOUR


def hours(count: int) -> pd.DatetimeIndex:
    return pd.date_range(START, periods=count, freq="h")


def test_a_candle_that_is_still_being_made_is_not_told(told: Told) -> None:
    told.fill(hours(13))

    before = told.open(START + 13 * HOUR - timedelta(seconds=1)).candles("GOLD", closed_by=NOW, bars=5)
    after = told.open(START + 13 * HOUR).candles("GOLD", closed_by=NOW, bars=5)

    assert before.index[-1] == START + 11 * HOUR
    assert after.index[-1] == START + 12 * HOUR


def test_prices_come_as_they_were_told(told: Told) -> None:
    told.fill(hours(48))
    told.bars[START + 47 * HOUR] = (2034.125, 2036.5, 2031.25, 2035.0, 812.0)

    candles = told.open(NOW).candles("GOLD", closed_by=NOW, bars=1)

    assert candles.iloc[0].tolist() == [2034.125, 2036.5, 2031.25, 2035.0, 812.0]


@pytest.mark.parametrize(
    ("kind", "timeframe"),
    [(kind, name) for kind in ("file", "oanda", "ccxt") for name in TIMEFRAMES if (kind, name) != ("oanda", "3m")],
)
def test_candles_of_every_timeframe_open_on_the_grid_of_utc(tell: Tell, kind: str, timeframe: str) -> None:
    told = tell(kind)
    told.timeframe = timeframe
    grid = pd.date_range(START, periods=60, freq=told.delta)
    now = (grid[-1] + told.delta).to_pydatetime()

    source = told.fill(grid).open(now)

    assert source.candles("GOLD", closed_by=now, bars=40).index.equals(grid[-40:].as_unit("ns"))
    assert source.expected_at("GOLD", now) == grid[-1]


@pytest.mark.parametrize(
    ("sunday", "closes", "opens"),
    [
        ("2024-03-10", "2024-03-08 22:00", "2024-03-10 22:00"),  # New York changes its clock, Europe three weeks later
        ("2024-03-31", "2024-03-28 21:00", "2024-03-31 22:00"),  # Europe does, behind Good Friday
        ("2024-11-03", "2024-11-01 21:00", "2024-11-03 23:00"),
    ],
)
def test_weekends_and_changes_of_the_clock_are_neither_gaps_nor_silence(
    told: Told, sunday: str, closes: str, opens: str
) -> None:
    told.calendar = metals = CALENDARS["metals"]
    grid = pd.date_range(pd.Timestamp(sunday, tz="UTC") - pd.Timedelta(days=9), periods=12 * 24, freq="h")
    traded = grid[metals.open_candles(grid, HOUR)]
    back = datetime.fromisoformat(opens).replace(tzinfo=UTC)
    told_of = traded[: traded.tolist().index(pd.Timestamp(back)) + 1]
    before = told_of[-2].to_pydatetime()
    source = told.fill(told_of).open(back + HOUR)

    candles = source.candles("GOLD", closed_by=back + HOUR, bars=50)

    assert candles.index.equals(told_of[-50:].as_unit("ns"))
    assert before + HOUR == datetime.fromisoformat(closes).replace(tzinfo=UTC)
    assert source.expected_at("GOLD", back + HOUR - timedelta(minutes=1)) == before
    assert source.expected_at("GOLD", back + HOUR) == back
    assert source.candles("GOLD", closed_by=back, since=before + HOUR).empty


def test_hours_without_trades_stay_missing(told: Told) -> None:
    grid = hours(48)
    told.fill(grid.delete(range(10, 30)))

    candles = told.open(NOW).candles("GOLD", closed_by=NOW, bars=25)

    assert candles.index.equals(grid.delete(range(10, 30))[3:].as_unit("ns"))


def test_a_candle_revised_between_two_snapshots_changes_its_windows_hash_and_no_other(told: Told) -> None:
    told.fill(hours(48))
    first = told.open(NOW)
    told_first = first.candles("GOLD", closed_by=NOW, bars=20)

    told.bars[START + 40 * HOUR] = (1040.0, 1043.0, 1038.0, 1041.0, 50.0)
    then, now = (each.candles("GOLD", closed_by=NOW, bars=20) for each in (first, told.open(NOW)))

    assert window_hash(then) == window_hash(told_first)
    assert window_hash(now) != window_hash(told_first)
    assert window_hash(now.iloc[:12]) == window_hash(told_first.iloc[:12])
    assert now["high"].iloc[12] == 1043.0


def test_candles_out_of_order_are_put_in_order(told: Told) -> None:
    grid = hours(48)
    told.fill(grid)
    told.market.backwards = True

    assert told.open(NOW).candles("GOLD", closed_by=NOW, since=START).index.equals(grid.as_unit("ns"))


@pytest.mark.parametrize(
    ("bar", "problem"),
    [
        ((100.0, 99.0, 101.0, 100.0, 1.0), "high 99 is below low 101"),
        ((100.0, 101.0, 99.0, 102.0, 1.0), "close 102 is outside 99..101, its range"),
        ((0.0, 101.0, 99.0, 100.0, 1.0), "open is 0; a price is a number above zero"),
        ((-100.0, 101.0, -101.0, 100.0, 1.0), "open is -100"),
        ((100.0, "NaN", 99.0, 100.0, 1.0), "high is "),
        ((100.0, 101.0, "", 100.0, 1.0), "low is "),
        ((100.0, 101.0, "Infinity", 100.0, 1.0), "low is inf"),
    ],
)
def test_a_bar_that_cannot_be_is_refused_with_its_place(
    told: Told, bar: tuple[float, float, float, float, float], problem: str
) -> None:
    told.fill(hours(48))
    told.bars[START + 40 * HOUR] = bar
    source = told.open(NOW)

    for _ in range(2):  # asked again, it is no better
        with pytest.raises(InvalidCandles) as caught:
            source.candles("GOLD", closed_by=NOW, bars=20)
        assert problem in str(caught.value)
        assert "row" in str(caught.value)


def test_a_market_without_a_single_candle_is_no_closed_market(told: Told) -> None:
    source = told.open(NOW)

    questions: list[tuple[datetime | None, int | None]] = [(None, 300), (START, None), (None, None)]
    for since, bars in questions:
        with pytest.raises(RolloutError, match="no candles") as caught:
            source.candles("GOLD", closed_by=NOW, since=since, bars=bars)
        assert isinstance(caught.value, EvidenceUnavailable | InvalidCandles)


def test_a_history_that_began_lately_is_told_as_far_as_it_goes(told: Told) -> None:
    told.fill(hours(48))
    source = told.open(NOW)

    assert len(source.candles("GOLD", closed_by=NOW, bars=500)) == 48
    assert len(source.candles("GOLD", closed_by=NOW)) == 48
    assert source.candles("GOLD", closed_by=START).empty


def test_a_feed_that_stopped_is_expected_to_go_on(told: Told) -> None:
    source = told.fill(hours(48)).open(NOW + 5 * HOUR)

    assert source.candles("GOLD", closed_by=NOW + 5 * HOUR, bars=1).index[0] == NOW - HOUR
    assert source.expected_at("GOLD", NOW + 5 * HOUR) == NOW + 4 * HOUR
