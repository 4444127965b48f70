"""Limits of money are judged at the candle at which they are passed, however many candles a run has to log."""

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.gates.on_slots import ExcessDrawdown, LosingStreak
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import AnyGate, Plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.files import FileSource
from strategy_core.market.source import CandleSource, ReplaySource
from strategy_core.services.database import upgrade
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import register_version
from strategy_core.store import decisions, rollouts
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import Rollout
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER
from tests.services.ramping import newest

CODE = "tests.services.versions_under_test:Clockwork"
BEFORE, AFTER = 500, 200  # candles around MONDAY
Market = Callable[[int], CandleSource]


@pytest.fixture
def falling(tmp_path: Path) -> Market:
    """A market that falls by one each hour, and before the hour of the gap by two hundred at once."""

    def market(gap: int) -> CandleSource:
        hours = np.arange(-BEFORE, AFTER)
        opened = 5_000.0 - hours - 200.0 * (hours >= gap)
        candles = pd.DataFrame(
            {"open": opened, "high": opened + 1, "low": opened - 2, "close": opened - 1},
            index=pd.DatetimeIndex([MONDAY + int(hour) * HOUR for hour in hours], name="timestamp"),
        )
        candles.to_csv(tmp_path / f"{GOLD}.csv")
        return FileSource(str(tmp_path / f"{GOLD}.csv"), timeframe="1h")

    return market


def start(engine: Engine, market: CandleSource, gate: AnyGate, *, hours: int) -> None:
    """Start a rollout of version 2, which buys every *hours*, against version 1, which sells every second hour."""
    for version, status, config in (
        ("1", Status.ACTIVE, {"hours": 2, "buy": False}),
        ("2", Status.SHADOW, {"hours": hours}),
    ):
        register_version(
            engine,
            Command(OWNER, MONDAY),
            market,
            strategy_name="clockwork",
            version=version,
            config=config,
            entry_point=CODE,
            symbols=[GOLD],
            timeframe="1h",
            status=status,
        )
    plan = Plan(gates=(gate,))
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="clockwork", version="2", plan=plan)


@pytest.fixture
def workers() -> Iterator[WorkerPool]:
    with WorkerPool() as workers:
        yield workers


def run(engine: Engine, market: CandleSource, workers: WorkerPool, now: datetime) -> None:
    run_shadow(engine, ReplaySource(market, now), workers, now=now)
    score_outcomes(engine, market, now=now)
    tick(engine, ReplaySource(market, now), now=now)


def facts(rollout: Rollout) -> tuple[str, datetime | None, str]:
    return rollout.state, rollout.ended_at, rollout.reason


def roles(engine: Engine) -> list[tuple[datetime, str]]:
    with reading(engine) as session:
        return [(row.timestamp, row.role) for row in decisions.find_decisions(session, "clockwork", "2", GOLD)]


@pytest.mark.full
@pytest.mark.parametrize("gate", [ExcessDrawdown(sigmas=0), LosingStreak()], ids=["drawdown", "streak"])
def test_a_run_over_days_rolls_back_at_the_candle_at_which_hourly_runs_do(
    engine: Engine, falling: Market, workers: WorkerPool, tmp_path: Path, gate: AnyGate
) -> None:
    market = falling(AFTER)
    hourly = open_database(f"sqlite:///{tmp_path / 'hourly.db'}")
    upgrade(hourly)
    for each in (engine, hourly):
        start(each, market, gate, hours=2)

    run(engine, market, workers, MONDAY + 4 * DAY)
    now = MONDAY
    while newest(hourly).ended_at is None:
        now += HOUR
        run(hourly, market, workers, now)

    assert facts(newest(engine)) == facts(newest(hourly))
    assert newest(engine).ended_at == now < MONDAY + 4 * DAY
    logged = roles(engine)
    assert [role for _, role in logged if role == "canary"] == [role for _, role in roles(hourly)]
    assert {role for candle, role in logged if candle + HOUR > now} == {"shadow"}
    assert len(logged) == 96
    hourly.dispose()


def test_a_spike_of_one_candle_says_how_far_it_went(engine: Engine, falling: Market, workers: WorkerPool) -> None:
    market = falling(26)
    start(engine, market, ExcessDrawdown(sigmas=0), hours=6)

    run(engine, market, workers, MONDAY + 4 * DAY)

    rollout = newest(engine)
    assert (rollout.state, rollout.ended_at) == ("rolled_back", MONDAY + 27 * HOUR)
    with reading(engine) as session:
        verdict = rollouts.last_verdicts(session, rollout.id)["excess_drawdown"]
    passed = 100 * ((verdict.value or 0) - (verdict.limit or 0))
    assert passed > 5
    assert f"passed by {passed:.2f} points at the candle that closed 2026-03-03 03:00 UTC" in rollout.reason


def test_between_limits_and_one_candle_at_a_time_a_run_leaves_the_tick_to_its_schedule(
    engine: Engine, falling: Market, workers: WorkerPool
) -> None:
    market = falling(AFTER)
    start(engine, market, ExcessDrawdown(), hours=6)

    run_shadow(engine, market, workers, now=MONDAY + DAY)
    run_shadow(engine, market, workers, now=MONDAY + DAY + HOUR)

    assert len(roles(engine)) == 25
    assert newest(engine).last_tick_at is None
