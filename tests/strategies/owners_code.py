"""Code as owners write it, good and bad, for the loading tests."""

from typing import TYPE_CHECKING, Any

import pandas as pd
from pydantic import BaseModel, Field

from strategy_core.domain.strategy import Action, Context, Decision

if TYPE_CHECKING:
    from collections.abc import Unknown  # type: ignore[attr-defined]


class OwnParams(BaseModel):
    period: int = Field(default=5, alias="n")
    bands: list[float] = [1.0]


class Native:
    Params = OwnParams
    warmup_bars = 9

    def decide(self, candles: pd.DataFrame, params: OwnParams, context: Context) -> Decision:
        return Decision(Action.HOLD)


class NoParams:
    warmup_bars = 9

    def decide(self) -> None: ...


class NoWarmup:
    Params = OwnParams

    def decide(self) -> None: ...


class Neither:
    pass


class Estimator:
    def predict(self, rows: list[list[float]]) -> list[int]:
        return [0] * len(rows)


estimator = Estimator()


def make_estimator() -> Estimator:
    return estimator


NOT_CALLABLE = 7


def make_native() -> Native:
    return Native()


def make_nothing() -> None: ...


def make_engine(answer: str = "buy", **config: Any) -> "Engine":
    engine = Engine(answer)
    engine.warmup_bars = config.get("bars", 4)
    return engine


class Engine:
    """Returns a given answer."""

    warmup_bars = 4

    def __init__(self, answer: Any = None, *, strict: bool = True, **_: Any) -> None:
        self.answer = answer

    def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> Any:
        return self.answer


class AsyncEngine(Engine):
    made = 0

    def __init__(self, answer: Any = None) -> None:
        super().__init__(answer)
        AsyncEngine.made += 1

    async def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> Any:
        return {"signal": "buy", "symbol": symbol, "candle": timestamp.isoformat(), "rows": len(df)}


class EngineWithParams(Engine):
    Params = OwnParams

    def __init__(self, period: int, bands: list[float]) -> None:
        super().__init__("sell" if period == 7 else None)

    def warmup_bars(self, params: OwnParams) -> int:  # type: ignore[override]
        return params.period * 2


class WarmupInConfig:
    def __init__(self, warmup_bars: int) -> None: ...

    def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> None: ...


class NoWarmupEngine:
    def generate_signal(self, df: pd.DataFrame, symbol: str, timestamp: pd.Timestamp) -> None: ...


class OddlyTyped(Engine):
    def __init__(self, answer: "Unknown" = "hold") -> None:
        super().__init__(answer)


class PositionalOnly(Engine):
    def __init__(self, answer: str, /) -> None:
        super().__init__(answer)
