"""`rollout up` with a real Prefect server.

The tests share one `up` and run in the order of its life. Each waits for what it asserts.
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.states import Completed, Scheduled
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from deployments import automations
from deployments.processes import password
from deployments.up import up
from flows.maintain import prune_runs
from flows.ramp import set_canary_percent
from strategy_core.domain.errors import InvalidPercent
from strategy_core.domain.lifecycle import Status
from strategy_core.services.database import read_clock
from strategy_core.store import audit, decisions, rollouts, versions
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import AuditEvent
from tests.deployments.started import (
    KEPT,
    PATIENCE_S,
    Up,
    arguments,
    deployments,
    members,
    names,
    schedules,
    wait_for,
)

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("prefect")]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    signed_in = {"ROLLOUT_CONSOLE_OWNER_HEADER": "X-Forwarded-User", "ROLLOUT_CONSOLE_PROXIES": "127.0.0.1"}
    started = Up.start(tmp_path_factory.mktemp("up"), **signed_in)
    yield started
    if started.process.poll() is None:
        started.end(signal.SIGTERM)


@pytest.fixture(scope="module")
def api(running: Up) -> Iterator[httpx.Client]:
    running.prints(r"Press Ctrl-C to stop")
    address = running.prints(r"Prefect UI +(http://127\.0\.0\.1:\d+)/open#")[1]
    with httpx.Client(base_url=f"{address}/api", timeout=60, headers=running.login()) as client:
        yield client


def signed_in(running: Up, api: httpx.Client) -> dict[str, str]:
    """Return the settings of a Prefect client that reaches the server."""
    return {
        "PREFECT_API_URL": str(api.base_url).rstrip("/"),
        "PREFECT_API_AUTH_STRING": running.password(),
    }


@pytest.fixture(scope="module")
def served(api: httpx.Client) -> Mapping[str, Mapping[str, Any]]:
    """Return the deployments by name, as the API has them once the last one is served."""
    return wait_for(lambda: found if len(found := deployments(api)) == len(names()) else None)


def test_scheduled_ticks_and_shadow_runs_change_the_database(
    running: Up, api: httpx.Client, served: Mapping[str, Mapping[str, Any]]
) -> None:
    """A server can look healthy while its scheduler does not work: only a scheduled run proves it."""
    begin = datetime.strptime(running.prints(r"clock +([-0-9]+ [:0-9]+) UTC")[1] + "+0000", "%Y-%m-%d %H:%M%z")
    engine = open_database(f"sqlite:///{running.state / 'rollout.db'}")

    def ticked() -> bool | None:
        with reading(engine) as session:
            rollout = rollouts.open_rollout(session, "fib_rsi")
            decided = decisions.newest_decided(session, "fib_rsi", "v1", "GOLD")
        assert rollout is not None
        return True if (rollout.last_tick_at or begin) > begin and (decided or begin) > begin else None

    def completed() -> dict[str, Any] | None:
        wanted = {
            "deployments": {"id": {"any_": [served["ramp-tick"]["id"]]}},
            "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        }
        runs: list[dict[str, Any]] = api.post("/flow_runs/filter", json=wanted).raise_for_status().json()
        return runs[0] if runs else None

    assert wait_for(ticked)
    run = wait_for(completed)
    engine.dispose()
    assert run["auto_scheduled"]
    assert run["name"] == "tick"
    assert run["state"]["message"].startswith("fib_rsi v2: ")


def test_a_newcomer_sees_a_rollout_go_on_and_another_undone_by_its_gates(
    running: Up, served: Mapping[str, Mapping[str, Any]]
) -> None:
    found = running.prints(r"alert \d+, critical: seasonal v2 rolled back: (.+)")[1]
    running.prints(r"alert \d+, (info|warning): fib_rsi v2 (advanced|awaiting approval): ")

    engine = open_database(f"sqlite:///{running.state / 'rollout.db'}")
    with reading(engine) as session:
        statuses = {(each.strategy_name, each.version): each.status for each in versions.list_versions(session)}
        last = audit.events(session, "seasonal")[-1]
    engine.dispose()
    assert statuses["seasonal", "v1"] == Status.ACTIVE
    assert statuses["seasonal", "v2"] == Status.SHADOW
    assert (last.action, last.actor, last.source) == ("roll_back", "ramp", "flow")
    assert last.reason == found
    assert re.match(r"[a-z_]+: ", found), "a gate is named: which one is first depends on when runs come"


@pytest.mark.parametrize(
    ("deployment", "parameters", "field"),
    [
        ("set-canary-percent", {"strategy_name": "fib_rsi", "percent": 150, "owner": "ana"}, "percent"),
        ("set-canary-percent", {"strategy_name": "fib_rsi", "percent": -1, "owner": "ana"}, "percent"),
        ("decide", {"strategy_name": "fib_rsi", "choice": "maybe", "owner": "ana", "reason": "why not"}, "choice"),
        ("rollback", {"strategy_name": "fib_rsi", "owner": "ana", "reason": ""}, "reason"),
        ("activate", {"strategy_name": "fib_rsi", "version": "v2", "owner": "ana"}, "reason"),
        ("start-canary", {"strategy_name": "", "version": "v2", "owner": "ana"}, "strategy_name"),
        ("nightly-comparison", {"days": 0}, "days"),
        ("compare", {"strategy_name": "fib_rsi", "version": "v2", "days": -1}, "days"),
        ("retire", {"strategy_name": "fib_rsi", "version": "v2", "owner": "   "}, "owner"),
        ("start-canary", {"strategy_name": "fib_rsi", "version": "v2", "owner": "ana", "plan": 5}, "plan"),
        ("acknowledge-alert", {"alerts": [], "owner": "ana", "reason": "on it"}, "alerts"),
        ("acknowledge-alert", {"alerts": [0], "owner": "ana", "reason": "on it"}, "alerts"),
    ],
)
def test_parameters_out_of_bounds_are_refused_by_the_api(
    api: httpx.Client,
    served: Mapping[str, Mapping[str, Any]],
    deployment: str,
    parameters: Mapping[str, Any],
    field: str,
) -> None:
    answer = api.post(f"/deployments/{served[deployment]['id']}/create_flow_run", json={"parameters": parameters})

    assert answer.status_code == 409
    assert field in answer.text


def test_another_web_page_can_neither_read_nor_start_anything(
    running: Up, api: httpx.Client, served: Mapping[str, Mapping[str, Any]]
) -> None:
    """It has no password, and a browser adds its origin, or by DNS rebinding its host name, to each request."""
    rollback = f"{api.base_url}deployments/{served['rollback']['id']}/create_flow_run"
    run = {"parameters": {"strategy_name": "fib_rsi", "owner": "ana", "reason": "a web page says so"}}
    known, own = running.login(), str(api.base_url).removesuffix("/api/")
    port = api.base_url.port
    refused = [
        {},
        {"Authorization": "Basic b3duZXI6Z3Vlc3NlZA=="},
        known | {"Origin": "https://evil.example"},
        known | {"Origin": "null"},
        known | {"Origin": f"http://evil.example:{port}"},
        known | {"Host": f"evil.example:{port}"},
        known | {"Host": "127.0.0.1"},
        known | {"Host": ""},
    ]
    statuses = [httpx.post(rollback, json=run, headers=each).status_code for each in refused]
    reads = [httpx.get(f"{own}/api/admin/settings", headers=each).status_code for each in refused]
    preflight = httpx.options(
        rollback, headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    )

    assert statuses == [401, 401, *[403] * 6]
    assert reads == [401, 401, *[403] * 6]
    assert preflight.status_code == 403
    assert "access-control-allow-origin" not in preflight.headers
    assert httpx.get(f"{own}/api/admin/version", headers=known | {"Origin": own}).status_code == 200
    local = f"http://localhost:{port}"
    assert httpx.get(f"{own}/api/admin/version", headers=known | {"Host": f"localhost:{port}"}).status_code == 200
    assert (
        httpx.options(rollback, headers={"Origin": local, "Access-Control-Request-Method": "POST"}).headers[
            "access-control-allow-origin"
        ]
        == local
    )
    with pytest.raises(InvalidStatus) as websocket:
        connect(f"ws://127.0.0.1:{port}/api/events/out", origin=Origin("https://evil.example"))
    assert websocket.value.response.status_code == 403
    engine = open_database(f"sqlite:///{running.state / 'rollout.db'}")
    with reading(engine) as session:
        assert "a web page says so" not in {each.reason for each in audit.events(session)}
    engine.dispose()


def test_the_password_is_kept_for_its_owner_alone(running: Up, api: httpx.Client) -> None:
    file = running.state / "prefect-password"

    assert file.stat().st_mode & 0o777 == 0o600
    assert password(file) == running.password()
    page = httpx.get(f"{str(api.base_url).removesuffix('/api/')}/open")
    assert "prefect-password" in page.text
    assert running.password() not in page.text


@pytest.mark.parametrize(
    ("deployment", "given", "signed_in", "who"),
    [
        ("pause", {"strategy_name": "fib_rsi"}, {}, ("ana", "form, unverified")),
        ("retire", {"strategy_name": "seasonal", "version": "v2"}, {"X-Forwarded-User": "bob"}, ("bob", "form")),
    ],
    ids=["unverified", "signed in"],
)
def test_the_owner_of_a_form_is_who_is_signed_in_or_unverified(
    running: Up,
    api: httpx.Client,
    served: Mapping[str, Mapping[str, Any]],
    deployment: str,
    given: dict[str, str],
    signed_in: dict[str, str],
    who: tuple[str, str],
) -> None:
    """Here every client on this machine is a trusted proxy."""
    engine = open_database(f"sqlite:///{running.state / 'rollout.db'}")

    def made(action: str) -> AuditEvent | None:
        with reading(engine) as session:
            return next((each for each in audit.events(session, given["strategy_name"]) if each.action == action), None)

    if deployment == "retire":
        wait_for(lambda: made("roll_back"))  # by its gates: it is in shadow again

    def ask() -> str | None:
        created = api.post(
            f"/deployments/{served[deployment]['id']}/create_flow_run",
            json={"parameters": {**given, "owner": "ana", "reason": "lunch"}},
            headers=signed_in,
        )
        busy = created.status_code == httpx.codes.SERVICE_UNAVAILABLE  # of its SQLite. Prefect's clients ask again too
        return None if busy else str(created.raise_for_status().json()["id"])

    run = wait_for(ask)

    event = wait_for(lambda: made("retire_version" if deployment == "retire" else deployment))
    engine.dispose()
    assert (event.actor, event.source) == who
    assert event.request_id == run


def test_a_run_that_slipped_past_the_bounds_fails_with_the_domains_line(
    api: httpx.Client, running: Up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", f"sqlite:///{running.state / 'rollout.db'}")
    with temporary_settings(
        {PREFECT_API_URL: str(api.base_url).rstrip("/"), PREFECT_API_AUTH_STRING: running.password()}
    ):
        state = set_canary_percent("fib_rsi", 150.0, owner="ana", return_state=True)

    run = api.get(f"/flow_runs/{state.state_details.flow_run_id}").raise_for_status().json()
    assert run["name"] == "set the canary of fib_rsi to 150.0 %"
    assert run["state"]["type"] == "FAILED"
    assert run["state"]["message"] == str(InvalidPercent(150.0))


def test_an_owner_is_answered_by_the_api_with_a_token_for_development(running: Up) -> None:
    """The clock is the replay's: what the API does stands in the trail at the market's time."""
    url = running.prints(r"API +(http://127\.0\.0\.1:\d+)/docs")[1]
    settings = {"ROLLOUT_API_DEVELOPMENT": "1", "HOME": str(running.state / "home")}
    token = subprocess.run(
        [sys.executable, "-m", "strategy_core.cli", "token", "--name", "ana", "--role", "owner"],
        env=os.environ | settings,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()

    def found() -> dict[str, Any] | None:
        try:
            answer = httpx.get(f"{url}/api/v1/strategy/rollouts", headers={"Authorization": f"Bearer {token}"})
        except httpx.TransportError:
            return None
        return dict(answer.raise_for_status().json())

    items = wait_for(found)["items"]

    assert {(each["strategy_name"], each["version"]) for each in items} == {("fib_rsi", "v2"), ("seasonal", "v2")}
    assert httpx.get(f"{url}/api/v1/strategy/rollouts").status_code == 401
    assert httpx.get(f"{url}/docs").status_code == 200


def test_another_shell_needs_only_the_address_of_the_database(
    running: Up, served: Mapping[str, Mapping[str, Any]]
) -> None:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ROLLOUT_")}
    url = f"sqlite:///{running.state / 'rollout.db'}"

    def shown(*words: str) -> Any:
        command = [sys.executable, "-m", "strategy_core.cli", *words, "--json", "--database-url", url]
        done = subprocess.run(command, env=plain, check=True, capture_output=True, text=True)
        assert done.stderr == ""
        return json.loads(done.stdout)

    known, listed, clock = shown("status", "fib_rsi"), shown("alerts", "list"), shown("db", "clock")

    assert known[0]["rollout"]["clock_disagrees"] == ""
    assert listed["overdue"] == []
    assert {each["kind"] for each in listed["alerts"]} & {"rollout.tick_overdue", "clock.disagrees"} == set()
    assert clock["stored"]["speed"] == 5760.0


def test_whoever_looks_at_the_metrics_needs_no_token(running: Up) -> None:
    address = running.prints(r"metrics +(http://127\.0\.0\.1:\d+/metrics)\n")[1]

    def scraped() -> str | None:
        try:
            answer = httpx.get(address, timeout=60)
        except httpx.TransportError:
            return None
        return answer.raise_for_status().text

    assert 'strategy_generation{strategy="fib_rsi"}' in wait_for(scraped)


def test_a_failed_gate_is_an_event_once_and_owners_are_told_at_once(
    api: httpx.Client, served: Mapping[str, Mapping[str, Any]]
) -> None:
    """The first tick emits the event, the automation reacts at once, and a second emission changes no count."""

    def events(name: str) -> list[dict[str, Any]]:
        wanted = {"filter": {"event": {"name": [name]}}}
        return list(api.post("/events/filter", json=wanted).raise_for_status().json()["events"])

    def seeded(name: str) -> list[dict[str, Any]]:
        return [each for each in events(name) if each["resource"]["prefect.resource.id"] == "rollout.seasonal"]

    def started() -> list[dict[str, Any]]:
        runs = api.post("/flow_runs/filter", json={"flow_runs": {"tags": {"all_": ["rollout"]}}}).raise_for_status()
        return [each for each in runs.json() if "failed gate" in str(each["created_by"])]

    (failed,) = wait_for(lambda: seeded("rollout.gate.failed") or None)
    run, *_ = wait_for(lambda: started() or None)
    again = {key: failed[key] for key in ("event", "resource", "related", "payload", "id")}
    marker = again | {"id": str(uuid4()), "event": "rollout.test"}
    api.post("/events", json=[each | {"occurred": f"{datetime.now(UTC):%FT%TZ}"} for each in (again, marker)])
    wait_for(lambda: seeded("rollout.test") or None)

    assert run["deployment_id"] == served["deliver-alerts"]["id"]
    assert failed["payload"]["version"] == "v2"
    assert failed["payload"]["gate"] in ("excess_drawdown", "silence")  # as soon as candle runs are late, silence
    assert failed["payload"]["command"] == "rollout verdicts seasonal"
    assert {each["prefect.resource.role"] for each in failed["related"]} == {"version", "rollout", "flow-run"}
    assert [len(seeded(name)) for name in ("rollout.gate.failed", "rollout.rolled_back")] == [1, 1]
    assert len(started()) <= len(events("rollout.gate.failed"))


def test_automations_are_put_once_and_leave_an_owners_own_alone(
    running: Up, api: httpx.Client, served: Mapping[str, Mapping[str, Any]]
) -> None:
    ids = {name: UUID(each["id"]) for name, each in served.items()}
    settings = {PREFECT_API_URL: str(api.base_url).rstrip("/"), PREFECT_API_AUTH_STRING: running.password()}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        (ours, *_) = automations.automations(ids)
        mine = client.create_automation(ours.model_copy(update={"name": "my own"}))
        assert automations.put(client, ids) == []
        (known,) = client.read_automations_by_name(ours.name)
        client.update_automation(known.id, ours.model_copy(update={"description": "odd", "enabled": False}))

        assert automations.put(client, ids) == [f"updated the automation {ours.name!r}"]

        (found,) = client.read_automations_by_name(ours.name)
        assert (found.description, found.enabled) == (ours.description, False)
        assert client.read_automation(mine) is not None
        assert automations.put(client, ids) == []


def test_a_child_that_ends_is_named_and_the_rest_is_stopped(
    running: Up,
    api: httpx.Client,
    served: Mapping[str, Mapping[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It runs beside the other `up`, on the same database and Prefect server, which it must not stop."""
    for name, value in signed_in(running, api).items():
        monkeypatch.setenv(name, value)
    printed: list[str] = []

    def kill_the_flows(line: str) -> None:
        printed.append(line)
        for pid in re.findall(r"flows \(pid (\d+)", line):
            os.kill(int(pid), signal.SIGKILL)

    assert up(**arguments(running, tmp_path), echo=kill_the_flows) == 1

    assert printed[-1].startswith(f"flows ended with exit code -9. The end of {tmp_path / 'logs' / 'flows.log'}:")
    started = {int(pid) for line in printed for pid in re.findall(r"pid (\d+)", line)}
    assert len(started) == 3, "the flows, the API and the metrics"
    assert members(started) == []
    assert api.get("/health").status_code == 200


