"""Toggles and signals from a real process of the API that is killed and started again.

Each test takes some seconds, in which processes start.
"""

import json
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core import Router, SignalFeed
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.toggles import read_rule
from strategy_core.services.signals import publish_signals
from strategy_core.services.toggles import load_segments, set_rules
from tests.api.processes import PATIENCE_S, free_port, start, token_of, wait_until_healthy
from tests.builders import HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.router.conftest import until

pytestmark = pytest.mark.full
NOW = Command(OWNER, MONDAY)
RISK = {"risk_scale": {"type": "number", "minimum": 0.25, "maximum": 1, "default": 1}}


class Served:
    """One process of the API at an address that it keeps when it is started again."""

    def __init__(self, database_url: str, log: Path) -> None:
        self._made = (database_url, log, free_port())
        self.address = f"http://127.0.0.1:{self._made[2]}"
        self.start()

    def start(self) -> None:
        self._process = start(*self._made)
        wait_until_healthy(self.address)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE_S)


@pytest.fixture
def toggled(engine: Engine) -> Engine:
    put_version(engine, "1", Status.ACTIVE, toggles=json.dumps(RISK))
    load_segments(engine, NOW, [("user_1", "new")])
    return engine


@pytest.fixture
def served(toggled: Engine, database_url: str, tmp_path: Path) -> Iterator[Served]:
    served = Served(database_url, tmp_path / "api.log")
    yield served
    served.kill()


def put(engine: Engine, value: float, **when: Any) -> None:
    rules = [read_rule(when, value, "risk_scale", 1)]
    set_rules(engine, NOW, strategy_name="fib_rsi", name="risk_scale", rules=rules)


def put_signals(engine: Engine, *hours: int) -> None:
    put_decisions(engine, *(decision_row("1", MONDAY + hour * HOUR, "buy") | {"role": "active"} for hour in hours))
    publish_signals(engine)


def test_toggles_outlive_a_killed_api_and_follow_the_next_one(toggled: Engine, served: Served) -> None:
    put(toggled, 0.5, segment="new")
    with Router(api_url=served.address, token=token_of("platform"), toggles=True) as router:

        def scale(user_id: str) -> object:
            return router.toggles_for(user_id, "fib_rsi")["risk_scale"]

        assert (scale("user_1"), scale("user_2")) == (0.5, 1.0)
        served.kill()
        put(toggled, 0.25, segment="new")
        assert (scale("user_1"), scale("user_2")) == (0.5, 1.0)
        served.start()
        until(lambda: scale("user_1") == 0.25)

        load_segments(toggled, NOW, [("user_2", "new")])
        until(lambda: (scale("user_1"), scale("user_2")) == (1.0, 0.25))
        assert not router.toggles_stale


def test_signals_are_neither_lost_nor_doubled_by_a_killed_api(toggled: Engine, served: Served) -> None:
    read: list[float] = []
    with SignalFeed(api_url=served.address, token=token_of("platform")) as feed:

        def follow() -> None:
            for each in feed:
                read.append((each.candle - MONDAY) / HOUR)
                if len(read) == 8:
                    return

        reader = threading.Thread(target=follow)
        reader.start()
        put_signals(toggled, 0, 1)
        until(lambda: len(read) == 2)
        for first in (2, 4):  # while the reader waits for an answer
            served.kill()
            put_signals(toggled, first, first + 1)
            served.start()
            until(partial(lambda number: len(read) == number, first + 2))
        put_signals(toggled, 6, 7)
        reader.join(PATIENCE_S)

    assert read == [0, 1, 2, 3, 4, 5, 6, 7]
