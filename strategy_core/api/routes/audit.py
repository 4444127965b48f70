"""The audit trail: list changes, reconstruct the state at a moment, and verify the hash chain."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import (
    PRINTED,
    Cursor,
    Limit,
    Page,
    ResponseModel,
    StrategyName,
    Time,
    next_cursor,
    number,
    read_cursor,
)
from strategy_core.services.audit import read_events, state_at, verify_trail


class AuditEventResponse(ResponseModel):
    """One change: who changed what, when and why."""

    id: int = Field(description="Id of the event.")
    position: int = Field(description="Position in the strategy's trail, from 1. Equals the strategy's new generation.")
    at: datetime = Field(description="When it was changed.")
    actor: str = Field(description="Who changed it.")
    role: str = Field(description="The actor's role.")
    source: str = Field(
        description="Where the request came from: sdk, cli, api, console, flow, form, or `form, unverified` if nobody "
        "has verified the name in the form."
    )
    action: str = Field(description="What was done.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="Name of the version, or empty.")
    rollout_id: UUID | None = Field(description="The rollout, if it concerns one.")
    before: dict[str, Any] = Field(description="The facts before the change.")
    after: dict[str, Any] = Field(description="The facts after the change.")
    reason: str = Field(description="Why it was done.")
    evidence: list[str] = Field(description="Ids of the rows that the decision is based on.")
    request_id: str = Field(description="The `X-Request-Id` of the request.")
    idempotency_key: str | None = Field(description="The idempotency key of the request.")
    previous_hash: str = Field(description="Hash of the previous event in this trail.")
    hash: str = Field(description="SHA-256 of this event and the previous hash.")


class StateAtResponse(ResponseModel):
    """Which versions served users at a moment, reconstructed from the audit trail."""

    strategy_name: str = Field(description="Name of the strategy.")
    at: datetime = Field(description="The moment.")
    active: str | None = Field(description="The active version.")
    canary: str | None = Field(description="The canary version.")
    percent: float = Field(description="The canary's share of users, in percent.")
    rollout: dict[str, Any] | None = Field(description="The rollout that was running.")
    excluded: list[str] = Field(description="Symbols on which every user got the active version.")
    event: AuditEventResponse = Field(description="The last change before that moment.")
    made_by: dict[str, AuditEventResponse] = Field(description="For each fact, the change that set it.")


class BreakResponse(ResponseModel):
    """A place where the hash chain does not hold."""

    position: int = Field(description="Position of the event in the trail, from 1.")
    problem: str = Field(description="What is wrong there.")


class MismatchResponse(ResponseModel):
    """A row that does not follow from the audit events."""

    table: str = Field(description="The table.")
    row: str = Field(description="The version, the rollout id or the strategy.")
    problem: str = Field(description="What is wrong with the row.")
    next_step: str = Field(description="What to do about it.")


class TrailResponse(ResponseModel):
    """The audit trail of one strategy."""

    strategy_name: str = Field(description="Name of the strategy.")
    count: int = Field(description="Number of events.")
    head: str = Field(description="Hash of the newest event. Store it elsewhere, and check it later as `known_head`.")
    breaks: list[BreakResponse] = Field(description="Where the chain does not hold. Empty if it does.")
    mismatches: list[MismatchResponse] = Field(
        description="Versions, rollouts, canaries and exclusions that do not follow from the events. Empty if all do."
    )


class VerificationResponse(ResponseModel):
    """The result of a verification."""

    holds: bool = Field(description="Whether all trails and known heads are unchanged.")
    trails: list[TrailResponse] = Field(description="The result for each strategy.")
    missing: list[str] = Field(description="Known heads that are no longer in any trail.")
    for_all: list[MismatchResponse] = Field(
        description="Exclusions of all strategies that do not follow from the events. Not checked for one strategy."
    )


Word = Annotated[str | None, Query(max_length=200, pattern=PRINTED, description="Only events with this value.")]
Head = Annotated[str, Query(pattern="^[0-9a-fA-F]{64}$")]

router = guarded_router("audit")


@router.get("/audit", summary="List audit events")
def list_events(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    rollout_id: Annotated[UUID | None, Query(description="Only events of this rollout.")] = None,
    actor: Word = None,
    action: Word = None,
    since: Annotated[Time | None, Query(description="From this moment, inclusive.")] = None,
    until: Annotated[Time | None, Query(description="Until this moment, exclusive.")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[AuditEventResponse]:
    """List changes, oldest first. Within one strategy, new events always come after an existing cursor."""
    (after_id,) = read_cursor(cursor, number) or (None,)
    found = read_events(
        context.engine,
        strategy_name,
        rollout_id=rollout_id,
        actor=actor,
        action=action,
        since=since,
        until=until,
        after_id=after_id,
        strategies=context.lists(strategy_name).names,
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda row: (row.id,))
    return Page[AuditEventResponse](
        items=[AuditEventResponse.model_validate(row) for row in items], next_cursor=following
    )


@router.get("/audit/state", summary="Show who served users at a moment")
def show_state(
    context: Requested,
    strategy_name: Annotated[StrategyName, Query(description="Name of the strategy.")],
    at: Annotated[Time, Query(description="The moment.")],
) -> StateAtResponse:
    """Show which versions served users at a moment, and the changes that led to it."""
    return StateAtResponse.model_validate(state_at(context.engine, context.reads(strategy_name), at))


@router.get("/audit/verify", dependencies=[HEAVY], summary="Verify the audit trail")
def verify(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    known_head: Annotated[list[Head] | None, Query(max_length=100, description="Heads you stored earlier.")] = None,
) -> VerificationResponse:
    """Recompute all hashes, and report events and rows that were tampered with. Default: all strategies."""
    context.check_reading(strategy_name)
    return VerificationResponse.model_validate(verify_trail(context.engine, strategy_name, known_head or ()))
