"""The forms that freeze releases, schedule a start and cancel it."""

import pytest
from sqlalchemy import Engine

from flows.ramp import ramp_tick, start_canary
from flows.releases import cancel_scheduled_start, freeze, unfreeze
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.scheduled_starts import list_starts
from tests.builders import DAY, MONDAY, put_version
from tests.flows.conftest import Clock


@pytest.fixture
def pair(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    return engine


def test_a_freeze_by_form_holds_a_start_until_it_is_lifted(pair: Engine) -> None:
    frozen = freeze.fn("*", "2026-03-04", owner="ana", reason="earnings")
    refused = start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan())
    lifted = unfreeze.fn(1, owner="ana", reason="over")

    assert frozen.message == "freeze 1 of all strategies: 2026-03-02 00:00 to 2026-03-04 00:00 UTC"
    assert "frozen until 2026-03-04 00:00 UTC by ana (unverified): earnings" in str(refused.message)
    assert lifted.message == "freeze 1 of all strategies is lifted"
    assert start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan()).is_completed()


def test_a_scheduled_start_is_made_by_the_tick(pair: Engine, at: Clock) -> None:
    scheduled = start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan(), start_at="2026-03-03")
    at(MONDAY + DAY)
    ticked = ramp_tick.fn()

    assert scheduled.message == "fib_rsi v2 starts at 2026-03-03 00:00 UTC"
    assert "fib_rsi v2: scheduled start started" in str(ticked.message)


def test_a_scheduled_start_is_cancelled_by_form(pair: Engine) -> None:
    start_canary.fn("fib_rsi", "v2", owner="ana", plan=Plan(), start_at="2026-03-03")

    state = cancel_scheduled_start.fn("fib_rsi", owner="ana")

    assert state.message == "the start of fib_rsi v2 is cancelled"
    assert list_starts(pair) == []
