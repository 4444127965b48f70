"""The made-up market is one history, looks like a market, and gives exhaustion its modest edge."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis

from strategy_core.domain.candles import COLUMNS, PRICES, TIMEFRAMES, checked_candles
from strategy_core.domain.errors import InvalidSetting, NaiveTime, UnknownSymbol
from strategy_core.domain.scoring import ScoringRule, score
from strategy_core.market.calendars import NEW_YORK, WeeklySession
from strategy_core.market.synthetic import DAYS, FIRST_CANDLE, INSTRUMENTS, SyntheticSource

START = FIRST_CANDLE
END = datetime(2100, 1, 1, tzinfo=UTC)
MARKET = SyntheticSource()
ALL = {symbol: MARKET.candles(symbol, closed_by=END) for symbol in MARKET.symbols()}
GOLD = ALL["GOLD"]
minutes = st.integers(-1000, 60 * 24 * (DAYS + 10))


@pytest.mark.parametrize(
    "timeframe",
    [
        timeframe if timeframe in ("1h", "1d") else pytest.param(timeframe, marks=pytest.mark.full)
        for timeframe in sorted(TIMEFRAMES)
    ],
)
def test_every_candle_of_every_timeframe_is_sound(timeframe: str) -> None:
    source = SyntheticSource(tuple(INSTRUMENTS), timeframe=timeframe, days=21)

    for symbol in source.symbols():
        candles = source.candles(symbol, closed_by=END)
        checked = checked_candles(candles, timeframe=timeframe, source=symbol)

        pd.testing.assert_frame_equal(checked.candles, candles, check_exact=True, check_freq=False)
        assert list(candles.columns) == list(COLUMNS)
        assert not checked.repairs


@given(minutes, minutes, st.none() | st.integers(0, 300))
def test_a_part_is_the_same_whatever_is_asked(since: int, until: int, bars: int | None) -> None:
    first, last = START + timedelta(minutes=since), START + timedelta(minutes=until)

    part = SyntheticSource(("GOLD",)).candles("GOLD", closed_by=last, since=first, bars=bars)

    whole = GOLD[(GOLD.index >= first) & (GOLD.index <= last - timedelta(hours=1))]
    assert part.equals(whole if bars is None else whole.iloc[len(whole) - min(bars, len(whole)) :])


@given(st.integers(1, 120), st.sampled_from(sorted(INSTRUMENTS)))
def test_a_longer_world_begins_as_a_shorter_one(days: int, symbol: str) -> None:
    short = SyntheticSource((symbol,), days=days).candles(symbol, closed_by=END)
    long = SyntheticSource(("ZINC", symbol), days=days + 50).candles(symbol, closed_by=END)

    assert len(short) < len(long)
    assert long.iloc[: len(short)].equals(short)


def test_the_seed_and_the_symbol_make_the_history() -> None:
    other = SyntheticSource(("GOLD",), seed=8).candles("GOLD", closed_by=END)
    moves = {symbol: candles["close"].pct_change().round(6) for symbol, candles in ALL.items()}

    assert not other["close"].equals(GOLD["close"])
    assert not any(moves["GOLD"].equals(moves[symbol]) for symbol in ALL if symbol != "GOLD")


def test_a_seed_never_changes_its_history() -> None:
    """Decisions and window hashes are stored: after an update the same seed must be the same market."""
    assert GOLD.iloc[0, :5].tolist() == [2060.0, 2061.63, 2058.9, 2061.46, 558.0]
    assert GOLD.iloc[5000, :5].tolist() == [2616.54, 2622.89, 2615.81, 2622.77, 812.0]


def test_the_market_keeps_new_yorks_hours() -> None:
    open_hours = WeeklySession().open_candles(pd.date_range(START, periods=24 * DAYS, freq="h"), timedelta(hours=1))

    assert len(GOLD) == open_hours.sum()
    assert all(candles.index.equals(GOLD.index) for candles in ALL.values())
    assert 17 not in pd.DatetimeIndex(GOLD.index).tz_convert(NEW_YORK).hour


@given(minutes)
def test_the_calendar_says_what_is_expected(minute: int) -> None:
    now = START + timedelta(minutes=minute)

    expected = MARKET.expected_at("GOLD", now)

    last = min(WeeklySession().last_open_candle(now, timedelta(hours=1)), GOLD.index[-1])
    assert expected == (last if last >= START else None)


def test_shocks_are_shared_heavy_tailed_and_come_in_busy_times() -> None:
    gold, silver, natgas = (np.diff(np.log(ALL[symbol]["close"])) for symbol in ("GOLD", "SILVER", "NATGAS"))
    daily_size = pd.Series(np.abs(gold)).rolling(23).mean()

    assert np.corrcoef(gold, silver)[0, 1] > 0.4
    assert 0.0 < np.corrcoef(gold, natgas)[0, 1] < 0.3
    assert kurtosis(gold) > 2.0
    assert daily_size.autocorr(23) > 0.2


def test_the_spread_widens_in_quiet_hours() -> None:
    spread = (GOLD["ask_close"] - GOLD["bid_close"]) / GOLD["close"]
    by_hour = spread.groupby(pd.DatetimeIndex(GOLD.index).tz_convert(NEW_YORK).hour).mean()

    assert by_hour[18] > 2 * by_hour[10]
    assert 0.0001 < spread.mean() < 0.0005


def test_each_side_is_half_the_spread_away() -> None:
    for price in PRICES:
        middle = (GOLD[f"bid_{price}"] + GOLD[f"ask_{price}"]) / 2
        assert np.allclose(middle, GOLD[price], atol=1e-9)


def test_weekends_open_with_a_gap_and_hours_do_not() -> None:
    gap = (GOLD["open"] / GOLD["close"].shift() - 1).abs()
    hours = np.append(1, np.diff(pd.DatetimeIndex(GOLD.index).asi8) // 3_600_000_000_000)

    assert gap[hours == 1].max() == 0.0
    assert gap[hours > 24].mean() > 2 * gap[hours == 2].mean() > 0.0


def test_trading_against_exhaustion_has_a_modest_edge() -> None:
    """The demonstration needs a market in which its strategy is worth ramping, and evidence accrues in weeks."""
    wins, results, days = [], [], 0
    for candles in ALL.values():
        rsi = pd.Series(talib.RSI(candles["close"].to_numpy(), 14))
        side = ((rsi <= 30) & (rsi.shift() > 30)).astype(int) - ((rsi >= 70) & (rsi.shift() < 70)).astype(int)
        positions = np.flatnonzero(side)
        trades = score(candles, positions, side.to_numpy()[positions], ScoringRule())
        results.append(trades.r_multiple[trades.closed])
        wins.append(results[-1] > 0)
        days += DAYS

    assert 0.54 < np.concatenate(wins).mean() < 0.58
    assert 0.05 < np.concatenate(results).mean() < 0.2
    assert 0.4 < len(np.concatenate(results)) / days < 1.5


def test_what_cannot_be_made_is_refused() -> None:
    with pytest.raises(UnknownSymbol, match="no candles of 'TIN'; known symbols: ALUMINIUM"):
        SyntheticSource(("GOLD", "TIN"))
    with pytest.raises(UnknownSymbol, match="no candles of 'ZINC'; known symbols: GOLD"):
        SyntheticSource(("GOLD",)).candles("ZINC", closed_by=END)
    with pytest.raises(InvalidSetting, match="days = 3661"):
        SyntheticSource(days=3661)
    with pytest.raises(NaiveTime, match="start"):
        SyntheticSource(start=datetime(2024, 1, 1))  # noqa: DTZ001


def test_a_world_may_start_in_the_middle_of_an_hour() -> None:
    source = SyntheticSource(("GOLD",), start=datetime(2024, 1, 9, 10, 20, tzinfo=UTC), days=1)

    assert source.candles("GOLD", closed_by=END).index[0] == datetime(2024, 1, 9, 11, tzinfo=UTC)
