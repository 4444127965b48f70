"""Rollouts: planned, started, watched, answered by their owner, and rolled back."""

from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from fastapi import Query, Response

from strategy_core.api.deps import HEAVY, KEYED, KEYED_IF_IT_CAN, Ask, Asking, IfMatch
from strategy_core.api.pages import identity, moment, next_cursor, read_cursor
from strategy_core.api.routes import PREFIX, guarded
from strategy_core.api.schemas.rollouts import (
    Answer,
    Planned,
    PlanPreview,
    Rollback,
    RolledBack,
    Rollout,
    RolloutDetail,
    StandingVerdict,
    Start,
    Verdict,
)
from strategy_core.api.schemas.shared import Cursor, Explained, Limit, Page, Reasoned, StrategyName
from strategy_core.domain.audit import Actor
from strategy_core.services import approve as owner
from strategy_core.services import browse
from strategy_core.services.preview import show_plan
from strategy_core.services.rollback import roll_back
from strategy_core.services.start import start_rollout
from strategy_core.services.status import RolloutStatus
from strategy_core.services.verdicts import read_verdicts

router = guarded("rollouts")


@router.post("/rollouts", status_code=201, dependencies=[KEYED])
def start(ask: Asking, wish: Start, if_match: IfMatch, response: Response) -> Rollout:
    """Start a rollout: the version becomes the canary, at the first stage of the plan."""
    found = start_rollout(
        ask.engine,
        strategy_name=wish.strategy_name,
        version=wish.version,
        plan=ask.backend.settings.in_replay(wish.plan),
        actor=ask.changes(wish.strategy_name),
        now=ask.now,
        reason=wish.reason,
        override_reason=wish.override_reason,
        if_generation=if_match,
    )
    response.headers["Location"] = f"{PREFIX}/rollouts/{found.id}"
    return Rollout.model_validate(found)


@router.post("/rollouts/plan", dependencies=[KEYED, HEAVY])
def preview_rollout(ask: Asking, wish: Planned) -> PlanPreview:
    """Show what a plan would take, and whom it would reach, before anything moves.

    Of the canaries that share its users, those of strategies that the token reaches.
    """
    ask.reads(wish.strategy_name)
    preview, audience = show_plan(
        ask.engine, strategy_name=wish.strategy_name, version=wish.version, plan=wish.plan, now=ask.now
    )
    reached = ask.lists().names
    overlaps = [each for each in audience.overlaps if reached is None or each.strategy_name in reached]
    audience = audience.model_copy(update={"overlaps": overlaps})
    return PlanPreview(
        preview=preview,
        underpowered=preview.underpowered,
        verdict=preview.verdict,
        audience=audience,
        estimated=audience.estimated,
    )


@router.get("/rollouts")
def list_rollouts(
    ask: Asking,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 50,
) -> Page[Rollout]:
    """List rollouts, newest first."""
    after = read_cursor(cursor, moment, identity)
    found = browse.list_rollouts(ask.engine, ask.lists(strategy_name), after=after, limit=limit + 1)
    items, following = next_cursor(found, limit, lambda row: (row.started_at, row.id))
    return Page[Rollout](items=[Rollout.model_validate(row) for row in items], next_cursor=following)


@router.get("/rollouts/{rollout_id}")
def show_rollout(ask: Asking, rollout_id: UUID, response: Response) -> RolloutDetail:
    """Show a rollout: its stage, what its gates say, and what it waits for."""
    found, generation = browse.read_rollout(ask.engine, rollout_id, now=ask.now)
    ask.reads(found.rollout.strategy_name)
    response.headers["ETag"] = f'"{generation}"'
    return detail(found)


@router.get("/rollouts/{rollout_id}/verdicts")
def list_verdicts(
    ask: Asking,
    rollout_id: UUID,
    gate: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only this gate's.")] = None,
    limit: Annotated[Limit, Query()] = 100,
) -> list[Verdict]:
    """List what the gates said over time, oldest first: the newest so many, one each time something new was said."""
    rollout = browse.find_rollout(ask.engine, rollout_id)
    ask.reads(rollout.strategy_name)
    found = read_verdicts(ask.engine, rollout.strategy_name, gate=gate, rollout_id=rollout_id, limit=limit)
    return [Verdict.model_validate(row) for row in found.verdicts]


@router.post("/rollouts/{rollout_id}/pause", dependencies=[KEYED])
def pause(ask: Asking, rollout_id: UUID, wish: Reasoned, if_match: IfMatch) -> Rollout:
    """Keep a rollout where it is; every protection stays armed."""
    return _told(ask, owner.pause, rollout_id, wish, if_match)


