"""What a tick costs when many strategies ramp at once."""

import time
from datetime import timedelta

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.store.engine import open_database
from strategy_core.store.tables import decision_id
from tests.builders import (
    DAY,
    GOLD,
    HOUR,
    MONDAY,
    OWNER,
    decision_row,
    outcome_row,
    put_decisions,
    put_outcomes,
    put_version,
)

pytestmark = pytest.mark.benchmark_suite
ROLLOUTS, DAYS, EVERY = 200, 10, 4  # strategies; days of hourly candles; candles from signal to signal


def test_two_hundred_running_rollouts(sqlite_url: str, benchmark: BenchmarkFixture) -> None:
    """Each with 240 candles decided by both versions and 60 slots, which the first tick books and the others do not."""
    engine = open_database(sqlite_url)
    for number in range(ROLLOUTS):
        _ramp(engine, f"s{number}")
    market = SyntheticSource((GOLD,), start=MONDAY - 60 * DAY, days=90)
    now = MONDAY + DAYS * DAY
    first = tick(engine, market, now=now)
    minutes = iter(range(1, 1_000))

    began = time.process_time()
    ticked = benchmark.pedantic(  # type: ignore[no-untyped-call]
        lambda: tick(engine, market, now=now + timedelta(minutes=next(minutes))), rounds=5, iterations=1
    )
    benchmark.extra_info["processor_seconds"] = (time.process_time() - began) / 5

    assert len(first) == len(ticked) == ROLLOUTS
    assert {one.ruling.step for one in first if one.ruling} == {"advance"}
    assert all(one.ruling is not None for one in ticked)
    engine.dispose()


def _ramp(engine: Engine, name: str) -> None:
    put_version(engine, "1", Status.ACTIVE, strategy_name=name)
    put_version(engine, "2", strategy_name=name)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name=name, version="2", plan=Plan())
    decided, closed = [], []
    for hour in range(DAYS * 24):
        at, signals = MONDAY + hour * HOUR, hour % EVERY == 0
        for version in ("1", "2"):
            mine = {"strategy_name": name, "id": decision_id(name, version, GOLD, at)}
            decided.append(decision_row(version, at, "buy" if signals else "hold") | mine)
            if signals:
                worth = 0.4 if hour % (2 * EVERY) else -0.4
                closed.append(outcome_row(version, at, worth) | {"strategy_name": name, "decision_id": mine["id"]})
    put_decisions(engine, *decided)
    put_outcomes(engine, *closed)
