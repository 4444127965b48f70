"""A strategy that computes with pandas for some five milliseconds a decision, as owners' strategies do."""

import numpy as np
import pandas as pd
from pydantic import BaseModel

from strategy_core.domain.strategy import Action, Context, Decision


class Band(BaseModel):
    width: float = 2.0
    length: int = 150


class Bands:
    """Sells above a band of rolling deviations and buys below it, asked of windows of many lengths."""

    Params = Band

    def warmup_bars(self, params: Band) -> int:
        return params.length

    def decide(self, candles: pd.DataFrame, params: Band, context: Context) -> Decision:
        close = candles["close"]
        scores = []
        for length in range(10, 150, 4):
            rolling = close.rolling(length)
            scores.append(float(((close - rolling.mean()) / rolling.std()).iloc[-1]))
        smooth = close.ewm(span=20).mean()
        strength = float(
            (close.diff().clip(lower=0).rolling(14).mean() / close.diff().abs().rolling(14).mean()).iloc[-1]
        )
        score = float(np.mean(scores))
        features = {"score": score, "smooth": float(smooth.iloc[-1]), "strength": strength}
        if abs(score) < params.width / 2:
            return Decision(Action.HOLD, 0.0, features)
        return Decision(Action.SELL if score > 0 else Action.BUY, min(1.0, abs(score) / 4), features)
