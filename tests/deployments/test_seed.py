"""Start and continuation of a replay, and the activity feed. The seeded rollouts are tested in test_up."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine

from deployments.demo_seed import HISTORY, RAMP, SHADOW, replay_span
from deployments.up import ActivityFeed
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.open import open_source
from strategy_core.market.source import CandleSource
from strategy_core.services.rollouts import pause, start_rollout
from strategy_core.store.engine import open_database
from tests.builders import GOLD, MONDAY, decision_row, put_decisions, put_version

HOUR = timedelta(hours=1)


@pytest.fixture
def engine(sqlite_url: str) -> Iterator[Engine]:
    """One database is enough: what is stored here goes through the services, which are tested on both."""
    engine = open_database(sqlite_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def market() -> CandleSource:
    return open_source("synthetic:GOLD?seed=7&symbols=1&days=400")


def test_activity_is_printed_once_and_an_alert_replaces_its_change(engine: Engine) -> None:
    printed: list[str] = []
    activity = ActivityFeed(engine)
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    start_rollout(engine, Command(Actor("ana"), MONDAY, "better"), strategy_name="fib_rsi", version="v2", plan=Plan())
    pause(engine, Command(Actor("ana"), MONDAY + HOUR, "maintenance"), strategy_name="fib_rsi")

    activity.print_new(printed.append)
    activity.print_new(printed.append)

    assert printed == [
        "2026-03-02 00:00  alert 1, info: fib_rsi v2 started at 5 % against v1",
        "2026-03-02 01:00  fib_rsi v2  pause: maintenance",
    ]
    ActivityFeed(engine).print_new(printed.append)
    assert len(printed) == 2


def test_a_replay_begins_where_the_seed_has_candles_for_its_past(engine: Engine, market: CandleSource) -> None:
    start, end = replay_span(engine, market)

    assert len(market.candles(GOLD, closed_by=start)) == HISTORY + SHADOW + RAMP
    assert market.candles(GOLD, closed_by=end).index[-1] == end - HOUR


def test_a_replay_goes_on_behind_the_last_candle_that_was_decided(engine: Engine, market: CandleSource) -> None:
    begin, _ = replay_span(engine, market)
    decided = begin + 40 * HOUR
    put_version(engine, "v1", Status.ACTIVE, at=begin)
    put_decisions(engine, decision_row("v1", decided))

    assert replay_span(engine, market)[0] == decided + HOUR
