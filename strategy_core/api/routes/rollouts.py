"""Rollouts: preview, start, inspect, decide and roll back."""

from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from fastapi import Query, Response
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core.core_schema import CoreSchema, no_info_wrap_validator_function
from sqlalchemy import Engine

from strategy_core.api.dependencies import HEAVY, KEYED, KEYED_IF_VALID, IfMatch, RequestContext, Requested
from strategy_core.api.routes import PREFIX, guarded_router
from strategy_core.api.schemas import (
    NAME,
    Cursor,
    Limit,
    OptionalReason,
    OverrideReason,
    Page,
    Reason,
    RequestModel,
    RequiredReason,
    RequiredReasonText,
    ResponseModel,
    RolloutId,
    StrategyName,
    Symbol,
    VersionName,
    identity,
    moment,
    next_cursor,
    read_cursor,
)
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import AlreadyRolledBack
from strategy_core.domain.performance import Performance
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Audience, Preview
from strategy_core.domain.ramp import State
from strategy_core.domain.readings import GateReading
from strategy_core.domain.risk import Risk
from strategy_core.domain.rollout_verdict import RolloutVerdict
from strategy_core.services import queries, rollouts
from strategy_core.services.history import read_verdicts
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, show_plan, start_rollout, start_warning
from strategy_core.services.status import RolloutStatus


