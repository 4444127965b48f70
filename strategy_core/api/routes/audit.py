"""The audit trail: who changed what, what stood at a moment, and whether it is whole."""

from typing import Annotated
from uuid import UUID

from fastapi import Query

from strategy_core.api.deps import HEAVY, Asking
from strategy_core.api.pages import next_cursor, number, read_cursor
from strategy_core.api.routes import guarded
from strategy_core.api.schemas.audit import Event, StateAt, Verification
from strategy_core.api.schemas.shared import PRINTED, Cursor, Limit, Page, StrategyName, Time
from strategy_core.services.audit import read_events, state_at, verify_trail

router = guarded("audit")

Word = Annotated[str | None, Query(max_length=200, pattern=PRINTED)]
Head = Annotated[str, Query(pattern="^[0-9a-fA-F]{64}$")]


@router.get("/audit")
def list_events(
    ask: Asking,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    rollout_id: UUID | None = None,
    actor: Word = None,
    action: Word = None,
    since: Annotated[Time | None, Query()] = None,
    until: Annotated[Time | None, Query(description="Excluded.")] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 100,
) -> Page[Event]:
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
    return Page[Event](items=[Event.model_validate(row) for row in items], next_cursor=following)


@router.get("/audit/state")
def show_state(ask: Asking, strategy_name: Annotated[StrategyName, Query()], at: Annotated[Time, Query()]) -> StateAt:
    """Say who served whom at a moment, and which changes had made it so."""
    return StateAt.model_validate(state_at(ask.engine, ask.reads(strategy_name), at))


@router.get("/audit/verify", dependencies=[HEAVY])
def verify(
    ask: Asking,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    known_head: Annotated[list[Head] | None, Query(max_length=100, description="Hashes noted earlier.")] = None,
) -> Verification:
    """Compute every hash anew, and say where the trail was changed by another hand; unless named, of all strategies."""
    ask.principal.check(strategy_name)
    return Verification.model_validate(verify_trail(ask.engine, strategy_name, known_head or ()))
