"""Versions that decide every minute, loaded in worker processes by their entry points."""

from datetime import datetime

import pandas as pd
from pydantic import BaseModel

from strategy_core.domain.strategy import Action, Context, Decision


class Minutes(BaseModel):
    every: int = 2
    fails_after: datetime | None = None


class Minutely:
    """Signals on each candle whose minute is a multiple of `every`, and may fail from a given time on."""

    Params = Minutes

    def warmup_bars(self, params: Minutes) -> int:
        return 20

    def decide(self, candles: pd.DataFrame, params: Minutes, context: Context) -> Decision:
        if params.fails_after is not None and context.now > params.fails_after:
            raise ZeroDivisionError("no range")
        if context.now.minute % params.every:
            return Decision(Action.HOLD)
        return Decision(Action.BUY, 0.6)
