"""Kill the Prefect server, the flows and `up` itself: rollouts continue, and no step is done twice.

The tests share one state folder and run in the order of its life. Each waits for what it asserts.
"""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Pending
from sqlalchemy import Engine

from deployments import automations
from strategy_core.services.audit import verify_trail
from strategy_core.store import audit, rollouts
from strategy_core.store.alerts import find_alerts
from strategy_core.store.engine import open_database, reading
from tests.deployments.started import PATIENCE_S, Up, deployments, members, names, wait_for
from tests.endpoint import Endpoint, serving
from tests.services.outbox import ids, url_of

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("prefect")]


class Life:
    """A running `up`, its database, its Prefect server, and a receiver of alerts."""

    def __init__(self, up: Up, receiver: Endpoint) -> None:
        self.up, self.receiver = up, receiver
        self._read_output()

    def _read_output(self) -> None:
        self.up.prints(r"Press Ctrl-C to stop")
        self.url = self.up.prints(r"Prefect UI +(http://127\.0\.0\.1:\d+)/open#")[1] + "/api"
        self.engine: Engine = open_database(f"sqlite:///{self.up.state / 'rollout.db'}")

    def settings(self) -> dict[str, str]:
        """Return the settings of a Prefect client that reaches its server."""
        return {"PREFECT_API_URL": self.url, "PREFECT_API_AUTH_STRING": self.up.password()}

    def asked(self, path: str, **wanted: Any) -> list[dict[str, Any]]:
        """Return what the server answers, once it does."""

        def answer() -> list[dict[str, Any]] | None:
            try:
                return list(
                    httpx.post(f"{self.url}{path}", json=wanted, timeout=30, headers=self.up.login())
                    .raise_for_status()
                    .json()
                )
            except httpx.HTTPError:
                return None

        return wait_for(answer)

    def served(self) -> Mapping[str, UUID]:
        """Return the ids of the deployments once the clock runs: `up` puts its automations before that."""
        self.ticks_on()
        with httpx.Client(base_url=self.url, timeout=60, headers=self.up.login()) as client:
            found = wait_for(lambda: each if len(each := deployments(client)) == len(names()) else None)
        return {name: UUID(each["id"]) for name, each in found.items()}

    def ticks(self) -> int:
        """Return how many ticks the server has seen completed."""
        return len(self.runs("tick", "COMPLETED"))

    def runs(self, name: str, *states: str) -> list[dict[str, Any]]:
        wanted = {"name": {"any_": [name]}, "state": {"type": {"any_": list(states)}}}
        return self.asked("/flow_runs/filter", flow_runs=wanted)

    def ticks_on(self) -> None:
        """Wait until another tick has completed."""
        before = self.ticks()
        wait_for(lambda: True if self.ticks() > before else None)

    def pid(self, name: str) -> int:
        """Return the process id of a child."""
        return int(re.findall(rf"{name},? \(?pid (\d+)", self.up.output.read_text())[-1])

    def restart(self) -> None:
        """Start another `up` on the same state folder."""
        self.engine.dispose()
        self.up = Up.start(self.up.state, ROLLOUT_ALERT_URLS=url_of(self.receiver))
        self._read_output()


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    with ExitStack() as stack:
        receiver = stack.enter_context(serving())
        up = Up.start(tmp_path_factory.mktemp("up"), ROLLOUT_ALERT_URLS=url_of(receiver))
        life = Life(up, receiver)
        stack.callback(lambda: life.up.end(signal.SIGTERM) if life.up.process.poll() is None else None)
        yield life


@pytest.fixture
def client(life: Life) -> Iterator[SyncPrefectClient]:
    settings = {PREFECT_API_URL: life.url, PREFECT_API_AUTH_STRING: life.up.password()}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def a_run_dies_unseen(life: Life, client: SyncPrefectClient, served: Mapping[str, UUID]) -> None:
    """Begun and killed here, where no runner looks."""
    run = client.create_flow_run_from_deployment(served["nightly-comparison"], state=Pending())

    def state() -> str:
        return str(client.read_flow_run(run.id).state_name)

    with socket.create_server(("127.0.0.1", 0)) as deaf:  # a database that does not answer: the run hangs
        database = f"postgresql://nobody@127.0.0.1:{deaf.getsockname()[1]}/none"
        begun = life.settings() | {"PREFECT__FLOW_RUN_ID": str(run.id), "ROLLOUT_DATABASE_URL": database}
        process = subprocess.Popen([sys.executable, "-m", "prefect.engine"], env=os.environ | begun)
        wait_for(lambda: True if state() == "Running" else None)
        process.kill()
        process.communicate()
    wait_for(lambda: True if state() == "Crashed" else None)


