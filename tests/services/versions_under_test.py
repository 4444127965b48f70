"""Small strategies that the services' tests register by `tests.services.versions_under_test:Class`."""

import time
from typing import Any

import pandas as pd
from pydantic import BaseModel, Field, field_validator

from strategy_core.domain.strategy import Action, Context, Decision, Intent


class Every(BaseModel):
    hours: int = 6
    buy: bool = True


class Clockwork:
    """Signals on each candle that closes on a multiple of `hours`."""

    Params = Every

    def warmup_bars(self, params: Every) -> int:
        return 20

    def decide(self, candles: pd.DataFrame, params: Every, context: Context) -> Decision:
        if context.now.hour % params.hours:
            return Decision(Action.HOLD)
        return Decision(Action.BUY if params.buy else Action.SELL, 0.6, {"close": float(candles["close"].iloc[-1])})


class Leaving(Clockwork):
    """Leaves its positions two hours after it has signalled."""

    def decide(self, candles: pd.DataFrame, params: Every, context: Context) -> Decision:
        if context.now.hour % params.hours == 2:
            return Decision(Action.HOLD, 0.4, intent=Intent.CLOSE)
        return super().decide(candles, params, context)


class Trained(Clockwork):
    """Says until when it was trained."""

    class Params(Every):
        until: str

    def trained_until(self, params: Any) -> str:
        if params.until == "raise":
            raise SystemExit
        return str(params.until)


class Failing(Clockwork):
    """Fails in a way that its config chooses, from a moment on that registration does not reach."""

    class Params(BaseModel):
        how: str
        after: str

    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Any:
        if context.now.isoformat() < params.after:
            return Decision(Action.HOLD)
        if params.how == "raise":
            raise ZeroDivisionError("no range")
        if params.how == "sleep":
            time.sleep(3600)
        if params.how == "write":
            with open("stolen.txt", "w") as file:  # noqa: PTH123  what a version would write
                file.write("secrets")
        return Decision(Action.BUY, 2.0)


class Fickle(Clockwork):
    """Remembers how often it was asked, which no version may."""

    asked = 0

    def decide(self, candles: pd.DataFrame, params: Any, context: Context) -> Decision:
        self.asked += 1
        return Decision(Action.BUY if self.asked % 7 == 0 else Action.HOLD)


class Slow(Clockwork):
    def decide(self, candles: pd.DataFrame, params: Every, context: Context) -> Decision:
        time.sleep(0.01)
        return super().decide(candles, params, context)


class Scaled(BaseModel):
    risk_scale: float = Field(1.0, ge=0.25, le=1)
    notify_only: bool = False


class Toggled(Clockwork):
    """Declares toggles, which its decisions cannot see."""

    Toggles: Any = Scaled


class ToggledConfig(Clockwork):
    class Toggles(BaseModel):
        hours: int = Field(6, ge=1, le=24)


class ToggledDecision(Clockwork):
    Toggles = Scaled

    def decide(self, candles: pd.DataFrame, params: Every, context: Context) -> Decision:
        quiet = [name for name in ("notify_only",) if getattr(self.Toggles(), name)]
        return Decision(Action.HOLD) if quiet else super().decide(candles, params, context)


class ToggledBadly(Clockwork):
    class Toggles(BaseModel):
        loud: float = 1.0


class ToggledByNothing(Clockwork):
    Toggles = {"loud": True}


class ToggledWithoutDefault(Clockwork):
    class Toggles(BaseModel):
        loud: bool


class ToggledWithValidator(Clockwork):
    class Toggles(BaseModel):
        loud: bool = True

        @field_validator("loud")
        @classmethod
        def _never(cls, given: bool) -> bool:
            return False


class ToggledAngrily(Clockwork):
    """Raises when its declaration is read."""

    @property
    def Toggles(self) -> type[BaseModel]:  # noqa: N802  the name that the product reads
        raise RuntimeError("no")
