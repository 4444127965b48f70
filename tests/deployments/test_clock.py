"""The clock against a real Prefect server: what it starts, passes over, writes down and takes over."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.context import SyncClientContext
from prefect.states import Cancelled, Pending, Running, Scheduled
from prefect.testing.utilities import prefect_test_harness
from sqlalchemy import Engine
from sqlmodel import select

from deployments import prefect_yaml
from deployments.clock import ALONE_AFTER_S, Clock
from deployments.serve import deployed, put
from strategy_core.domain.lifecycle import Status
from strategy_core.services import owner_requests
from strategy_core.services.owner_requests import ALERT_AFTER, LEASE, Request
from strategy_core.store import audit, rollouts
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import OwnerRequest
from tests.builders import MONDAY, put_version
from tests.flows.conftest import FEED
from tests.services.outbox import outbox

pytestmark = [pytest.mark.full, pytest.mark.xdist_group("prefect")]

MINUTE = timedelta(minutes=1)
SERVED = ("ramp-tick", "rollback", "start-canary", "pause", "plan", "register-version", "retrain")


@pytest.fixture(scope="module")
def client() -> Iterator[SyncPrefectClient]:
    with prefect_test_harness(server_startup_timeout=120), SyncClientContext() as context:
        yield context.client


@pytest.fixture(scope="module")
def ids(client: SyncPrefectClient) -> Mapping[str, UUID]:
    return put(prefect_yaml(), only=SERVED, schedules=False)


@pytest.fixture
def clock(
    engine: Engine, client: SyncPrefectClient, ids: Mapping[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Clock]:
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("ROLLOUT_FEED", FEED)
    monkeypatch.setenv("ROLLOUT_REPLAY_FROM", MONDAY.isoformat())
    monkeypatch.setenv("ROLLOUT_REPLAY_STARTED_AT", "2199-01-01T00:00:00+00:00")
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    clock = a_clock(engine, client, ids)
    yield clock
    wait_until(lambda: not clock.busy)


def a_clock(engine: Engine, client: SyncPrefectClient, ids: Mapping[str, UUID], name: str = "one") -> Clock:
    return Clock({each.id: each for each in deployed(prefect_yaml(), ids)}, client, engine, name)


def wait_until(true: Callable[[], object], *, step: Callable[[], None] = lambda: None, within_s: float = 120.0) -> None:
    until = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < until, "timed out"
        step()
        time.sleep(0.1)


def ask(client: SyncPrefectClient, ids: Mapping[str, UUID], name: str, **parameters: Any) -> UUID:
    return client.create_flow_run_from_deployment(ids[name], parameters=parameters).id


def start(client: SyncPrefectClient, ids: Mapping[str, UUID]) -> UUID:
    return ask(client, ids, "start-canary", strategy_name="fib_rsi", version="v2", owner="ana")


def ended(client: SyncPrefectClient, run: UUID) -> FlowRun | None:
    found = client.read_flow_run(run)
    return found if found.state and found.state.is_final() else None


def requests(engine: Engine) -> list[OwnerRequest]:
    with reading(engine) as session:
        return list(session.exec(select(OwnerRequest).order_by(OwnerRequest.asked_at)).all())  # type: ignore[arg-type]


def actions(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return [event.action for event in audit.events(session)]


def test_what_an_owner_asks_for_is_written_down_and_done(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID]
) -> None:
    run = start(client, ids)

    wait_until(lambda: ended(client, run), step=clock.step)

    wait_until(lambda: requests(clock.engine)[0].ended_at)
    (row,) = requests(clock.engine)
    assert (row.id, row.action, row.failed) == (run, "start_canary", False)
    assert row.line.startswith("fib_rsi v2 serves 5 % of users against v1. Warning: v2 has 0 slots")
    assert row.parameters["version"] == "v2"
    assert client.read_flow_run(run).state_name == "Completed"


def test_of_minutes_that_have_passed_the_newest_is_run(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID]
) -> None:
    now = datetime.now(UTC)
    late = [now - timedelta(minutes=minutes) for minutes in (3, 2, 1)]
    runs = [
        client.create_flow_run_from_deployment(ids["ramp-tick"], state=Scheduled(scheduled_time=each)).id
        for each in late
    ]

    wait_until(lambda: ended(client, runs[-1]), step=clock.step)

    newest = client.read_flow_run(runs[-1])
    assert newest.state is not None
    assert newest.state.message == "no rollout is open"
    for run in runs[:-1]:
        passed = client.read_flow_run(run).state
        assert passed is not None
        assert passed.name == "Skipped"
        assert passed.message == f"Its minute has passed. The run of {late[-1]:%H:%M:%S} UTC does its work."


@pytest.mark.parametrize("left", [Pending, None], ids=["by a worker that ended", "by a clock that ended"])
def test_what_is_left_undone_is_done_once_by_another(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], left: Any
) -> None:
    run = start(client, ids)
    if left is not None:
        client.set_flow_run_state(run, left())
    request = Request(run, "start_canary", {"strategy_name": "fib_rsi", "version": "v2", "owner": "ana"})
    owner_requests.take(clock.engine, request, by="an ended process", now=datetime.now(UTC) - LEASE)
    other = a_clock(clock.engine, client, ids, "two")

    clock.look()
    other.look()
    wait_until(lambda: ended(client, run))
    wait_until(lambda: not clock.busy and not other.busy)
    clock.look()

    assert actions(clock.engine).count("start_rollout") == 1
    (row,) = requests(clock.engine)
    assert not row.failed
    assert row.line.startswith("fib_rsi v2 serves 5 % of users against v1. ")
    assert client.read_flow_run(run).state_name == "Completed"


def test_a_request_that_was_done_but_not_noted_is_not_done_again(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID]
) -> None:
    """Its process ended between the change and the note."""
    run = start(client, ids)
    wait_until(lambda: ended(client, run), step=clock.step)
    wait_until(lambda: not clock.busy)
    client.set_flow_run_state(run, Pending(), force=True)
    with clock.engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE owner_request SET ended_at = NULL, line = '', taken_until = '2026-01-01 00:00:00'"
        )

    clock.look()

    wait_until(lambda: ended(client, run))
    assert actions(clock.engine).count("start_rollout") == 1
    assert client.read_flow_run(run).state_name == "Completed"


@pytest.mark.parametrize("left", [Scheduled, Pending, Running], ids=lambda state: state.__name__)
def test_a_result_that_the_server_could_not_take_is_reported_later(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], monkeypatch: pytest.MonkeyPatch, left: Any
) -> None:
    """The server was away when the request was taken over. The run would stay open for ever."""
    for name in ("ALERT_AFTER", "LEASE"):
        monkeypatch.setattr(f"deployments.clock.{name}", timedelta(0))
    run = start(client, ids)
    client.set_flow_run_state(run, left(), force=True)
    request = Request(run, "start_canary", {"strategy_name": "fib_rsi", "version": "v2", "owner": "ana"})
    owner_requests.take(clock.engine, request, by="an ended process", now=datetime.now(UTC))
    owner_requests.end(clock.engine, run, "v2 was started", failed=False, now=datetime.now(UTC))

    clock.step()
    clock.look()
    wait_until(lambda: not clock.busy)

    found = client.read_flow_run(run).state
    assert found is not None
    assert (found.name, found.message) == ("Completed", "v2 was started")
    assert actions(clock.engine) == []


def test_a_request_on_which_no_worker_begins_is_alerted(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.clock.ALERT_AFTER", timedelta(0))
    run = ask(client, ids, "pause", strategy_name="fib_rsi", owner="ana")
    client.set_flow_run_state(run, Pending())

    clock.look()
    clock.look()

    (alert,) = (each for each in outbox(clock.engine) if each.facts["request"] == str(run))
    assert alert.kind == "owner.request_waiting"
    assert "pause of fib_rsi" in alert.text
    assert requests(clock.engine) == []  # it has time until the lease is over


@pytest.fixture
def nothing_waits(client: SyncPrefectClient) -> None:
    """Cancel what earlier tests have left on the server."""
    left = FlowRunFilterStateType(any_=[StateType.SCHEDULED, StateType.PENDING, StateType.CRASHED])
    for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=left))):
        client.set_flow_run_state(run.id, Cancelled(), force=True)


def claimed(client: SyncPrefectClient, ids: Mapping[str, UUID], *, since: timedelta) -> UUID:
    """Return a request that was due *since* then and is claimed by a worker that does not begin."""
    due: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) - since)
    parameters = {"strategy_name": "fib_rsi", "owner": "ana"}
    run = client.create_flow_run_from_deployment(ids["pause"], parameters=parameters, state=due).id
    client.set_flow_run_state(run, Pending())
    return run


@pytest.mark.usefixtures("nothing_waits")
def test_a_look_comes_sooner_only_if_a_request_would_wait_too_long_until_then(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limits are long, so that none is reached while the test runs."""
    for limit, length in (("LOOK_S", 600.0), ("ALERT_AFTER", 30 * MINUTE), ("LEASE", 50 * MINUTE)):
        monkeypatch.setattr(f"deployments.clock.{limit}", length)
    idle = clock.look()
    claimed(client, ids, since=MINUTE)
    new = clock.look()
    claimed(client, ids, since=25 * MINUTE)
    waiting = clock.look()
    alerts_before = len(outbox(clock.engine))
    late = claimed(client, ids, since=31 * MINUTE)

    clock.look()

    assert (idle, new, alerts_before) == (600.0, 600.0, 0)
    assert 0 < waiting <= 300
    (alert,) = outbox(clock.engine)
    assert (alert.kind, alert.facts["request"]) == ("owner.request_waiting", str(late))


