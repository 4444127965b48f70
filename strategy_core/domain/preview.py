"""What a plan will take before it starts: can its evidence come in the time it gives? It never moves anything."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.gates.on_slots import NotWorse
from strategy_core.domain.pair_noise import History
from strategy_core.domain.parsing import Name
from strategy_core.domain.plan import Plan
from strategy_core.domain.routing import BUCKETS, as_percent

ESTIMATE = "an estimate: no directory of users is loaded"


class Account(BaseModel):
    """One user of the platform's directory.

    Attributes:
        capital: in the platform's own unit of account; None where it is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    user_id: Name
    capital: float | None = Field(default=None, ge=0)


class StageAudience(BaseModel):
    """Who is in the canary at one stage; users and capital are None without a directory.

    Attributes:
        share: of users; the plan's percent where nobody has been counted.
        capital, capital_share: of the users whose capital is known.
    """

    percent: float
    users: int | None
    share: float
    capital: float | None
    capital_share: float | None


class Overlap(BaseModel):
    """What another strategy's canary shares with each stage.

    Attributes:
        percent: of users, on that canary now.
        same_salt: whether both canaries fall on the same users; with other salts each falls on the other's by chance.
        shares: of all users, in both canaries, by stage: counted with a directory and the same salt, else expected.
        users: how many those are, by stage, expected ones rounded; None without a directory.
    """

    strategy_name: str
    version: str
    percent: float
    same_salt: bool
    shares: list[float]
    users: list[int] | None


class Audience(BaseModel):
    """Whom a plan reaches, by stage.

    Attributes:
        users: in the directory; None when none is loaded, and all shares are estimates.
        capital: of those whose capital is known; None when nobody's is.
        capital_unknown: users whose capital is not known.
    """

    users: int | None
    capital: float | None
    capital_unknown: int
    stages: list[StageAudience]
    overlaps: list[Overlap]

    @property
    def estimated(self) -> bool:
        return self.users is None


class OtherCanary(BaseModel):
    """A canary of another strategy, as routing has it now."""

    strategy_name: str
    version: str
    percent_bp: int
    same_salt: bool


def audience(plan: Plan, buckets: IntArray, capital: FloatArray, others: Sequence[OtherCanary]) -> Audience:
    """Return whom *plan* reaches.

    Args:
        plan: whose stages are asked for.
        buckets: of the directory's users under the strategy's salt, shape (users,); empty without a directory.
        capital: of the same users; NaN where it is not known.
        others: canaries of other strategies.
    """
    known = ~np.isnan(capital)
    users, money = _up_to(buckets), _up_to(buckets[known], capital[known])
    return Audience(
        users=len(buckets) or None,
        capital=float(money[-1]) if known.any() else None,
        capital_unknown=len(buckets) - int(known.sum()),
        stages=[
            StageAudience(
                percent=stage.percent,
                users=int(users[stage.percent_bp]) if len(buckets) else None,
                share=float(users[stage.percent_bp] / len(buckets)) if len(buckets) else stage.percent_bp / BUCKETS,
                capital=float(money[stage.percent_bp]) if known.any() else None,
                capital_share=float(money[stage.percent_bp] / money[-1]) if money[-1] > 0 else None,
            )
            for stage in plan.stages
        ],
        overlaps=[_overlap(plan, other, users) for other in others],
    )


def _overlap(plan: Plan, other: OtherCanary, users: FloatArray) -> Overlap:
    total = users[-1]
    stages = [stage.percent_bp for stage in plan.stages]
    if not other.same_salt:
        shares = [bp * other.percent_bp / BUCKETS**2 for bp in stages]
    elif total:
        shares = [float(users[min(bp, other.percent_bp)] / total) for bp in stages]
    else:
        shares = [min(bp, other.percent_bp) / BUCKETS for bp in stages]
    return Overlap(
        strategy_name=other.strategy_name,
        version=other.version,
        percent=as_percent(other.percent_bp),
        same_salt=other.same_salt,
        shares=shares,
        users=[round(share * total) for share in shares] if total else None,
    )


def _up_to(buckets: IntArray, weights: FloatArray | None = None) -> FloatArray:
    """Return how many buckets, or how much weight, lie below each number of basis points, 0 to 10,000."""
    sums = np.bincount(buckets, weights=weights, minlength=BUCKETS).cumsum()
    return np.concatenate([[0.0], sums])


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
