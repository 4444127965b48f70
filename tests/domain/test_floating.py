"""Floating results: open trades in R from their entry to the close of the last candle, by hand and as they close."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.floating import Floating, TradeToMark, float_trades, floating_since
from strategy_core.domain.scoring import ScoringRule, floating_r, score
from strategy_core.domain.strategy import Action

START = datetime(2026, 3, 2, tzinfo=UTC)
RULE = ScoringRule(stop_atr=2.0, atr_period=14)
BARS = RULE.warmup_bars + 20


def flat(*closes: float) -> pd.DataFrame:
    """Return hourly candles with a range of 1 around 100, whose last closes are *closes*."""
    index = pd.date_range(START, periods=BARS, freq="h")
    frame = pd.DataFrame({"open": 100.0, "high": 100.5, "low": 99.5, "close": 100.0}, index=index)
    for n, close in enumerate(closes):
        frame.loc[index[n - len(closes)], ["open", "high", "low", "close"]] = close
    return frame


def opened(bars_ago: int = 4, *, price: float | None = 100.0, side: str | None = "buy", **facts: float) -> TradeToMark:
    at = START + timedelta(hours=BARS - bars_ago, minutes=5)
    return TradeToMark("ada", "GOLD", side, at, price, facts.get("risk"), facts.get("left", 1.0))


@pytest.mark.parametrize(("side", "close", "r"), [("buy", 97.0, -1.5), ("sell", 97.0, 1.5), ("buy", 104.0, 2.0)])
def test_one_r_is_two_average_ranges_at_the_entry(side: str, close: float, r: float) -> None:
    """The range is 1, so that the stop is 2 away: a fall of 3 is 1.5 R."""
    (found,) = float_trades([opened(side=side, risk=50.0)], flat(close), "1h", RULE)

    assert found.user_id == "ada"
    assert [found.r, found.amount] == pytest.approx([r, 50 * r])


def test_spread_and_cost_are_paid() -> None:
    rule = RULE.model_copy(update={"spread": 0.4, "cost": 0.2})

    (found,) = float_trades([opened()], flat(98.0), "1h", rule)

    assert found.r == pytest.approx((-2.0 - 0.2 - 0.2) / 2)


def test_what_is_closed_already_does_not_float() -> None:
    (found,) = float_trades([opened(left=0.25)], flat(96.0), "1h", RULE)

    assert [found.r, found.amount] == pytest.approx([-0.5, 0.0])


@pytest.mark.parametrize("trade", [opened(price=None), opened(side=None), opened(BARS + 1), opened(BARS - 3)])
def test_a_trade_whose_result_is_not_known_is_left_out(trade: TradeToMark) -> None:
    assert float_trades([trade], flat(90.0), "1h", RULE) == []


def test_without_candles_nothing_floats() -> None:
    assert float_trades([opened()], flat(90.0).iloc[:0], "1h", RULE) == []


def test_at_the_close_of_its_last_candle_a_trade_floats_at_what_it_then_earns() -> None:
    """A trade that ends at its horizon closes at the close of that candle, so both are the same number."""
    rng = np.random.default_rng(5)
    close = 100 + rng.normal(0, 0.2, BARS).cumsum()
    opens = np.concatenate([[100.0], close[:-1]])
    frame = pd.DataFrame(
        {"open": opens, "high": np.maximum(opens, close) + 0.3, "low": np.minimum(opens, close) - 0.3, "close": close},
        index=pd.date_range(START, periods=BARS, freq="h"),
    )
    rule = RULE.model_copy(update={"horizon": 3, "spread": 0.1, "cost": 0.05, "stop_atr": 9.0, "target_atr": 9.0})
    signal = BARS - 4
    sides = {Action.BUY: 1.0, Action.SELL: -1.0}
    for side in sides.values():
        trade = score(frame, [signal], [side], rule)
        assert trade.exit_reason[0] == "horizon"

        found = floating_r(frame, [signal], [side], trade.entry_price, rule)

        assert found[0] == pytest.approx(trade.r_multiple[0], rel=1e-12)


def test_trades_of_before_an_owners_word_do_not_count() -> None:
    trades = [Floating("ada", START, -2.0, -20.0), Floating("ada", START + timedelta(hours=1), -1.0, -10.0)]

    assert floating_since(trades, None) == (-3.0, -30.0)
    assert floating_since(trades, START) == (-1.0, -10.0)
    assert floating_since([], None) == (0, 0)
