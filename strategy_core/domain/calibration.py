"""Calibration: how often a plan's gates roll back healthy simulated ramps, and how soon they find a known fault.

Gates, ramp rules and slot totals are the same code as in real rollouts. Only the clock and the trades are simulated.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zlib import crc32

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, computed_field
from scipy.special import betaincinv  # not scipy.stats, which takes half a second to import

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.errors import InvalidPlan
from strategy_core.domain.evidence import Evidence, Record
from strategy_core.domain.gates.base import Errors, InvalidDecisions, Silence, Verdict
from strategy_core.domain.gates.on_slots import (
    WATCH,
    WATCH_QUARTER,
    Divergence,
    ExcessDrawdown,
    Harm,
    LosingStreak,
    NotWorse,
    WinRate,
    judge_watch,
)
from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.performance import drawdown, equity
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Position, Ruling, State, Step, decide, judge_all
from strategy_core.domain.simulation import (
    HARMFUL,
    RISK_FRACTION,
    Change,
    Market,
    Ramp,
    Scenario,
    information_bound,
    resampled,
    simulate,
    simulate_shadow,
)
from strategy_core.domain.slot_ledger import Totals, add_slots, open_ledger
from strategy_core.domain.slots import Slots

START = datetime(2026, 1, 5, tzinfo=UTC)  # an arbitrary day
LOOK_EVERY = timedelta(hours=1)
CONFIDENCE = 0.95
BOUND_RAMPS, BOUND_ALPHA = 100, 0.01
SIMULATED = (  # other gates need live orders or metrics, which a simulation has not
    Errors,
    InvalidDecisions,
    Silence,
    LosingStreak,
    ExcessDrawdown,
    Harm,
    WinRate,
    NotWorse,
    Divergence,
)
_FAULTS = ("mild", "severe", "every_trade_loses", "goes_silent", "drawdown_spike")
OF_A_PAIR = {  # scenarios that use the history of a pair instead of a market
    each.name: each for each in (Scenario("a_a", Market()), *(one for one in HARMFUL if one.name in _FAULTS))
}


class RampResult(BaseModel):
    """The outcome of one simulated ramp. Fields of events that did not happen are None.

    Attributes:
        slots: booked until the end.
        rolled_back_after: slots from the start of the fault, or of a healthy ramp, to the rollback. A standing watch
            that proves harm counts as one, also if the plan only alerts then.
        gate: the gate that rolled it back, or `watch`.
        days: simulated days from the same start to the rollback.
        promoted_on: day of the promotion.
        frozen_after: slots from the start of the fault to the first hourly tick at which a gate froze the stage.
        stages: (day, percent of users) of each stage that it entered.
        completed_on: day on which its bake ended.
    """

    model_config = ConfigDict(frozen=True)

    slots: int
    rolled_back_after: int | None = None
    gate: str | None = None
    days: float | None = None
    promoted_on: float | None = None
    frozen_after: int | None = None
    stages: tuple[tuple[float, float], ...] = ()
    completed_on: float | None = None


class Calibration(BaseModel):
    """The outcomes of all ramps of one scenario.

    Attributes:
        rolled_back: share of ramps. `rolled_back_limit` is its one-sided 95 % upper Clopper-Pearson limit.
        before_fault: ramps that were rolled back before the fault began. They only count in *promoted*.
        by_gate: rollbacks by gate.
        median_slots, p95_slots, p95_hours: from the start of the fault to the rollback, if finite.
        promoted: share of ramps. If the fault begins late, some are promoted before it.
        bound_slots: ln(1/0.01) / KL_inf, see `information_bound`, if there is one.
        delays: slots from the start of the fault to each rollback, ascending.
    """

    model_config = ConfigDict(frozen=True)

    scenario: str
    healthy: bool
    ramps: int
    before_fault: int
    rolled_back: float
    rolled_back_limit: float
    by_gate: dict[str, int]
    median_slots: float | None
    p95_slots: float | None
    p95_hours: float | None
    promoted: float
    median_promotion_days: float | None
    bound_slots: float | None = None
    delays: tuple[int, ...] = Field(exclude=True, repr=False)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def median_over_bound(self) -> float | None:
        return self.median_slots / self.bound_slots if self.median_slots is not None and self.bound_slots else None


def run_ramp(
    plan: Plan,
    history: History,
    ramp: Ramp,
    *,
    days: int,
    risk_fraction: float = RISK_FRACTION,
    every_hours: int = 1,
    held_days: Set[int] = frozenset(),
) -> RampResult:
    """Run one simulated ramp through *plan*, with hourly ticks and immediate approvals by an owner.

    A rollback is dated by the slot that caused it: the slots since the previous tick are judged one by one. After its
    bake a promoted version is watched until the ramp ends. The plan's release windows do not count.

    Args:
        every_hours: between two ticks.
        held_days: days before whose end, or at it, no stage is left and no version is promoted.
    """
    plan = plan.model_copy(update={"advance_windows": ()})
    totals = [Totals(), *add_slots(open_ledger(history), ramp.slots, history)[1]]
    canary = _deepest(ramp.slots.canary_r, risk_fraction)
    active = _deepest(ramp.slots.active_r, risk_fraction)
    at = Position(State.RUNNING, 0, START, START)

    began = int(np.argmax(ramp.faulty)) if ramp.faulty.any() else 0
    warning = {gate.name for gate in plan.gates if gate.warns}

    def tick(now: datetime, booked: int, at: Position) -> tuple[Ruling, bool]:
        candles = Record(decided=max(1, int((now - START) / LOOK_EVERY)) * max(1, len(history.symbols)))
        evidence = Evidence(
            now=now,
            started_at=START,
            stage_entered_at=at.stage_entered_at,
            totals=totals[booked],
            history=history,
            pending_slots=0,
            canary=candles,
            active=candles,
            canary_drawdown=canary[booked],
            active_drawdown=active[booked],
            risk_fraction=risk_fraction,
            newest_candle=now,
            due_candle=now,
        )
        findings = judge_all(plan.gates, evidence, plan.stages[at.stage_index].margins)
        frozen = any(f.gate in warning and f.verdict is Verdict.INCONCLUSIVE for f in findings)
        return decide(plan, at, findings, now), frozen

    previous, booked, promoted_on, frozen_after = 0, 0, None, None
    stages = [(0.0, plan.stages[0].percent)]

    def ended(**facts: Any) -> RampResult:
        return RampResult(promoted_on=promoted_on, frozen_after=frozen_after, stages=tuple(stages), **facts)

    for hour in range(every_hours, days * 24 + 1, every_hours):
        now = START + hour * LOOK_EVERY
        booked = int(np.searchsorted(ramp.closed_at, hour / 24, side="right"))
        ruling, frozen = tick(now, booked, at)
        if frozen and frozen_after is None:
            frozen_after = booked - began
        if ruling.step is Step.ROLL_BACK:
            first = next(n for n in range(min(previous + 1, booked), booked + 1) if _rolls_back(tick(now, n, at)[0]))
            return ended(**_found(ramp, first, ruling.worst.gate if ruling.worst else None))
        if ruling.step in (Step.ADVANCE, Step.PROMOTE) and (hour - 1) // 24 in held_days:
            previous = booked
            continue
        if ruling.step is Step.PROMOTE:
            promoted_on = hour / 24
        if ruling.step is Step.COMPLETE:
            proven = None if plan.watch == "off" else _watch(ramp, history, booked, hour / 24, risk_fraction)
            if proven is not None:
                return ended(completed_on=hour / 24, **_found(ramp, proven, WATCH))
            return ended(slots=booked, completed_on=hour / 24)
        at = apply_step(at, ruling.step, now)
        if ruling.step is Step.ADVANCE:
            stages.append((hour / 24, plan.stages[at.stage_index].percent))
        previous = booked
    return ended(slots=booked)


def summarise(
    scenario: str, results: Sequence[RampResult], *, healthy: bool, bound_slots: float | None = None
) -> Calibration:
    """Return the figures of a scenario's ramps."""
    counted = [r for r in results if healthy or r.rolled_back_after is None or r.rolled_back_after > 0]
    n = len(counted)
    found = [r for r in counted if r.rolled_back_after is not None]
    delays = [r.rolled_back_after for r in found if r.rolled_back_after is not None]
    infinite = [float("inf")] * (n - len(found))
    hours = [r.days * 24 for r in found if r.days is not None]
    promoted = [r.promoted_on for r in results if r.promoted_on is not None]
    gates = [r.gate or "" for r in found]
    return Calibration(
        scenario=scenario,
        healthy=healthy,
        ramps=len(results),
        before_fault=len(results) - n,
        rolled_back=len(found) / n if n else 0.0,
        rolled_back_limit=upper_limit(len(found), n),
        by_gate={gate: gates.count(gate) for gate in sorted(set(gates))},
        median_slots=_quantile([*delays, *infinite], 0.5),
        p95_slots=_quantile([*delays, *infinite], 0.95),
        p95_hours=_quantile([*hours, *infinite], 0.95),
        promoted=len(promoted) / len(results),
        median_promotion_days=float(np.median(promoted)) if promoted else None,
        bound_slots=bound_slots,
        delays=tuple(sorted(delays)),
    )


