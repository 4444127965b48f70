"""How long a rollout should still take: days for the slots of each stage, or its minimum time, and the bake."""

from typing import Any

import pytest

from strategy_core.domain.forecast import Forecast, forecast
from strategy_core.domain.gates.base import Errors
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import preview
from tests.domain.test_ramp import DAY, NOON, at
from tests.domain.test_rollout_verdict import HISTORY, subject_with

PLAN = Plan()


def expected(*, passes: bool = False, **facts: Any) -> Forecast:
    return forecast(
        subject_with(**{"at": at(entered=NOON), "started_at": NOON, "slots": 0} | facts), NOON, passes=passes
    )


def days_of(found: Forecast) -> dict[int, float]:
    return {index: round((moment - NOON) / DAY, 1) for index, moment in found.entries.items()}


def test_at_its_start_a_rollout_should_take_what_the_preview_of_its_plan_expects_and_the_bake() -> None:
    planned = [
        stage.days_expected or 0.0
        for stage in preview(PLAN, HISTORY.model_copy(update={"pnl_deviation": 0.68}), 40.0).stages
    ]

    found = expected()

    assert found.slots_needed == 198
    assert found.stage_days == pytest.approx(planned[0])
    assert found.end_days == pytest.approx(sum(planned) + PLAN.bake / DAY, abs=0.2)


def test_slots_that_are_counted_shorten_it_and_a_later_stage_takes_its_minimum_time() -> None:
    stages = (PLAN.stages[0], PLAN.stages[-1].model_copy(update={"minimum_time": 60 * DAY}))

    found = expected(plan=PLAN.model_copy(update={"stages": stages}), slots=100, started_at=NOON - 10 * DAY)

    assert found.stage_days == pytest.approx((198 - 100) / 10)
    assert found.end_days == pytest.approx((198 - 100) / 10 + 60 + PLAN.bake / DAY)


def test_later_stages_begin_when_they_have_their_slots_and_days() -> None:
    found = expected(slots=69, started_at=NOON - 7 * DAY, at=at())

    # at 69 slots in 7 days until 198 and 445, and until 507 where those in shadow count too; then a day each
    assert days_of(found) == {1: 13.1, 2: 38.1, 3: 44.4, 4: 45.4, 5: 46.4}


def test_a_stage_whose_gates_pass_takes_its_minimum_time_alone() -> None:
    assert expected(passes=True).stage_days == 1.0
    assert expected(passes=True, at=at(entered=NOON - 30 * DAY)).stage_days == 0.0


def test_a_plan_without_a_gate_of_slots_takes_its_times() -> None:
    found = expected(plan=Plan(gates=(Errors(),)), at=at(3, entered=NOON))

    assert (found.slots_needed, days_of(found)) == (None, {4: 1.0, 5: 2.0})


def test_during_the_bake_only_the_rest_of_it_is_left() -> None:
    found = expected(at=at(promoted_at=NOON - PLAN.bake / 2))

    assert (found.slots_needed, found.stage_days, found.entries) == (None, None, {})
    assert found.end_days == pytest.approx(PLAN.bake / DAY / 2)
    assert expected(at=at(promoted_at=NOON - 2 * PLAN.bake)).end_days == 0.0


@pytest.mark.parametrize(
    "facts",
    [
        {"history": History()},
        {"history": HISTORY.model_copy(update={"slots_per_day": 0.0})},
        {"history": HISTORY.model_copy(update={"alike_candles": 9, "slots_per_day": 1})},
        {"slots": 300, "at": at(entered=NOON - 30 * DAY)},
    ],
    ids=["no shadow", "no slots", "alike", "held by another gate"],
)
def test_what_cannot_be_expected_is_not_guessed(facts: dict[str, Any]) -> None:
    found = expected(**facts)

    assert (found.stage_days, found.end_days, found.entries) == (None, None, {})
