"""Exclusions of users: opt-outs, users that never get a canary, and users that always do."""

from datetime import datetime
from typing import Annotated

from fastapi import Query
from pydantic import Field

from strategy_core.api.dependencies import KEYED, IfMatch, RequestContext, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import RequiredReason, ResponseModel, StrategyName, StrategyOrAll, Time, UserId
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.user_exclusions import MOST_USERS, ExclusionKind
from strategy_core.services import user_exclusions

_UserIds = Annotated[list[UserId], Field(min_length=1, max_length=MOST_USERS, description="The users.")]


class ExclusionRequest(RequiredReason):
    """Keep users with the active version, or give them every canary."""

    strategy_name: StrategyOrAll
    user_ids: _UserIds
    kind: ExclusionKind = Field(
        default=ExclusionKind.OPT_OUT,
        description="`opt_out` (the user's wish), `never` (the owner's) or `always` (every canary from its first "
        "stage). The others are set by the software.",
    )
    until: Time | None = Field(default=None, description="When it runs out. Default: it has no end.")


class EndRequest(RequiredReason):
    """End exclusions of users."""

    strategy_name: StrategyOrAll
    user_ids: _UserIds
    kinds: list[ExclusionKind] = Field(
        default=sorted(user_exclusions.BY_HAND),
        min_length=1,
        description="Which exclusions. A loss limit that was hit (`guard`) ends only if it is named.",
    )


class ExclusionResponse(ResponseModel):
    """An exclusion of one user."""

    id: int = Field(description="Number of the exclusion.")
    strategy_name: str = Field(description="Name of the strategy, or `*` for all strategies.")
    user_id: str = Field(description="The platform's id of the user.")
    kind: ExclusionKind = Field(description="What it does, and who set it.")
    valid_from: datetime = Field(description="When it began.")
    valid_to: datetime | None = Field(description="When it was ended, or null.")
    until: datetime | None = Field(description="When it runs out, as it was set. Null: it has no end.")
    reason: str = Field(description="Why.")
    actor: str = Field(description="Who set it.")


class ChangedUsersResponse(ResponseModel):
    """What a change did."""

    strategy_name: str = Field(description="Name of the strategy, or `*` for all strategies.")
    users: list[str] = Field(description="The users that it concerned. The others had the exclusion already, or none.")


router = guarded_router("exclusions of users")


@router.get("/exclusions", summary="List exclusions of users")
def list_exclusions(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Of this strategy, and of all.")] = None,
    user_id: Annotated[UserId | None, Query(description="Only those of this user.")] = None,
    ended: Annotated[bool, Query(description="Whether to list also those that have ended.")] = False,
    after_id: Annotated[int, Query(ge=0, le=2**31 - 1, description="Highest `id` of the page before.")] = 0,
    limit: Annotated[int, Query(ge=1, le=500, description="Maximum number of items.")] = 100,
) -> list[ExclusionResponse]:
    """List exclusions for the token's strategies and for all strategies, in the order in which they were set."""
    names = context.lists(strategy_name).names
    found = user_exclusions.list_exclusions(
        context.engine,
        strategy_name,
        strategies=names,
        user_id=user_id,
        counting_at=None if ended else context.now,
        after_id=after_id,
        limit=limit,
    )
    return [ExclusionResponse.model_validate(each) for each in found]


@router.post("/exclusions", status_code=201, dependencies=[KEYED], summary="Exclude users from canaries")
def exclude_users(context: Requested, body: ExclusionRequest, if_match: IfMatch) -> ChangedUsersResponse:
    """Keep users with the active version, or give them every canary. Routers follow within seconds.

    A platform sends a user's opt-out with a service token. For all strategies (`*`) the token must cover all.
    """
    done = user_exclusions.exclude_users(
        context.engine,
        Command(_actor(context, body.strategy_name), context.now, body.reason, if_generation=if_match),
        strategy_name=body.strategy_name,
        user_ids=body.user_ids,
        kind=body.kind,
        until=body.until,
    )
    return ChangedUsersResponse.model_validate(done)


@router.post("/exclusions/end", dependencies=[KEYED], summary="End exclusions of users")
def end_exclusions(context: Requested, body: EndRequest, if_match: IfMatch) -> ChangedUsersResponse:
    """End exclusions, so that the users' buckets decide again. Users without one are passed over."""
    done = user_exclusions.end_exclusions(
        context.engine,
        Command(_actor(context, body.strategy_name), context.now, body.reason, if_generation=if_match),
        strategy_name=body.strategy_name,
        user_ids=body.user_ids,
        kinds=body.kinds,
    )
    return ChangedUsersResponse.model_validate(done)


def _actor(context: RequestContext, strategy_name: str) -> Actor:
    """Return the actor of a change of one strategy, or of all, for which the token must cover all strategies."""
    if strategy_name != ALL_STRATEGIES:
        return context.changes(strategy_name)
    context.principal.check_change(None)
    return context.changes(ALL_STRATEGIES)
