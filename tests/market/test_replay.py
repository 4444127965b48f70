"""A replay tells one time in every process, and shows nothing that lies ahead of it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.errors import InvalidSetting, NaiveTime, TimeOutOfRange, UnknownSymbol
from strategy_core.market.open import open_source
from strategy_core.market.source import ReplayClock, ReplaySource
from strategy_core.market.synthetic import SyntheticSource

STARTED = datetime(2026, 5, 1, 12, tzinfo=UTC)
FROM = datetime(2024, 1, 8, tzinfo=UTC)
CLOCK = ReplayClock(STARTED, FROM, speed=3600)
MARKET = SyntheticSource(("GOLD",), days=30)
HOUR = timedelta(hours=1)


def test_an_hour_passes_in_a_second_at_speed_3600() -> None:
    assert CLOCK.now(STARTED) == FROM
    assert CLOCK.now(STARTED + timedelta(seconds=10)) == FROM + 10 * HOUR


def test_the_clock_stands_still_before_the_start() -> None:
    assert CLOCK.now(STARTED - timedelta(days=1)) == FROM


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_the_clock_never_runs_backwards(first: int, second: int) -> None:
    earlier, later = (STARTED + timedelta(milliseconds=ms) for ms in sorted((first, second)))

    assert CLOCK.now(earlier) <= ReplayClock(STARTED, FROM, speed=3600).now(later)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    with pytest.raises(InvalidSetting, match="speed"):
        ReplayClock(STARTED, FROM, speed)


@pytest.mark.parametrize("days", [1, 30, 73_000])
def test_a_speed_that_leads_out_of_time_is_refused(days: int) -> None:
    with pytest.raises(InvalidSetting, match=r"replay_speed = 1000000 is not valid; allowed: a speed at which"):
        ReplayClock(STARTED, FROM, speed=1_000_000).now(STARTED + timedelta(days=days))


def test_a_replay_from_a_time_that_no_candle_can_have_is_refused() -> None:
    with pytest.raises(TimeOutOfRange, match="replay_from 9999-12-31"):
        ReplayClock(STARTED, datetime(9999, 12, 31, tzinfo=UTC))


def test_naive_times_are_refused() -> None:
    naive = datetime(2024, 1, 1)  # noqa: DTZ001
    with pytest.raises(NaiveTime, match="started_at"):
        ReplayClock(naive, FROM)
    with pytest.raises(NaiveTime, match="replay_from"):
        ReplayClock(STARTED, naive)
    with pytest.raises(NaiveTime, match="real_now"):
        CLOCK.now(naive)


@given(st.integers(0, 40 * 24 * 60), st.integers(0, 40 * 24 * 60))
def test_a_replay_shows_what_had_closed_by_its_time_and_no_more(minutes: int, asked: int) -> None:
    now, closed_by = (datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=m) for m in (minutes, asked))
    replay = ReplaySource(MARKET, now)

    seen = replay.candles("GOLD", closed_by=closed_by)

    assert seen.equals(MARKET.candles("GOLD", closed_by=min(now, closed_by)))
    assert replay.expected_at("GOLD", closed_by) == (seen.index[-1] if len(seen) else None)


def test_a_replay_takes_after_its_source() -> None:
    replay = ReplaySource(MARKET, CLOCK.now(STARTED))

    assert replay.name == "replay of synthetic, seed 7"
    assert replay.timeframe == "1h"
    assert replay.symbols() == ("GOLD",)
    with pytest.raises(UnknownSymbol, match="no candles of 'TIN'; known symbols: GOLD"):
        replay.candles("TIN", closed_by=FROM)


def test_since_and_bars_are_passed_on() -> None:
    replay = ReplaySource(MARKET, FROM + 10 * HOUR)

    assert len(replay.candles("GOLD", closed_by=FROM + 24 * HOUR, since=FROM)) == 10
    assert replay.candles("GOLD", closed_by=FROM + 24 * HOUR, bars=1).index[0] == FROM + 9 * HOUR


def test_a_replay_that_ran_out_expects_the_last_candle_there_is() -> None:
    end = MARKET.candles("GOLD", closed_by=FROM + timedelta(days=900)).index[-1]

    assert ReplaySource(MARKET, FROM + timedelta(days=900)).expected_at("GOLD", FROM + timedelta(days=800)) == end


def test_a_replayed_file_that_ran_out_expects_its_last_row(tmp_path: Path) -> None:
    candles = MARKET.candles("GOLD", closed_by=FROM)
    candles.to_csv(tmp_path / "GOLD.csv")

    replay = ReplaySource(open_source(str(tmp_path / "GOLD.csv")), FROM + timedelta(days=900))

    assert replay.expected_at("GOLD", FROM + timedelta(days=800)) == candles.index[-1]
