"""Floating results: users' open trades, marked to the last closed candle."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd

from strategy_core.domain.candles import count_closed
from strategy_core.domain.scoring import ScoringRule, floating_r


@dataclass(frozen=True, slots=True)
class TradeToMark:
    """The facts of a user's open trade, as far as the platform has reported them.

    Attributes:
        side: buy or sell.
        risk: in the unit of the platform's pnl.
        left: share of the trade that is still open, 0 to 1.
    """

    user_id: str
    symbol: str
    side: str | None
    opened_at: datetime
    entry_price: float | None
    risk: float | None
    left: float = 1.0


@dataclass(frozen=True, slots=True)
class Floating:
    """The result of an open trade if it were closed now.

    Attributes:
        amount: in the unit of the platform's pnl, 0 if the trade's risk in it is not reported.
    """

    user_id: str
    opened_at: datetime
    r: float
    amount: float


def float_trades(
    trades: Sequence[TradeToMark], candles: pd.DataFrame, timeframe: str, rule: ScoringRule
) -> list[Floating]:
    """Return the results of open trades of one symbol, from their entry to the close of the last candle.

    A trade is left out if its side or entry price is not reported, or if the candles do not reach far enough before its
    entry for the rule's stop.

    Args:
        candles: closed candles of the symbol, as in `scoring.score`.
    """
    known = [each for each in trades if each.side is not None and each.entry_price is not None]
    if not known or not len(candles):
        return []
    rows = np.array([count_closed(candles, each.opened_at, timeframe) - 1 for each in known], np.int64)
    sides = np.array([1.0 if each.side == "buy" else -1.0 for each in known])
    r = floating_r(candles, rows, sides, np.array([each.entry_price for each in known], np.float64), rule)
    return [
        Floating(each.user_id, each.opened_at, one * each.left, one * each.left * (each.risk or 0.0))
        for each, one in zip(known, r.tolist(), strict=True)
        if np.isfinite(one)
    ]


def floating_since(floating: Sequence[Floating], since: datetime | None) -> tuple[float, float]:
    """Return the sums of R and of amounts over the trades that were opened after *since*, by default all."""
    counted = [each for each in floating if since is None or each.opened_at > since]
    return sum(each.r for each in counted), sum(each.amount for each in counted)
