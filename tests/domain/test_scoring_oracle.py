"""Trades, marks and metrics against backtesting.py, an independent simulator, on the ground both stand on.

It enters a market order at the next open, fills stop and target within the entry candle too, takes the stop when a
candle touches both, and fills a gap at the open: as we do. Where it differs the tests keep to common ground:
- It knows one price and a relative spread paid at entry. So the exit side's candles are its data, and the entry side is
  quoted as those × (1 ± spread): longs and shorts are replayed apart.
- It refuses an order whose stop and target do not lie around the LAST CLOSE. Such decisions are left out.
- It can close by order at the next open only. So a horizon exit is compared by the candle it was ordered in, at that
  candle's close.
- It is given its stops and targets: it has neither an ATR, which `test_indicators` holds against TA-Lib, nor trades
  that cannot be sized, which are left out.
"""

from dataclasses import dataclass
from functools import cached_property
from math import copysign
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.indicators import atr
from strategy_core.domain.performance import max_drawdown, performance
from strategy_core.domain.scoring import NO_RANGE, ExitReason, ScoringRule, marks, score
from tests.domain.markets import candles_of, markets, walk, with_sides
from tests.effort import examples

CASH = 1_000_000.0

pytestmark = [
    pytest.mark.xdist_group("oracle"),  # which takes seconds to import
    pytest.mark.filterwarnings("ignore:Some trades remain open:UserWarning"),
    pytest.mark.filterwarnings("ignore:DatetimeIndex.dayofweek"),  # the oracle's own
]


@dataclass(frozen=True)
class Market:
    """Candles whose exit side is *exits*: the bid for longs (side 1), the ask for shorts (side -1)."""

    exits: pd.DataFrame
    side: int
    spread: float
    rule: ScoringRule

    @property
    def entry_factor(self) -> float:
        return 1 + copysign(self.spread, self.side)

    @cached_property
    def candles(self) -> pd.DataFrame:
        entries = self.exits * self.entry_factor
        return with_sides(self.exits, entries) if self.side > 0 else with_sides(entries, self.exits)

    @cached_property
    def average_range(self) -> FloatArray:
        """ATR of each row but the last."""
        return atr(self.candles, self.rule.atr_period)[:-1]

    @cached_property
    def levels(self) -> tuple[FloatArray, FloatArray]:
        """Stop and target of a decision on each row but the last."""
        entry = self.exits["open"].to_numpy()[1:] * self.entry_factor
        stop = entry - self.side * self.rule.stop_atr * self.average_range
        return stop, entry + self.side * self.rule.target_atr * self.average_range

    def common_ground(self) -> IntArray:
        stop, target = (self.side * level for level in self.levels)
        last = self.side * self.entry_factor * self.exits["close"].to_numpy()[:-1]
        return np.flatnonzero((stop < last) & (last < target) & (self.average_range > 2 * NO_RANGE * np.abs(last)))


@dataclass(frozen=True)
class Replay:
    """The results of the oracle: trades by row of the decision, trades closed by the horizon, and statistics."""

    trades: pd.DataFrame
    at_horizon: set[int]
    stats: Any

    @classmethod
    def of(cls, market: Market, positions: IntArray) -> "Replay":
        """Run the oracle on the exit side and one still candle more, to fill a close that was ordered in the last."""
        from backtesting import Backtest, Strategy

        stop, target = market.levels
        wanted = set(positions.tolist())
        at_horizon: set[int] = set()

        class Decisions(Strategy):  # type: ignore[misc]  # the oracle is not typed
            def init(self) -> None: ...

            def next(self) -> None:
                row = len(self.data) - 1
                for trade in self.trades:
                    if row - trade.entry_bar == market.rule.horizon - 1:
                        at_horizon.add(trade.tag)
                        trade.close()
                if row in wanted:
                    order = self.buy if market.side > 0 else self.sell
                    order(size=1, sl=stop[row], tp=target[row], tag=row)

        still = candles_of(np.full((len(market.exits) + 1, 4), market.exits["close"].iloc[-1]))
        still.iloc[:-1] = market.exits
        stats = Backtest(
            still.rename(columns=str.capitalize),
            Decisions,
            cash=CASH,
            spread=market.spread,
            commission=lambda size, price: market.rule.cost / 2,
            hedging=True,
        ).run()
        return cls(stats["_trades"].set_index("Tag").sort_index(), at_horizon, stats)


