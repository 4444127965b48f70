"""Rollouts: planned, started, watched, answered by their owner, and rolled back."""

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query, Response
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, KEYED, KEYED_IF_IT_CAN, IfMatch, RequestContext, Requested
from strategy_core.api.pagination import identity, moment, next_cursor, read_cursor
from strategy_core.api.routes import PREFIX, guarded
from strategy_core.api.schemas import (
    Cursor,
    Explained,
    Limit,
    NeededReason,
    OverrideReason,
    Page,
    Reason,
    Reasoned,
    RequestModel,
    ResponseModel,
    StrategyName,
    VersionName,
)
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.performance import Performance
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Audience, Preview
from strategy_core.domain.ramp import State
from strategy_core.services import queries, rollouts
from strategy_core.services.history import read_verdicts
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, show_plan, start_rollout
from strategy_core.services.status import RolloutStatus


class Planned(RequestModel):
    strategy_name: StrategyName
    version: VersionName
    plan: Plan = Field(default_factory=Plan, description="Frozen at the start; the usual one, unless given.")


class Start(Planned):
    reason: Reason = ""
    override_reason: OverrideReason = ""


class DecideRequest(Explained):
    choice: Choice = Field(description="The stage's maximum time anew, the next stage, or users off it now.")


class Rollback(RequestModel):
    """Take users off a version, now; it is never refused for being late, and so takes no `If-Match`."""

    strategy_name: StrategyName
    version: VersionName | None = Field(
        default=None,
        description="The version users shall be taken off: the rollout's or the canary, unless given. An activation is "
        "undone only when its version is named.",
    )
    reason: NeededReason


class RolledBackResponse(ResponseModel):
    strategy_name: str
    version: str = Field(description="The version that no user gets any more.")


class RolloutResponse(ResponseModel):
    id: UUID
    strategy_name: str
    version: str
    control_version: str = Field(description="The version that it is measured against.")
    state: State
    stage_index: int
    started_at: datetime
    stage_entered_at: datetime
    stage_extended_at: datetime
    approved_stage: int | None
    blind_since: datetime | None
    promoted_at: datetime | None
    ended_at: datetime | None
    last_tick_at: datetime | None
    reason: str


class VerdictResponse(ResponseModel):
    id: UUID
    gate: str
    verdict: str
    armed: bool = Field(description="Whether it has a vote; else it is recorded only.")
    reason: str
    value: float | None
    limit: float | None
    low: float | None
    high: float | None
    n: int
    stage_index: int
    ticked_at: datetime


class StandingVerdict(VerdictResponse):
    since: datetime = Field(description="When the gate began to say this verdict without a break.")


class FidelityResponse(ResponseModel):
    concordance: float = Field(description="1 when shadow and live agree, 0 when they are unrelated.")
    n: int
    live_r: float
    shadow_r: float


class LiveResult(ResponseModel):
    live: Performance
    shadow: Performance
    fidelity: FidelityResponse | None
    trades: int


class RolloutDetail(RolloutResponse):
    plan: dict[str, Any] = Field(description="As it was frozen at the start.")
    stages: list[float] = Field(description="Percents of the plan.")
    verdicts: list[StandingVerdict] = Field(description="Each gate's newest, the worst first.")
    needs: list[str] = Field(description="What must happen before it goes on, the most urgent first.")
    minimum_left_s: float | None = Field(description="Of the stage's minimum time, or of the bake.")
    maximum_left_s: float | None = Field(description="Until a stage without an answer is put to the owner.")
    live: dict[str, LiveResult] = Field(description="By version: what users' trades came to, beside the shadow's.")


class PlanPreview(ResponseModel):
    preview: Preview
    underpowered: bool
    verdict: str = Field(description="Whether the plan can come to an answer, in a line.")
    audience: Audience
    estimated: bool = Field(description="Whether users are not counted, since no directory of them is loaded.")


router = guarded("rollouts")


@router.post("/rollouts", status_code=201, dependencies=[KEYED])
def start(ask: Requested, wish: Start, if_match: IfMatch, response: Response) -> RolloutResponse:
    """Start a rollout: the version becomes the canary, at the first stage of the plan."""
    found = start_rollout(
        ask.engine,
        Command(
            ask.changes(wish.strategy_name),
            ask.now,
            wish.reason,
            override_reason=wish.override_reason,
            if_generation=if_match,
        ),
        strategy_name=wish.strategy_name,
        version=wish.version,
        plan=ask.backend.settings.in_replay(wish.plan),
    )
    response.headers["Location"] = f"{PREFIX}/rollouts/{found.id}"
    return RolloutResponse.model_validate(found)


@router.post("/rollouts/plan", dependencies=[KEYED, HEAVY])
def preview_rollout(ask: Requested, wish: Planned) -> PlanPreview:
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
    ask: Requested,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 50,
) -> Page[RolloutResponse]:
    """List rollouts, newest first."""
    after = read_cursor(cursor, moment, identity)
    found = queries.list_rollouts(ask.engine, ask.lists(strategy_name), after=after, limit=limit + 1)
    items, following = next_cursor(found, limit, lambda row: (row.started_at, row.id))
    return Page[RolloutResponse](items=[RolloutResponse.model_validate(row) for row in items], next_cursor=following)


@router.get("/rollouts/{rollout_id}")
def show_rollout(ask: Requested, rollout_id: UUID, response: Response) -> RolloutDetail:
    """Show a rollout: its stage, what its gates say, and what it waits for."""
    found, generation = queries.read_rollout(ask.engine, rollout_id, now=ask.now)
    ask.reads(found.rollout.strategy_name)
    response.headers["ETag"] = f'"{generation}"'
    return detail(found)


