"""Ask a version for a trick between two honest decisions, and look at the workers from outside."""

from pathlib import Path

import pandas as pd

from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.forkserver import fork_server
from strategy_core.isolation.protocol import Answer


def between_honest_ones(version: IsolatedStrategy, candles: pd.DataFrame, trick: str) -> Answer:
    """Ask for the trick between two honest decisions, which must succeed, and return the trick's answer."""
    asks = [DecisionRequest(symbol, "1h", candles, [20], 5) for symbol in ("GOLD", trick, "GOLD")]
    (before,), (answer,), (after,) = version.decide(asks)

    assert before.kind == after.kind == ""
    assert before.decision == after.decision
    return answer


def worker_pids() -> set[int]:
    """Return the process ids, as this machine sees them, of the workers that run and have not been reaped."""
    server = fork_server()._popen
    assert server is not None
    return {worker for first in _children(server.pid) for worker in _children(first)}


def _children(parent: int) -> set[int]:
    return {int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}
