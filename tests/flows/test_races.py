"""The flow that counts the days of races, and the forms that start and close one."""

import pytest
from sqlalchemy import Engine

from flows.races import close_race, race_tick, start_race
from strategy_core.domain.lifecycle import Status
from tests.builders import DAY, MONDAY, put_version
from tests.flows.conftest import Clock
from tests.services.test_races import days


@pytest.fixture
def candidates(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    put_version(engine, "3")
    return engine


def test_a_race_is_started_counted_and_closed(candidates: Engine, at: Clock) -> None:
    before = race_tick.fn()
    started = start_race.fn("fib_rsi", ["2", "3"], owner="ana")
    end = days(candidates, MONDAY, 20)
    at(end + 3 * DAY)
    ticked = race_tick.fn()
    closed = close_race.fn("fib_rsi", owner="ana", reason="enough")

    assert before.message == "no open race"
    assert started.message == "fib_rsi: 2, 3 race against 1"
    assert str(ticked.message).startswith("fib_rsi: 21 days counted, 2 leads with +0.4")
    assert closed.message == "the race of fib_rsi is closed"


def test_what_is_refused_is_a_line(candidates: Engine) -> None:
    state = start_race.fn("fib_rsi", ["2", "2"], owner="ana")

    assert state.is_failed()
    assert state.message == "a race is refused: a candidate is named twice"
