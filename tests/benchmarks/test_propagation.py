"""How long after an owner has told the API to roll back a router process still answers with the version rolled back.

`uv run pytest tests/benchmarks/test_propagation.py -m benchmark_suite -n 0`
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.canary import activate_canary
from strategy_core.store.engine import open_database
from tests.api.processes import serving, token_of
from tests.builders import MONDAY, OWNER, put_version

pytestmark = pytest.mark.benchmark_suite
ROOT = Path(__file__).parents[2]
ROLLBACKS = 20
RollBack = Callable[[], object]


@pytest.mark.parametrize(
    ("database_url", "through_api", "processes", "goal_s"),
    [("postgresql", False, 50, 1.0), ("sqlite", False, 10, 2.0), ("postgresql", True, 10, 2.0)],
    ids=["PostgreSQL", "SQLite", "HTTP"],
    indirect=["database_url"],
)
def test_a_rollback_reaches_every_process(
    database_url: str,
    through_api: bool,
    processes: int,
    goal_s: float,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = open_database(database_url)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    token = token_of("ana")

    with (
        serving(database_url, tmp_path / "api.log") as url,
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=60) as owner,
    ):
        took = propagation(engine, url if through_api else database_url, processes, lambda: roll_back(owner), token)
    engine.dispose()

    p50, p99, longest = np.quantile(took, [0.5, 0.99, 1.0], method="higher")
    with capsys.disabled():
        sys.stdout.write(
            f"\n{processes} processes, {len(took)} answers: p50 {p50:.3f} s, p99 {p99:.3f} s, max {longest:.3f} s; "
            f"goal: p99 < {goal_s:g} s"
        )
    assert len(took) == processes * ROLLBACKS


def roll_back(owner: httpx.Client) -> None:
    wish = {"strategy_name": "fib_rsi", "reason": "odd fills"}
    owner.post("/api/v1/strategy/rollback", json=wish).raise_for_status()


def propagation(engine: Engine, address: str, processes: int, back: RollBack, token: str) -> list[float]:
    """Return, for each rollback and process, the seconds from just before the call to its first changed answer."""
    took: list[float] = []
    arguments = [sys.executable, "-m", "tests.benchmarks.routers", address, token, "fib_rsi", str(processes)]
    with subprocess.Popen(
        arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as routers:
        assert routers.stdin is not None
        assert routers.stdout is not None
        answers = iter(routers.stdout.readline, "")
        try:
            told(answers, "1", processes)
            for _ in range(ROLLBACKS):
                activate_canary(
                    engine,
                    Command(OWNER, MONDAY, override_reason="once more"),
                    strategy_name="fib_rsi",
                    version="2",
                    rollout_percent=100,
                )
                told(answers, "2", processes)
                time.sleep(np.random.default_rng().uniform(0, 0.5))  # anywhere between two looks of a router
                began = time.monotonic_ns()
                back()
                took += [(at - began) / 1e9 for at in told(answers, "1", processes)]
        finally:
            routers.stdin.close()  # which ends them
    return took


def told(answers: Iterator[str], version: str, processes: int) -> list[int]:
    """Return when each process began to answer with *version*."""
    at: dict[str, int] = {}
    while len(at) < processes:
        number, its, nanoseconds = next(answers).split()
        assert its == version
        at[number] = int(nanoseconds)
    return list(at.values())
