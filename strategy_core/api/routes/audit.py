"""The audit trail: who changed what, what stood at a moment, and whether it is whole."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, Requested
from strategy_core.api.pagination import next_cursor, number, read_cursor
from strategy_core.api.routes import guarded
from strategy_core.api.schemas import PRINTED, Cursor, Limit, Page, ResponseModel, StrategyName, Time
from strategy_core.services.audit import read_events, state_at, verify_trail


class AuditEventResponse(ResponseModel):
    """One change: who, when, what, from what to what, and why."""

    id: int
    position: int = Field(description="In the trail of its strategy, from 1; the generation that the change made.")
    at: datetime
    actor: str
    role: str
    source: str = Field(description="Where the wish came in: sdk, cli, api or flow.")
    action: str
    strategy_name: str
    version: str
    rollout_id: UUID | None
    before: dict[str, Any]
    after: dict[str, Any]
    reason: str
    evidence: list[str] = Field(description="Ids of the rows that it rests on.")
    request_id: str
    idempotency_key: str | None
    previous_hash: str
    hash: str


class StateAtResponse(ResponseModel):
    """Who served whom at a moment, from the trail alone."""

    strategy_name: str
    at: datetime
    active: str | None
    canary: str | None
    percent: float
    rollout: dict[str, Any] | None
    event: AuditEventResponse = Field(description="The newest change at that moment.")
    made_by: dict[str, AuditEventResponse] = Field(description="By fact, the change that had made it so.")


class BreakResponse(ResponseModel):
    position: int
    problem: str


class TrailResponse(ResponseModel):
    strategy_name: str
    count: int
    head: str = Field(description="The newest event's hash: note it elsewhere, and ask for it as `known_head` later.")
    breaks: list[BreakResponse]


class VerificationResponse(ResponseModel):
    holds: bool
    trails: list[TrailResponse]
    missing: list[str] = Field(description="Known heads that stand in no trail any more.")


router = guarded("audit")

Word = Annotated[str | None, Query(max_length=200, pattern=PRINTED)]
Head = Annotated[str, Query(pattern="^[0-9a-fA-F]{64}$")]


@router.get("/audit")
def list_events(
    ask: Requested,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    rollout_id: UUID | None = None,
    actor: Word = None,
    action: Word = None,
    since: Annotated[Time | None, Query()] = None,
    until: Annotated[Time | None, Query(description="Excluded.")] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 100,
) -> Page[AuditEventResponse]:
    """List changes, oldest first; of one strategy none ever appears behind a cursor that was given."""
    (after_id,) = read_cursor(cursor, number) or (None,)
    found = read_events(
        ask.engine,
        strategy_name,
        rollout_id=rollout_id,
        actor=actor,
        action=action,
        since=since,
        until=until,
        after_id=after_id,
        strategies=ask.lists(strategy_name).names,
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda row: (row.id,))
    return Page[AuditEventResponse](
        items=[AuditEventResponse.model_validate(row) for row in items], next_cursor=following
    )


@router.get("/audit/state")
def show_state(
    ask: Requested, strategy_name: Annotated[StrategyName, Query()], at: Annotated[Time, Query()]
) -> StateAtResponse:
    """Say who served whom at a moment, and which changes had made it so."""
    return StateAtResponse.model_validate(state_at(ask.engine, ask.reads(strategy_name), at))


@router.get("/audit/verify", dependencies=[HEAVY])
def verify(
    ask: Requested,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    known_head: Annotated[list[Head] | None, Query(max_length=100, description="Hashes noted earlier.")] = None,
) -> VerificationResponse:
    """Compute every hash anew, and say where the trail was changed by another hand; unless named, of all strategies."""
    ask.principal.check(strategy_name)
    return VerificationResponse.model_validate(verify_trail(ask.engine, strategy_name, known_head or ()))