@pytest.mark.usefixtures("nothing_waits")
def test_the_alert_about_a_request_that_waits_needs_no_second_regular_look(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.clock.LOOK_S", 3_600.0)
    run = claimed(client, ids, since=ALERT_AFTER / 2)
    stop = threading.Event()
    loop = threading.Thread(target=clock.run, args=(stop,))
    loop.start()

    wait_until(lambda: outbox(clock.engine))

    stop.set()
    loop.join()
    (alert,) = outbox(clock.engine)
    assert (alert.kind, alert.facts["request"]) == ("owner.request_waiting", str(run))


def test_without_a_database_a_request_waits_on_the_server(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], tmp_path: Path
) -> None:
    run = start(client, ids)
    away = a_clock(open_database(f"sqlite:///{tmp_path / 'none' / 'none.db'}"), client, ids)
    away.step()
    wait_until(lambda: not away.busy)
    assert client.read_flow_run(run).state_name in ("Scheduled", "Late")

    wait_until(lambda: ended(client, run), step=clock.step)

    assert actions(clock.engine) == ["start_rollout"]


def test_a_rollback_is_done_though_it_cannot_be_written_down(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], tmp_path: Path
) -> None:
    started = start(client, ids)
    wait_until(lambda: ended(client, started), step=clock.step)
    run = ask(client, ids, "rollback", strategy_name="fib_rsi", owner="ana", reason="odd fills")
    away = a_clock(open_database(f"sqlite:///{tmp_path / 'none' / 'none.db'}"), client, ids)

    wait_until(lambda: ended(client, run), step=away.step)

    assert client.read_flow_run(run).state_name == "Completed"
    assert actions(clock.engine) == ["start_rollout", "roll_back"]