def test_workers_would_be_given_the_same_deployments(
    running: Up, api: httpx.Client, served: Mapping[str, Mapping[str, Any]]
) -> None:
    """`prefect deploy --all` and serving make the same of one prefect.yaml, but for where the runs run."""
    api.post("/work_pools/", json={"name": "rollout", "type": "process"}).raise_for_status()
    deploy = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    console = running.prints(r"console +(http://127\.0\.0\.1:\d+/console)")[1]  # descriptions link there
    environment = os.environ | signed_in(running, api) | {"HOME": str(running.state / "home")}
    environment["ROLLOUT_CONSOLE_URL"] = console
    subprocess.run([*deploy], cwd=running.state, env=environment, check=True, capture_output=True, timeout=PATIENCE_S)

    deployed = deployments(api)

    assert sorted(deployed) == sorted(names())
    for name, each in deployed.items():
        assert each["work_pool_name"] == "rollout"
        for kept in KEPT:
            assert each[kept] == served[name][kept], f"{name}: {kept}"
        assert schedules(each) == schedules(served[name])
        assert each["paused"] is False


def test_old_runs_of_our_own_deployments_are_deleted_and_an_owners_are_kept_longer(
    running: Up, api: httpx.Client, served: Mapping[str, Mapping[str, Any]]
) -> None:
    """A run ends when the server says so, and the time of the nightly flow is moved in place of that."""
    now = datetime.now(UTC)
    settings = {PREFECT_API_URL: str(api.base_url).rstrip("/"), PREFECT_API_AUTH_STRING: running.password()}
    with temporary_settings(settings), get_client(sync_client=True) as client:

        def ended(deployment: str | None, **parameters: str) -> UUID:
            """Return a finished run of a deployment of ours, or of a flow without one."""
            later: State[Any] = Scheduled(scheduled_time=now + timedelta(days=1))  # no runner takes it before it ends
            if deployment is None:
                run = client.create_flow_run(set_canary_percent, state=later).id
            else:
                of = UUID(served[deployment]["id"])
                run = client.create_flow_run_from_deployment(of, parameters=parameters, state=later).id
            client.set_flow_run_state(run, Completed(), force=True)
            return run

        def left() -> list[UUID]:
            known = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=runs)))
            return [each for each in runs if each in {run.id for run in known}]

        runs = [ended("ramp-tick"), ended("pause", strategy_name="fib_rsi", owner="ana"), ended(None)]
        deleted = [prune_runs(client, now=now + timedelta(days=6))]
        young = left()
        deleted.append(prune_runs(client, now=now + timedelta(days=8)))
        after_a_week = left()
        deleted.append(prune_runs(client, now=now + timedelta(days=91)))

        assert (young, after_a_week, left()) == (runs, runs[1:], runs[2:])
    assert deleted[0] == 0
    assert min(deleted[1:]) > 0


def test_ctrl_c_stops_everything_it_started(running: Up, api: httpx.Client) -> None:
    groups = running.groups()
    assert len(groups) == 4
    assert len(members(groups)) >= 2

    assert running.end(signal.SIGINT) == 0

    assert members(groups) == []
    with pytest.raises(httpx.TransportError):
        api.get("/health")
    engine = open_database(f"sqlite:///{running.state / 'rollout.db'}")
    stopped = read_clock(engine)
    engine.dispose()
    assert stopped is not None
    assert stopped.started_at is None  # it stands still
