"""What a plan is tried on: a scenario in its own market, or in a pair's own past; it draws ramps and judges nothing."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np

from strategy_core.domain.calibration import RampResult, run_ramp
from strategy_core.domain.errors import InvalidPlan
from strategy_core.domain.gates import Errors, InvalidDecisions, Silence
from strategy_core.domain.history import History, measure
from strategy_core.domain.paired_gates import Divergence, ExcessDrawdown, Harm, LosingStreak, NotWorse
from strategy_core.domain.plan import Plan
from strategy_core.domain.simulation import (
    HARMFUL,
    RISK_FRACTION,
    Fault,
    Market,
    Ramp,
    Scenario,
    information_bound,
    resampled,
    shadow,
    simulate,
)
from strategy_core.domain.slots import Slots

SHADOW_DAYS = 60  # of history that a simulated pair has when its ramp starts
BOUND_RAMPS, BOUND_ALPHA = 100, 0.01
SIMULATED = (  # no other gate has facts in a simulation: neither users' orders nor metrics
    Errors,
    InvalidDecisions,
    Silence,
    LosingStreak,
    ExcessDrawdown,
    Harm,
    NotWorse,
    Divergence,
)
_FAULTS = ("mild", "severe", "every_trade_loses", "goes_silent", "drawdown_spike")
OF_A_PAIR = {  # a pair's own past instead of a market
    each.name: each for each in (Scenario("a_a", Market()), *(one for one in HARMFUL if one.name in _FAULTS))
}


@dataclass(frozen=True, slots=True)
class Pair:
    """Two versions as their own shadow history shows them; *slots* are some, *risk_fraction* is of equity on one R."""

    slots: Slots
    history: History
    risk_fraction: float


@dataclass(frozen=True, slots=True)
class Trial:
    """What a plan is tried on: a scenario for so many days, in its own market or, of a pair, in that pair's past."""

    plan: Plan
    scenario: Scenario
    days: int
    pair: Pair | None = None

    def draw(self, seed: int, number: int) -> tuple[History, Ramp]:
        """Return ramp *number* of this scenario, and the history known at its start; the same whatever else is run."""
        rng = np.random.default_rng(
            np.random.SeedSequence(seed, spawn_key=(crc32(self.scenario.name.encode()), number))
        )
        scenario, days = self.scenario, self.days
        if self.pair is None:
            return measure(shadow(scenario, rng, days=SHADOW_DAYS), SHADOW_DAYS), simulate(scenario, rng, days=days)
        ramp = resampled(
            self.pair.slots,
            scenario.fault,
            rng,
            days=days,
            from_day=scenario.from_day,
            risk_fraction=self.pair.risk_fraction,
        )
        return self.pair.history, ramp

    def run(self, seed: int, number: int) -> RampResult:
        risk_fraction = RISK_FRACTION if self.pair is None else self.pair.risk_fraction
        return run_ramp(self.plan, *self.draw(seed, number), days=self.days, risk_fraction=risk_fraction)

    def bound(self, seed: int) -> float | None:
        """Return the information bound in slots; None without harm, and where a hard limit is to find it."""
        if self.scenario.fault in (Fault.NONE, Fault.SPIKE):
            return None
        found = information_bound([self.draw(seed, number)[1] for number in range(BOUND_RAMPS)], BOUND_ALPHA)
        return found if np.isfinite(found) else None


def simulable(plan: Plan) -> tuple[Plan, list[str]]:
    """Return *plan* with those gates alone that a simulation has facts for, and the names of those left out.

    Raises:
        UnarmedPlan: no gate of the plan has a vote.
        InvalidPlan: none of those with a vote is left.
    """
    plan.check_armed()
    kept = tuple(gate for gate in plan.gates if isinstance(gate, SIMULATED))
    if all(gate.dry_run for gate in kept):
        raise InvalidPlan(["gates: none of those with a vote looks at what can be simulated, which is slots"])
    left_out = [gate.name for gate in plan.gates if gate not in kept]
    return plan.model_copy(update={"gates": kept}), left_out
