"""The flows that only show: plan and comparison."""

from typing import Any

import pytest
from sqlalchemy import Engine

from flows.compare import compare
from flows.ramp import plan
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.report.rollout import preview_markdown
from strategy_core.services.rollouts import show_plan
from strategy_core.store import audit, outcomes
from strategy_core.store.engine import reading
from tests.builders import DAY, MONDAY, put_day, put_version
from tests.flows.conftest import Clock

# the services are tested on both databases
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def two_days(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    for day in (MONDAY, MONDAY + DAY):
        put_day(engine, day, {"v1": "buy", "v2": "sell"}, {"v1": 0.5, "v2": -0.25}, signal_hours=[3, 9])
    at(MONDAY + 3 * DAY)
    return engine


def test_a_comparison_tells_how_much_was_compared_and_keeps_nothing(two_days: Engine) -> None:
    state = compare.fn("fib_rsi", "v2", days=5)

    assert state.message == "48 candles and 4 slots compared"
    with reading(two_days) as session:
        assert outcomes.find_reports(session, "fib_rsi") == []
        assert audit.events(session) == []


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        ({"version": "v9"}, "no version 'v9' of 'fib_rsi'"),
        ({"version": "v2", "symbol": "TIN"}, "TIN"),
        ({"version": "v2", "days": float("nan")}, "days"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(two_days: Engine, asked: dict[str, Any], refused: str) -> None:
    state = compare.fn("fib_rsi", **asked)

    assert state.is_failed()
    assert refused in (state.message or "")
    assert "\n" not in (state.message or "")


def test_a_plan_is_shown_by_stage_with_whom_it_reaches(two_days: Engine) -> None:
    shown = preview_markdown(
        *show_plan(two_days, strategy_name="fib_rsi", version="v2", plan=Plan(), now=MONDAY + 3 * DAY)
    )

    assert "an estimate: no user list is loaded" in shown
    rows = [line for line in shown.splitlines() if " % |" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["5 %", "10 %", "25 %", "50 %", "100 %"]


def test_the_plan_that_an_owner_thinks_of_is_weighed_in_a_line(two_days: Engine) -> None:
    assert plan.fn("fib_rsi", "v2").message == "the evidence can suffice: about 34 days at 1.0 slots a day"
    refused = plan.fn("fib_rsi", "v2", plan={"stages": []})
    assert refused.is_failed()
    with reading(two_days) as session:
        assert audit.events(session) == []
