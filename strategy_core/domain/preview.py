"""What a plan will take before it starts: can its evidence come in the time it gives? It never moves anything."""

import math

from pydantic import BaseModel

from strategy_core.domain.history import History
from strategy_core.domain.paired_gates import NotWorse
from strategy_core.domain.plan import Plan

SLOTS_FACTOR = 3.1  # standard deviations over the margin, for a version as good as the active to pass


class StagePreview(BaseModel):
    """One stage: slots that must have been booked since the start, and how long it will last.

    Attributes:
        slots_needed: since the rollout's start, for a version as good as the active one to pass.
        days_expected: at this stage; None when no slots come.
        underpowered: the maximum stage time ends before the evidence can suffice.
    """

    percent: float
    slots_needed: int
    days_expected: float | None
    underpowered: bool


class Preview(BaseModel):
    """A plan against the shadow history of the pair.

    Attributes:
        slots, days: what the history had, and over how many calendar days.
        pnl_deviation, win_deviation: of the difference per slot, days clustered.
    """

    slots: int
    days: float
    slots_per_day: float
    pnl_deviation: float | None
    win_deviation: float | None
    stages: list[StagePreview]

    @property
    def underpowered(self) -> bool:
        return any(stage.underpowered for stage in self.stages)

    @property
    def verdict(self) -> str:
        """Say in a line whether the plan can come to an answer."""
        if self.pnl_deviation is None:
            return f"unknown: {self.slots} slots in {self.days:.0f} days of shadow are too few to plan by"
        short = next((stage for stage in self.stages if stage.underpowered), None)
        if short is None:
            total = sum(stage.days_expected or 0.0 for stage in self.stages)
            return f"the evidence can suffice: about {total:.0f} days at {self.slots_per_day:.1f} slots a day"
        days = short.slots_needed / self.slots_per_day
        return (
            f"underpowered: the {short.percent:g} % stage needs {short.slots_needed} slots; "
            f"at {self.slots_per_day:.1f} a day that is {days:.0f} days"
        )


def preview(plan: Plan, history: History, calendar_days: float) -> Preview:
    """Return what *plan* takes, given the history that the pair had in *calendar_days* of shadow.

    Slots needed = (3.1 · s / margin)², for the harder of PnL and win rate, s the deviation of the paired difference; at
    least the gate's minimum.
    """
    per_day, pnl, win = history.slots_per_day, history.pnl_deviation, history.win_deviation
    minimum = next((gate.minimum_slots for gate in plan.gates if isinstance(gate, NotWorse)), 0)
    stages, booked = [], 0
    for stage in plan.stages:
        margins = stage.margins
        needed = max(minimum, _needed(pnl, margins.pnl(history.edge)), _needed(win, margins.win))
        minimum_days = stage.minimum_time.total_seconds() / 86_400
        expected = None
        if per_day > 0 and pnl is not None:
            expected = max(minimum_days, (needed - booked) / per_day)
            booked += math.floor(expected * per_day)
        maximum_days = plan.maximum_stage_time.total_seconds() / 86_400
        underpowered = expected is None or expected > maximum_days
        stages.append(
            StagePreview(percent=stage.percent, slots_needed=needed, days_expected=expected, underpowered=underpowered)
        )
    return Preview(
        slots=history.slots,
        days=calendar_days,
        slots_per_day=per_day,
        pnl_deviation=pnl,
        win_deviation=win,
        stages=stages,
    )


def _needed(deviation: float | None, margin: float) -> int:
    return math.ceil((SLOTS_FACTOR * (deviation or 0.0) / margin) ** 2)
