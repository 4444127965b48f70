"""The canary: list canaries, and make a version the canary or change its share by hand."""

from datetime import datetime
from typing import Annotated

from fastapi import Query, Response
from pydantic import Field

from strategy_core.api.dependencies import IfMatch, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import OverrideReason, Reason, RequestModel, ResponseModel, StrategyName, VersionName
from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Percent
from strategy_core.services import queries
from strategy_core.services.canary import set_share


class CanaryShare(RequestModel):
    """Set a canary's share of users by hand, without a plan and gates."""

    strategy_name: StrategyName
    version: VersionName
    rollout_percent: Percent = Field(
        strict=True,
        description="Share of users in percent: 0 to 100, with at most two decimals.",
        examples=[5, 12.5],
        json_schema_extra={"multipleOf": 0.01},
    )
    reason: Reason = ""
    override_reason: OverrideReason = ""


class Canary(ResponseModel):
    """A canary and its share of users."""

    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="Name of the canary version.")
    rollout_percent: float = Field(description="Share of users that get it, in percent.")
    asked_percent: float = Field(
        description="Share of users that its stage asks for, in percent. More than `rollout_percent` where the cap on "
        "capital leaves users out."
    )
    salt: str = Field(description="The strategy's routing salt.")
    started_at: datetime = Field(description="When the version became the canary.")


class CurrentCanary(Canary):
    """A canary with the generation of its strategy."""

    generation: int = Field(description="The strategy's generation. Each change increases it by one.")
    users: int | None = Field(description="Users in the directory that get it. Null without a directory.")
    capital_share: float | None = Field(
        description="Their part of all capital, 0 to 1, with unknown capital at the mean. Null if none is known."
    )
    left_out: int = Field(
        description="Users within `asked_percent` who stay with the active version: large accounts and excluded users."
    )
    risk_scale: float = Field(
        description="Scale of its positions, on each of its signals: 0.5 to 1, fixed when its rollout started."
    )


class Canaries(ResponseModel):
    """The current canaries."""

    items: list[CurrentCanary] = Field(description="At most one per strategy.")


router = guarded_router("canary")


@router.patch("/rollout", summary="Set a canary's share of users by hand")
def set_rollout_percent(context: Requested, body: CanaryShare, if_match: IfMatch) -> Canary:
    """Make a version the canary, or change the share of the current canary, by hand."""
    found = set_share(
        context.engine,
        Command(
            context.changes(body.strategy_name),
            context.now,
            body.reason,
            override_reason=body.override_reason,
            if_generation=if_match,
            four_eyes=context.backend.settings.four_eyes,
        ),
        strategy_name=body.strategy_name,
        version=body.version,
        percent=body.rollout_percent,
    )
    return Canary.model_validate(found)


@router.get("/canary", summary="List canaries")
def list_canaries(
    context: Requested,
    response: Response,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
) -> Canaries:
    """List the current canaries, or the canary of one strategy."""
    found = queries.list_canaries(context.engine, context.lists(strategy_name), now=context.now)
    items = [
        CurrentCanary(
            **Canary.model_validate(canary).model_dump(),
            generation=generation,
            users=reach.users,
            capital_share=reach.capital_share,
            left_out=reach.left_out,
            risk_scale=risk_scale,
        )
        for canary, generation, reach, risk_scale in found
    ]
    if strategy_name is not None:
        response.headers["ETag"] = f'"{items[0].generation}"'
    return Canaries(items=items)
