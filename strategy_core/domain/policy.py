"""Policy of a strategy: the named plans that its rollouts must use, who approves them, and the users they leave out."""

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from strategy_core.domain.errors import InvalidPlan, PlanNotAllowed, UnknownPlan
from strategy_core.domain.plan import Percent, Plan, without_new_caps
from strategy_core.domain.routing import BUCKETS, basis_points


class LossLimit(BaseModel):
    """The loss of one user with the strategy at which the user opens no new position of it.

    It is counted on live trades that closed within *days* and on what open trades have lost by now, and anew after an
    owner has released the user.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    r: float | None = Field(
        default=None, gt=0, description="loss in R, the sum over the user's trades, open ones included"
    )
    amount: float | None = Field(default=None, gt=0, description="loss in the unit in which trades report their pnl")
    days: int = Field(default=30, ge=1, le=365, description="days back that count")

    @model_validator(mode="after")
    def _limits(self) -> Self:
        if self.r is None and self.amount is None:
            raise ValueError("a loss limit has r, amount or both")
        return self

    def reached(self, r: float, amount: float) -> bool:
        """Return whether a user's result in R, or its amount, has reached the limit."""
        return (self.r is not None and r <= -self.r) or (self.amount is not None and amount <= -self.amount)

    def __str__(self) -> str:
        limits = [f"{self.r:g} R" if self.r else "", f"{self.amount:g}" if self.amount else ""]
        return f"{' or '.join(each for each in limits if each)} in {self.days} days"


class Policy(BaseModel):
    """The rules for rollouts of one strategy. Without a plan every plan may be used.

    Attributes:
        plans: by name. A rollout must use one of them, unless an owner gives an override reason.
        four_eyes: the owner who started a rollout may not approve or advance it, whatever ROLLOUT_FOUR_EYES is.
        holdout_percent: share of users that no canary of the strategy reaches before it is promoted: those with the
            highest buckets. A change counts from the next stage that is entered.
        max_canaries_per_user: hold starts and stages while this many older canaries use the same salt, and so the same
            users. None: no limit.
        loss_limit: of each user with the strategy, if there is one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plans: Mapping[str, Plan] = {}
    four_eyes: bool = False
    holdout_percent: Percent = Field(default=0.0, le=50)
    max_canaries_per_user: int | None = Field(default=None, ge=1, le=100)
    loss_limit: LossLimit | None = None

    def served_bp(self, percent_bp: int) -> int:
        """Return the share that a canary serves at a stage of *percent_bp*: the holdout is left out."""
        return min(percent_bp, BUCKETS - basis_points(self.holdout_percent))

    def named(self, strategy_name: str, name: str) -> Plan:
        """Return the plan of this name. Raise UnknownPlan if there is none."""
        if name not in self.plans:
            raise UnknownPlan(strategy_name, name, self.plans)
        return self.plans[name]

    def name_of(self, plan: Plan | None) -> str:
        """Return the name of *plan*, or an empty text if the policy does not have it."""
        return next((name for name, known in self.plans.items() if known == plan), "")

    def check(self, strategy_name: str, plan: Plan | None) -> None:
        """Raise PlanNotAllowed if the policy has plans and *plan* is none of them. None is a canary without a plan."""
        if self.plans and not self.name_of(plan):
            raise PlanNotAllowed(strategy_name, self.plans)

    def differences(self, declared: "Policy") -> list[str]:
        """Return what *declared* changes: a line for each plan that is added, removed or changed, and for four eyes."""
        lines = [f"plan {name} is added" for name in declared.plans.keys() - self.plans.keys()]
        lines += [f"plan {name} is removed" for name in self.plans.keys() - declared.plans.keys()]
        for name in self.plans.keys() & declared.plans.keys():
            old, new = (each.plans[name].model_dump(mode="json") for each in (self, declared))
            changed = [field for field in old if old[field] != new[field]]
            lines += [f"plan {name} changes: {_shown(field, old, new)}" for field in changed]
        for field in ("four_eyes", "holdout_percent", "max_canaries_per_user", "loss_limit"):
            known, wanted = getattr(self, field), getattr(declared, field)
            if known != wanted:
                lines.append(f"{field} is {known}, declared {wanted}")
        return sorted(lines)


def load_policy(stored: Mapping[str, Any]) -> Policy:
    """Return a stored policy, with plans as in `load_plan`.

    Raise InvalidPlan if this release cannot read it, so that it cannot be ignored.
    """
    plans = {name: without_new_caps(each) for name, each in stored.get("plans", {}).items()}
    stored = {**stored, "plans": plans}
    try:
        return Policy.model_validate(stored)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors()]
        raise InvalidPlan([f"policy: {problems[0]}"]) from None


def _shown(field: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    if field in ("stages", "gates"):  # each is a screen of JSON
        return field
    return f"{field} {old[field]} -> {new[field]}"
