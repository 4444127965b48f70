from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.domain.indicators import TREND_BARS, UNKNOWN, VOLATILITY_BARS, WARMUP_BARS, atr, regimes, runs
from tests.domain.markets import candles_of, walk
from tests.effort import examples


def market(*widths: tuple[int, float], drift: float) -> pd.DataFrame:
    """Return so many candles so wide, one stretch after the other, that drift by so much a candle."""
    half = np.repeat([width / 2 for _, width in widths], [count for count, _ in widths])
    closed = 5_000 + drift * np.arange(len(half))
    return candles_of(np.column_stack((closed, closed + half, closed - half, closed)))


@pytest.mark.parametrize(("drift", "trend"), [(0.1, "up"), (-0.1, "down")])
@pytest.mark.parametrize(("before", "now", "volatility"), [(1, 8, "high_vol"), (8, 1, "low_vol")])
def test_a_regime_is_a_change_of_width_and_the_drift(
    *, drift: float, trend: str, before: float, now: float, volatility: str
) -> None:
    labels = regimes(market((500, before), (30, now), drift=drift))

    assert labels.iloc[-1] == f"{volatility}/{trend}"


def test_labels_start_when_their_window_is_full() -> None:
    candles = walk(bars=WARMUP_BARS + 5, seed=4)

    labels = regimes(candles)

    assert (labels.iloc[: WARMUP_BARS - 1] == UNKNOWN).all()
    assert (labels.iloc[WARMUP_BARS - 1 :] != UNKNOWN).all()
    assert labels.index.equals(candles.index)


def test_labels_are_those_of_the_definition() -> None:
    """Each label worked out from its own window by plain numpy."""
    candles = walk(bars=WARMUP_BARS + 200, seed=5)

    labels = regimes(candles)

    average_range, close = atr(candles, 14), candles["close"].to_numpy()
    for at in range(WARMUP_BARS - 1, len(candles)):
        high = average_range[at] > np.median(average_range[at + 1 - VOLATILITY_BARS : at + 1])
        up = close[at] > close[at + 1 - TREND_BARS : at + 1].mean()
        assert labels.iloc[at] == f"{'high' if high else 'low'}_vol/{'up' if up else 'down'}"


@settings(max_examples=examples(30))
@given(seed=st.integers(0, 1_000), end=st.integers(WARMUP_BARS, 500), start=st.integers(0, 100))
def test_a_label_depends_on_its_own_window_alone(seed: int, end: int, start: int) -> None:
    """Later candles do not change earlier labels (no look-ahead), and neither do candles before the warm-up."""
    candles = walk(bars=520, seed=seed)
    whole = regimes(candles)

    cut = regimes(candles.iloc[start:end])

    pd.testing.assert_series_equal(cut.iloc[WARMUP_BARS - 1 :], whole.iloc[start + WARMUP_BARS - 1 : end])
    assert (cut.iloc[: WARMUP_BARS - 1] == UNKNOWN).all()


def test_no_candles_have_no_labels() -> None:
    assert regimes(candles_of(np.empty((0, 4)))).tolist() == []


HOUR = timedelta(hours=1)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)


@given(
    said=st.lists(st.sampled_from(["low_vol/up", "high_vol/up", UNKNOWN, None]), max_size=30),
    before=st.integers(0, 5),
)
def test_stretches_say_of_each_hour_what_its_candle_says(said: list[str | None], before: int) -> None:
    """None is an hour without a candle. The period begins some candles before the first, or at it."""
    hours = [NOON + place * HOUR for place in range(len(said))]
    there = [place for place, label in enumerate(said) if label is not None]
    labels = pd.Series([said[place] for place in there], pd.DatetimeIndex([hours[place] for place in there], tz="UTC"))

    found = runs(labels.astype("str"), start=NOON - before * HOUR, timeframe=HOUR)

    assert found.since[0] == (NOON - before * HOUR).timestamp()
    assert (np.diff(found.since) > 0).all()
    for hour, label in zip(hours, said, strict=True):
        place = int(np.searchsorted(found.since, hour.timestamp(), side="right")) - 1
        assert found.labels[place] == (label or UNKNOWN)


def test_candles_before_the_period_are_no_stretch_of_it() -> None:
    hours = pd.date_range(NOON, periods=5, freq="1h")

    found = runs(pd.Series(["a", "a", "b", "b", "c"], hours), start=NOON + 3 * HOUR, timeframe=HOUR)

    assert [(since - NOON.timestamp()) / 3600 for since in found.since] == [3, 4, 5]
    assert found.labels == ("b", "c", UNKNOWN)
