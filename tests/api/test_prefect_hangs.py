"""A Prefect server that accepts connections and answers nothing, or is away, hinders neither owners nor rollbacks."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import httpx
import pytest

from strategy_core.store.engine import open_database
from tests.api.asking import put_world
from tests.api.processes import free_port, serving, token_of
from tests.services.ramping import standing

pytestmark = pytest.mark.full  # starts two servers and the command
PATIENCE_S = 60.0
NAMES = ("fib_rsi", "fib_rsi", "ppo_gold", "ppo_gold")
OFF = ({"1": "active", "2": "shadow", "3": "shadow"}, 0.0)


@contextmanager
def silent_server() -> Iterator[str]:
    """Yield the address of a server that keeps every connection and answers none."""
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    kept.append(server.accept()[0])
            except OSError:
                pass

        thread = Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/api"
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    for each in kept:
        each.close()


@pytest.fixture(params=["hangs", "away"])
def prefect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "hangs":
        with silent_server() as address:
            monkeypatch.setenv("PREFECT_API_URL", address)
            yield address
    else:
        address = f"http://127.0.0.1:{free_port()}/api"
        monkeypatch.setenv("PREFECT_API_URL", address)
        yield address


@pytest.mark.usefixtures("prefect")
def test_the_console_and_the_api_answer_and_roll_back(sqlite_url: str, tmp_path: Path) -> None:
    engine = open_database(sqlite_url)
    world = put_world(engine)
    with serving(sqlite_url, tmp_path / "log") as address, httpx.Client(base_url=address, timeout=PATIENCE_S) as client:
        bearer = {"Authorization": f"Bearer {token_of('ana')}"}
        own = {"Sec-Fetch-Site": "same-origin", "Origin": address}
        logged_in = client.post("/console/login", data={"token": token_of("ana")}, headers=own)
        pages = ("/console", f"/console/rollouts/{world.rollout}", "/console/alerts", "/console/proposals")
        shown = [client.get(page, follow_redirects=True).text for page in pages]
        read = client.get("/api/v1/strategy/rollouts", headers=bearer)
        back = client.post(
            f"/api/v1/strategy/rollouts/{world.rollout}/rollback", json={"reason": "news"}, headers=bearer
        )

    assert logged_in.status_code == 303
    assert ["Log out" in page for page in shown] == [True] * 4
    assert [name in page for name, page in zip(NAMES, shown, strict=True)] == [True] * 4
    assert (read.status_code, back.status_code) == (200, 200), back.text
    assert standing(engine) == OFF
    engine.dispose()


@pytest.mark.usefixtures("prefect")
def test_the_command_rolls_back(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)
    put_world(engine)

    done = subprocess.run(
        [sys.executable, "-m", "strategy_core.cli", "rollback", "fib_rsi", "--reason", "news"],
        env=os.environ | {"ROLLOUT_DATABASE_URL": sqlite_url},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert standing(engine) == OFF
    engine.dispose()
