"""Self-test of the sandbox on this machine, with the probe as the version."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.probe import TRIES
from strategy_core.isolation.protocol import Answer

PROBE = "strategy_core.isolation.probe:Probe"
SECRETS = "find a secret"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The result of one try of the probe. *reported* means that it was recorded as a breach."""

    what: str
    refused: bool
    reported: bool
    detail: str


def prove_isolation(*, deadline_s: float = 5.0) -> list[Attempt]:
    """Run the probe in a worker like any version and return the result of each try.

    Tries by native code or at a local socket are refused by the kernel and not reported. Without a seccomp filter (not
    Linux, or a processor other than x86_64 and aarch64) native code is not refused, which the result shows.

    Raises:
        StrategyFailed: the worker could not be started.
    """
    names = [*TRIES, SECRETS]
    candle = pd.DataFrame({"close": [1.0]}, index=pd.DatetimeIndex([datetime(2026, 1, 5, tzinfo=UTC)]))
    with IsolatedStrategy(PROBE, {}, deadline_s=deadline_s) as probe:
        probe.describe()
        answers = probe.decide([DecisionRequest(name, "1h", candle, [0], 1) for name in names])
    return [_attempt(name, answer) for name, (answer,) in zip(names, answers, strict=True)]


def _attempt(name: str, answer: Answer) -> Attempt:
    if answer.decision is not None:
        return Attempt(name, answer.decision.reason.startswith("refused"), False, answer.decision.reason)
    detail = answer.error or ""
    denied = answer.kind == "raised" and detail.startswith("PermissionError")
    return Attempt(name, answer.kind == "breach" or denied, answer.kind == "breach", detail)
