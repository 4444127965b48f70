"""How long a rollout should still take, if the new version is as good as the active one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from strategy_core.domain.gates.base import Finding
from strategy_core.domain.gates.on_slots import NotWorse
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import stage_slots_needed
from strategy_core.domain.ramp import Position
from strategy_core.domain.readings import gate_title, gates_of

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RolloutSubject:
    """The rollout that a verdict or a forecast is on.

    Attributes:
        plan: frozen with the rollout.
        at: where it stands.
        version, control: the new version, and the one that it is measured against.
        started_at, ended_at: of the rollout.
        reason: of its last change, as it is stored.
        paused_by: who paused it last, and why, such as "anna: the broker is down".
        history: of the pair in shadow, frozen with the rollout.
        slots: that the rollout has counted.
        closed: why no stage may be entered now, by a freeze or the plan's release windows. Empty: it may.
    """

    plan: Plan
    at: Position
    version: str
    control: str
    started_at: datetime
    ended_at: datetime | None
    reason: str
    paused_by: str
    history: History
    slots: int
    closed: str = ""

    @property
    def percent(self) -> float:
        return self.plan.stages[self.at.stage_index].percent

    @property
    def not_worse(self) -> NotWorse | None:
        """The gate that every promotion needs, if it has a vote."""
        return next((g for g in self.plan.gates if isinstance(g, NotWorse) and not g.dry_run), None)

    @property
    def next_step(self) -> str:
        """What follows this stage, as the start of a sentence."""
        following = self.at.stage_index + 1
        if following == len(self.plan.stages):
            return "Promotion"
        waits = self.plan.needs_approval(following) and self.at.approved_stage != following
        return f"{self.plan.stages[following].percent:g} %, after your approval," if waits else "Next stage"

    def title(self, finding: Finding) -> str:
        """Return the plain name of the finding's gate."""
        gate = gates_of(self.plan).get(finding.gate)
        return finding.gate if gate is None else gate_title(gate)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What an open rollout should still take, without the time that owners take.

    Attributes:
        slots_needed: at this stage. None if its end does not depend on slots, or during the bake.
        stage_days: until the next stage. None if it cannot be expected: the rollout bakes, the pair has no slots, or
            all of them are there and another gate holds the stage.
        end_days: until the bake is over. None if that cannot be expected.
        entries: when each later stage should begin, by its index, and last the bake. It ends before what
            cannot be expected.
    """

    slots_needed: int | None
    stage_days: float | None
    end_days: float | None
    entries: Mapping[int, datetime]


def forecast(of: RolloutSubject, now: datetime, *, passes: bool) -> Forecast:
    """Return the forecast of an open rollout at *now*: each stage takes its minimum time, or as long as its slots do.

    Args:
        passes: every gate passes at this stage, so it needs no more slots.
    """
    if of.at.promoted_at is not None:
        return Forecast(None, None, max(timedelta(0), of.at.promoted_at + of.plan.bake - now) / DAY, {})
    here, per_day = of.at.stage_index, _slots_per_day(of, now)
    slots, at, entries = float(of.slots), now, dict[int, datetime]()
    for number in range(here, len(of.plan.stages)):
        entered = of.at.stage_entered_at if number == here else at
        needed = 0 if passes and number == here else _slots_needed(of, number)
        missing = 0.0 if needed is None else max(0.0, needed - slots)
        until = entered + of.plan.stages[number].minimum_time
        if (
            needed is None
            or (missing and per_day <= 0)
            or (number == here and not passes and not missing and until <= now)
        ):
            break
        until = max(until, at + (missing / per_day if missing else 0.0) * DAY)
        slots += per_day * ((until - at) / DAY)
        at = entries[number + 1] = until
    stage_days = (entries[here + 1] - now) / DAY if entries else None
    end_days = (at + of.plan.bake - now) / DAY if len(of.plan.stages) in entries else None
    return Forecast(_slots_needed(of, here) or None, stage_days, end_days, entries)


def _slots_needed(of: RolloutSubject, stage: int) -> int | None:
    """Return the slots that a stage needs: 0 by time alone, None if its gate counts candles instead."""
    if of.not_worse is None:
        return 0
    needed = stage_slots_needed(of.not_worse, of.plan.stages[stage].margins, of.history, of.history)
    return needed or None  # a pair that did the same in shadow counts candles


def _slots_per_day(of: RolloutSubject, now: datetime) -> float:
    """Return the pair's rate of slots: the rollout's own, once it has enough, else that in shadow."""
    elapsed = (now - of.started_at) / DAY
    return of.slots / elapsed if of.slots >= 10 and elapsed >= 1 else of.history.slots_per_day
