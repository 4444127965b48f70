"""The API as a process of its own, on loopback, for tests of what several of them do together."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import jwt

SECRET = "a secret that only this test knows, and nobody else"
PATIENCE_S = 120.0


@contextmanager
def serving(database_url: str, log: Path, **more: str) -> Iterator[str]:
    """Run one process of the API, with *more* of its settings, and yield its address once it is healthy."""
    port = free_port()
    process = start(database_url, log, port, **more)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(PATIENCE_S) in (0, -15), log.read_text()[-2_000:]


def start(database_url: str, log: Path, port: int, **more: str) -> "subprocess.Popen[bytes]":
    """Start one process of the API on *port*, and do not wait for it. The caller ends it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ROLLOUT_")}
    settings = {"ROLLOUT_DATABASE_URL": database_url, "ROLLOUT_API_SECRET": SECRET, "ROLLOUT_API_PORT": str(port)}
    settings |= {f"ROLLOUT_API_{name.upper()}": value for name, value in more.items()}
    with log.open("a") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "strategy_core.api"], env=clean | settings, stdout=output, stderr=output
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_healthy(address: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            if httpx.get(f"{address}/api/v1/strategy/healthz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, "the API does not come up"
        time.sleep(0.1)


def token_of(name: str, **more: str) -> str:
    claims = {
        **more,
        "sub": name,
        "role": "owner",
        "aud": "strategy-rollout",
        "exp": datetime.now(UTC) + timedelta(hours=1),
    }
    return jwt.encode(claims, SECRET, algorithm="HS256")
