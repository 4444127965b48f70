"""Calibration cases: reproducible ramps, and plans reduced to the gates that can be simulated."""

from dataclasses import replace

import numpy as np
import pytest

from strategy_core.domain.calibration import OF_A_PAIR, SIMULATED, CalibrationCase, RecordedPair, simulable
from strategy_core.domain.errors import InvalidPlan, UnarmedPlan
from strategy_core.domain.gates.base import Errors
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import Harm
from strategy_core.domain.pair_noise import measure
from strategy_core.domain.plan import Plan
from strategy_core.domain.simulation import SCENARIOS, simulate_shadow

METRIC = MetricThreshold(metric="slippage", query="slippage", maximum=3)
_SLOTS = simulate_shadow(SCENARIOS["equivalent"], np.random.default_rng(7), days=40)
PAIR = RecordedPair(_SLOTS, measure(_SLOTS, 40), risk_fraction=0.002)


def trial(name: str, pair: RecordedPair | None = None) -> CalibrationCase:
    return CalibrationCase(Plan(), (SCENARIOS if pair is None else OF_A_PAIR)[name], 20, pair)


def test_each_number_seed_and_scenario_has_a_ramp_of_its_own() -> None:
    ones = [("equivalent", 1, 1), ("equivalent", 1, 2), ("equivalent", 2, 1), ("independent", 1, 1)]
    drawn = [trial(name).draw(seed, number)[1].slots.active_r.tolist() for name, seed, number in ones]

    assert drawn[0] == trial("equivalent").draw(1, 1)[1].slots.active_r.tolist()
    assert len({tuple(each) for each in drawn}) == 4


def test_a_simulated_pair_has_two_months_of_history_before_its_ramp() -> None:
    history, ramp = trial("severe").draw(1, 1)

    assert (history.days, history.provisional) == (60, False)
    assert history.win_noise < 0.1  # of before the fault
    assert ramp.faulty.all()


def test_a_pairs_ramp_is_drawn_from_its_own_past_and_judged_by_its_own_history() -> None:
    history, ramp = trial("a_a", PAIR).draw(1, 1)

    assert history == PAIR.history
    either = {round(abs(each), 9) for each in (*_SLOTS.active_r.tolist(), *_SLOTS.canary_r.tolist())}
    assert {round(abs(each), 9) for each in ramp.slots.canary_r.tolist()} <= either


def test_a_pairs_own_stake_makes_the_spike() -> None:
    """Thirty percent of equity in eight trades of 0.2 % a R: 18.75 R each."""
    _, ramp = trial("drawdown_spike", PAIR).draw(1, 1)

    assert np.sum(np.isclose(ramp.slots.canary_r, -18.75)) == 8
    assert trial("drawdown_spike", PAIR).run(1, 1).gate == "excess_drawdown"


@pytest.mark.parametrize("pair", [None, PAIR], ids=["simulated", "own past"])
def test_harm_is_found_and_health_is_not(pair: RecordedPair | None) -> None:
    healthy = trial("equivalent" if pair is None else "a_a", pair)

    assert [trial("severe", pair).run(1, number).gate for number in range(5)] == ["harm"] * 5
    assert [healthy.run(1, number).gate for number in range(5)] == [None] * 5


@pytest.mark.parametrize("pair", [None, PAIR], ids=["simulated", "own past"])
def test_a_bound_is_given_where_evidence_must_find_the_fault(pair: RecordedPair | None) -> None:
    assert trial("severe", pair).bound(1) == pytest.approx(48, abs=8)
    assert trial("drawdown_spike", pair).bound(1) is None
    assert trial("equivalent" if pair is None else "a_a", pair).bound(1) is None


def test_a_fault_that_leaves_no_trace_has_no_bound() -> None:
    """If all trades are worth 0, no win can be lost."""
    nothing = replace(_SLOTS, canary_r=0 * _SLOTS.canary_r, active_r=0 * _SLOTS.active_r)

    assert trial("severe", replace(PAIR, slots=nothing)).bound(1) is None


def test_of_the_usual_plan_the_gates_on_live_orders_are_left_out_and_named() -> None:
    plan, left_out = simulable(Plan())

    assert {type(gate) for gate in plan.gates} == set(SIMULATED)
    assert left_out == ["order_errors", "latency", "sample_ratio", "routing_audit"]
    assert plan.stages == Plan().stages


def test_gates_on_metrics_are_left_out_and_named() -> None:
    plan, left_out = simulable(Plan(gates=(Harm(), METRIC)))

    assert plan.gates == (Harm(),)
    assert left_out == ["metric:slippage"]


def test_a_plan_that_a_simulation_cannot_arm_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="no gate with a vote can be simulated"):
        simulable(Plan(gates=(Errors(dry_run=True), METRIC)))
    with pytest.raises(UnarmedPlan):
        simulable(Plan(gates=(Errors(dry_run=True),)))
