"""Scoring: simulate the trade of each decision, and value all trades on every candle."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray, TextArray
from strategy_core.domain.indicators import atr, atr_bars

NO_EXIT = -1
NO_RANGE = 1e-9  # of the price: a smaller ATR is the rounding error of a market that did not move

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ScoringRule(BaseModel):
    """How decisions become trades. All versions of a strategy share one rule.

    Attributes:
        stop_atr: distance from entry to stop, in ATR. This is the initial risk.
        target_atr: distance from entry to target, in ATR.
        atr_period: Wilder's period.
        horizon: most candles of a trade, the entry candle included. It then exits at the close.
        spread: ask minus bid in price units, for candles without bid and ask.
        cost: commission and the like for a round trip, in price units.
        risk_fraction: share of the starting equity that one R stands for.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stop_atr: _Positive = 2.0
    target_atr: _Positive = 2.0
    atr_period: int = Field(default=14, ge=1)
    horizon: int = Field(default=24, ge=1)
    spread: _NotNegative = 0.0
    cost: _NotNegative = 0.0
    risk_fraction: float = Field(default=0.01, gt=0, le=1)

    @property
    def warmup_bars(self) -> int:
        """The number of candles, up to the decision, that give the same trade as the whole history."""
        return atr_bars(self.atr_period)


class ExitReason(StrEnum):
    STOP = "stop"
    TARGET = "target"
    HORIZON = "horizon"
    CLOSE = "close"  # the version decided to leave it
    NO_RISK = "no_risk"  # without an ATR there is no stop: the trade is not taken and is worth 0


@dataclass(frozen=True, slots=True)
class ScoredTrades:
    """One trade per decision, in the given order. All arrays have shape (trades,).

    Attributes:
        side: 1 for a buy, -1 for a sell.
        closed: False while pending. Do not count pending trades.
        entry_position: row of the entry candle, which may not exist yet.
        exit_position: row of the exit candle. -1 while pending.
        entry_price: NaN until the entry candle exists.
        exit_price: NaN while pending.
        risk: distance from entry to stop in price units. 0 for `no_risk`.
        pnl: in price units, after costs. NaN while pending.
        return_fraction: pnl / entry price without its sign, 0 where that is 0. NaN while pending.
        r_multiple: pnl / risk. NaN while pending, 0 for `no_risk`.
        exit_reason: an ExitReason, "" while pending.
    """

    side: FloatArray
    closed: BoolArray
    entry_position: IntArray
    exit_position: IntArray
    entry_price: FloatArray
    exit_price: FloatArray
    risk: FloatArray
    pnl: FloatArray
    return_fraction: FloatArray
    r_multiple: FloatArray
    exit_reason: TextArray

    def __len__(self) -> int:
        return len(self.side)


def score(
    candles: pd.DataFrame, positions: ArrayLike, sides: ArrayLike, rule: ScoringRule, closes: ArrayLike = ()
) -> ScoredTrades:
    """Simulate one trade for each decision. Trades are independent: they neither net nor wait for each other.

    A decision at the close of row p enters at the open of row p + 1, a buy at the ask, a sell at the bid. A long is
    closed on bid prices, a short on ask prices. It exits in the first candle, from the entry candle on, that touches
    its stop or target, or at the close of the last candle of the horizon. A candle that touches both counts as the
    stop, wherever it opened. If the open is already beyond the exit price, the trade exits at the open.

    A decision to close, at the close of row c, ends every trade that is open then, at the open of row c + 1: what its
    users get too. Without *closes* the trades are those of stop, target and horizon alone, to the bit.

    The trade depends only on the `rule.warmup_bars` candles up to p and the `rule.horizon` candles after it. A slice
    that contains them gives the same bits as the whole history.

    Without an ATR (too little history, or no range) a trade has no risk and cannot be sized. It is closed at its entry
    as `no_risk`, worth 0, so that it does not stay pending.

    Args:
        candles: checked candles, float64 open, high, low, close, and optionally bid_* and ask_*. Where a bid or ask is
            NaN, it is mid -/+ half the spread of the rule.
        positions: rows of the decisions, each in 0..len(candles) - 1.
        sides: 1 for a buy, -1 for a sell, as many as *positions*.
        closes: rows of the version's decisions to close, rising, each in 0..len(candles) - 1.
    """
    side = np.asarray(sides, dtype=np.float64)
    entry_position = np.asarray(positions, dtype=np.int64) + 1
    average_range = atr(candles, rule.atr_period)[entry_position - 1]
    quotes = _Quotes.of(candles, rule.spread)
    entered = entry_position < len(candles)

    entry = np.full(len(side), np.nan)  # from here on prices are multiplied by side, so that each trade reads as a long
    entry[entered] = quotes.entry(side[entered], entry_position[entered])
    sized = average_range > NO_RANGE * np.abs(entry)  # NaN on either side is False
    risk = np.where(entered & ~sized, 0.0, rule.stop_atr * average_range)
    stop, target = entry - risk, entry + rule.target_atr * average_range

    out = np.full(len(side), np.nan)
    exit_position = np.full(len(side), NO_EXIT, dtype=np.int64)
    reason = np.full(len(side), "", dtype="<U8")
    live = np.flatnonzero(sized)
    left = _left_at(entry_position, closes)
    for step in range(rule.horizon):
        live = live[entry_position[live] + step < len(candles)]
        opened, worst, best, close = quotes.exit(side[live], entry_position[live] + step)
        leaves = left[live] == entry_position[live] + step
        stopped = ~leaves & (worst <= stop[live])
        hit = ~leaves & ~stopped & (best >= target[live])
        done = leaves | stopped | hit if step < rule.horizon - 1 else np.ones(len(live), dtype=np.bool_)
        fill = np.where(stopped, np.minimum(opened, stop[live]), np.where(hit, np.maximum(opened, target[live]), close))
        fill = np.where(leaves, opened, fill)
        why = np.where(stopped, ExitReason.STOP, np.where(hit, ExitReason.TARGET, ExitReason.HORIZON))
        why = np.where(leaves, ExitReason.CLOSE, why)
        ended = live[done]
        out[ended], reason[ended] = fill[done], why[done]
        exit_position[ended] = entry_position[ended] + step
        live = live[~done]

    unsized = entered & ~sized
    out[unsized], reason[unsized] = entry[unsized], ExitReason.NO_RISK
    exit_position[unsized] = entry_position[unsized]
    pnl = np.where(unsized, 0.0, out - entry - rule.cost)
    return ScoredTrades(
        side=side,
        closed=exit_position != NO_EXIT,
        entry_position=entry_position,
        exit_position=exit_position,
        entry_price=entry * side,
        exit_price=out * side,
        risk=risk,
        pnl=pnl,
        return_fraction=np.divide(pnl, np.abs(entry), out=np.zeros(len(side)), where=entry != 0),
        r_multiple=np.divide(pnl, risk, out=np.zeros(len(side)), where=~unsized),
        exit_reason=reason,
    )


