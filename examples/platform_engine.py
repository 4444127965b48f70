"""An engine of a platform that is made of two objects, and the function that makes it from a config.

    cd examples
    export ROLLOUT_SYMBOL=GOLD
    uv run rollout db upgrade
    uv run rollout register engine 1.0.0 --entry-point platform_engine:make --status active --yes
    uv run rollout register engine 1.1.0 --entry-point platform_engine:make --config '{"rsi_oversold": 25}'
    uv run rollout route user_123 engine

The engine stays as the platform has it. `make` alone is new.
"""

from dataclasses import dataclass
from datetime import datetime

import pandas as pd
import talib


@dataclass(frozen=True)
class EngineParams:
    rsi_period: int = 14
    rsi_oversold: float = 30.0
    rsi_overbought: float = 70.0


class MarketCalendar:
    def is_open(self, at: datetime) -> bool:
        return at.weekday() < 5


class StrategyEngine:
    def __init__(self, params: EngineParams, calendar: MarketCalendar) -> None:
        self.params, self.calendar = params, calendar

    async def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: datetime) -> dict | None:
        if not self.calendar.is_open(timestamp):
            return None
        rsi = talib.RSI(df["close"].to_numpy(), self.params.rsi_period)[-1]
        if rsi < self.params.rsi_oversold:
            return {"side": "LONG", "confidence": 0.7, "rsi": rsi, "timestamp": timestamp}
        if rsi > self.params.rsi_overbought:
            return {"side": "SHORT", "confidence": 0.7, "rsi": rsi, "timestamp": timestamp}
        return None


def make(**config: float) -> StrategyEngine:
    engine = StrategyEngine(EngineParams(**config), MarketCalendar())
    engine.warmup_bars = 150  # candles of each decision
    return engine
