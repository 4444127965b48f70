"""The preview of a plan before it starts: its audience, and whether the evidence can suffice in time."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.gates.on_slots import SLOTS_FACTOR, NotWorse
from strategy_core.domain.pair_noise import History
from strategy_core.domain.parsing import Name
from strategy_core.domain.plan import Plan
from strategy_core.domain.routing import BUCKETS, as_percent

ESTIMATE = "an estimate: no user list is loaded"


class Account(BaseModel):
    """One user of the platform's user list.

    Attributes:
        capital: in the platform's unit of account, if known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    user_id: Name
    capital: float | None = Field(default=None, ge=0)


class StageAudience(BaseModel):
    """The users in the canary at one stage. Users and capital need a user list.

    Attributes:
        share: of users. The plan's percent without a user list.
        capital, capital_share: of the users whose capital is known.
    """

    percent: float
    users: int | None
    share: float
    capital: float | None
    capital_share: float | None


class Overlap(BaseModel):
    """The users that each stage shares with the canary of another strategy.

    Attributes:
        percent: of users on that canary now.
        same_salt: whether both canaries select the same users. With different salts they overlap by chance.
        shares: of all users, those in both canaries, by stage. Counted with a user list and the same salt, otherwise
            expected.
        users: number of those users by stage, rounded if expected. Needs a user list.
    """

    strategy_name: str
    version: str
    percent: float
    same_salt: bool
    shares: list[float]
    users: list[int] | None


class Audience(BaseModel):
    """The users that a plan reaches, by stage.

    Attributes:
        users: in the user list. Without a list all shares are estimates.
        capital: of the users whose capital is known, if any.
        capital_unknown: users whose capital is unknown.
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
    """The current canary of another strategy."""

    strategy_name: str
    version: str
    percent_bp: int
    same_salt: bool


def audience(plan: Plan, buckets: IntArray, capital: FloatArray, others: Sequence[OtherCanary]) -> Audience:
    """Return the users that *plan* reaches.

    Args:
        plan: the plan to preview.
        buckets: of the listed users under the strategy's salt, shape (users,). Empty without a user list.
        capital: of the same users, NaN if unknown.
        others: canaries of other strategies.
    """
    known = ~np.isnan(capital)
    users, money = _cumulative(buckets), _cumulative(buckets[known], capital[known])
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


def _cumulative(buckets: IntArray, weights: FloatArray | None = None) -> FloatArray:
    """Return the number of users, or their weight, below each number of basis points, 0 to 10,000."""
    sums = np.bincount(buckets, weights=weights, minlength=BUCKETS).cumsum()
    return np.concatenate([[0.0], sums])


class StagePreview(BaseModel):
    """One stage: the slots that it needs, and how long it will last.

    Attributes:
        slots_needed: since the start of the rollout, so that a version as good as the active one passes.
        days_expected: at this stage, if the pair has slots.
        underpowered: whether the maximum stage time ends before the evidence can suffice.
    """

    percent: float
    slots_needed: int
    days_expected: float | None
    underpowered: bool


class Preview(BaseModel):
    """A plan compared with the shadow history of the pair.

    Attributes:
        slots, days: slots and calendar days of the history.
        pnl_deviation, win_deviation: standard deviation of the difference per slot, clustered by day.
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
        """One line that states whether the plan can reach a verdict."""
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
    """Return the preview of *plan*, given the history of the pair over *calendar_days* of shadow.

    Slots needed = (3.1 · s / margin)², with s the deviation of the paired difference: the maximum for PnL and win rate,
    and at least the minimum of the gate.
    """
    per_day, pnl, win = history.slots_per_day, history.pnl_deviation, history.win_deviation
    minimum = next((gate.minimum_slots for gate in plan.gates if isinstance(gate, NotWorse)), 0)
    stages, booked = [], 0
    for stage in plan.stages:
        margins = stage.margins
        needed = max(minimum, _needed(pnl, margins.pnl(history)), _needed(win, margins.win or math.inf))
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
