"""The faulty versions of the demo and of `rollout up`: `fib_rsi` with a table that ends, or that nobody checked.

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


class TableParams(FibRsiParams):
    """The parameters of `fib_rsi`, with a table in place of its two RSI lines.

    Attributes:
        table: rows of the time from which a row is used, the RSI at which it buys, and the RSI at which it sells.
    """

    table: tuple[tuple[AwareDatetime, float, float], ...]


class FibRsiByTable(FibRsi):
    """`fib_rsi` with its RSI lines in a table, by time.

    The bug: nothing checks a row. One whose lines lost a zero, 3 and 97, never signals. A shadow run before that row is
    used cannot find it.
    """

    Params = TableParams  # type: ignore[assignment]  # as above

    def decide(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> Decision:
        return self.decide_many(candles.iloc[-self.warmup_bars(params) :], params, context)[-1]

    def decide_many(self, candles: pd.DataFrame, params: FibRsiParams, context: Context) -> list[Decision]:
        assert isinstance(params, TableParams)
        closes = pd.DatetimeIndex(candles.index) + timeframe_delta(context.timeframe)
        decided: list[Decision] = []
        for since, buy_line, sell_line in sorted(params.table):
            lines = {"rsi_oversold": buy_line, "rsi_overbought": sell_line}
            row = super().decide_many(candles, params.model_copy(update=lines), context)
            if not decided:
                decided = row
                continue
            first = max(0, int(closes.searchsorted(pd.Timestamp(since))) - (len(closes) - len(row)))
            decided[first:] = row[first:]
        return decided