class _OrItsName:
    """Accept a text in place of a plan. A union would name both types in each error."""

    @classmethod
    def __get_pydantic_core_schema__(cls, _source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return no_info_wrap_validator_function(
            lambda given, plan: given if isinstance(given, str) else plan(given), handler.generate_schema(Plan)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": NAME, "maxLength": 64}]}


class WithPlan(RequestModel):
    """A request of a strategy with a plan of rollouts."""

    strategy_name: StrategyName
    plan: Annotated[Plan | str, _OrItsName] = Field(
        default_factory=Plan,
        description="Fixed when the rollout starts. A plan, or the name of one in the strategy's policy. Default: the "
        "standard plan.",
    )

    def chosen_plan(self, engine: Engine) -> Plan:
        """Return the plan. Raises UnknownPlan if the strategy's policy has none of that name."""
        if isinstance(self.plan, Plan):
            return self.plan
        return rollouts.read_policy(engine, self.strategy_name).named(self.strategy_name, self.plan)


class PlanRequest(WithPlan):
    """Preview a rollout plan."""

    version: VersionName


class StartRequest(PlanRequest):
    """Start a rollout."""

    reason: Reason = ""
    override_reason: OverrideReason = ""


class DecideRequest(RequiredReason):
    """Decide how a waiting rollout continues."""

    choice: Choice = Field(
        description="extend: restart the stage's time limit. advance: go to the next stage. rollback: roll back now."
    )
    override_reason: OverrideReason = ""


class ExcludeRequest(RequiredReason):
    """Take one symbol off the canary."""

    symbol: Symbol


class Rollback(RequestModel):
    """Roll back a version now. There is no `If-Match`, because a rollback is not refused for being late."""

    strategy_name: StrategyName
    version: VersionName | None = Field(
        default=None,
        description="The version to roll back. Default: the version of the current rollout, or the canary. To undo an "
        "activation, name its version.",
    )
    reason: RequiredReasonText


class RolledBackResponse(ResponseModel):
    """A completed rollback."""

    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="The version that was rolled back. It serves no users now.")


class RolloutResponse(ResponseModel):
    """A rollout."""

    id: UUID = Field(description="Id of the rollout.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="The version that is rolled out.")
    control_version: str = Field(description="The version that it is compared with.")
    state: State = Field(description="State of the rollout.")
    stage_index: int = Field(description="Index of the current stage, from 0.")
    started_at: datetime = Field(description="When it started.")
    stage_entered_at: datetime = Field(description="When the current stage began.")
    stage_extended_at: datetime = Field(description="When the stage's time limit was last restarted.")
    approved_stage: int | None = Field(description="Index of the highest stage that an owner has approved.")
    blind_since: datetime | None = Field(description="Since when metrics have been unavailable.")
    promoted_at: datetime | None = Field(description="When the version became active.")
    ended_at: datetime | None = Field(description="When the rollout ended.")
    last_tick_at: datetime | None = Field(description="When it was last evaluated.")
    reason: str = Field(description="Reason of the last change.")
    risk_scale: float = Field(
        description="Scale of its version's positions, on each of its signals: 0.5 to 1, fixed at the start."
    )
    risk: Risk | None = Field(
        description="What the scale was measured from. Null for a rollout of a release that did not measure it."
    )


class StartedResponse(RolloutResponse):
    """A rollout that has just started."""

    warning: str = Field(description="What the pair lacks in live shadow, and what that means. Empty if it has enough.")


class VerdictResponse(ResponseModel):
    """A gate's verdict at one tick."""

    id: UUID = Field(description="Id of the verdict.")
    gate: str = Field(description="Name of the gate.")
    verdict: str = Field(description="The verdict.")
    armed: bool = Field(description="Whether the verdict counts. If not, it is only recorded.")
    reason: str = Field(description="Why the gate came to this verdict.")
    value: float | None = Field(description="The measured value, in the gate's unit.")
    limit: float | None = Field(description="The limit, in the gate's unit.")
    low: float | None = Field(description="Lower end of the confidence interval, in the gate's unit.")
    high: float | None = Field(description="Upper end of the confidence interval, in the gate's unit.")
    n: int = Field(description="Number of observations.")
    stage_index: int = Field(description="Index of the stage, from 0.")
    ticked_at: datetime = Field(description="Time of the tick.")


class CurrentVerdict(VerdictResponse):
    """A gate's newest verdict."""

    since: datetime = Field(description="Since when the gate has had this verdict without interruption.")
    reading: GateReading = Field(
        description="The verdict as texts for owners: plain name, `no data` where the gate has seen none, and the "
        "value beside the limit at which the verdict changes."
    )


class FidelityResponse(ResponseModel):
    """How well users' trades match the shadow results."""

    concordance: float = Field(description="Concordance: 1 if live and shadow agree, 0 if they are unrelated.")
    n: int = Field(description="Number of matched trades.")
    live_r: float = Field(description="Result of users' trades, in R.")
    shadow_r: float = Field(description="Result of the shadow decisions, in R.")


class LiveResult(ResponseModel):
    """Results of users' trades and of the shadow decisions."""

    live: Performance = Field(description="Performance of users' trades.")
    shadow: Performance = Field(description="Performance of the shadow decisions.")
    fidelity: FidelityResponse | None = Field(description="How well the two match.")
    trades: int = Field(description="Number of users' trades.")
    suppressed: int = Field(
        description="Number of entries that users could not take, because a position of another version was open."
    )


class RolloutDetail(RolloutResponse):
    """A rollout with its plan, verdicts and outlook."""

    verdict: RolloutVerdict = Field(
        description="The verdict on the rollout in one sentence, its kind, and the days expected at this stage."
    )
    plan: dict[str, Any] = Field(description="The plan, as fixed at the start.")
    stages: list[float] = Field(description="Share of users in each stage, in percent.")
    verdicts: list[CurrentVerdict] = Field(description="The newest verdict of each gate, worst first.")
    needs: list[str] = Field(description="What must happen before the rollout continues, most urgent first.")
    clock_disagrees: str = Field(
        description="Why no time left can be given, because the API's clock and the times in the database disagree. "
        "Otherwise empty."
    )
    minimum_left_s: float | None = Field(
        description="Seconds left of the stage's minimum time, or of the observation after promotion."
    )
    maximum_left_s: float | None = Field(description="Seconds until an undecided stage asks the owner to decide.")
    risk_line: str = Field(description="What its version risks against the other one, in one line. May be empty.")
    open_risk: str = Field(description="Its part of the open risk, in one line. Empty without open positions.")
    live: dict[str, LiveResult] = Field(description="Results of users' trades, by version.")


class PlanPreview(ResponseModel):
    """What a plan would take and which users it would reach."""

    preview: Preview = Field(description="Duration and statistical power of the plan.")
    underpowered: bool = Field(description="Whether the plan is too short to detect the difference.")
    verdict: str = Field(description="One line that explains whether the plan can reach a conclusion.")
    notes: list[str] = Field(description="What the shadow shows, and how soon faults would be found, a line each.")
    audience: Audience = Field(description="The users that each stage reaches.")
    estimated: bool = Field(description="Whether the numbers of users are estimates, because no directory is loaded.")


router = guarded_router("rollouts")


@router.post("/rollouts", status_code=201, dependencies=[KEYED], summary="Start a rollout")
def start(context: Requested, body: StartRequest, if_match: IfMatch, response: Response) -> StartedResponse:
    """Start a rollout. The version becomes the canary in the first stage of the plan."""
    command = Command(
        context.changes(body.strategy_name),
        context.now,
        body.reason,
        override_reason=body.override_reason,
        if_generation=if_match,
    )
    warning = start_warning(
        context.engine,
        strategy_name=body.strategy_name,
        version=body.version,
        now=context.now,
        with_commands=False,
    )
    found = start_rollout(
        context.engine,
        command,
        strategy_name=body.strategy_name,
        version=body.version,
        plan=body.chosen_plan(context.engine),
        in_replay=context.backend.settings.in_replay,
    )
    response.headers["Location"] = f"{PREFIX}/rollouts/{found.id}"
    return StartedResponse(**RolloutResponse.model_validate(found).model_dump(), warning=warning)


@router.post("/rollouts/plan", dependencies=[KEYED, HEAVY], summary="Preview a rollout plan")
def preview_rollout(context: Requested, body: PlanRequest) -> PlanPreview:
    """Return how long a plan would take and which users it would reach. Changes nothing.

    Overlaps with other canaries are listed only for strategies that the token covers.
    """
    plan = body.chosen_plan(context.engine)
    preview, audience = show_visible_plan(context, strategy_name=body.strategy_name, version=body.version, plan=plan)
    return PlanPreview(
        preview=preview,
        underpowered=preview.underpowered,
        verdict=preview.verdict,
        notes=[*audience.notes, *preview.notes],
        audience=audience,
        estimated=audience.estimated,
    )


def show_visible_plan(
    context: RequestContext, *, strategy_name: str, version: str, plan: Plan
) -> tuple[Preview, Audience]:
    """Return a plan's preview and audience, with overlaps only of strategies that the token covers."""
    context.reads(strategy_name)
    preview, audience = show_plan(
        context.engine, strategy_name=strategy_name, version=version, plan=plan, now=context.now
    )
    reached = context.lists().names
    overlaps = [each for each in audience.overlaps if reached is None or each.strategy_name in reached]
    return preview, audience.model_copy(update={"overlaps": overlaps})


@router.get("/rollouts", summary="List rollouts")
def list_rollouts(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[RolloutResponse]:
    """List rollouts, newest first."""
    after = read_cursor(cursor, moment, identity)
    found = queries.list_rollouts(context.engine, context.lists(strategy_name), after=after, limit=limit + 1)
    items, following = next_cursor(found, limit, lambda row: (row.started_at, row.id))
    return Page[RolloutResponse](items=[RolloutResponse.model_validate(row) for row in items], next_cursor=following)


@router.get("/rollouts/{rollout_id}", summary="Show a rollout")
def show_rollout(context: Requested, rollout_id: RolloutId, response: Response) -> RolloutDetail:
    """Return a rollout with its stage, the verdicts of its gates, and what it waits for."""
    found, generation = queries.read_rollout(
        context.engine, rollout_id, now=context.now, clock=context.backend.settings.clock_check
    )
    context.reads(found.rollout.strategy_name)
    response.headers["ETag"] = f'"{generation}"'
    return detail(found)


@router.get("/rollouts/{rollout_id}/verdicts", summary="List a rollout's verdicts")
def list_verdicts(
    context: Requested,
    rollout_id: RolloutId,
    gate: Annotated[
        str | None, Query(max_length=200, pattern=r"^[^\x00]*$", description="Only verdicts of this gate.")
    ] = None,
    limit: Limit = 100,
) -> list[VerdictResponse]:
    """List the newest verdicts, oldest first. A verdict that repeats the previous one is left out."""
    rollout = queries.find_rollout(context.engine, rollout_id)
    context.reads(rollout.strategy_name)
    found = read_verdicts(context.engine, rollout.strategy_name, gate=gate, rollout_id=rollout_id, limit=limit)
    return [VerdictResponse.model_validate(row) for row in found.verdicts]


@router.post("/rollouts/{rollout_id}/pause", dependencies=[KEYED], summary="Pause a rollout")
def pause(context: Requested, rollout_id: RolloutId, body: OptionalReason, if_match: IfMatch) -> RolloutResponse:
    """Pause a rollout at its current stage. All gates that protect users stay active."""
    return _change_rollout(context, rollouts.pause, rollout_id, body, if_match)


@router.post("/rollouts/{rollout_id}/resume", dependencies=[KEYED], summary="Resume a paused rollout")
def resume(context: Requested, rollout_id: RolloutId, body: OptionalReason, if_match: IfMatch) -> RolloutResponse:
    """Continue a paused rollout at the share of its stage."""
    return _change_rollout(context, rollouts.resume, rollout_id, body, if_match)


@router.post("/rollouts/{rollout_id}/approve", dependencies=[KEYED], summary="Approve a rollout's next stage")
def approve(context: Requested, rollout_id: RolloutId, body: OptionalReason, if_match: IfMatch) -> RolloutResponse:
    """Approve the next stage. The rollout enters it at the next tick. The last stage needs a reason."""
    return _change_rollout(
        context, rollouts.approve, rollout_id, body, if_match, four_eyes=context.backend.settings.four_eyes
    )


@router.post("/rollouts/{rollout_id}/decide", dependencies=[KEYED], summary="Extend, advance or roll back a rollout")
def decide(context: Requested, rollout_id: RolloutId, body: DecideRequest, if_match: IfMatch) -> RolloutResponse:
    """Decide how a waiting rollout continues. The choice to roll back is accepted in every state and generation."""
    strategy_name = queries.find_rollout(context.engine, rollout_id).strategy_name

    def decided(actor: Actor) -> RolloutResponse:
        found = rollouts.decide_rollout(
            context.engine,
            Command(
                actor,
                context.now,
                body.reason,
                override_reason=body.override_reason,
                if_generation=if_match,
                four_eyes=context.backend.settings.four_eyes,
            ),
            strategy_name=strategy_name,
            rollout_id=rollout_id,
            choice=body.choice,
        )
        return RolloutResponse.model_validate(found)

    if body.choice is rollouts.Choice.ROLL_BACK:
        return context.rolls_back(strategy_name, decided)
    return decided(context.changes(strategy_name))


@router.post("/rollouts/{rollout_id}/exclude", dependencies=[KEYED], summary="Exclude a symbol from the canary")
def exclude(context: Requested, rollout_id: RolloutId, body: ExcludeRequest, if_match: IfMatch) -> RolloutResponse:
    """Give every user the active version on one symbol, for the rest of the rollout, which is not promoted.

    Allowed with `ROLLOUT_ROUTES_BY_SYMBOL=1`: the platform must give the symbol with each question for a version.
    """
    change = partial(
        rollouts.exclude_symbol, symbol=body.symbol, routes_by_symbol=context.backend.settings.routes_by_symbol
    )
    return _change_rollout(context, change, rollout_id, body, if_match)


@router.post("/rollouts/{rollout_id}/rollback", dependencies=[KEYED_IF_VALID], summary="Roll back one rollout")
def roll_back_rollout(
    context: Requested, response: Response, rollout_id: RolloutId, body: RequiredReason
) -> RolledBackResponse:
    """Roll back this rollout now, in any state. There is no `If-Match`.

    If it is rolled back already, the header `Rolled-Back-Before` says when and by whom.
    """
    strategy_name = queries.find_rollout(context.engine, rollout_id).strategy_name
    return _rolled_back(context, response, strategy_name, body.reason, rollout_id=rollout_id)


@router.post("/rollback", dependencies=[KEYED_IF_VALID], summary="Roll back a strategy")
def roll_back_strategy(context: Requested, response: Response, body: Rollback) -> RolledBackResponse:
    """Roll back the current rollout or canary now. If `version` is given, this can also undo its activation.

    If it is rolled back already, the header `Rolled-Back-Before` says when and by whom.
    """
    return _rolled_back(context, response, body.strategy_name, body.reason, version=body.version)


def _rolled_back(
    context: RequestContext,
    response: Response,
    strategy_name: str,
    reason: str,
    *,
    version: str | None = None,
    rollout_id: UUID | None = None,
) -> RolledBackResponse:
    def run(actor: Actor) -> str:
        command = Command(actor, context.now, reason)
        return roll_back(context.engine, command, strategy_name=strategy_name, version=version, rollout_id=rollout_id)

    try:
        return RolledBackResponse(strategy_name=strategy_name, version=context.rolls_back(strategy_name, run))
    except AlreadyRolledBack as done:
        response.headers["Rolled-Back-Before"] = f"{done.at:%Y-%m-%dT%H:%M:%SZ} by {quote(done.by, safe=' ()')}"
        return RolledBackResponse(strategy_name=strategy_name, version=done.done)


def _change_rollout(
    context: RequestContext,
    change: Callable[..., object],
    rollout_id: UUID,
    body: OptionalReason | RequiredReason,
    if_generation: int | None,
    *,
    four_eyes: bool = False,
) -> RolloutResponse:
    """Apply *change* to the rollout with this id only, also if its strategy has a newer one."""
    strategy_name = queries.find_rollout(context.engine, rollout_id).strategy_name
    found = change(
        context.engine,
        Command(
            context.changes(strategy_name), context.now, body.reason, if_generation=if_generation, four_eyes=four_eyes
        ),
        strategy_name=strategy_name,
        rollout_id=rollout_id,
    )
    return RolloutResponse.model_validate(found)


def detail(found: RolloutStatus) -> RolloutDetail:
    """Return the response for a rollout's status."""
    left = found.outlook
    return RolloutDetail.model_validate(
        {
            **RolloutResponse.model_validate(found.rollout).model_dump(),
            "verdict": found.verdict,
            "plan": found.rollout.plan,
            "stages": found.stages,
            "verdicts": [
                CurrentVerdict(
                    **VerdictResponse.model_validate(row).model_dump(), since=found.since[row.gate], reading=reading
                )
                for row, reading in zip(found.verdicts, found.readings, strict=True)
            ],
            "needs": left.needs,
            "clock_disagrees": found.doubt,
            "minimum_left_s": left.minimum_left.total_seconds() if left.minimum_left is not None else None,
            "maximum_left_s": left.maximum_left.total_seconds() if left.maximum_left is not None else None,
            "risk_line": found.risk,
            "open_risk": found.open_risk,
            "live": found.live,
        }
    )
