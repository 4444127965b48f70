"""What a million `toggles_for` cost with 20 rules, beside `version_for` alone.

`uv run pytest tests/benchmarks/test_toggles.py -m benchmark_suite -n 0 -s`
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.toggles import read_rule
from strategy_core.services.canary import activate_canary
from strategy_core.services.toggles import load_segments, set_rules
from strategy_core.services.users import load_users
from strategy_core.store.engine import open_database
from tests.builders import MONDAY, OWNER, put_version

pytestmark = pytest.mark.benchmark_suite
MANY = [f"user_{i}" for i in range(1_000_000)]
TURN = 20_000  # users of a turn: both ways take short turns, so that a busy machine is as busy for one as the other
NOW = Command(OWNER, MONDAY)
RISK = {"type": "number", "minimum": 0.25, "maximum": 1, "default": 1}


def _mixed(at: int) -> dict[str, Any]:
    """Return the conditions of one of twenty rules: half of them by percentage, some by segment, capital and users."""
    kinds: list[dict[str, Any]] = [
        {"segment": "abcd"[at % 4], "percent": 20},
        {"user_ids": MANY[at * 100 : at * 100 + 50]},
        {"capital_at_least": 900 + at, "percent": 50},
        {"percent": at % 5 + 1},
    ]
    return kinds[at % 4]


def _none(at: int) -> dict[str, Any]:
    return {"segment": "abcd"[at % 4], "capital_at_least": 2_000 + at}


def _percent(at: int) -> dict[str, Any]:
    return {"percent": 1 + at % 3}


SHAPES: dict[str, tuple[int, Callable[[int], dict[str, Any]]]] = {  # number of toggles, conditions of rule *at*
    "20 rules of one toggle": (1, _mixed),
    "20 rules of 4 toggles": (4, _mixed),
    "20 rules, none concerns the user": (4, _none),
    "20 toggles with a percentage each": (20, _percent),
}
MOST = dict.fromkeys(SHAPES, 4.5) | {"20 toggles with a percentage each": 25.0}  # times `version_for`


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def router(sqlite_url: str, shape: str) -> Iterator[Router]:
    engine: Engine = open_database(sqlite_url)
    toggles, conditions = SHAPES[shape]
    names = ["risk_scale", *(f"scale_{at}" for at in range(1, toggles))]
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(engine, version, status, toggles=json.dumps(dict.fromkeys(names, RISK)))
    activate_canary(engine, NOW, strategy_name="fib_rsi", version="2", rollout_percent=25)
    load_segments(engine, NOW, [(user, "abcd"[i % 4]) for i, user in enumerate(MANY[:20_000])])
    load_users(engine, [(user, float(i % 1_000)) for i, user in enumerate(MANY[:20_000])], now=MONDAY)
    for place, name in enumerate(names):
        rules = [read_rule(conditions(at), 0.5, name, at + 1) for at in range(place, 20, toggles)]
        set_rules(engine, NOW, strategy_name="fib_rsi", name=name, rules=rules)
    with Router(sqlite_url, toggles=True) as router:
        yield router
    engine.dispose()


def test_a_million_users_beside_their_versions(router: Router, shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    took = {"version_for": 0.0, "toggles_for": 0.0}
    ways = {"version_for": router.version_for, "toggles_for": router.toggles_for}
    for start in range(0, len(MANY), TURN):
        for name, ask in ways.items():
            began = time.thread_time()
            for user in MANY[start : start + TURN]:
                ask(user, "fib_rsi")
            took[name] += time.thread_time() - began

    ratio = took["toggles_for"] / took["version_for"]
    with capsys.disabled():
        sys.stdout.write(f"\n{shape}: {took['toggles_for']:.2f} s of CPU a million, {ratio:.1f} x version_for")
    assert ratio <= MOST[shape]
