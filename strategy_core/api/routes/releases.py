"""Release times: freezes, and starts of rollouts that are scheduled for a later time."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from pydantic import Field

from strategy_core.api.dependencies import KEYED, IfMatch, RequestContext, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.routes.rollouts import StartRequest
from strategy_core.api.schemas import (
    OptionalReason,
    RequiredReason,
    ResponseModel,
    StrategyName,
    StrategyOrAll,
    Time,
)
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.services import release_times, scheduled_starts

FreezeId = Annotated[int, Path(ge=1, le=2**31 - 1, description="Number of the freeze.")]
StartId = Annotated[UUID, Path(description="Id of the scheduled start.")]


class FreezeRequest(RequiredReason):
    """Freeze a strategy, or all strategies."""

    strategy_name: StrategyOrAll
    starts_at: Time | None = Field(default=None, description="When it starts. Default, and earliest: now.")
    ends_at: Time = Field(description="When it ends. At most 366 days after its start.")


class ScheduleRequest(StartRequest):
    """Schedule the start of a rollout."""

    start_at: Time = Field(description="When it starts: in the future, at most 366 days from now.")


class FreezeResponse(ResponseModel):
    """A time in which no rollout starts, advances or is promoted."""

    id: int = Field(description="Number of the freeze.")
    strategy_name: str = Field(description="Name of the strategy, or `*` for all strategies.")
    starts_at: datetime = Field(description="When it starts.")
    ends_at: datetime = Field(description="When it ends, if it is not lifted.")
    reason: str = Field(description="Why.")
    set_at: datetime = Field(description="When it was set.")
    set_by: str = Field(description="Who set it.")
    lifted_at: datetime | None = Field(description="When it was lifted, or null.")
    lifted_by: str = Field(description="Who lifted it.")
    lifted_because: str = Field(description="Why it was lifted.")


class ScheduledStartResponse(ResponseModel):
    """A start of a rollout at a later time. Until then the version stays in shadow."""

    id: UUID = Field(description="Id of the scheduled start.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="The version that will be the canary.")
    start_at: datetime = Field(description="The first tick at or after this time starts it.")
    asked_at: datetime = Field(description="When it was scheduled.")
    actor: str = Field(description="Who scheduled it. The rollout counts as started by this owner.")
    outcome: str = Field(description="started, refused or cancelled. Empty: it is pending.")
    ended_at: datetime | None = Field(description="When it was started, refused or cancelled.")
    ended_because: str = Field(description="Why it ended so.")
    rollout_id: UUID | None = Field(description="The rollout that it has started.")


router = guarded_router("release times")


@router.get("/freezes", summary="List freezes")
def list_freezes(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only those of this strategy.")] = None,
    since: Annotated[Time | None, Query(description="Only those that last longer than this time.")] = None,
) -> list[FreezeResponse]:
    """List freezes of the token's strategies and of all strategies, in the order of their start."""
    names = context.lists(strategy_name).names
    found = release_times.list_freezes(context.engine, strategy_name, strategies=names, since=since)
    return [FreezeResponse.model_validate(each) for each in found]


@router.post("/freezes", status_code=201, dependencies=[KEYED], summary="Freeze a strategy")
def freeze(context: Requested, body: FreezeRequest, if_match: IfMatch) -> FreezeResponse:
    """Freeze a strategy: no rollout starts, advances or is promoted, and no version is activated.

    Rollbacks, pauses, exclusions and registrations go on. To freeze all strategies (`*`), the token must cover all.
    """
    found = release_times.set_freeze(
        context.engine,
        Command(_actor(context, body.strategy_name), context.now, body.reason, if_generation=if_match),
        strategy_name=body.strategy_name,
        starts_at=body.starts_at,
        ends_at=body.ends_at,
    )
    return FreezeResponse.model_validate(found)


@router.post("/freezes/{freeze_id}/lift", dependencies=[KEYED], summary="Lift a freeze")
def lift(context: Requested, freeze_id: FreezeId, body: RequiredReason, if_match: IfMatch) -> FreezeResponse:
    """Lift a freeze before it ends. The next tick may advance what it held."""
    strategy_name = release_times.find_freeze(context.engine, freeze_id).strategy_name
    command = Command(_actor(context, strategy_name), context.now, body.reason, if_generation=if_match)
    return FreezeResponse.model_validate(release_times.lift_freeze(context.engine, command, freeze_id))


@router.get("/starts", summary="List scheduled starts")
def list_starts(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only those of this strategy.")] = None,
) -> list[ScheduledStartResponse]:
    """List the pending scheduled starts, the earliest first."""
    names = context.lists(strategy_name).names
    found = scheduled_starts.list_starts(context.engine, strategy_name, strategies=names)
    return [ScheduledStartResponse.model_validate(each) for each in found]


@router.post("/starts", status_code=201, dependencies=[KEYED], summary="Schedule the start of a rollout")
def schedule(context: Requested, body: ScheduleRequest, if_match: IfMatch) -> ScheduledStartResponse:
    """Schedule the start of a rollout. All checks of a start are made now, and again at that time.

    In a freeze, or outside the plan's release windows, it waits.
    """
    found = scheduled_starts.schedule_start(
        context.engine,
        Command(
            context.changes(body.strategy_name),
            context.now,
            body.reason,
            override_reason=body.override_reason,
            if_generation=if_match,
        ),
        strategy_name=body.strategy_name,
        version=body.version,
        plan=body.chosen_plan(context.engine),
        start_at=body.start_at,
    )
    return ScheduledStartResponse.model_validate(found)


@router.post("/starts/{start_id}/cancel", dependencies=[KEYED], summary="Cancel a scheduled start")
def cancel(context: Requested, start_id: StartId, body: OptionalReason, if_match: IfMatch) -> ScheduledStartResponse:
    """Cancel a scheduled start. Its version stays in shadow."""
    strategy_name = scheduled_starts.find_start(context.engine, start_id).strategy_name
    found = scheduled_starts.cancel_start(
        context.engine,
        Command(context.changes(strategy_name), context.now, body.reason, if_generation=if_match),
        strategy_name=strategy_name,
        start_id=start_id,
    )
    return ScheduledStartResponse.model_validate(found)


def _actor(context: RequestContext, strategy_name: str) -> Actor:
    """Return the actor of a change of one strategy, or of all, for which the token must cover all strategies."""
    if strategy_name != ALL_STRATEGIES:
        return context.changes(strategy_name)
    context.principal.check_change(None)
    return context.changes(ALL_STRATEGIES)