@router.post("/rollouts/{rollout_id}/resume", dependencies=[KEYED])
def resume(ask: Asking, rollout_id: UUID, wish: Reasoned, if_match: IfMatch) -> Rollout:
    """Let a paused rollout go on, at its stage's percent."""
    return _told(ask, owner.resume, rollout_id, wish, if_match)


@router.post("/rollouts/{rollout_id}/approve", dependencies=[KEYED])
def approve(ask: Asking, rollout_id: UUID, wish: Reasoned, if_match: IfMatch) -> Rollout:
    """Let a rollout enter the stage it waits for, at the next tick."""
    return _told(ask, owner.approve, rollout_id, wish, if_match, four_eyes=ask.backend.settings.four_eyes)


@router.post("/rollouts/{rollout_id}/decide", dependencies=[KEYED])
def decide(ask: Asking, rollout_id: UUID, wish: Answer, if_match: IfMatch) -> Rollout:
    """Answer a rollout that waits for a decision; to roll back is heard in every state and generation."""
    strategy_name = browse.find_rollout(ask.engine, rollout_id).strategy_name

    def decided(actor: Actor) -> Rollout:
        found = owner.decide_rollout(
            ask.engine,
            strategy_name=strategy_name,
            rollout_id=rollout_id,
            choice=wish.choice,
            actor=actor,
            now=ask.now,
            reason=wish.reason,
            if_generation=if_match,
            four_eyes=ask.backend.settings.four_eyes,
        )
        return Rollout.model_validate(found)

    if wish.choice is owner.Choice.ROLL_BACK:
        return ask.rolls_back(strategy_name, decided)
    return decided(ask.changes(strategy_name))


@router.post("/rollouts/{rollout_id}/rollback", dependencies=[KEYED_IF_IT_CAN])
def roll_back_rollout(ask: Asking, rollout_id: UUID, wish: Explained) -> RolledBack:
    """Take users off the version of this rollout, now, whatever its state; no `If-Match` delays it."""
    strategy_name = browse.find_rollout(ask.engine, rollout_id).strategy_name
    version = ask.rolls_back(
        strategy_name,
        lambda actor: roll_back(
            ask.engine,
            strategy_name=strategy_name,
            rollout_id=rollout_id,
            actor=actor,
            now=ask.now,
            reason=wish.reason,
        ),
    )
    return RolledBack(strategy_name=strategy_name, version=version)


@router.post("/rollback", dependencies=[KEYED_IF_IT_CAN])
def roll_back_strategy(ask: Asking, wish: Rollback) -> RolledBack:
    """Take users off a version now: undo its rollout, its canary, or, named, its activation. Asks nothing."""
    version = ask.rolls_back(
        wish.strategy_name,
        lambda actor: roll_back(
            ask.engine,
            strategy_name=wish.strategy_name,
            version=wish.version,
            actor=actor,
            now=ask.now,
            reason=wish.reason,
        ),
    )
    return RolledBack(strategy_name=wish.strategy_name, version=version)


def _told(
    ask: Ask, say: Callable[..., object], rollout_id: UUID, wish: Reasoned, if_generation: int | None, **more: bool
) -> Rollout:
    """Say something to the rollout of that id, and to no other one of its strategy."""
    strategy_name = browse.find_rollout(ask.engine, rollout_id).strategy_name
    found = say(
        ask.engine,
        strategy_name=strategy_name,
        rollout_id=rollout_id,
        actor=ask.changes(strategy_name),
        now=ask.now,
        reason=wish.reason,
        if_generation=if_generation,
        **more,
    )
    return Rollout.model_validate(found)


def detail(found: RolloutStatus) -> RolloutDetail:
    """Return a rollout's status as answers have it."""
    left = found.outlook
    return RolloutDetail.model_validate(
        {
            **Rollout.model_validate(found.rollout).model_dump(),
            "plan": found.rollout.plan,
            "stages": found.stages,
            "verdicts": [
                StandingVerdict(**Verdict.model_validate(row).model_dump(), since=found.since[row.gate])
                for row in found.verdicts
            ],
            "needs": left.needs,
            "minimum_left_s": left.minimum_left.total_seconds() if left.minimum_left is not None else None,
            "maximum_left_s": left.maximum_left.total_seconds() if left.maximum_left is not None else None,
            "live": found.live,
        }
    )
