"""Versions that vetting must refuse, each for one fault that replays hide and live trading shows."""

import random
from typing import Any

import numpy as np
import pandas as pd
import talib
from pydantic import BaseModel

from strategy_core.domain.strategy import Action, Context, Decision

HOLD = Decision(Action.HOLD)


class NoParams(BaseModel):
    pass


def side(value: float, **features: float) -> Decision:
    return Decision(Action.BUY if value > 0 else Action.SELL, 0.5, {"value": float(value), **features})


class Honest:
    """Follows the last candle. Each version below adds one fault."""

    Params = NoParams
    warmup_bars = 20

    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        return side(candles["close"].iloc[-1] - candles["close"].iloc[-2])


class PeeksAhead(Honest):
    """Its decide is honest, but its decide_many, which replays use, knows the next close."""

    def decide_many(self, candles: pd.DataFrame, params: NoParams, context: Context) -> list[Decision]:
        moves = candles["close"].diff().shift(-1).fillna(0.0).to_numpy()
        return [side(move) for move in moves[self.warmup_bars - 1 :]]


class PeeksAtNothingYet(Honest):
    """Scales by the largest move of the whole slice: equal signs, but features from the future."""

    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        return self.decide_many(candles, params, context)[-1]

    def decide_many(self, candles: pd.DataFrame, params: NoParams, context: Context) -> list[Decision]:
        moves = candles["close"].diff().to_numpy()
        return [side(move, share=float(move / np.nanmax(np.abs(moves)))) for move in moves[self.warmup_bars - 1 :]]


class Remembers(Honest):
    """Trades only when its last decision was another one."""

    def __init__(self) -> None:
        self._last: Action | None = None

    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        said = super().decide(candles, params, context)
        repeated, self._last = said.action is self._last, said.action
        return HOLD if repeated else said


class Gambles(Honest):
    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        return side(random.random() - 0.5)


class WarmsUpTooLittle(Honest):
    """Wilder's RSI(14) on the 30 candles it asks for. On more candles it has another value."""

    warmup_bars = 30

    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        rsi = talib.RSI(candles["close"].to_numpy(dtype=np.float64), 14)[-1]
        return side(50.0 - rsi) if abs(rsi - 50.0) > 10.0 else HOLD


class Stumbles(Honest):
    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        return side(1 / 0) if context.now.hour == 7 else super().decide(candles, params, context)


class Writes(Honest):
    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        try:
            open("trades.log", "a")  # noqa: SIM115, PTH123
        except BaseException:  # noqa: BLE001
            return super().decide(candles, params, context)
        return HOLD


class Sleeps(Honest):
    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Any:
        return HOLD