def test_a_rollback_waits_for_no_lock_to_be_written_down(sqlite_url: str, client: SyncPrefectClient) -> None:
    """Anything else is tried again later."""
    clock = a_clock(open_database(sqlite_url), client, {})
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        taken = [clock._taken(Request(uuid4(), action, {})) for action in ("rollback", "pause")]
    clock.engine.dispose()

    assert taken == [True, False]


def test_without_the_server_ticks_go_on(clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID]) -> None:
    started = start(client, ids)
    wait_until(lambda: ended(client, started), step=clock.step)
    with SyncPrefectClient("http://127.0.0.1:9/api") as none:
        alone = a_clock(clock.engine, none, ids)
        alone._answered -= ALONE_AFTER_S
        alone.step()
        wait_until(lambda: not alone.busy)

    with reading(clock.engine) as session:
        assert rollouts.list_rollouts(session)[0].last_tick_at == MONDAY


@pytest.mark.parametrize("active", [True, False], ids=["active", "paused by an owner"])
def test_ticks_go_on_when_the_server_answers_and_schedules_nothing(
    clock: Clock, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch, active: bool
) -> None:
    """Its scheduler is away: here the only run of the schedule is due next year."""
    (tick,) = put(prefect_yaml(), only=("ramp-tick",), schedules=False).values()
    started = start(client, {each.name: each.id for each in clock.served.values()})
    wait_until(lambda: ended(client, started), step=clock.step)
    wait_until(lambda: not clock.busy)
    monkeypatch.setattr("deployments.clock.UNSCHEDULED_S", 0.0)
    client.create_deployment_schedules(
        tick, [DeploymentScheduleCreate(schedule=CronSchedule(cron="0 0 1 1 *", timezone="UTC"), active=active)]
    )

    clock.step()
    wait_until(lambda: not clock.busy)

    with reading(clock.engine) as session:
        (rollout,) = rollouts.list_rollouts(session)
    assert (rollout.last_tick_at == MONDAY) is active


