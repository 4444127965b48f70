"""A router resolves toggles from memory as the database does, learns of changes, and loses no rollback by them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from strategy_core import Router
from strategy_core.api.routes.toggles import _table
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    InvalidName,
    InvalidSetting,
    RouterClosed,
    RoutingUnavailable,
    UnknownStrategy,
    UnknownToggle,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.toggles import Rule, read_rule
from strategy_core.router.http import toggle_source, toggles_in
from strategy_core.router.refresher import Feed
from strategy_core.router.toggles import ToggleTable
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.services.toggles import load_segments, read_toggles, remove_rules, resolve_toggles, set_rules
from strategy_core.services.users import load_users
from strategy_core.store.engine import transaction
from tests.builders import MONDAY, OWNER, put_version
from tests.endpoint import Endpoint
from tests.router.conftest import USERS, Clock, until

NOW = Command(OWNER, MONDAY)
RISK = {"risk_scale": {"type": "number", "minimum": 0.25, "maximum": 1, "default": 1}}
QUIET = {"notify_only": {"type": "boolean", "default": False}}
ROOT = Path(__file__).parents[2]


@pytest.fixture
def toggled(engine: Engine) -> Engine:
    """Version 1 serves and declares a risk scale; the canary 2 of a quarter of the users a quiet mode too."""
    put_version(engine, "1", Status.ACTIVE, toggles=json.dumps(RISK))
    put_version(engine, "2", toggles=json.dumps(RISK | QUIET))
    put_version(engine, "1", Status.ACTIVE, strategy_name="plain")
    activate_canary(engine, NOW, strategy_name="fib_rsi", version="2", rollout_percent=25)
    load_segments(engine, NOW, [(user, "abc"[i % 3]) for i, user in enumerate(USERS[:200])])
    load_users(engine, [(user, float(i)) for i, user in enumerate(USERS[:300])], now=MONDAY)
    return engine


@pytest.fixture
def router(toggled: Engine, database_url: str) -> Iterator[Router]:
    with Router(database_url, toggles=True) as router:
        yield router


def put(engine: Engine, *rules: tuple[Any, dict[str, Any]], name: str = "risk_scale") -> None:
    made: list[Rule] = [read_rule(when, value, name, at) for at, (value, when) in enumerate(rules, 1)]
    set_rules(engine, NOW, strategy_name="fib_rsi", name=name, rules=made)


def put_drawn(engine: Engine, draw: Random) -> None:
    """Set twenty random rules."""
    for name, values in (("risk_scale", (0.25, 0.5, 0.75)), ("notify_only", (True, False))):
        drawn = []
        for _ in range(10):
            facts = {
                "segment": draw.choice("abc"),
                "percent": draw.randint(1, 30),
                "capital_at_least": draw.randint(0, 300),
                "capital_at_most": 300,
                "user_ids": draw.sample(USERS, 30),
            }
            when = {name: value for name, value in facts.items() if draw.random() < 0.4} or {"percent": 5}
            drawn.append((draw.choice(values), when))
        put(engine, *drawn, name=name)


def in_memory(router: Router, user_id: str = "user_1") -> dict[str, Any]:
    return dict(router.toggles_for(user_id, "fib_rsi"))


def test_a_router_resolves_as_the_database_does(toggled: Engine, database_url: str) -> None:
    put_drawn(toggled, Random(20))

    with Router(database_url, toggles=True) as router:
        for user in USERS[::9]:
            expected = resolve_toggles(toggled, user_id=user, strategy_name="fib_rsi", now=NOW.now)
            found = router.toggles_for(user, "fib_rsi")
            assert (found.version, router.explain_toggles(user, "fib_rsi")) == (expected.version, expected.toggles)
            assert found == {name: each.value for name, each in expected.toggles.items()}


def test_rules_that_are_set_removed_and_set_again_reach_the_router(toggled: Engine, router: Router) -> None:
    assert in_memory(router)["risk_scale"] == 1.0

    put(toggled, (0.5, {}))
    until(lambda: in_memory(router)["risk_scale"] == 0.5)
    remove_rules(toggled, NOW, strategy_name="fib_rsi", name="risk_scale")
    until(lambda: in_memory(router)["risk_scale"] == 1.0)
    put(toggled, (0.5, {"segment": "b"}))
    until(lambda: in_memory(router)["risk_scale"] == 0.5)
    load_segments(toggled, NOW, [("user_2", "b")])
    until(lambda: in_memory(router)["risk_scale"] == 1.0)
    assert in_memory(router, "user_2")["risk_scale"] == 0.5


def test_a_user_has_the_toggles_of_the_version_that_he_gets(toggled: Engine, router: Router) -> None:
    of_canary = next(user for user in USERS if router.version_for(user, "fib_rsi") == "2")
    of_active = next(user for user in USERS if router.version_for(user, "fib_rsi") == "1")

    assert in_memory(router, of_canary) == {"risk_scale": 1.0, "notify_only": False}
    assert in_memory(router, of_active) == {"risk_scale": 1.0}
    assert router.toggles_for(of_canary, "plain") == {}
    roll_back(toggled, Command(OWNER, MONDAY, "odd"), strategy_name="fib_rsi")
    until(lambda: in_memory(router, of_canary) == {"risk_scale": 1.0})


def test_an_unknown_toggle_is_an_error_that_says_which_are_declared(router: Router) -> None:
    with pytest.raises(UnknownToggle, match="no toggle 'leverage' of 'fib_rsi'"):
        router.toggles_for("user_1", "fib_rsi")["leverage"]
    with pytest.raises(UnknownToggle, match="no toggle 'leverage' of 'fib_rsi'"):
        router.explain_toggle("user_1", "fib_rsi", "leverage")
    with pytest.raises(UnknownStrategy):
        router.toggles_for("user_1", "nobodys")
    with pytest.raises(InvalidName):
        router.toggles_for("", "fib_rsi")


def test_a_router_without_toggles_says_so_and_opens_no_second_connection(toggled: Engine, database_url: str) -> None:
    with Router(database_url) as router:
        with pytest.raises(InvalidSetting, match="toggles"):
            router.toggles_for("user_1", "fib_rsi")
        assert router._toggle_feed is None


def test_a_closed_router_resolves_nothing(toggled: Engine, database_url: str) -> None:
    router = Router(database_url, toggles=True)
    router.close()

    with pytest.raises(RouterClosed):
        router.toggles_for("user_1", "fib_rsi")


def test_a_rollback_reaches_a_router_whose_toggles_cannot_be_read(
    toggled: Engine, database_url: str, clock: Clock
) -> None:
    put(toggled, (0.5, {}))
    with Router(database_url, toggles=True, clock=clock) as router, capture_logs() as logs:
        of_canary = next(user for user in USERS if router.version_for(user, "fib_rsi") == "2")
        with transaction(toggled) as session:
            session.connection().execute(text("DROP TABLE toggle_revision"))
        clock.seconds += 61
        roll_back(toggled, Command(OWNER, MONDAY, "odd"), strategy_name="fib_rsi")

        until(lambda: router.version_for(of_canary, "fib_rsi") == "1")
        until(lambda: any(each["event"] == "router.toggles_stale" for each in logs))
        assert router.toggles_stale
        assert in_memory(router)["risk_scale"] == 0.5


@pytest.mark.full
def test_each_child_of_a_forking_server_learns_of_rules_itself(toggled: Engine, database_url: str) -> None:
    program = (
        "import os, sys, time; from strategy_core import Router\n"
        "router = Router(sys.argv[1], toggles=True); child = os.fork(); print('ready', flush=True)\n"
        "for _ in range(30_000):\n"
        "    if router.toggles_for('user_1', 'fib_rsi')['risk_scale'] == 0.5: break\n"
        "    time.sleep(0.002)\n"
        "print(router.toggles_for('user_1', 'fib_rsi')['risk_scale'], flush=True)\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )
    command = [sys.executable, "-c", program, database_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = [server.stdout.readline() for _ in range(2)]
        put(toggled, (0.5, {}))

        assert ready == ["ready\n"] * 2
        assert server.stdout.read() == "0.5\n0.5\n"


# By the API


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def answer(engine: Engine) -> bytes:
    return _table(read_toggles(engine)).model_dump_json().encode()


def test_the_table_of_the_api_is_what_the_database_holds(toggled: Engine) -> None:
    put_drawn(toggled, Random(21))

    assert toggles_in(answer(toggled)) == read_toggles(toggled)


@on_sqlite
def test_rules_reach_a_router_by_the_api(toggled: Engine, endpoint: Endpoint, clock: Clock) -> None:
    endpoint.body = answer(toggled)
    table = ToggleTable(60, clock)
    feed = Feed(partial(toggle_source, endpoint.url, "t0ken"), table)
    try:
        assert table.values("user_1", "fib_rsi", "1") == {"risk_scale": 1.0}
        put(toggled, (0.5, {"segment": "b"}))
        endpoint.body = answer(toggled)
        until(lambda: table.values("user_1", "fib_rsi", "1") == {"risk_scale": 0.5})
    finally:
        feed.close()
    path, _, headers = endpoint.asked[0]
    assert (path, headers["Authorization"]) == ("/api/v1/strategy/toggles", "Bearer t0ken")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"declared": {"a": {"1": {"x": {"type": "number"}}}}, "rules": {}, "segments": {}, "capital": {}}',
        b'{"declared": {}, "rules": {"a": {"x": [{"when": {"who": 1}, "value": 1}]}}, "segments": {}, "capital": {}}',
        b'{"declared": {}, "rules": {"a": {"x": [{"value": null}]}}, "segments": {}, "capital": {}}',
        b'{"declared": {}, "rules": {"a": {"x": [{"when": 1, "value": 1}]}}, "segments": {}, "capital": {}}',
        b'{"declared": {}, "rules": {}, "segments": {}, "capital": {"u1": "x"}}',
    ],
)
def test_an_answer_that_is_none_is_not_believed(endpoint: Endpoint, body: bytes) -> None:
    endpoint.body = body

    with pytest.raises(RoutingUnavailable, match="not this platform's"):
        toggle_source(endpoint.url, None).read()
