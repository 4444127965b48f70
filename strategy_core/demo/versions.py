"""The demo's third version: `fib_rsi` with a table that ends, as tables do; never for real use."""

from dataclasses import replace

import pandas as pd
from pydantic import AwareDatetime

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.strategy import Action, Context, Decision
from strategy_core.strategies.fib_rsi import FibRsi, FibRsiParams


class SeasonalParams(FibRsiParams):
    fitted_until: AwareDatetime


class FibRsiSeasonal(FibRsi):
    """As `fib_rsi`, with thresholds that were fitted up to a date; past it the look-up falls through to a default.

    That default is the bug: no threshold at all, so that it chases the price on every candle. No shadow run before the
    date can show it: the code is deterministic, valid, and as good as the version it replaces.
    """

    Params = SeasonalParams  # type: ignore[assignment]  # narrower: mypy sees a variable, the worker a constant

    def decide(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> Decision:
        assert isinstance(params, SeasonalParams)
        said = super().decide(candles, params, context)
        return said if context.now <= params.fitted_until else _chase(said)

    def decide_many(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> list[Decision]:
        assert isinstance(params, SeasonalParams)
        said = super().decide_many(candles, params, context)
        closes = pd.DatetimeIndex(candles.index)[len(candles) - len(said) :] + timeframe_delta(context.timeframe)
        fitted = closes <= pd.Timestamp(params.fitted_until)
        return [one if ok else _chase(one) for one, ok in zip(said, fitted, strict=True)]


def _chase(said: Decision) -> Decision:
    position = said.features["fib_position"]
    assert isinstance(position, float)
    action = Action.BUY if position >= 0.5 else Action.SELL
    return replace(said, action=action, confidence=0.5, reason="past the table: default threshold")
