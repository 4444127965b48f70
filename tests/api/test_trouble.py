"""What a client is told when something behind the API is away, broken or busy."""

from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.observe import configure_logs
from strategy_core.services.rollback import roll_back
from strategy_core.services.versions import activate_version
from strategy_core.settings import Settings
from strategy_core.store.engine import open_database
from tests.api.asking import REGISTRATION, WHY, Api, World, put_world
from tests.api.every import refused
from tests.api.signing import NOW
from tests.builders import OWNER
from tests.holding import shm_of, stranger


def test_a_feed_that_cannot_be_had_is_not_the_clients_fault(engine: Engine, world: World) -> None:
    api = Api(engine, Settings(feed="csv:/nowhere"))

    response = api.post("/versions", REGISTRATION)

    refused(response, 503)
    assert response.headers["retry-after"]


def test_numbers_are_read_when_they_are_asked_for(api: Api, engine: Engine, world: World) -> None:
    before = api.get("/metrics").text
    roll_back(engine, Command(OWNER, NOW, "it bleeds"), strategy_name="fib_rsi")
    activate_version(engine, Command(OWNER, NOW), strategy_name="ppo_gold", version="2")
    after = api.get("/metrics").text

    assert 'canary_traffic_percent{strategy="fib_rsi",version="2"} 5.0' in before
    assert 'rollout_open{stage="1",state="running",strategy="fib_rsi",version="2"} 1.0' in before
    assert 'canary_traffic_percent{strategy="fib_rsi",version="2"} 0.0' in after
    assert 'version_activations_total{strategy="ppo_gold",version="2"} 1.0' in after
    assert 'strategy_generation{strategy="fib_rsi"} 2.0' in after
    assert "rollout_open{" not in after


def test_health_is_told_to_anybody_and_says_nothing_else(api: Api, tmp_path: Any) -> None:
    empty = Api(open_database(f"sqlite:///{tmp_path}/empty.db"))

    assert api.get("/healthz", held=None).json() == {"status": "ok", "isolation": "namespaces"}
    problem = refused(empty.get("/healthz", held=None), 503)
    assert "empty.db" not in str(problem)


@pytest.mark.full
def test_a_database_that_is_away_is_told_as_such() -> None:
    away = Api(open_database("postgresql://nobody:secret@127.0.0.1:1/nothing"))

    for response in (
        away.get("/healthz", held=None),
        away.get("/versions"),
        away.post("/rollback", {"strategy_name": "x", **WHY}),
    ):
        assert "secret" not in str(refused(response, 503))
        assert response.headers["retry-after"] == "5"


def test_a_process_that_locks_the_database_is_named_in_the_log_alone(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr("strategy_core.store.engine.LOCK_BUDGET_S", 0.1)
    request.addfinalizer(structlog.reset_defaults)
    configure_logs(as_json=True)
    engine = open_database(f"{sqlite_url}?timeout=0.1")
    api, world = Api(engine), put_world(engine)
    with stranger(shm_of(engine)) as pid:
        answers = [
            api.post("/rollback", {"strategy_name": "fib_rsi", **WHY}),
            api.post(f"/rollouts/{world.rollout}/pause", WHY),
        ]

    for answer in answers:
        problem = refused(answer, 503)
        assert problem["type"] == "/problems/database-locked"
        assert str(pid) not in str(problem)
    assert capsys.readouterr().err.count(f"process {pid} (") == len(answers)


@pytest.mark.parametrize("as_json", [True, False], ids=["to a file", "to a terminal"])
def test_a_fault_of_this_software_is_told_by_its_request_alone(
    api: Api,
    engine: Engine,
    world: World,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    """The trace goes to the log, without what the variables held; the client gets the id to find it by."""
    request.addfinalizer(structlog.reset_defaults)
    configure_logs(as_json=as_json)
    with engine.begin() as connection:
        connection.execute(text("UPDATE rollout SET stage_index = 99"))

    response = api.get(f"/rollouts/{world.rollout}", headers={"X-Request-Id": "r-7"})

    problem = refused(response, 500)
    assert "Traceback" not in response.text
    assert (problem["type"], response.headers["x-request-id"]) == ("/problems/internal-error", "r-7")
    logged = capsys.readouterr().err
    assert "Traceback" in logged
    assert "r-7" in logged
    assert "locals" not in logged


def test_questions_that_take_long_leave_room_for_a_rollback(api: Api, world: World) -> None:
    heavy = api.app.state.backend.heavy
    while heavy.acquire(blocking=False):
        pass

    refused(api.post("/shadow-comparison", {"strategy_name": "fib_rsi", "shadow_version": "2"}), 503)
    assert api.post("/rollback", {"strategy_name": "fib_rsi", **WHY}).status_code == 200
