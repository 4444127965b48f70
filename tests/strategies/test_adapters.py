"""Strategies of freqtrade and backtesting.py decide as they do there, on the last candle of their window."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.errors import InvalidConfig, InvalidDecision, InvalidEntryPoint
from strategy_core.domain.strategy import Action, Context, Decision, Strategy, checked_decision
from strategy_core.strategies.adapters import Backtesting, Freqtrade
from strategy_core.strategies.loading import load, validated
from tests.strategies.foreign_code import SmaCross, Turns

CODE = "tests.strategies.foreign_code"
HOURS = pd.date_range("2026-01-05", periods=60, freq="h", tz="UTC", name="timestamp")


def candles(closes: list[float]) -> pd.DataFrame:
    close = np.array(closes)
    columns = {"open": close, "high": close + 1, "low": close - 1, "close": close, "volume": np.nan}
    return pd.DataFrame(columns, index=HOURS[: len(close)])


RISING = [100.0 + hour for hour in range(12)]
FALLING = [100.0 - hour for hour in range(12)]
FLAT_THEN_UP = [100.0, *(99.0 - hour for hour in range(9)), 105.0]


def decided(name: str, closes: list[float], timeframe: str = "1h", **config: Any) -> Decision:
    strategy: Strategy = load(f"{CODE}:{name}")
    frame = candles(closes)
    params = validated(strategy.Params, config, name)
    decision = strategy.decide(frame, params, Context("GOLD", timeframe, frame.index[-1]))
    return checked_decision(decision)


def config_of(name: str, **config: Any) -> dict[str, Any]:
    return validated(load(f"{CODE}:{name}").Params, config, name).model_dump()


def test_the_class_variables_and_parameters_are_the_config() -> None:
    assert config_of("SmaCross", n2=9) == {"n1": 3, "n2": 9, "warmup_bars": 400}
    assert config_of("Limits") == {"warmup_bars": 9}
    assert config_of("Turns", lookback=7) == {"lookback": 7, "warmup_bars": 400}
    with pytest.raises(InvalidConfig, match="n3: no such key"):
        config_of("SmaCross", n3=1)
    strategy = load(f"{CODE}:Turns")
    assert strategy.warmup_bars(validated(strategy.Params, {"warmup_bars": 50}, "Turns")) == 50


# backtesting.py


def test_an_order_on_the_last_candle_is_the_decision() -> None:
    bought = decided("SmaCross", FLAT_THEN_UP)

    assert bought == Decision(Action.BUY, 1.0, {"sl": 105.0 * 0.9})
    assert decided("SmaCross", [200.0 - each for each in FLAT_THEN_UP]).action is Action.SELL
    assert decided("SmaCross", [*FLAT_THEN_UP, 106.0]).action is Action.HOLD, "the order was on the candle before"
    assert decided("SmaCross", FLAT_THEN_UP, n1=1, n2=11).action is Action.HOLD


def test_orders_on_both_sides_and_windows_without_indicators_hold() -> None:
    assert decided("Undecided", RISING) == Decision(Action.HOLD, reason="orders on both sides")
    assert decided("NeverReady", RISING) == Decision(Action.HOLD, reason="no candle to trade on")


def test_a_pending_order_is_no_decision() -> None:
    with pytest.raises(InvalidDecision, match="it places a limit order; allowed: market orders"):
        decided("Limits", RISING)


# freqtrade


def test_the_last_row_is_the_decision_with_its_indicators() -> None:
    bought = decided("Turns", FALLING)

    features = {"low_of": 89.0, "high_of": 93.0, "undefined": None, "of": "GOLD"}
    assert bought == Decision(Action.BUY, 1.0, features, "new low")
    assert decided("Turns", RISING).action is Action.SELL
    assert decided("Turns", [*RISING, 109.5]).action is Action.HOLD
    assert decided("Turns", [*RISING, 109.5], lookback=3).action is Action.BUY


@pytest.mark.parametrize(
    ("name", "closes", "action"),
    [
        ("LongOnly", RISING, Action.HOLD),
        ("LongOnly", FALLING, Action.BUY),
        ("Leaves", FALLING, Action.HOLD),
        ("Turns", [100.0] * 9, Action.HOLD),
    ],
    ids=["cannot short", "can buy", "exit on the same candle", "both sides"],
)
def test_conflicts_are_solved_as_freqtrade_does(name: str, closes: list[float], action: Action) -> None:
    assert decided(name, closes).action is action


def test_an_exit_is_logged_with_the_hold() -> None:
    features = decided("Leaves", [*RISING, 109.5]).features

    assert (features["exit_long"], features["exit_short"]) == (True, True)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("DropsRows", "populate_indicators returned 8 rows, not a frame of 12 rows"),
        ("ReturnsNothing", "populate_entry_trend returned NoneType, not a frame of 12 rows"),
    ],
)
def test_another_frame_is_no_decision(name: str, why: str) -> None:
    with pytest.raises(InvalidDecision, match=why):
        decided(name, RISING)


def test_an_entry_that_needs_the_next_candle_is_found_where_more_candles_are_given() -> None:
    assert decided("NextClose", RISING).action is Action.HOLD
    assert decided("NextClose", FALLING, warmup_bars=11).action is Action.HOLD
    assert decided("Turns", FALLING, warmup_bars=11).action is Action.BUY
    ahead = "it looks ahead: enter_long on 2026-01-05 10:00 is set once the next candle is known, as next changes"
    with pytest.raises(InvalidDecision, match=ahead):
        decided("NextClose", RISING, warmup_bars=11)


def test_exits_that_are_not_followed_are_noted() -> None:
    assert [*Freqtrade(Turns, "").notes, *Backtesting(SmaCross).notes] == [
        "not followed: stoploss -0.1, minimal_roi {'0': 0.04}; the strategy's scoring rule ends each trade"
    ]


def test_another_timeframe_is_refused() -> None:
    with pytest.raises(InvalidDecision, match="its timeframe is 1h: register it with this timeframe"):
        decided("Turns", RISING, timeframe="5m")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NoEntry", "it has populate_indicators, but no populate_entry_trend"),
        ("MovesItsStop", "custom_stoploss of freqtrade cannot be followed"),
        ("Informed", "populate_indicators_1d needs candles of another pair or timeframe"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(name: str, why: str) -> None:
    with pytest.raises(InvalidEntryPoint, match=why):
        load(f"{CODE}:{name}")
