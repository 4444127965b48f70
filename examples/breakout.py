"""A strategy with a config, and the commands that register it for all users.

    cd examples
    export ROLLOUT_SYMBOL=GOLD
    uv run rollout db upgrade
    uv run rollout register breakout 1.0.0 --entry-point breakout:Breakout --status active --yes
    uv run rollout route user_123 breakout

The entry point is `module:Class` or `package.module:Class`, as seen from the current folder.
"""

import pandas as pd
from pydantic import BaseModel, Field

from strategy_core import Action, Context, Decision


class Params(BaseModel):
    """The config of a version: what `--config` sets."""

    lookback: int = Field(default=20, ge=2, le=200)  # candles
    entry: float = Field(default=0.0, ge=0.0, le=0.1)  # fraction of the high or low that the close must exceed


class Breakout:
    """Buy above the high of the last candles, sell below their low."""

    Params = Params

    def warmup_bars(self, params: Params) -> int:
        return params.lookback + 1

    def decide(self, candles: pd.DataFrame, params: Params, context: Context) -> Decision:
        before, last = candles.iloc[-params.lookback - 1 : -1], float(candles["close"].iloc[-1])
        high, low = float(before["high"].max()), float(before["low"].min())
        seen = {"high": high, "low": low}
        if last > high * (1 + params.entry):
            return Decision(Action.BUY, confidence=0.6, features=seen, reason="above the range")
        if last < low * (1 - params.entry):
            return Decision(Action.SELL, confidence=0.6, features=seen, reason="below the range")
        return Decision(Action.HOLD, features=seen)
