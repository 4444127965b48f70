"""The version that a simulated year runs: one that trades by the clock, and fails while its config says so."""

import pandas as pd
from pydantic import AwareDatetime, BaseModel

from strategy_core.domain.strategy import Action, Context, Decision


class Ailing(BaseModel):
    """When it fails, and how: `raise`, or `boast` of a confidence that there is not. *name* tells builds apart."""

    name: str
    spells: list[tuple[AwareDatetime, AwareDatetime, str]] = []


class Yearling:
    Params = Ailing

    def warmup_bars(self, params: Ailing) -> int:
        return 20

    def decide(self, candles: pd.DataFrame, params: Ailing, context: Context) -> Decision:
        how = next((how for start, end, how in params.spells if start <= context.now < end), "")
        if how == "raise":
            raise ZeroDivisionError("no range")
        if context.now.hour % 4:
            return Decision(Action.HOLD)
        rises = candles["close"].iloc[-1] > candles["close"].iloc[-20]
        return Decision(Action.SELL if rises else Action.BUY, 2.0 if how == "boast" else 0.6)
