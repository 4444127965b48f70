"""How long after the call of a rollback the last of many router processes still answers with the version rolled back.

`uv run pytest tests/benchmarks/test_propagation.py -m benchmark_suite -n 0`
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.store.engine import open_database
from tests.builders import MONDAY, OWNER, put_version
from tests.router.conftest import routing_answer

pytestmark = pytest.mark.benchmark_suite
ROOT = Path(__file__).parents[2]
ROLLBACKS = 20
WHO: dict[str, Any] = {"strategy_name": "fib_rsi", "actor": OWNER, "now": MONDAY}
RollBack = Callable[[], object]


@pytest.mark.parametrize(
    ("database_url", "through_api", "processes", "goal_s"),
    [("postgresql", False, 50, 1.0), ("sqlite", False, 10, 2.0), ("postgresql", True, 10, 2.0)],
    ids=["PostgreSQL", "SQLite", "HTTP"],
    indirect=["database_url"],
)
def test_a_rollback_reaches_every_process(
    database_url: str, through_api: bool, processes: int, goal_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = open_database(database_url)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")

    with api(engine) as url:
        address = url if through_api else database_url
        took = propagation(engine, address, processes, lambda: roll_back(engine, reason="odd fills", **WHO))
    engine.dispose()

    p50, p99, longest = np.quantile(took, [0.5, 0.99, 1.0], method="higher")
    with capsys.disabled():
        sys.stdout.write(
            f"\n{processes} processes, {len(took)} answers: p50 {p50:.3f} s, p99 {p99:.3f} s, max {longest:.3f} s"
        )
    assert len(took) == processes * ROLLBACKS
    assert p99 < goal_s


def propagation(engine: Engine, address: str, processes: int, back: RollBack, token: str = "") -> list[float]:
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
                activate_canary(engine, version="2", rollout_percent=100, override_reason="once more", **WHO)
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


@contextmanager
def api(engine: Engine) -> Iterator[str]:
    """Yield the address of a server that answers from the database as the API does."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = routing_answer(engine)
            etag = f'"{hash(body)}"'
            known = self.headers.get("If-None-Match") == etag
            self.send_response(304 if known else 200)
            self.send_header("ETag", etag)
            self.send_header("Content-Length", "0" if known else str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if known else body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
