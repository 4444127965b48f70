"""A version that misbehaves from a given time on, as its config describes. Only workers import it."""

import math
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.strategy import Action, Context, Decision

BIRTH = datetime(1970, 1, 1, tzinfo=UTC)


def _raise() -> None:
    raise ValueError("no model")


TRICKS: Mapping[str, Callable[[str], object]] = {
    "write": lambda target: Path(target).write_text("x"),
    "connect": lambda _: socket.create_connection(("127.0.0.1", 9)),
    "sleep": lambda _: time.sleep(3600),
    "raise": lambda _: _raise(),
    "nonsense": lambda _: Decision(Action.BUY, math.nan),
}


class OffenderParams(BaseModel):
    model_config = ConfigDict(extra="forbid")

    trick: str
    target: str = ""
    since: datetime = Field(default=BIRTH)


class Offender:
    Params = OffenderParams
    warmup_bars = 5

    def decide(self, candles: pd.DataFrame, params: OffenderParams, context: Context) -> Any:
        rises = bool(candles["close"].iloc[-1] > candles["open"].iloc[-5])
        answer = Decision(Action.BUY if rises else Action.SELL, 0.5)
        if context.now < params.since:
            return answer
        return TRICKS[params.trick](params.target) or answer
