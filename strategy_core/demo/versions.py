"""The faulty version of the demo and of `rollout up`: `fib_rsi` with thresholds that end.

Not for real use.
"""

from dataclasses import replace

import pandas as pd
from pydantic import AwareDatetime

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.strategy import Action, Context, Decision
from strategy_core.strategies.fib_rsi import FibRsi, FibRsiParams


class SeasonalParams(FibRsiParams):
    fitted_until: AwareDatetime


class FibRsiSeasonal(FibRsi):
    """`fib_rsi` with thresholds that were fitted up to a date. After it, the lookup returns a default.

    That default is the bug: it has no threshold, so the version trades on every candle. A shadow run before the date
    cannot find it: until then the version is as good as the one that it replaces.
    """

    Params = SeasonalParams  # type: ignore[assignment]  # a narrower class, constant for the worker

    def decide(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> Decision:
        assert isinstance(params, SeasonalParams)
        decision = super().decide(candles, params, context)
        return decision if context.now <= params.fitted_until else _chase(decision)

    def decide_many(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> list[Decision]:
        assert isinstance(params, SeasonalParams)
        decided = super().decide_many(candles, params, context)
        closes = pd.DatetimeIndex(candles.index)[len(candles) - len(decided) :] + timeframe_delta(context.timeframe)
        fitted = closes <= pd.Timestamp(params.fitted_until)
        return [one if ok else _chase(one) for one, ok in zip(decided, fitted, strict=True)]


def _chase(decision: Decision) -> Decision:
    position = decision.features["fib_position"]
    assert isinstance(position, float)
    action = Action.BUY if position >= 0.5 else Action.SELL
    return replace(decision, action=action, confidence=0.5, reason="after the table: default threshold")
