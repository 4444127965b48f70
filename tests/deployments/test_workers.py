"""A fresh Prefect server, deployed by Prefect's own command, and workers with a strategy in their folder.

One worker has this checkout, the other the installed wheel.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
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
REGISTERED, A_DAY_LATER, THE_NEXT_HOUR = "2026-03-02T00:00Z", "2026-03-03T00:00Z", "2026-03-03T01:00Z"
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

    def register_and_deploy(self) -> None:
        """Register the folder's strategy as active, a day ago, and deploy all flows."""
        version = ("breakout", "1.0.0", "--entry-point", "breakout:Breakout", "--symbols", "GOLD")
        self.run("rollout", "db", "upgrade")
        self.run("rollout", "register", *version, "--status", "active", "--yes", ROLLOUT_REPLAY_FROM=REGISTERED)
        self.run("rollout", "deploy")

    def shadow_run(self, command: Sequence[str], log: Path, **settings: str) -> dict[str, Any]:
        """Create a candle run, start a process that takes it, and return the run's last state."""
        shadow = deployments(self.api)["shadow-run"]
        created = self.api.post(f"/deployments/{shadow['id']}/create_flow_run", json={}).raise_for_status().json()
        with running(command, self.folder, {**self.environment, **settings}, log):
            state = self.finished(created["id"], log)
        assert state["type"] == "COMPLETED", (state["message"], log.read_text()[-3_000:])
        return state

    def decided(self) -> int:
        """Return the number of logged decisions, after a check that none is an error."""
        engine = open_database(f"sqlite:///{self.folder / 'site.db'}")
        counted = count_decisions(engine, "breakout")
        engine.dispose()
        assert ("1.0.0", "error") not in counted
        return sum(counted.values())

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
    write_strategy(folder)
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


@pytest.fixture(scope="module")
def installed(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """The site's server, with a folder and an environment in which the project is installed from its wheel."""
    folder, made = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("wheel")
    uv, venv = shutil.which("uv"), made / "venv"
    assert uv is not None
    without = {name: value for name, value in os.environ.items() if name != "UV_COMPILE_BYTECODE"}  # of all libraries

    def run(*arguments: str) -> None:  # in the checkout, whose constraints on libraries count
        done = subprocess.run([uv, *arguments], cwd=ROOT, env=without, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run("build", "--wheel", "--out-dir", str(made))
    (wheel,) = made.glob("*.whl")
    run("venv", "--python", sys.executable, str(venv))
    run("pip", "install", "--python", str(venv), str(wheel))
    write_strategy(folder)
    path = os.pathsep.join([str(venv / "bin"), os.environ["PATH"]])
    found = replace(site, folder=folder, environment={**site.environment, "PATH": path})
    assert Path(found.run("python", "-c", "import flows; print(flows.__file__)").strip()).is_relative_to(venv)
    return found


def write_strategy(folder: Path) -> None:
    """Save the README's strategy."""
    (source,) = (each for each in blocks(README) if each.title == "breakout.py")
    (folder / source.title).write_text(source.text)


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


def documented_worker() -> list[str]:
    (command,) = re.findall(r"^uv run (prefect worker start .*)$", PAGE.read_text(), re.MULTILINE)
    return str(command).split()


def test_a_worker_runs_a_strategy_that_lies_in_its_folder(site: Site) -> None:
    site.register_and_deploy()

    state = site.shadow_run(documented_worker(), site.folder / "worker.log")

    assert re.search(r"breakout 1\.0\.0 \(active\): 23 decisions, \d+ signals, 0 errors", state["message"])
    assert site.decided() == 23
    left = {each.name.partition("-")[0] for each in site.folder.iterdir()}  # Prefect copies nothing into it
    assert left <= {"breakout.py", "site.db", "worker.log", "__pycache__"}


def test_a_worker_and_a_clock_of_the_wheel_run_a_strategy_that_lies_in_their_folder(installed: Site) -> None:
    installed.register_and_deploy()

    by_worker = installed.shadow_run(documented_worker(), installed.folder / "worker.log")
    by_clock = installed.shadow_run(
        ["rollout", "clock"], installed.folder / "clock.log", ROLLOUT_REPLAY_FROM=THE_NEXT_HOUR
    )

    assert re.search(r"breakout 1\.0\.0 \(active\): 23 decisions, \d+ signals, 0 errors", by_worker["message"])
    assert re.search(r"breakout 1\.0\.0 \(active\): 1 decisions, \d+ signals, 0 errors", by_clock["message"])
    assert installed.decided() == 24