def _left_at(entry_position: IntArray, closes: ArrayLike) -> IntArray:
    """Return the row at whose open each trade is left by the version's decision, or NO_EXIT."""
    rows = np.asarray(closes, dtype=np.int64)
    first = np.searchsorted(rows, entry_position)
    left = np.full(len(entry_position), NO_EXIT, dtype=np.int64)
    found = first < len(rows)
    left[found] = rows[first[found]] + 1
    return left


def marks(candles: pd.DataFrame, trades: ScoredTrades, rule: ScoringRule) -> FloatArray:
    """Return the change in R of the marked-to-market value of all *trades*, by candle.

    Open trades are marked at the close of the side on which they would exit. Spread and cost are charged to the entry
    candle. Over the candles of a closed trade, the changes add up to its r_multiple.

    Args:
        candles: the candles on which *trades* were scored.
        rule: the rule with which they were scored.

    Returns:
        Shape (candles,), float64, 0 without open trades.
    """
    changes = np.zeros(len(candles))
    quotes = _Quotes.of(candles, rule.spread)
    live = np.flatnonzero((trades.entry_position < len(candles)) & (trades.risk > 0))
    worth = trades.side * trades.entry_price + rule.cost
    for step in range(rule.horizon):
        at = trades.entry_position[live] + step
        live = live[(at < len(candles)) & (~trades.closed[live] | (at <= trades.exit_position[live]))]
        at = trades.entry_position[live] + step
        *_, close = quotes.exit(trades.side[live], at)
        now = np.where(at == trades.exit_position[live], trades.side[live] * trades.exit_price[live], close)
        changes += np.bincount(at, weights=(now - worth[live]) / trades.risk[live], minlength=len(candles))
        worth[live] = now
    return changes


def floating_r(
    candles: pd.DataFrame, positions: ArrayLike, sides: ArrayLike, entry_prices: ArrayLike, rule: ScoringRule
) -> FloatArray:
    """Return the R of open trades at the close of the last candle, a long at the bid, a short at the ask.

    Args:
        candles: at least one, as in `score`.
        positions: for each trade, the row of the last candle that had closed when it was opened. -1: none.
        sides: 1 for a buy, -1 for a sell.
        entry_prices: the fills.

    Returns:
        Shape (trades,), NaN for a trade without an ATR at its entry: it has no stop that could be the risk.
    """
    side, at = np.asarray(sides, np.float64), np.asarray(positions, np.int64)
    entry = side * np.asarray(entry_prices, np.float64)
    average_range = np.where(at >= 0, atr(candles, rule.atr_period)[at], np.nan)
    risk = np.where(average_range > NO_RANGE * np.abs(entry), rule.stop_atr * average_range, np.nan)
    last = np.full(len(side), len(candles) - 1)
    close = _Quotes.of(candles, rule.spread).exit(side, last)[3]
    result: FloatArray = (close - entry - rule.cost) / risk
    return result


@dataclass(frozen=True, slots=True)
class _Quotes:
    """Bid and ask of each candle. Prices are returned multiplied by side, so that higher is always better.

    Both arrays have shape (4, candles), with the rows open, high, low, close.
    """

    bid: FloatArray
    ask: FloatArray

    @classmethod
    def of(cls, candles: pd.DataFrame, spread: float) -> "_Quotes":
        return cls(bid=_side(candles, "bid", -spread / 2), ask=_side(candles, "ask", spread / 2))

    def entry(self, side: FloatArray, at: IntArray) -> FloatArray:
        signed: FloatArray = np.where(side > 0, self.ask[0, at], -self.bid[0, at])
        return signed

    def exit(self, side: FloatArray, at: IntArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Return open, worst, best and close on the side that closes a trade."""
        opened, high, low, close = np.where(side > 0, self.bid[:, at], -self.ask[:, at])
        return opened, np.minimum(high, low), np.maximum(high, low), close


def _side(candles: pd.DataFrame, name: str, offset: float) -> FloatArray:
    columns = ("open", "high", "low", "close")
    mid: FloatArray = np.stack([candles[column].to_numpy(np.float64) for column in columns]) + offset
    if f"{name}_open" not in candles.columns:
        return mid
    quoted = np.stack([candles[f"{name}_{column}"].to_numpy(np.float64) for column in columns])
    side: FloatArray = np.where(np.isfinite(quoted), quoted, mid)
    return side