def upper_limit(count: int, n: int) -> float:
    """Return the one-sided 95 % upper limit of a share seen *count* times in *n* (Clopper & Pearson 1934)."""
    return 1.0 if count == n else float(betaincinv(count + 1, n - count, CONFIDENCE))


def apply_step(at: Position, step: Step, now: datetime) -> Position:
    """Return the position after a step. An owner approves at once, and extends a stage without an answer."""
    match step:
        case Step.ADVANCE:
            return replace(at, stage_index=at.stage_index + 1, stage_entered_at=now, stage_extended_at=now)
        case Step.AWAIT_APPROVAL:
            return replace(at, approved_stage=at.stage_index + 1)
        case Step.LAPSE:
            return replace(at, approved_stage=None)
        case Step.AWAIT_DECISION:
            return replace(at, stage_extended_at=now)
        case Step.PROMOTE:
            return replace(at, promoted_at=now, stage_entered_at=now, stage_extended_at=now)
        case _:
            return at


def _rolls_back(ruling: Ruling) -> bool:
    return ruling.step is Step.ROLL_BACK


def _watch(ramp: Ramp, history: History, booked: int, completed: float, risk_fraction: float) -> int | None:
    """Return how many slots were booked when a watch that began on day *completed* proved harm, or None."""
    quarters = ((ramp.closed_at - completed) // (WATCH_QUARTER / timedelta(days=1))).astype(np.int64)
    while booked < len(ramp.closed_at):
        end = int(np.searchsorted(quarters, quarters[booked], side="right"))
        _, path = add_slots(open_ledger(history), ramp.slots.take(slice(booked, end)), history)
        for number, totals in enumerate(path, booked + 1):
            if judge_watch(totals, history, risk_fraction).verdict is Verdict.FAIL:
                return number
        booked = end
    return None


def _found(ramp: Ramp, booked: int, gate: str | None) -> dict[str, Any]:
    """Return the facts of a rollback, counted from the first faulty slot, or from the start of a healthy ramp."""
    began = int(np.argmax(ramp.faulty)) if ramp.faulty.any() else 0
    started = float(ramp.closed_at[began]) if ramp.faulty.any() else 0.0
    ended = float(ramp.closed_at[booked - 1]) if booked else 0.0
    return {"slots": booked, "rolled_back_after": booked - began, "gate": gate, "days": ended - started}


def _deepest(r: FloatArray, risk_fraction: float) -> list[float | None]:
    """Return the largest drawdown so far, before the first slot (None) and after each slot."""
    if len(r) == 0:
        return [None]
    return [None, *np.maximum.accumulate(drawdown(equity(r, risk_fraction))).tolist()]


def _quantile(values: Sequence[float], share: float) -> float | None:
    found = float(np.quantile(values or [np.inf], share, method="higher"))
    return found if np.isfinite(found) else None


@dataclass(frozen=True, slots=True)
class RecordedPair:
    """The shadow history of two versions, with at least one slot.

    Attributes:
        risk_fraction: the equity risked on one R.
        replayed: of the slots, those that are from replays.
        left_out_until: replayed candles before it are left out, because a version was trained on them.
    """

    slots: Slots
    history: History
    risk_fraction: float
    replayed: int = 0
    left_out_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class CalibrationCase:
    """A plan and a scenario of *days*, in the scenario's market or in the history of *pair*."""

    plan: Plan
    scenario: Scenario
    days: int
    pair: RecordedPair | None = None

    @property
    def lasting(self) -> int:
        """Days of each ramp."""
        return self.scenario.days or self.days

    def draw(self, seed: int, number: int) -> tuple[History, Ramp]:
        """Return ramp *number* of this scenario with its shadow history. Other ramps do not affect it."""
        rng = np.random.default_rng(
            np.random.SeedSequence(seed, spawn_key=(crc32(self.scenario.name.encode()), number))
        )
        scenario, days = self.scenario, self.lasting
        if self.pair is None:
            shadow = simulate_shadow(scenario, rng, days=scenario.shadow_days)
            symbols = [f"S{number}" for number in range(scenario.market.symbols)]
            history = measure(shadow, scenario.shadow_days, symbols=symbols, candles=scenario.shadow_days * 24)
            return history, simulate(scenario, rng, days=days)
        ramp = resampled(
            self.pair.slots,
            scenario.change,
            rng,
            days=days,
            from_day=scenario.from_day,
            risk_fraction=self.pair.risk_fraction,
        )
        return self.pair.history, ramp

    def run(self, seed: int, number: int) -> RampResult:
        risk_fraction = RISK_FRACTION if self.pair is None else self.pair.risk_fraction
        return run_ramp(self.plan, *self.draw(seed, number), days=self.lasting, risk_fraction=risk_fraction)

    def bound(self, seed: int) -> float | None:
        """Return the information bound in slots. None without a fault, and for faults that a hard limit finds."""
        if self.scenario.change in (Change.NONE, Change.SPIKE):
            return None
        found = information_bound([self.draw(seed, number)[1] for number in range(BOUND_RAMPS)], BOUND_ALPHA)
        return found if np.isfinite(found) else None


def simulable(plan: Plan) -> tuple[Plan, list[str]]:
    """Return *plan* without the gates that a simulation has no evidence for, and the names of those gates.

    Raises:
        UnarmedPlan: no gate of the plan has a vote.
        InvalidPlan: no gate with a vote is left.
    """
    plan.check_armed()
    kept = tuple(gate for gate in plan.gates if isinstance(gate, SIMULATED))
    if all(gate.dry_run for gate in kept):
        raise InvalidPlan(["gates: no gate with a vote can be simulated, since simulations have slots only"])
    left_out = [gate.name for gate in plan.gates if gate not in kept]
    return plan.model_copy(update={"gates": kept}), left_out
