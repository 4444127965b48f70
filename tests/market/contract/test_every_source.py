"""What the rollout may rely on, whichever source its candles come from."""

from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strategy_core.domain.candles import COLUMNS, window_hash
from strategy_core.domain.errors import NaiveTime, UnknownSymbol
from strategy_core.market.source import CandleSource
from tests.effort import examples

HOUR = timedelta(hours=1)
NOON = datetime(2024, 2, 14, 12, tzinfo=UTC)  # a Wednesday: every source has candles around it
moments = st.datetimes(datetime(2024, 1, 10), datetime(2024, 3, 9), timezones=st.just(UTC))  # noqa: DTZ001
questions = settings(max_examples=examples(25), suppress_health_check=[HealthCheck.function_scoped_fixture])


def test_candles_are_as_the_domain_describes_them(source: CandleSource) -> None:
    candles = source.candles("GOLD", closed_by=NOON, bars=100)

    times = pd.DatetimeIndex(candles.index)
    assert str(times.dtype) == "datetime64[ns, UTC]"
    assert times.name == "timestamp"
    assert times.is_monotonic_increasing
    assert times.is_unique
    assert list(candles.columns) == [name for name in COLUMNS if name in candles.columns]
    assert list(candles.columns)[:5] == ["open", "high", "low", "close", "volume"]
    assert {str(dtype) for dtype in candles.dtypes} == {"float64"}


def test_an_empty_answer_has_the_same_shape(source: CandleSource) -> None:
    some = source.candles("GOLD", closed_by=NOON, bars=3)

    none = source.candles("GOLD", closed_by=NOON, bars=0)

    assert none.empty
    assert none.dtypes.equals(some.dtypes)
    assert none.index.dtype == some.index.dtype


@questions
@given(closed_by=moments)
def test_no_candle_is_told_before_it_has_closed(source: CandleSource, closed_by: datetime) -> None:
    candles = source.candles("GOLD", closed_by=closed_by, bars=5)

    assert len(candles) == 5
    assert candles.index[-1] + HOUR <= closed_by


@questions
@given(closed_by=moments, hours=st.integers(0, 400), bars=st.integers(0, 300))
def test_a_window_is_the_last_bars_since_then(source: CandleSource, closed_by: datetime, hours: int, bars: int) -> None:
    since = closed_by - hours * HOUR
    every = source.candles("GOLD", closed_by=closed_by, since=datetime(2024, 1, 1, tzinfo=UTC))

    found = source.candles("GOLD", closed_by=closed_by, since=since, bars=bars)

    after = every[every.index >= since]
    pd.testing.assert_frame_equal(found, after.iloc[max(0, len(after) - bars) :])
    pd.testing.assert_frame_equal(source.candles("GOLD", closed_by=closed_by, since=since), after)
    pd.testing.assert_frame_equal(
        source.candles("GOLD", closed_by=closed_by, bars=bars), every.iloc[max(0, len(every) - bars) :]
    )


def test_the_same_question_has_the_same_answer_in_whatever_order_they_come(source: CandleSource) -> None:
    few = window_hash(source.candles("GOLD", closed_by=NOON, bars=10))
    many = source.candles("GOLD", closed_by=NOON, bars=400)

    assert window_hash(many.iloc[-10:]) == few
    assert window_hash(source.candles("GOLD", closed_by=NOON, bars=10)) == few
    assert source.candles("GOLD", closed_by=NOON, bars=400).equals(many)


def test_the_past_does_not_change_with_what_is_known_later(source: CandleSource) -> None:
    then = source.candles("GOLD", closed_by=NOON - 200 * HOUR, bars=50)

    now = source.candles("GOLD", closed_by=NOON, since=then.index[0].to_pydatetime())

    assert now.iloc[:50].equals(then)


def test_frames_are_the_callers_own(source: CandleSource) -> None:
    candles = source.candles("GOLD", closed_by=NOON, bars=10)
    before = candles.copy()

    candles.loc[:, "close"] = 0.0

    assert source.candles("GOLD", closed_by=NOON, bars=10).equals(before)


def test_what_is_expected_has_closed_and_is_there(source: CandleSource) -> None:
    expected = source.expected_at("GOLD", NOON)

    assert expected == NOON - HOUR
    assert source.candles("GOLD", closed_by=NOON, bars=1).index[0] == expected


def test_what_a_source_has_not_is_named(source: CandleSource) -> None:
    assert source.symbols() == ("GOLD",)
    assert source.timeframe == "1h"
    with pytest.raises(UnknownSymbol, match="no candles of 'TIN'; known symbols: GOLD"):
        source.candles("TIN", closed_by=NOON)
    with pytest.raises(UnknownSymbol):
        source.expected_at("TIN", NOON)


def test_a_naive_moment_is_refused(source: CandleSource) -> None:
    with pytest.raises(NaiveTime):
        source.candles("GOLD", closed_by=datetime(2024, 2, 14))  # noqa: DTZ001
    with pytest.raises(NaiveTime):
        source.candles("GOLD", closed_by=NOON, since=datetime(2024, 2, 1))  # noqa: DTZ001
