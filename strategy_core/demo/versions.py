"""The demo's third version: `fib_rsi` after a clean-up that went wrong, as clean-ups do; never for real use."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from strategy_core.domain.strategy import Action, Context, Decision
from strategy_core.strategies.fib_rsi import FibRsi, FibRsiParams

_SWAPPED = {Action.BUY: Action.SELL, Action.SELL: Action.BUY, Action.HOLD: Action.HOLD}


class FibRsiSwapped(FibRsi):
    """Buys what is overbought and sells what is oversold: deterministic, valid, and it loses money."""

    def decide(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> Decision:
        return _swap(super().decide(candles, params, context))

    def decide_many(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> list[Decision]:
        return _swap_all(super().decide_many(candles, params, context))


def _swap(decision: Decision) -> Decision:
    return replace(decision, action=_SWAPPED[decision.action])


def _swap_all(decisions: Sequence[Decision]) -> list[Decision]:
    return [_swap(decision) for decision in decisions]
