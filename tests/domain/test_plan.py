import json
from datetime import timedelta
from typing import Any

import pytest

from strategy_core.domain.errors import InvalidPlan, UnarmedPlan
from strategy_core.domain.plan import Plan, load_plan, read_plan
from strategy_core.domain.policy import load_policy


def test_the_default_ramp_is_the_one_of_the_contract() -> None:
    plan = Plan()

    assert [stage.percent for stage in plan.stages] == [5, 10, 25, 50, 100]
    assert [stage.margins.pnl_r for stage in plan.stages] == sorted(
        (stage.margins.pnl_r for stage in plan.stages), reverse=True
    )
    assert all(stage.margins.win is None for stage in plan.stages)  # money is judged, not wins
    assert [plan.needs_approval(index) for index in range(5)] == [False, False, False, False, True]
    assert [gate.name for gate in plan.gates if gate.dry_run] == ["win_rate"]


def test_a_plan_survives_the_database() -> None:
    plan = Plan(bake=timedelta(hours=36), approve_before=(25.0, 100.0))

    assert read_plan(json.loads(json.dumps(plan.model_dump(mode="json")))) == plan


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Plan().bake = timedelta(0)  # type: ignore[misc]


def _stages(*percents: float) -> list[dict[str, Any]]:
    return [{"percent": percent, "minimum_time": 3600, "margins": {"pnl_r": 0.1, "win": 0.05}} for percent in percents]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"stages": []}, "stages must rise"),
        ({"stages": _stages(0, 10)}, "stages must rise"),
        ({"stages": _stages(10, 5)}, "stages must rise"),
        ({"stages": _stages(10, 10)}, "stages must rise"),
        ({"stages": _stages(5, 25)}, "the last stage must be 100 %"),
        ({"late_candles": 1_000_000_000}, "late_candles"),
        ({"stages": _stages(150)}, r"stages\.0\.percent: .*allowed: 0\.00 to 100\.00"),
        ({"stages": _stages(33.333)}, r"stages\.0\.percent: .*two decimals at most"),
        ({"approve_before": [75]}, r"approve_before names \[75\.0\]"),
        ({"approve_before": [-1]}, "approve_before.0"),
        ({"stages": _stages(100), "maximum_stage_time": 3600}, "maximum_stage_time must exceed"),
        ({"gates": [{"kind": "errors"}, {"kind": "errors"}]}, "each gate may occur once in a plan"),
        ({"gates": [{"kind": "horoscope"}]}, "horoscope"),
        ({"gates": [{"kind": "errors", "in_a_row": 0}]}, "in_a_row"),
        ({"open_risk_percent": 0}, "open_risk_percent must be above 0 %, or null"),
        ({"stages": [{**_stages(5)[0], "capital_percent": 0}, *_stages(100)]}, "capital_percent must be above 0"),
        (
            {"stages": [*({**_stages(p)[0], "capital_percent": 14 - p} for p in (5, 10)), *_stages(100)]},
            "capital_percent must not fall",
        ),
        ({"bake": 0}, "bake"),
        ({"soak": 5}, "soak"),
        ({"on_inconclusive": "ship"}, "on_inconclusive"),
    ],
)
def test_a_bad_plan_is_refused_with_the_field_named(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidPlan, match=problem):
        read_plan(data)


@pytest.mark.parametrize("gates", [[], [{"kind": "errors", "dry_run": True}]])
def test_a_plan_that_could_never_roll_back_is_unarmed(gates: list[dict[str, Any]]) -> None:
    with pytest.raises(UnarmedPlan, match="arm at least one"):
        read_plan({"gates": gates}).check_armed()


def test_one_armed_gate_is_enough() -> None:
    read_plan({"gates": [{"kind": "errors", "dry_run": True}, {"kind": "silence"}]}).check_armed()


def test_a_slow_replay_is_judged_by_the_plan_as_it_is() -> None:
    assert Plan().at_speed(1.0, timedelta(hours=1)) == Plan()


def test_a_fast_replay_calls_late_and_blind_what_is_late_for_its_runs() -> None:
    plan = Plan().at_speed(5760, timedelta(hours=1))

    assert plan.late_candles == 288
    assert plan.blind_limit == timedelta(days=40)
    assert plan.stages == Plan().stages
    assert Plan.model_validate(Plan().at_speed(1e6, timedelta(minutes=1)).model_dump()).late_candles == 1_000


def test_a_stage_is_capped_at_its_percent_of_capital() -> None:
    plan = read_plan({"stages": [*_stages(5, 10), {**_stages(25)[0], "capital_percent": None}, *_stages(100)]})

    assert [stage.capital_percent for stage in plan.stages] == [5, 10, None, None]
    assert plan.largest_account_percent == 0.5
    assert read_plan(plan.model_dump(mode="json")) == plan


def test_a_plan_stored_by_an_earlier_release_has_no_cap() -> None:
    stored = Plan().model_dump(mode="json")
    del stored["largest_account_percent"], stored["risk_scale"]
    for stage in stored["stages"]:
        del stage["capital_percent"]

    plan = load_plan(stored)

    assert {stage.capital_percent for stage in plan.stages} == {None}
    assert plan.largest_account_percent is None
    assert not plan.risk_scale
    assert load_plan(Plan().model_dump(mode="json")) == Plan()
    assert load_policy({"plans": {"careful": stored}}).plans["careful"] == plan
