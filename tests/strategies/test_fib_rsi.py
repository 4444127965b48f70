"""`decide_many` is `decide` on every window, RSI is TA-Lib's, and the rule is its own mirror image."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import talib
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from strategy_core.domain.strategy import Action, Context, Decision, checked_decision
from strategy_core.strategies import fib_rsi
from strategy_core.strategies.fib_rsi import FibRsi, FibRsiParams
from tests.effort import examples

CONTEXT = Context("GOLD", "1h", pd.Timestamp("2026-01-05", tz="UTC").to_pydatetime())
QUICK = FibRsiParams(rsi_period=3, fib_lookback_bars=10)


def frame(close: np.ndarray, spread: float = 1.0) -> pd.DataFrame:
    opened = np.concatenate([close[:1], close[:-1]])
    index = pd.date_range("2026-01-05", periods=len(close), freq="h", tz="UTC")
    data = {"open": opened, "high": np.maximum(opened, close) + spread, "low": np.minimum(opened, close) - spread}
    return pd.DataFrame({**data, "close": close, "volume": np.nan}, index=index)


def walk(bars: int, seed: int = 7) -> pd.DataFrame:
    return frame(1800.0 + np.random.default_rng(seed).normal(0.0, 2.0, bars).cumsum())


def each(candles: pd.DataFrame, params: FibRsiParams) -> list[Decision]:
    bars = FibRsi().warmup_bars(params)
    ends = range(bars, len(candles) + 1)
    return [FibRsi().decide(candles.iloc[end - bars : end], params, CONTEXT) for end in ends]


def assert_same(one_by_one: list[Decision], at_once: list[Decision]) -> None:
    assert [d.action for d in one_by_one] == [d.action for d in at_once]
    for single, many in zip(one_by_one, at_once, strict=True):
        assert many.reason == single.reason
        assert many.confidence == pytest.approx(single.confidence, abs=1e-9)
        assert many.features == pytest.approx(single.features, abs=1e-9)


def test_all_windows_at_once_are_each_window_alone() -> None:
    candles = walk(900)

    at_once = FibRsi().decide_many(candles, FibRsiParams(), CONTEXT)

    assert_same(each(candles, FibRsiParams()), at_once)
    assert {decision.action for decision in at_once} == set(Action)
    assert all(checked_decision(decision) for decision in at_once)


@settings(max_examples=examples(40))
@given(
    st.lists(st.integers(-3, 3), min_size=45, max_size=90),
    st.integers(2, 4),
    st.integers(5, 60),
    st.sampled_from([0.0, 0.5]),
)
def test_they_are_the_same_on_prices_full_of_ties(moves: list[int], period: int, lookback: int, spread: float) -> None:
    """Whole-number prices put RSI and the range exactly on their thresholds, where a last bit would decide."""
    candles = frame(1000.0 + np.cumsum(moves, dtype=float), spread)
    params = FibRsiParams(rsi_period=period, fib_lookback_bars=lookback, rsi_oversold=50.0, rsi_overbought=50.1)

    assert_same(each(candles, params), FibRsi().decide_many(candles, params, CONTEXT))


def test_rsi_is_talibs_on_the_window() -> None:
    candles = walk(160)

    decision = FibRsi().decide(candles, FibRsiParams(), CONTEXT)

    assert decision.features["rsi"] == talib.RSI(candles["close"].to_numpy()[-150:], 14)[-1]


def test_a_longer_history_changes_nothing() -> None:
    candles = walk(400)

    assert FibRsi().decide(candles, FibRsiParams(), CONTEXT) == FibRsi().decide(candles[-150:], FibRsiParams(), CONTEXT)


def test_the_mirror_image_of_a_market_gets_the_mirror_image_of_a_decision() -> None:
    candles = walk(900)
    mirrored = frame(3600.0 - candles["close"].to_numpy())
    opposite = {Action.BUY: Action.SELL, Action.SELL: Action.BUY, Action.HOLD: Action.HOLD}

    straight = FibRsi().decide_many(candles, FibRsiParams(), CONTEXT)
    mirror = FibRsi().decide_many(mirrored, FibRsiParams(), CONTEXT)

    assert [opposite[decision.action] for decision in straight] == [decision.action for decision in mirror]
    assert [d.confidence for d in straight] == pytest.approx([d.confidence for d in mirror])


def test_it_buys_once_when_exhaustion_meets_the_discount() -> None:
    """On the candle that takes RSI below its threshold, not on those that keep it there."""
    falling = np.concatenate([1800.0 + np.tile([0.0, 1.0], 20), 1800.0 - 5.0 * np.arange(1, 6)])

    decisions = FibRsi().decide_many(frame(falling), QUICK, CONTEXT)

    assert [decision.action for decision in decisions[-5:]] == [Action.BUY] + [Action.HOLD] * 4
    assert decisions[-5].reason == "oversold in the discount"
    assert 0.5 < decisions[-5].confidence <= 1.0


def test_no_signal_without_the_discount() -> None:
    """RSI falls through its threshold, but the close still stands high in a wide range."""
    slip = np.concatenate([1000.0 + 20.0 * np.arange(36), [1690.0, 1680.0, 1670.0, 1660.0]])
    params = FibRsiParams(rsi_period=3, fib_lookback_bars=30, rsi_oversold=45.0)

    decisions = FibRsi().decide_many(frame(slip), params, CONTEXT)

    rsi = [decision.features["rsi"] for decision in decisions]
    assert min(float(value or 0.0) for value in rsi) < 45.0
    assert {decision.action for decision in decisions} == {Action.HOLD}


def test_a_market_that_stands_still_is_neutral() -> None:
    """TA-Lib calls it 0, the same as an endless fall."""
    still = frame(np.full(60, 1800.0), spread=0.0)

    decision = FibRsi().decide(still, QUICK, CONTEXT)

    assert decision.action is Action.HOLD
    assert decision.features == {
        "rsi": 50.0, "fib_position": 0.5, "fib_level": 0.5, "fib_level_distance": 0.0,
    }  # fmt: skip
    assert_same(each(still, QUICK), FibRsi().decide_many(still, QUICK, CONTEXT))


def test_warm_up_is_ten_periods_or_the_lookback() -> None:
    assert FibRsi().warmup_bars(FibRsiParams()) == 150
    assert FibRsi().warmup_bars(FibRsiParams(rsi_period=5, fib_lookback_bars=200)) == 200


def test_too_few_candles_are_no_decisions() -> None:
    assert FibRsi().decide_many(walk(149), FibRsiParams(), CONTEXT) == []


@pytest.mark.parametrize(
    "config",
    [
        {"rsi_period": 1},
        {"rsi_period": 14.5},
        {"rsi_overbought": 100.0},
        {"rsi_oversold": 0.0},
        {"rsi_oversold": float("nan")},
        {"rsi_oversold": 50.0, "rsi_overbought": 50.0},
        {"fib_lookback_bars": 4},
        {"stop": 1},
    ],
)
def test_a_config_out_of_bounds_is_refused(config: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        FibRsiParams.model_validate(config)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("fib_rsi.py", "a0a319c2c3add1ed8c9a8157532a4b6044501bb133ef23ea4a4f73632d551654"),
        ("__init__.py", "82b6f33f8dc514d352a7022d8d1ee5c897c8c49bb1cab0838b857f4de2b972c9"),
    ],
)
def test_the_source_of_fib_rsi_has_its_registered_bytes(name: str, digest: str) -> None:
    """Both files are part of the fingerprint of every registered fib_rsi version.

    After any change, even of a comment, those versions refuse to run and have to be registered as new ones.
    """
    source = Path(fib_rsi.__file__).with_name(name).read_bytes()

    assert sha256(source).hexdigest() == digest
