"""A simulated ramp ends where a real one would: by the same gates, at the very slot that made them speak."""

import math
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

from strategy_core.domain.calibration import Calibration, RampResult, run_ramp, summarise, upper_limit
from strategy_core.domain.gates.base import Margins
from strategy_core.domain.gates.on_slots import ExcessDrawdown, Harm, LosingStreak, NotWorse
from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.plan import Plan, Stage
from strategy_core.domain.simulation import RISK_FRACTION, SCENARIOS, Ramp, simulate, simulate_shadow
from strategy_core.domain.slot_ledger import Totals, add_slots, open_ledger
from strategy_core.domain.slots import slots

KNOWN = History(design_effect=1.0, design_effect_bound=1.0, provisional=False, win_noise=0.05, lost_share=0.02)
SAME, LOST = (1.0, 1.0), (-1.0, 1.0)
HOUR = timedelta(hours=1)


def ramp_of(*pairs: tuple[float, float, float], faulty_from: int | None = None) -> Ramp:
    """Return a ramp of (hour of closing, canary R, active R)."""
    hours, canary, active = np.array(pairs).reshape(-1, 3).T
    rows = [
        (int(h // 24), c, a, int(np.sign(c)), int(np.sign(a))) for h, c, a in zip(hours, canary, active, strict=True)
    ]
    faulty = np.arange(len(rows)) >= (len(rows) if faulty_from is None else faulty_from)
    return Ramp(slots(rows), hours / 24, faulty)


def every_hour(first: int, end: int, pair: tuple[float, float]) -> list[tuple[float, float, float]]:
    return [(hour + 0.5, *pair) for hour in range(first, end)]


def plan_of(*gates: Any, percents: tuple[float, ...] = (50.0, 100.0), **fields: Any) -> Plan:
    margins = Margins(pnl_r=0.5, win=0.5)
    stages = tuple(Stage(percent=percent, minimum_time=HOUR, margins=margins) for percent in percents)
    return Plan(stages=stages, gates=gates, **{"approve_before": (), "bake": 24 * HOUR, "watch": "off"} | fields)


QUICK = plan_of(Harm(), NotWorse(minimum_days=2))


@pytest.mark.parametrize("name", ["severe", "mild", "every_trade_loses", "goes_silent", "severe_from_day_10"])
def test_a_rollback_is_dated_by_the_very_slot_that_made_it(name: str) -> None:
    """The oracle judges every slot. The ramp ticks hourly, with four slots in each hour."""
    plan = plan_of(Harm(), maximum_stage_time=timedelta(days=90), percents=(100.0,), bake=timedelta(days=90))
    days = 20
    for number in range(3):
        rng = np.random.default_rng([7, number])
        history = measure(simulate_shadow(SCENARIOS[name], rng, days=60), 60)
        ramp = simulate(SCENARIOS[name], rng, days=days)
        path = add_slots(open_ledger(history), ramp.slots, history)[1]
        first = next(n for n, totals in enumerate(path, start=1) if _proven(totals))
        began = int(np.argmax(ramp.faulty))

        result = run_ramp(plan, history, ramp, days=days)

        assert result.gate == "harm"
        assert result.slots == first
        assert result.rolled_back_after == first - began
        assert result.days == ramp.closed_at[first - 1] - ramp.closed_at[began]


def _proven(totals: Totals) -> bool:
    """E on money has reached 100, or 10 with an E on wins of 200."""
    money, wins = math.exp(totals.log_peak), math.exp(totals.log_win_peak)
    return money >= 100 or (money >= 10 and wins >= 200)


def test_a_stage_that_freezes_is_dated_too() -> None:
    """E passes 10 some lost wins before 100. A healthy ramp is not frozen."""
    harmed = run_ramp(QUICK, KNOWN, ramp_of(*every_hour(0, 60, LOST), faulty_from=0), days=4)

    assert harmed.frozen_after is not None
    assert harmed.rolled_back_after is not None
    assert 0 < harmed.frozen_after < harmed.rolled_back_after
    assert run_ramp(QUICK, KNOWN, ramp_of(*every_hour(0, 60, SAME)), days=4).frozen_after is None


def test_a_rollback_of_a_healthy_ramp_is_dated_from_its_start() -> None:
    result = run_ramp(QUICK, KNOWN, ramp_of(*every_hour(0, 30, LOST)), days=2)

    assert result.rolled_back_after == result.slots
    assert result.days == pytest.approx((result.slots - 0.5) / 24)
    assert result.promoted_on is None


@pytest.mark.parametrize(
    ("gate", "canary_r", "slot"),
    [(LosingStreak(slots=5), -1.0, 5), (ExcessDrawdown(sigmas=0.0), -21.0, 4)],
)
def test_hard_limits_end_a_ramp_as_well(gate: LosingStreak | ExcessDrawdown, canary_r: float, slot: int) -> None:
    """Twenty-one R a slot at 0.25 % of equity: a fifth of it is lost with the fourth."""
    pairs = [(0.5 + n / 100, canary_r, 1.0) for n in range(20)]

    result = run_ramp(plan_of(gate), KNOWN, ramp_of(*pairs), days=1)

    assert (result.gate, result.slots) == (gate.kind, slot)


def test_a_larger_stake_makes_a_deeper_drawdown() -> None:
    pairs = ramp_of(*[(0.5 + n / 100, -21.0, 1.0) for n in range(20)])
    plan = plan_of(ExcessDrawdown(sigmas=0.0))

    assert run_ramp(plan, KNOWN, pairs, days=1, risk_fraction=2 * RISK_FRACTION).slots == 2


def test_a_healthy_ramp_climbs_is_promoted_bakes_and_ends() -> None:
    """Thirty slots on two days pass it. The rollout ends with the bake."""
    healthy, after = every_hour(0, 60, SAME), every_hour(60, 96, LOST)

    result = run_ramp(QUICK, KNOWN, ramp_of(*healthy, *after), days=4)

    assert (result.slots, result.promoted_on, result.gate) == (55, 31 / 24, None)
    assert [percent for _, percent in result.stages] == [stage.percent for stage in QUICK.stages]
    assert result.completed_on == 55 / 24


def test_a_day_on_which_it_is_held_adds_no_users() -> None:
    pairs = ramp_of(*every_hour(0, 96, SAME))

    usual = run_ramp(QUICK, KNOWN, pairs, days=4)
    held = run_ramp(QUICK, KNOWN, pairs, days=4, held_days=frozenset({1}))
    daily = run_ramp(QUICK, KNOWN, pairs, days=4, every_hours=24)

    assert usual.promoted_on == 31 / 24
    assert held.promoted_on is not None
    assert held.promoted_on > 2
    assert [24 * at % 24 for at, _ in daily.stages] == [0] * len(daily.stages)


def test_while_it_bakes_it_may_still_be_rolled_back() -> None:
    result = run_ramp(QUICK, KNOWN, ramp_of(*every_hour(0, 40, SAME), *every_hour(40, 96, LOST)), days=4)

    assert result.gate == "harm"
    assert result.promoted_on == 31 / 24
    assert 40 < result.slots <= 55


def test_after_the_bake_a_standing_watch_finds_harm_until_the_ramp_ends() -> None:
    pairs = ramp_of(*every_hour(0, 40, SAME), *every_hour(40, 96, LOST), faulty_from=40)

    left_alone, alerted, undone = (
        run_ramp(plan_of(Harm(), percents=(100.0,), watch=watch), KNOWN, pairs, days=4)
        for watch in ("off", "alert", "rollback")
    )

    assert (left_alone.gate, left_alone.rolled_back_after) == (None, None)
    assert alerted == undone
    assert alerted.gate == "watch"
    assert alerted.rolled_back_after is not None
    assert 0 < alerted.rolled_back_after < 30
    assert alerted.promoted_on == left_alone.promoted_on


def test_a_watch_begins_anew_every_quarter() -> None:
    """A hundred days with a win each, then one loss after another: the second quarter forgets the wins."""
    pairs = [(24 * day + 0.5, 2.0, 1.0) for day in range(95)] + [(2_280.5 + n / 50, *LOST) for n in range(40)]

    result = run_ramp(plan_of(Harm(), percents=(100.0,), watch="alert"), KNOWN, ramp_of(*pairs), days=100)

    path = add_slots(open_ledger(KNOWN), ramp_of(*pairs[92:]).slots, KNOWN)[1]
    proven = next(n for n, totals in enumerate(path, 1) if totals.log_peak >= math.log(400))
    assert (result.gate, result.slots) == ("watch", 92 + proven)


def test_an_owner_approves_at_once_which_takes_a_look_more() -> None:
    plan = QUICK.model_copy(update={"approve_before": (100.0,)})

    assert run_ramp(plan, KNOWN, ramp_of(*every_hour(0, 96, SAME)), days=4).promoted_on == 32 / 24


def test_an_approval_lapses_and_is_given_anew() -> None:
    """One bad slot right after the approval: it is asked for again once the evidence is good again."""
    plan = plan_of(NotWorse(minimum_days=2), approve_before=(100.0,))
    good_again = [(31.2 + n / 4000, *SAME) for n in range(2000)]

    result = run_ramp(plan, KNOWN, ramp_of(*every_hour(0, 30, SAME), (30.5, -30.0, 1.0), *good_again), days=4)

    assert result.promoted_on == 34 / 24


def test_an_owner_who_is_asked_extends_the_stage() -> None:
    plan = plan_of(NotWorse(minimum_days=2), maximum_stage_time=2 * HOUR)

    assert run_ramp(plan, KNOWN, ramp_of(*every_hour(0, 96, SAME)), days=4).promoted_on == 31 / 24


def test_a_plan_may_roll_back_what_is_not_answered() -> None:
    plan = plan_of(NotWorse(minimum_days=2), maximum_stage_time=5 * HOUR, on_inconclusive="rollback")

    assert run_ramp(plan, KNOWN, ramp_of(*every_hour(0, 96, SAME)), days=4).gate == "not_worse"
    silent = run_ramp(plan, KNOWN, ramp_of(), days=1)
    assert (silent.slots, silent.rolled_back_after, silent.gate, silent.days) == (0, 0, "not_worse", 0.0)


def test_without_a_slot_nothing_is_promoted() -> None:
    """Missing evidence does not advance a rollout."""
    result = run_ramp(Plan(), KNOWN, ramp_of(), days=3)

    assert result == RampResult(slots=0, stages=((0.0, 5.0),))


def result(after: int | None = None, gate: str = "harm", **fields: Any) -> RampResult:
    days = None if after is None else after / 96
    return RampResult(slots=100, rolled_back_after=after, gate=gate if after is not None else None, days=days, **fields)


def summed(*results: RampResult, healthy: bool = False, bound_slots: float | None = None) -> Calibration:
    return summarise("severe", results, healthy=healthy, bound_slots=bound_slots)


class TestSummary:
    def test_quantiles_are_over_all_ramps_the_ones_never_rolled_back_last(self) -> None:
        found = summed(*(result(n) for n in range(96, 0, -1)), *[result()] * 4, bound_slots=25.0)

        assert found.rolled_back == 0.96
        assert (found.median_slots, found.p95_slots, found.p95_hours) == (51.0, 96.0, 24.0)
        assert found.median_over_bound == 51 / 25
        assert found.delays == tuple(range(1, 97))

    def test_what_half_of_the_ramps_never_reach_has_no_median(self) -> None:
        found = summed(result(3), result(), result(), bound_slots=25.0)

        assert (found.median_slots, found.p95_hours, found.median_over_bound) == (None, None, None)

    def test_gates_and_promotions_are_counted(self) -> None:
        found = summed(
            result(3), result(4, "losing_streak"), result(5, promoted_on=9.0), result(promoted_on=11.0), healthy=True
        )

        assert found.by_gate == {"harm": 2, "losing_streak": 1}
        assert (found.promoted, found.median_promotion_days) == (0.5, 10.0)
        assert summed(result()).median_promotion_days is None

    def test_a_ramp_that_fell_before_its_fault_found_nothing(self) -> None:
        found = summed(result(-5), result(0), result(7), result())

        assert (found.ramps, found.before_fault, found.rolled_back) == (4, 2, 0.5)
        assert found.by_gate == {"harm": 1}
        assert found.delays == (7,)

    def test_of_a_healthy_one_every_rollback_counts(self) -> None:
        assert summed(result(0), result(), healthy=True).rolled_back == 0.5

    def test_when_all_fell_before_their_fault_nothing_is_known(self) -> None:
        found = summed(result(-5))

        assert (found.rolled_back, found.rolled_back_limit, found.median_slots) == (0.0, 1.0, None)

    def test_delays_are_for_the_picture_and_not_among_the_data(self) -> None:
        data = summed(result(3), bound_slots=2.0).model_dump(mode="json")

        assert "delays" not in data
        assert data["median_over_bound"] == 1.5


@pytest.mark.parametrize(
    ("count", "n", "limit"),
    [(0, 2000, 1 - 0.05 ** (1 / 2000)), (0, 1, 0.95), (5, 100, 0.1023), (3, 3, 1.0)],
)
def test_the_upper_limit_is_clopper_and_pearsons(count: int, n: int, limit: float) -> None:
    """For 0 in n it is 1 - 0.05^(1/n). For 5 in 100, tables have 10.2 %."""
    assert upper_limit(count, n) == pytest.approx(limit, abs=5e-4)
