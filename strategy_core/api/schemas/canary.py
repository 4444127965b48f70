"""The canary and the routing that follows from it, as requests and answers have them."""

from datetime import datetime

from pydantic import Field

from strategy_core.api.schemas.shared import OverrideReason, Reason, StrategyName, Told, VersionName, Wish
from strategy_core.domain.plan import Percent


class Share(Wish):
    """Which version shall be the canary of how many users; by hand, without a plan and without gates."""

    strategy_name: StrategyName
    version: VersionName
    rollout_percent: Percent = Field(
        strict=True,
        description="Of users: 0 to 100, two decimals at most.",
        examples=[5, 12.5],
        json_schema_extra={"multipleOf": 0.01},
    )
    reason: Reason = ""
    override_reason: OverrideReason = ""


class Canary(Told):
    strategy_name: str
    version: str
    rollout_percent: float = Field(description="Of users.")
    salt: str
    started_at: datetime = Field(description="Since when it has been the canary.")


class StandingCanary(Canary):
    generation: int = Field(description="Of the strategy: it grows by one with each change.")


class Canaries(Told):
    items: list[StandingCanary]


class Route(Told):
    user_id: str
    strategy_name: str
    version: str
    bucket: int = Field(ge=0, le=9_999, description="Where the user lies among all, 0 to 9999.")
    percent: float = Field(description="The canary's share of users.")
    in_canary: bool
    generation: int
    why: str = Field(examples=["bucket 59.88 >= canary percent 5.00"])


class StrategyRouting(Told):
    strategy_name: str
    active: str | None = Field(description="Who serves everybody else; null: nobody can be routed.")
    canary: str | None
    rollout_percent: float
    salt: str
    generation: int


class Routings(Told):
    strategies: list[StrategyRouting]
