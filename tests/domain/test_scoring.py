"""Scoring: results computed by hand, and laws that hold for every market."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from strategy_core.domain.scoring import ExitReason, ScoredTrades, ScoringRule, marks, score
from tests.domain.markets import candles_of, markets, walk, with_sides
from tests.effort import examples

# With a period of 1 the ATR is the range of the candle decided on: 100 wide at 1000, so stop and target are 200 away.
RULE = ScoringRule(atr_period=1, horizon=4)
HISTORY = [(1000.0, 1050.0, 950.0, 1000.0)] * 11
SIGNAL = len(HISTORY) - 1


def traded(after: list[tuple[float, float, float, float]], side: int = 1, **changes: Any) -> ScoredTrades:
    """Score one decision at the close of the history, followed by *after*."""
    rule = ScoringRule.model_validate({**RULE.model_dump(), **changes})
    return score(candles_of(HISTORY + after), [SIGNAL], [side], rule)


@pytest.mark.parametrize(("side", "r"), [(1, -1.0), (-1, 1.0)])
@pytest.mark.parametrize(("entry", "of_entry"), [(-30.0, 200 / 30), (0.0, 0.0)])
def test_r_and_returns_are_defined_at_prices_below_zero(side: int, r: float, entry: float, of_entry: float) -> None:
    """The risk is a distance, and a return is a share of the size of the entry price, or 0 where that is 0."""
    moved = [tuple(price - 1000 + entry for price in candle) for candle in HISTORY]
    candles = candles_of([*moved, (entry, entry, entry - 200, entry - 200)])

    trades = score(candles, [SIGNAL], [side], RULE)

    assert trades.risk.tolist() == [200]
    assert trades.r_multiple.tolist() == [r]
    assert trades.return_fraction.tolist() == [r * of_entry]


@pytest.mark.parametrize(
    ("after", "side", "reason", "exit_in", "exit_price"),
    [
        ([(1000, 1010, 990, 1000), (1000, 1000, 790, 850)], 1, ExitReason.STOP, 1, 800),
        ([(1000, 1010, 990, 1000), (1000, 1210, 990, 1000)], 1, ExitReason.TARGET, 1, 1200),
        ([(1000, 1210, 990, 1000)], -1, ExitReason.STOP, 0, 1200),
        ([(1000, 1010, 790, 1000)], -1, ExitReason.TARGET, 0, 800),
        ([(1000, 1200, 800, 1000)], 1, ExitReason.STOP, 0, 800),
        ([(1000, 1200, 800, 1000)], -1, ExitReason.STOP, 0, 1200),
        ([(1000, 1010, 990, 1000), (700, 720, 690, 700)], 1, ExitReason.STOP, 1, 700),
        ([(1000, 1010, 990, 1000), (1300, 1310, 1290, 1300)], 1, ExitReason.TARGET, 1, 1300),
        ([(1000, 1010, 990, 1000), (1300, 1310, 1290, 1300)], -1, ExitReason.STOP, 1, 1300),
        ([(1000, 1010, 990, 1000), (1300, 1310, 790, 800)], 1, ExitReason.STOP, 1, 800),
        ([(1000, 1010, 990, 1000)] * 3 + [(1000, 1110, 990, 1100)], 1, ExitReason.HORIZON, 3, 1100),
        ([(1000, 1010, 990, 1000)] * 3 + [(1000, 1110, 990, 1100)], -1, ExitReason.HORIZON, 3, 1100),
        ([(1000, 1010, 990, 1000)] * 3 + [(1000, 1110, 800, 1100)], 1, ExitReason.STOP, 3, 800),
    ],
    ids=[
        "stop",
        "target",
        "short stop in the entry candle",
        "short target in the entry candle",
        "both touched is the stop",
        "both touched is the stop, short",
        "a gap through the stop fills at the open",
        "a gap through the target fills at the open",
        "a gap through the stop fills at the open, short",
        "both touched is the stop even after a gap through the target",
        "horizon",
        "horizon, short",
        "the stop comes before the horizon's close",
    ],
)
def test_a_trade_exits_as_computed_by_hand(
    after: list[tuple[float, float, float, float]],
    side: int,
    reason: ExitReason,
    exit_in: int,
    exit_price: float,
) -> None:
    trades = traded(after, side)

    assert trades.closed.tolist() == [True]
    assert trades.exit_reason.tolist() == [reason]
    assert trades.entry_position.tolist() == [SIGNAL + 1]
    assert trades.exit_position.tolist() == [SIGNAL + 1 + exit_in]
    assert trades.entry_price.tolist() == [1000]
    assert trades.exit_price.tolist() == [exit_price]
    assert trades.risk.tolist() == [200]
    assert trades.pnl.tolist() == [side * (exit_price - 1000)]
    assert trades.return_fraction.tolist() == [side * (exit_price - 1000) / 1000]
    assert trades.r_multiple.tolist() == [side * (exit_price - 1000) / 200]


def test_the_entry_is_the_next_open_however_far_it_gapped() -> None:
    trades = traded([(1100, 1110, 1090, 1100), (1100, 1310, 1090, 1300)])

    assert trades.entry_price.tolist() == [1100]
    assert trades.exit_price.tolist() == [1300]
    assert trades.r_multiple.tolist() == [1]


@pytest.mark.parametrize(("side", "entry", "stop"), [(1, 1002, 802), (-1, 998, 1198)])
def test_without_sides_half_the_spread_is_paid_each_way_and_the_cost_once(side: int, entry: float, stop: float) -> None:
    """A long is stopped when the bid, 2 below the mid, touches 802: a mid of 804 does it, 804.5 does not."""
    near = traded([(1000, 1195.5, 804.5, 1000)], side, spread=4, cost=10)
    touched = traded([(1000, 1196, 804, 1000)], side, spread=4, cost=10)

    assert near.entry_price.tolist() == [entry]
    assert not near.closed.any()
    assert touched.exit_price.tolist() == [stop]
    assert touched.pnl.tolist() == [-210]
    assert touched.r_multiple.tolist() == [-1.05]


def test_a_long_is_closed_on_bids_and_a_short_on_asks() -> None:
    """The spread opens to 400 for one candle, as after a release: both sides are stopped though the mid stood still."""
    mid = candles_of([*HISTORY, (1000, 1010, 990, 1000), (1000, 1010, 990, 1000)])
    half = pd.DataFrame(1.0, index=mid.index, columns=mid.columns)
    half.iloc[-1, 1:3] = 250.0  # high and low only
    candles = with_sides(mid - half, mid + half)

    trades = score(candles, [SIGNAL, SIGNAL], [1, -1], RULE)

    assert trades.entry_price.tolist() == [1001, 999]
    assert trades.exit_price.tolist() == [801, 1199]
    assert trades.exit_reason.tolist() == [ExitReason.STOP, ExitReason.STOP]


def test_a_missing_quote_falls_back_to_the_configured_spread() -> None:
    mid = candles_of([*HISTORY, (1000, 1010, 990, 1000)])
    candles = with_sides(mid - 1, mid + 1)
    candles.loc[candles.index[-1], "ask_open"] = np.nan

    trades = score(candles, [SIGNAL], [1], RULE.model_copy(update={"spread": 6.0}))

    assert trades.entry_price.tolist() == [1003]


def test_a_trade_is_pending_until_its_exit_is_in_the_candles() -> None:
    not_entered = traded([])
    running = traded([(1000, 1010, 990, 1005)])

    for trades in (not_entered, running):
        assert trades.closed.tolist() == [False]
        assert trades.exit_position.tolist() == [-1]
        assert trades.exit_reason.tolist() == [""]
        assert np.isnan([trades.exit_price, trades.pnl, trades.return_fraction, trades.r_multiple]).all()
    assert np.isnan(not_entered.entry_price).all()
    assert running.entry_price.tolist() == [1000]


@pytest.mark.parametrize(
    "history",
    [HISTORY[:10], [(1000.0, 1000.0, 1000.0, 1000.0)] * 11, [(0.1 + 0.2, 0.3, 0.3, 0.3)] * 11],
    ids=["too little history", "no range", "no range but rounding"],
)
def test_a_trade_that_cannot_be_sized_is_worth_nothing_and_is_closed(
    history: list[tuple[float, float, float, float]],
) -> None:
    signal = len(history) - 1
    entered = candles_of([*history, (1000, 2000, 500, 1000)])

    trades = score(entered, [signal], [1], RULE.model_copy(update={"cost": 3.0}))
    waiting = score(entered.iloc[:-1], [signal], [1], RULE)

    assert trades.exit_reason.tolist() == [ExitReason.NO_RISK]
    assert trades.exit_position.tolist() == trades.entry_position.tolist() == [signal + 1]
    assert (trades.pnl.tolist(), trades.r_multiple.tolist(), trades.risk.tolist()) == ([0], [0], [0])
    assert trades.return_fraction.tolist() == [0]
    assert not marks(entered, trades, RULE).any()
    assert waiting.closed.tolist() == [False]
    assert np.isnan(waiting.r_multiple).all()


def test_no_decisions_make_no_trades() -> None:
    candles = walk(bars=50, seed=1)

    trades = score(candles, [], [], RULE)

    assert len(trades) == 0
    assert marks(candles, trades, RULE).tolist() == [0.0] * 50


def test_marks_book_the_cost_at_entry_and_then_what_the_exit_side_moved() -> None:
    candles = candles_of([*HISTORY, (1000, 1010, 990, 1000), (1000, 1110, 990, 1100), (1100, 1150, 1050, 1120)])
    rule = RULE.model_copy(update={"spread": 4.0, "cost": 6.0})

    changes = marks(candles, score(candles, [SIGNAL], [1], rule), rule)

    np.testing.assert_allclose(changes[SIGNAL + 1 :] * 200, [-10, 100, 20])  # the trade is still open
    assert not changes[: SIGNAL + 1].any()


_RULES = st.builds(
    ScoringRule,
    stop_atr=st.sampled_from([0.5, 1.0, 2.0]),
    target_atr=st.sampled_from([0.5, 1.0, 3.0]),
    atr_period=st.integers(1, 3),
    horizon=st.integers(1, 8),
    spread=st.sampled_from([0.0, 0.5, 4.0]),
    cost=st.sampled_from([0.0, 0.25]),
)


@settings(max_examples=examples(25))
@given(candles=markets(bars=60), rule=_RULES, data=st.data())
def test_the_marks_of_closed_trades_add_up_to_their_r(
    candles: pd.DataFrame, rule: ScoringRule, data: st.DataObject
) -> None:
    positions = np.arange(len(candles) - 1)
    trades = score(candles, positions, data.draw(_sides(len(positions))), rule)
    one_by_one = [score(candles, [at], [side], rule) for at, side in zip(positions, trades.side, strict=True)]

    sums = [marks(candles, trade, rule).sum() for trade in one_by_one]

    np.testing.assert_allclose(np.asarray(sums)[trades.closed], trades.r_multiple[trades.closed], rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(marks(candles, trades, rule).sum(), sum(sums), rtol=1e-9, atol=1e-6)


@settings(max_examples=examples(60))
@given(candles=markets(bars=70), rule=_RULES, data=st.data())
def test_a_slice_with_enough_history_scores_the_same_bits_as_the_whole(
    candles: pd.DataFrame, rule: ScoringRule, data: st.DataObject
) -> None:
    """So outcomes may be booked night by night from a few candles."""
    positions = np.arange(rule.warmup_bars - 1, len(candles))
    sides = data.draw(_sides(len(positions)))
    start = data.draw(st.integers(0, len(positions) - 1))
    whole = score(candles, positions, sides, rule)

    late = score(candles.iloc[start:], positions[start:] - start, sides[start:], rule)

    for name in ("closed", "entry_price", "exit_price", "risk", "pnl", "r_multiple", "exit_reason", "return_fraction"):
        np.testing.assert_array_equal(getattr(late, name), getattr(whole, name)[start:])
    np.testing.assert_array_equal(late.entry_position + start, whole.entry_position[start:])
    exits = np.where(late.closed, late.exit_position + start, -1)
    np.testing.assert_array_equal(exits, whole.exit_position[start:])


@settings(max_examples=examples(60))
@given(candles=markets(bars=60), rule=_RULES, data=st.data())
def test_later_candles_change_no_closed_trade(candles: pd.DataFrame, rule: ScoringRule, data: st.DataObject) -> None:
    """A booked outcome does not change, and after the horizon no trade is pending."""
    end = data.draw(st.integers(35, 60))
    positions = np.arange(end)
    sides = data.draw(_sides(end))
    whole = score(candles, positions, sides, rule)

    early = score(candles.iloc[:end], positions, sides, rule)

    np.testing.assert_array_equal(early.r_multiple[early.closed], whole.r_multiple[early.closed])
    np.testing.assert_array_equal(early.exit_position[early.closed], whole.exit_position[early.closed])
    assert early.closed[: end - rule.horizon].all()


@settings(max_examples=examples(60))
@given(candles=markets(bars=60), rule=_RULES, data=st.data())
def test_a_configured_spread_is_the_same_as_quoted_sides(
    candles: pd.DataFrame, rule: ScoringRule, data: st.DataObject
) -> None:
    positions = np.arange(len(candles))
    sides = data.draw(_sides(len(positions)))
    quoted = with_sides(candles - rule.spread / 2, candles + rule.spread / 2)

    configured = score(candles, positions, sides, rule)

    explicit = score(quoted, positions, sides, rule.model_copy(update={"spread": 0.0}))
    np.testing.assert_array_equal(configured.r_multiple, explicit.r_multiple)
    np.testing.assert_array_equal(configured.exit_position, explicit.exit_position)


@pytest.mark.parametrize(
    "wrong",
    [
        {"stop_atr": 0},
        {"target_atr": -1},
        {"stop_atr": float("nan")},
        {"cost": float("inf")},
        {"spread": -0.1},
        {"horizon": 0},
        {"atr_period": 0},
        {"risk_fraction": 1.5},
        {"stop_art": 2},
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ScoringRule.model_validate(wrong)


def _sides(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.sampled_from([1, -1]), min_size=count, max_size=count)