def owners_get_alerts(life: Life, client: SyncPrefectClient, served: Mapping[str, UUID]) -> None:
    """Here ticks come every 15 s."""

    def started() -> bool | None:
        runs = life.runs("deliver alerts", "SCHEDULED", "PENDING", "RUNNING", "COMPLETED")
        makers = [(each["created_by"] or {}).get("display_value", "") for each in runs]
        return True if any("no tick completes" in maker for maker in makers) else None

    assert wait_for(started)


@pytest.mark.parametrize(
    ("waits", "seconds", "comes_about"),
    [("ZOMBIE_AFTER", 60, a_run_dies_unseen), ("ABSENT_AFTER", 10, owners_get_alerts)],
    ids=["a run that died unseen is ended for want of a heartbeat", "owners get alerts when no tick completes"],
)
def test_what_no_longer_comes_is_seen_by_the_server(
    life: Life,
    client: SyncPrefectClient,
    monkeypatch: pytest.MonkeyPatch,
    waits: str,
    seconds: int,
    comes_about: Callable[[Life, SyncPrefectClient, Mapping[str, UUID]], None],
) -> None:
    """Automations see it, here after shorter waits."""
    served = life.served()
    before = getattr(automations, waits)
    monkeypatch.setattr(automations, waits, timedelta(seconds=seconds))
    assert automations.put(client, served)

    comes_about(life, client, served)

    monkeypatch.setattr(automations, waits, before)
    assert automations.put(client, served)


def test_nothing_was_done_twice(life: Life) -> None:
    """The audit trail is intact, no stage was entered twice, and every alert was delivered and is unique."""
    life.ticks_on()
    with reading(life.engine) as session:
        events = list(audit.events(session))
        every = rollouts.list_rollouts(session)
        alerts = list(find_alerts(session))

    assert verify_trail(life.engine).holds
    for rollout in every:
        mine = [each for each in events if each.rollout_id == rollout.id and each.action == "advance"]
        stages = [each.after["rollout"]["stage"] for each in mine]
        assert stages == list(range(1, rollout.stage_index + 1))
    assert len({alert.dedupe_key for alert in alerts}) == len(alerts)
    wait_for(lambda: True if len(set(ids(life.receiver))) >= len(alerts) else None)  # one may have come twice by now


def test_deployed_for_workers_it_is_what_prefect_itself_would_deploy(life: Life) -> None:
    environment = os.environ | life.settings() | {"HOME": str(life.up.state / "home")}

    def run(*module: str) -> str:
        command = [sys.executable, "-m", *module]
        done = subprocess.run(
            command, cwd=life.up.state, env=environment, check=False, capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    ours = ["strategy_core.cli", "deploy", "--file", str(life.up.state / "prefect.yaml")]
    first = run(*ours)
    run("prefect", "--no-prompt", "deploy", "--all")

    assert "created the work pool rollout" in first
    assert "updated the deployment ramp-tick" in first
    assert "automation" not in first
    assert run(*ours) == "no changes: the server is up to date\n"


@pytest.mark.parametrize("name", ["Prefect server", "flows"])
def test_a_killed_child_ends_up_and_a_second_one_goes_on(life: Life, name: str) -> None:
    """A flow run that survived its server or its runner would keep its place, and later runs would be cancelled."""
    groups = {life.pid(each) for each in ("Prefect server", "flows")}
    life.ticks_on()

    os.kill(life.pid(name), signal.SIGKILL)

    assert life.up.process.wait(PATIENCE_S) == 1
    assert f"{name} ended with exit code -9. The end of " in life.up.output.read_text()
    assert members(groups) == []
    life.restart()
    life.ticks_on()
    assert verify_trail(life.engine).holds


def test_a_killed_up_takes_its_children_along_and_a_second_one_goes_on(life: Life) -> None:
    groups = {life.pid(name) for name in ("Prefect server", "flows")}
    life.up.process.kill()
    life.up.process.wait()
    wait_for(lambda: True if members(groups) == [] else None)

    life.restart()
    life.ticks_on()

    assert verify_trail(life.engine).holds
    assert life.up.end(signal.SIGTERM) == 0