@settings(max_examples=examples(100))
@given(
    market=st.builds(
        Market,
        exits=markets(bars=45),
        side=st.sampled_from([1, -1]),
        spread=st.sampled_from([0.0, 0.0005, 0.01]),
        rule=st.builds(
            ScoringRule,
            stop_atr=st.sampled_from([0.5, 1.0, 2.0]),
            target_atr=st.sampled_from([0.5, 1.0, 3.0]),
            atr_period=st.just(2),
            horizon=st.integers(1, 9),
            cost=st.sampled_from([0.0, 0.5]),
        ),
    )
)
def test_every_trade_ends_as_in_the_oracle(market: Market) -> None:
    positions = market.common_ground()

    ours = score(market.candles, positions, np.full(len(positions), market.side), market.rule)

    theirs = Replay.of(market, positions)
    closed = np.flatnonzero(ours.closed)
    assert positions[closed].tolist() == theirs.trades.index.tolist()
    for at, (decided, oracle) in zip(closed, theirs.trades.iterrows(), strict=True):
        exit_position = ours.exit_position[at]
        assert ours.entry_position[at] == oracle["EntryBar"]
        assert ours.entry_price[at] == oracle["EntryPrice"]
        assert (ours.exit_reason[at] == ExitReason.HORIZON) == (decided in theirs.at_horizon)
        if decided in theirs.at_horizon:
            assert exit_position == oracle["ExitBar"] - 1
            assert ours.exit_price[at] == market.exits["close"].iloc[exit_position]
        else:
            assert exit_position == oracle["ExitBar"]
            assert ours.exit_price[at] == oracle["ExitPrice"]
            assert ours.pnl[at] == pytest.approx(oracle["PnL"], abs=1e-9)
            assert ours.return_fraction[at] == pytest.approx(oracle["ReturnPct"], abs=1e-12)


@settings(max_examples=examples(40))
@given(
    market=st.builds(
        Market,
        exits=markets(bars=40),
        side=st.sampled_from([1, -1]),
        spread=st.sampled_from([0.0, 0.0005]),
        rule=st.just(ScoringRule(atr_period=2, horizon=9)),
    ),
    decided=st.integers(20, 38),
)
def test_a_trades_marks_are_the_changes_of_the_oracles_equity(market: Market, decided: int) -> None:
    """Up to our exit: closed by the horizon, the oracle holds on over the gap to the next open."""
    positions = np.intersect1d(market.common_ground(), [decided])
    trades = score(market.candles, positions, np.full(len(positions), market.side), market.rule)

    ours = marks(market.candles, trades, market.rule) * trades.risk.sum()

    equity = Replay.of(market, positions).stats["_equity_curve"]["Equity"].to_numpy()
    end = int(trades.exit_position.max(initial=0)) + 1 if trades.closed.all() else len(ours)
    np.testing.assert_allclose(ours[1:end], np.diff(equity)[: end - 1], atol=1e-6)
    assert not ours[end:].any()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_metrics_are_the_oracles(seed: int) -> None:
    """Its profit factor is of returns. Its drawdown is of an equity that is given as changes."""
    market = Market(walk(bars=300, seed=seed), 1, 0.0005, ScoringRule(atr_period=2, cost=0.25))

    stats = Replay.of(market, market.common_ground()[::7]).stats

    returns = stats["_trades"]["ReturnPct"].to_numpy()
    changes = np.diff(stats["_equity_curve"]["Equity"].to_numpy() / CASH)
    assert 0 < stats["Win Rate [%]"] < 100
    ours = performance(returns, returns)
    assert ours.win_rate == pytest.approx(stats["Win Rate [%]"] / 100)
    assert ours.profit_factor == pytest.approx(stats["Profit Factor"])
    assert max_drawdown(changes, 1.0) == pytest.approx(-stats["Max. Drawdown [%]"] / 100)