@router.get("/rollouts/{rollout_id}/verdicts")
def list_verdicts(
    ask: Requested,
    rollout_id: UUID,
    gate: Annotated[str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only this gate's.")] = None,
    limit: Annotated[Limit, Query()] = 100,
) -> list[VerdictResponse]:
    """List what the gates said over time, oldest first: the newest so many, one each time something new was said."""
    rollout = queries.find_rollout(ask.engine, rollout_id)
    ask.reads(rollout.strategy_name)
    found = read_verdicts(ask.engine, rollout.strategy_name, gate=gate, rollout_id=rollout_id, limit=limit)
    return [VerdictResponse.model_validate(row) for row in found.verdicts]


@router.post("/rollouts/{rollout_id}/pause", dependencies=[KEYED])
def pause(ask: Requested, rollout_id: UUID, wish: Reasoned, if_match: IfMatch) -> RolloutResponse:
    """Keep a rollout where it is; every protection stays armed."""
    return _told(ask, rollouts.pause, rollout_id, wish, if_match)


@router.post("/rollouts/{rollout_id}/resume", dependencies=[KEYED])
def resume(ask: Requested, rollout_id: UUID, wish: Reasoned, if_match: IfMatch) -> RolloutResponse:
    """Let a paused rollout go on, at its stage's percent."""
    return _told(ask, rollouts.resume, rollout_id, wish, if_match)


@router.post("/rollouts/{rollout_id}/approve", dependencies=[KEYED])
def approve(ask: Requested, rollout_id: UUID, wish: Reasoned, if_match: IfMatch) -> RolloutResponse:
    """Let a rollout enter the stage it waits for, at the next tick."""
    return _told(ask, rollouts.approve, rollout_id, wish, if_match, four_eyes=ask.backend.settings.four_eyes)


@router.post("/rollouts/{rollout_id}/decide", dependencies=[KEYED])
def decide(ask: Requested, rollout_id: UUID, wish: DecideRequest, if_match: IfMatch) -> RolloutResponse:
    """Answer a rollout that waits for a decision; to roll back is heard in every state and generation."""
    strategy_name = queries.find_rollout(ask.engine, rollout_id).strategy_name

    def decided(actor: Actor) -> RolloutResponse:
        found = rollouts.decide_rollout(
            ask.engine,
            Command(actor, ask.now, wish.reason, if_generation=if_match, four_eyes=ask.backend.settings.four_eyes),
            strategy_name=strategy_name,
            rollout_id=rollout_id,
            choice=wish.choice,
        )
        return RolloutResponse.model_validate(found)

    if wish.choice is rollouts.Choice.ROLL_BACK:
        return ask.rolls_back(strategy_name, decided)
    return decided(ask.changes(strategy_name))


@router.post("/rollouts/{rollout_id}/rollback", dependencies=[KEYED_IF_IT_CAN])
def roll_back_rollout(ask: Requested, rollout_id: UUID, wish: Explained) -> RolledBackResponse:
    """Take users off the version of this rollout, now, whatever its state; no `If-Match` delays it."""
    strategy_name = queries.find_rollout(ask.engine, rollout_id).strategy_name
    version = ask.rolls_back(
        strategy_name,
        lambda actor: roll_back(
            ask.engine, Command(actor, ask.now, wish.reason), strategy_name=strategy_name, rollout_id=rollout_id
        ),
    )
    return RolledBackResponse(strategy_name=strategy_name, version=version)


@router.post("/rollback", dependencies=[KEYED_IF_IT_CAN])
def roll_back_strategy(ask: Requested, wish: Rollback) -> RolledBackResponse:
    """Take users off a version now: undo its rollout, its canary, or, named, its activation. Asks nothing."""
    version = ask.rolls_back(
        wish.strategy_name,
        lambda actor: roll_back(
            ask.engine, Command(actor, ask.now, wish.reason), strategy_name=wish.strategy_name, version=wish.version
        ),
    )
    return RolledBackResponse(strategy_name=wish.strategy_name, version=version)


def _told(
    ask: RequestContext,
    say: Callable[..., object],
    rollout_id: UUID,
    wish: Reasoned,
    if_generation: int | None,
    *,
    four_eyes: bool = False,
) -> RolloutResponse:
    """Say something to the rollout of that id, and to no other one of its strategy."""
    strategy_name = queries.find_rollout(ask.engine, rollout_id).strategy_name
    found = say(
        ask.engine,
        Command(ask.changes(strategy_name), ask.now, wish.reason, if_generation=if_generation, four_eyes=four_eyes),
        strategy_name=strategy_name,
        rollout_id=rollout_id,
    )
    return RolloutResponse.model_validate(found)


def detail(found: RolloutStatus) -> RolloutDetail:
    """Return a rollout's status as answers have it."""
    left = found.outlook
    return RolloutDetail.model_validate(
        {
            **RolloutResponse.model_validate(found.rollout).model_dump(),
            "plan": found.rollout.plan,
            "stages": found.stages,
            "verdicts": [
                StandingVerdict(**VerdictResponse.model_validate(row).model_dump(), since=found.since[row.gate])
                for row in found.verdicts
            ],
            "needs": left.needs,
            "minimum_left_s": left.minimum_left.total_seconds() if left.minimum_left is not None else None,
            "maximum_left_s": left.maximum_left.total_seconds() if left.maximum_left is not None else None,
            "live": found.live,
        }
    )
