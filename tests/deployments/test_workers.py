"""A fresh Prefect server, deployed by Prefect's own command, and a worker with a strategy in its folder."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from strategy_core.services.queries import count_decisions
from strategy_core.store.engine import open_database
from tests.api import processes
from tests.deployments.started import deployments, names, wait_for
from tests.docs.pages import README, ROOT, blocks

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("prefect")]

PAGE = ROOT / "docs" / "how-to" / "run-with-prefect.md"
REGISTERED, A_DAY_LATER = "2026-03-02T00:00Z", "2026-03-03T00:00Z"
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@dataclass(frozen=True)
class Site:
    """A folder with a strategy, its settings, and a Prefect server without schedules."""

    folder: Path
    environment: Mapping[str, str]
    api: httpx.Client

    def run(self, *command: str, here: Path | None = None, **settings: str) -> str:
        done = subprocess.run(
            command,
            cwd=here or self.folder,
            env={**self.environment, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def finished(self, run_id: str, log: Path) -> dict[str, Any]:
        """Wait for the end of a flow run, and return its state."""

        def state() -> dict[str, Any] | None:
            found: dict[str, Any] = self.api.get(f"/flow_runs/{run_id}").raise_for_status().json()["state"]
            return found if found["type"] in FINAL else None

        try:
            return wait_for(state)
        except AssertionError:
            raise AssertionError(log.read_text()[-3_000:]) from None


@contextmanager
def running(command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home, port = tmp_path_factory.mktemp("prefect"), processes.free_port()
    folder = tmp_path_factory.mktemp("site")
    (source,) = (each for each in blocks(README) if each.title == "breakout.py")
    (folder / source.title).write_text(source.text)
    (home / "uv").write_text('#!/bin/sh\nshift\nexec "$@"\n')  # `uv run COMMAND` is COMMAND of this environment
    (home / "uv").chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ROLLOUT_"))}
    environment = clean | {
        "HOME": str(home),
        "PATH": os.pathsep.join([str(home), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "ROLLOUT_DATABASE_URL": "sqlite:///site.db",  # of the folder
        "ROLLOUT_FEED": "synthetic:GOLD?start=2026-01-01&days=120",
        "ROLLOUT_REPLAY_FROM": A_DAY_LATER,
        "ROLLOUT_REPLAY_STARTED_AT": "2199-01-01T00:00Z",  # until then the clock stands still
    }
    server = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-services"]
    with ExitStack() as stack:
        stack.enter_context(running(server, folder, environment, home / "server.log"))
        api = stack.enter_context(httpx.Client(base_url=environment["PREFECT_API_URL"], timeout=60))
        wait_for(lambda: True if answers(api) else None)
        yield Site(folder, environment, api)


def answers(api: httpx.Client) -> bool:
    try:
        return api.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_the_documented_line_deploys_all_to_a_fresh_server(site: Site) -> None:
    """`prefect deploy` ends with an error where the work pool does not exist."""
    (line,) = re.findall(r"^uv run prefect work-pool .*$", PAGE.read_text(), re.MULTILINE)

    site.run("bash", "-ec", line, here=ROOT)

    found = deployments(site.api)
    assert sorted(found) == sorted(names())
    assert {each["work_pool_name"] for each in found.values()} == {"rollout"}


def test_a_worker_runs_a_strategy_that_lies_in_its_folder(site: Site) -> None:
    version = ("breakout", "1.0.0", "--entry-point", "breakout:Breakout", "--symbols", "GOLD")
    site.run("rollout", "db", "upgrade")
    site.run("rollout", "register", *version, "--status", "active", "--yes", ROLLOUT_REPLAY_FROM=REGISTERED)
    site.run("rollout", "deploy")
    (command,) = re.findall(r"^uv run (prefect worker start .*)$", PAGE.read_text(), re.MULTILINE)
    log = site.folder / "worker.log"
    shadow = deployments(site.api)["shadow-run"]
    created = site.api.post(f"/deployments/{shadow['id']}/create_flow_run", json={}).raise_for_status().json()

    with running(command.split(), site.folder, site.environment, log):
        state = site.finished(created["id"], log)

    assert state["type"] == "COMPLETED", (state["message"], log.read_text()[-3_000:])
    assert re.search(r"breakout 1\.0\.0 \(active\): 23 decisions, \d+ signals, 0 errors", state["message"])
    engine = open_database(f"sqlite:///{site.folder / 'site.db'}")
    counted = count_decisions(engine, "breakout")
    engine.dispose()
    assert sum(counted.values()) == 23
    assert ("1.0.0", "error") not in counted
    left = {each.name.partition("-")[0] for each in site.folder.iterdir()}  # Prefect copies nothing into it
    assert left <= {"breakout.py", "site.db", "worker.log", "__pycache__"}
