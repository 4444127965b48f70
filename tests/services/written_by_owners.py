"""Strategies as owners write them, each with the habit that its name says."""

import calendar
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from time import gmtime, localtime, time, time_ns
from typing import Any

import numpy as np
import pandas as pd
import talib
from pydantic import BaseModel, Field, SecretStr, field_validator

from strategy_core import Action, Context, Decision

HOLD = Decision(Action.HOLD)
signalled: list[Action] = []


class Length(BaseModel):
    n: int = Field(default=14, ge=2)


class Trend:
    """Follows the last candle."""

    Params: type[BaseModel] = Length
    warmup_bars = 150

    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        return Decision(Action.BUY if candles["close"].diff().iloc[-1] > 0 else Action.SELL, 0.6)


class OnceOnSelf(Trend):
    """Signals a side only once in a row."""

    def __init__(self) -> None:
        self.last: Action | None = None

    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        decision = super().decide(candles, params, context)
        repeated, self.last = decision.action is self.last, decision.action
        return HOLD if repeated else decision


class OnceOnTheClass(Trend):
    last: Action | None = None

    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        decision = super().decide(candles, params, context)
        repeated, OnceOnTheClass.last = decision.action is self.last, decision.action
        return HOLD if repeated else decision


class OnceInTheModule(Trend):
    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        decision = super().decide(candles, params, context)
        repeated = signalled[-1:] == [decision.action]
        signalled[:] = [decision.action]
        return HOLD if repeated else decision


class CrossFromTheCandleBefore(Trend):
    """Compares with the RSI of the candle before, if it was asked for that one an hour ago."""

    def __init__(self) -> None:
        self.before: dict[str, tuple[datetime, float]] = {}

    def decide(self, candles: pd.DataFrame, params: Length, context: Context) -> Decision:
        rsi = talib.RSI(candles["close"].to_numpy(), params.n)[-1]
        then, value = self.before.get(context.symbol, (context.now, rsi))
        self.before[context.symbol] = (context.now, rsi)
        crossed = context.now - then == timedelta(hours=1) and value < 45 <= rsi
        return Decision(Action.BUY, 0.6) if crossed or rsi < 25 else HOLD


class QuietTimes(Trend):
    """Rests by the clock, as one does by the hour of the day, but for so long that no test runs into the change."""

    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        since = datetime.now(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
        return HOLD if since // timedelta(days=400, hours=13) % 2 else super().decide(candles, params, context)


class Clocks(Trend):
    """Shows what each clock says, in seconds since 1970."""

    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        seen = {
            "time": time(),
            "time_ns": time_ns() / 1e9,
            "localtime": calendar.timegm(localtime()),
            "gmtime": calendar.timegm(gmtime()),
            "datetime.now": datetime.now(UTC).timestamp(),
            "datetime.now()": datetime.now().replace(tzinfo=UTC).timestamp(),  # noqa: DTZ005
            "datetime.utcnow": datetime.utcnow().replace(tzinfo=UTC).timestamp(),  # noqa: DTZ003
            "datetime.today": datetime.today().replace(tzinfo=UTC).timestamp(),  # noqa: DTZ002
            "date.today": datetime.combine(date.today(), clock_time(), UTC).timestamp(),  # noqa: DTZ011
            "Timestamp.now": pd.Timestamp.now("UTC").timestamp(),
            "Timestamp.today": pd.Timestamp.today().timestamp(),
            "to_datetime": pd.to_datetime("now", utc=True).timestamp(),
        }
        return Decision(Action.HOLD, features=seen)


class MeanOfTheFrame(Trend):
    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        return Decision(Action.BUY if candles["close"].iloc[-1] > candles["close"].mean() else Action.SELL, 0.6)


class WrongColumn(Trend):
    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        price = candles["close"].rolling(3).mean()
        return Decision(Action.BUY, float(price.loc["yesterday"]))  # the line that the error names


class Percent(BaseModel):
    stop_percent: float = 2.0

    @field_validator("stop_percent")
    @classmethod
    def as_fraction(cls, value: float) -> float:
        return value / 100


class PercentConfig(Trend):
    Params = Percent

    def decide(self, candles: pd.DataFrame, params: Percent, context: Context) -> Decision:
        return Decision(Action.HOLD, features={"seen": params.stop_percent})


class Aliased(BaseModel):
    period: int = Field(default=14, alias="rsiPeriod")


class AliasConfig(Trend):
    Params = Aliased

    def decide(self, candles: pd.DataFrame, params: Aliased, context: Context) -> Decision:
        return Decision(Action.HOLD, features={"seen": params.period})


class Login(BaseModel):
    key: SecretStr = SecretStr("hunter2")


class SecretConfig(Trend):
    Params = Login


class EngineParams:
    def __init__(self, rsi_period: int = 14, rsi_oversold: float = 30.0) -> None:
        self.rsi_period, self.rsi_oversold = rsi_period, rsi_oversold


class Calendar:
    def is_open(self, at: pd.Timestamp) -> bool:
        return at.weekday() < 6


class RsiEngine:
    """Takes two objects, as engines of a platform do, and answers in its platform's words."""

    def __init__(self, params: EngineParams, calendar: Calendar) -> None:
        self.params, self.calendar = params, calendar

    async def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> dict[str, Any] | None:
        if not self.calendar.is_open(timestamp):
            return None
        rsi = talib.RSI(df["close"].to_numpy(), self.params.rsi_period)[-1]
        if rsi < self.params.rsi_oversold:
            return {
                "side": "LONG",
                "confidence": 0.7,
                "timestamp": timestamp,
                "entry": np.float64(df["close"].iloc[-1]),
            }
        return {"side": "SHORT", "confidence": 0.7} if rsi > 100 - self.params.rsi_oversold else None


def make(**config: Any) -> RsiEngine:
    engine = RsiEngine(EngineParams(**config), Calendar())
    engine.warmup_bars = 150  # type: ignore[attr-defined]
    return engine
