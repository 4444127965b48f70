import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.domain.regimes import TREND_BARS, UNKNOWN, VOLATILITY_BARS, WARMUP_BARS, regimes
from strategy_core.domain.volatility import atr
from tests.domain.markets import candles_of, walk


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


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1_000), end=st.integers(WARMUP_BARS, 500), start=st.integers(0, 100))
def test_a_label_depends_on_its_own_window_alone(seed: int, end: int, start: int) -> None:
    """Later candles change nothing earlier (no look-ahead), nor do earlier ones beyond the warm-up."""
    candles = walk(bars=520, seed=seed)
    whole = regimes(candles)

    cut = regimes(candles.iloc[start:end])

    pd.testing.assert_series_equal(cut.iloc[WARMUP_BARS - 1 :], whole.iloc[start + WARMUP_BARS - 1 : end])
    assert (cut.iloc[: WARMUP_BARS - 1] == UNKNOWN).all()


def test_no_candles_have_no_labels() -> None:
    assert regimes(candles_of(np.empty((0, 4)))).tolist() == []
