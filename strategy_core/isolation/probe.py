"""A version that tries to reach outside, to prove that the worker of versions refuses it; it decides nothing."""

import os
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict

from strategy_core.domain.strategy import Action, Context, Decision
from strategy_core.isolation.isolated import Answer, Ask, IsolatedStrategy

TARGET = "isolation-probe.txt"
NOTHING = "there is none"
SECRETS = ("DATABASE", "PASSWORD", "TOKEN", "SECRET", "_KEY", "_URL")  # in the name of an environment variable


@dataclass(frozen=True, slots=True)
class Try:
    """One reach for the outside: what was tried, whether it was refused, and what the worker reported."""

    what: str
    refused: bool
    report: str


class NoParams(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Probe:
    """Reaches for what its symbol names; an answer, other than that there is nothing, says that nobody refused it."""

    Params = NoParams
    warmup_bars = 1

    def decide(self, candles: pd.DataFrame, params: NoParams, context: Context) -> Decision:
        found = TRIES[context.symbol]()
        return Decision(Action.HOLD, reason=NOTHING if found == NOTHING else "not refused")


def _environment() -> object:
    return [name for name in os.environ if any(word in name.upper() for word in SECRETS)] or NOTHING


TRIES: Mapping[str, Callable[[], object]] = {
    "write a file": lambda: Path(TARGET).write_text("x"),
    "remove a file": lambda: Path(TARGET).unlink(),
    "open a socket": socket.socket,
    "look up a host": lambda: socket.getaddrinfo("localhost", 80),
    "start a process": lambda: subprocess.run(["true"], check=False),  # noqa: S607  never started
    "fork": os.fork,
    "open a database": lambda: sqlite3.connect(TARGET),
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "read its parent's environment": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
    "read a credential": _environment,
}


def probe_isolation() -> list[Try]:
    """Run every try in a worker such as versions get, and return what became of each."""
    candle = pd.DataFrame(
        {"open": 1.0, "high": 1.0, "low": 1.0, "close": 1.0, "volume": 1.0},
        index=pd.date_range("2026-01-05", periods=1, freq="h", tz="UTC"),
    )
    with IsolatedStrategy(f"{Probe.__module__}:{Probe.__name__}", {}) as worker:
        answered = worker.decide([Ask(what, "1h", candle, [0], 1) for what in TRIES])
    return [_try(what, answer) for what, (answer,) in zip(TRIES, answered, strict=True)]


def _try(what: str, answer: Answer) -> Try:
    reason = answer.decision.reason if answer.decision else ""
    return Try(what, answer.kind == "breach" or reason == NOTHING, answer.error or reason)
