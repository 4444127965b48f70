"""The canary: which it is, and its share of users set by hand."""

from datetime import datetime
from typing import Annotated

from fastapi import Query, Response
from pydantic import Field

from strategy_core.api.dependencies import IfMatch, Requested
from strategy_core.api.routes import guarded
from strategy_core.api.schemas import OverrideReason, Reason, RequestModel, ResponseModel, StrategyName, VersionName
from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Percent
from strategy_core.services import queries
from strategy_core.services.canary import set_share


class Share(RequestModel):
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


class Canary(ResponseModel):
    strategy_name: str
    version: str
    rollout_percent: float = Field(description="Of users.")
    salt: str
    started_at: datetime = Field(description="Since when it has been the canary.")


class StandingCanary(Canary):
    generation: int = Field(description="Of the strategy: it grows by one with each change.")


class Canaries(ResponseModel):
    items: list[StandingCanary]


class RouteResponse(ResponseModel):
    user_id: str
    strategy_name: str
    version: str
    bucket: int = Field(ge=0, le=9_999, description="Where the user lies among all, 0 to 9999.")
    percent: float = Field(description="The canary's share of users.")
    in_canary: bool
    generation: int
    why: str = Field(examples=["bucket 59.88 >= canary percent 5.00"])


class StrategyRouting(ResponseModel):
    strategy_name: str
    active: str | None = Field(description="Who serves everybody else; null: nobody can be routed.")
    canary: str | None
    rollout_percent: float
    salt: str
    generation: int


class Routings(ResponseModel):
    strategies: list[StrategyRouting]


router = guarded("canary")


@router.patch("/rollout")
def set_rollout_percent(ask: Requested, wish: Share, if_match: IfMatch) -> Canary:
    """Make a version the canary of a share of users by hand, or set the share of the canary that it is."""
    found = set_share(
        ask.engine,
        Command(
            ask.changes(wish.strategy_name),
            ask.now,
            wish.reason,
            override_reason=wish.override_reason,
            if_generation=if_match,
            four_eyes=ask.backend.settings.four_eyes,
        ),
        strategy_name=wish.strategy_name,
        version=wish.version,
        percent=wish.rollout_percent,
    )
    return Canary.model_validate(found)


@router.get("/canary")
def list_canaries(
    ask: Requested, response: Response, strategy_name: Annotated[StrategyName | None, Query()] = None
) -> Canaries:
    """List the canaries of now; of a strategy that is named, its canary."""
    found = queries.list_canaries(ask.engine, ask.lists(strategy_name))
    items = [
        StandingCanary(**Canary.model_validate(canary).model_dump(), generation=generation)
        for canary, generation in found
    ]
    if strategy_name is not None:
        response.headers["ETag"] = f'"{items[0].generation}"'
    return Canaries(items=items)