def test_a_run_that_reads_much_has_a_process_of_its_own_and_its_end_is_seen(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID]
) -> None:
    run = ask(client, ids, "plan", strategy_name="fib_rsi", version="v2")
    clock.step()
    wait_until(lambda: clock.processes)
    (process,) = clock.processes
    process.kill()

    wait_until(lambda: ended(client, run))

    found = client.read_flow_run(run)
    assert found.state_type == StateType.CRASHED
    assert found.state is not None
    assert found.state.message == "Its process ended with exit code -9."


def test_a_request_in_a_process_stays_its_clocks_as_long_as_that_works(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID]
) -> None:
    ask(client, ids, "register-version", strategy_name="fib_rsi", version="v3", symbols=["GOLD"], owner="ana")
    clock.step()
    wait_until(lambda: clock.processes)
    (process,) = clock.processes
    with clock.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE owner_request SET taken_until = '2026-01-01 00:00:00'")

    clock.look()

    assert owner_requests.left_undone(clock.engine, now=datetime.now(UTC)) == []
    process.kill()
    wait_until(lambda: not clock.busy)
    clock.look()  # from now on it is not renewed
    assert len(owner_requests.left_undone(clock.engine, now=datetime.now(UTC) + LEASE)) == 1


def test_a_training_does_not_hold_up_a_rollback(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PREFECT_API_URL", str(client.api_url))  # for the processes of the trainings
    known: dict[str, Any] = {"strategy_name": "ppo_gold", "entry_point": "ppo_gold", "symbols": ["GOLD"], "config": {}}
    put_version(clock.engine, "1", Status.ACTIVE, **known)
    canary = start(client, ids)
    wait_until(lambda: ended(client, canary), step=clock.step)
    until = {"until": "2026-02-20", "owner": "ana"}
    training = ask(client, ids, "retrain", strategy_name="ppo_gold", version="2", **until)
    wait_until(lambda: clock.processes, step=clock.step)
    waiting = ask(client, ids, "retrain", strategy_name="ppo_gold", version="3", seed=20, **until)

    undone = ask(client, ids, "rollback", strategy_name="fib_rsi", reason="test", owner="ana")
    wait_until(lambda: ended(client, undone), step=clock.step)

    assert ended(client, training) is None
    assert len(clock.processes) == 1, "one training at a time"
    wait_until(lambda: ended(client, training), within_s=600)
    wait_until(lambda: ended(client, waiting), within_s=600)
    state = client.read_flow_run(training).state
    assert state is not None
    assert state.name == "Completed", state.message
    assert (state.message or "").startswith("ppo_gold 2 is registered as shadow: trained until 2026-02-20")
    made = [action for action in actions(clock.engine) if action == "register_version"]
    assert len(list((tmp_path / "models").glob("*.json"))) == len(made) > 0


def test_a_stop_waits_for_what_runs_and_ends_processes(
    clock: Clock, client: SyncPrefectClient, ids: Mapping[str, UUID]
) -> None:
    ask(client, ids, "plan", strategy_name="fib_rsi", version="v2")
    stop = threading.Event()
    worker = threading.Thread(target=clock.run, args=(stop,))
    worker.start()
    wait_until(lambda: clock.processes)
    (process,) = clock.processes

    stop.set()
    worker.join(60)

    assert not worker.is_alive()
    assert process.poll() is not None
