"""Ready engines that scripts hand to the shadow executor; sent to workers by pickle, so they stand in a module."""

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pandas as pd


class Follower:
    """Buys after a rise, sells after a fall; asynchronous, as the platform's engines are."""

    warmup_bars = 3

    async def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> dict[str, Any]:
        await asyncio.sleep(0)
        rises = df["close"].iloc[-1] > df["open"].iloc[0]
        return {"signal": "BUY" if rises else "SELL", "confidence": 0.7, "candles": len(df), "symbol": symbol}


class Broken(Follower):
    """Does one thing that no version may."""

    def __init__(self, trick: str, target: str = "") -> None:
        self.trick = trick
        self.target = target

    async def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> Any:
        match self.trick:
            case "raise":
                raise ValueError("no model")
            case "sleep":
                time.sleep(3600)
            case "write":
                Path(self.target).write_text("x")
        return {"signal": "buy", "confidence": math.nan}
