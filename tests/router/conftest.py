import json
import time
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import as_percent
from strategy_core.services.canary import activate_canary
from strategy_core.store import versions
from strategy_core.store.engine import reading
from tests.builders import MONDAY, OWNER, put_version

DEADLINE_S = 60.0  # of what comes in a moment on an idle machine
USERS = [f"user_{i}" for i in range(400)]


class Clock:
    """Shows what it was set to."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def canary(engine: Engine) -> Engine:
    """Version 1 serves, and version 2 a quarter of the users."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=25)
    return engine


def until(condition: Callable[[], object]) -> None:
    """Return when *condition* holds; fail when it does not for a minute."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it has not come to pass"
        time.sleep(0.002)


def routing_answer(engine: Engine) -> bytes:
    """Return what the API answers."""
    with reading(engine) as session:
        found = versions.all_routing(session, MONDAY)
    sets: dict[str, list[str]] = {}

    def key(users: frozenset[str]) -> str | None:
        if not users:
            return None
        listed = sorted(users)
        sets["-".join(listed)] = listed
        return "-".join(listed)

    rows = [
        {
            "strategy_name": name,
            "active": routing.active if routing else None,
            "canary": routing.canary if routing else None,
            "rollout_percent": as_percent(routing.percent_bp) if routing else 0.0,
            "salt": routing.salt if routing else "",
            "generation": routing.generation if routing else 0,
            "excluded_symbols": sorted(routing.excluded) if routing else [],
            "kept_users": key(routing.kept) if routing else None,
            "always_users": key(routing.always) if routing else None,
            "exit_only_users": key(routing.exit_only) if routing else None,
        }
        for name, routing in found.items()
    ]
    return json.dumps({"strategies": rows, "user_sets": sets}).encode()
