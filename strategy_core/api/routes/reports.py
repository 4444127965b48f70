"""The report of a rollout, as JSON and as an HTML page, and of a rollout on past candles."""

from dataclasses import asdict, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from fastapi import Response
from fastapi.responses import HTMLResponse
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, KEYED, RequestContext, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.routes.audit import AuditEventResponse
from strategy_core.api.routes.evidence import DecisionResponse
from strategy_core.api.routes.rollouts import PlanRequest, RolloutDetail, VerdictResponse, detail
from strategy_core.api.schemas import ResponseModel, RolloutId, Time
from strategy_core.domain.alerts import Severity
from strategy_core.domain.comparison import Comparison
from strategy_core.report.html import HEADERS, html_page
from strategy_core.report.rollout import FOLDED, page_title, rollout_markdown
from strategy_core.services import queries, reports
from strategy_core.services.history import ComparisonCurves
from strategy_core.services.whatif import what_if

MOST_CANDLES = 20_000  # of a rollout on past candles: some ten seconds of one thread


class ServedResponse(ResponseModel):
    """The version's share of users during a period."""

    since: datetime = Field(description="Start of the period.")
    until: datetime = Field(description="End of the period.")
    percent: float = Field(description="Share of users, in percent.")
    users: int | None = Field(description="Number of users, from the user directory. Null if no directory is loaded.")


class HarmPathResponse(ResponseModel):
    """The e-process of harm over time, as log10 E. Each value holds until the next."""

    at: list[datetime] = Field(description="Time of each value.")
    log_e: list[float] = Field(description="log10 E.")
    limit: float = Field(description="log10 E at which the rollout is rolled back.")
    freeze_at: float = Field(description="log10 E at which the stage is held.")


class CostResponse(ResponseModel):
    """What the rollout has cost or gained a user, in R."""

    slots: int = Field(description="Number of closed slots.")
    canary_r: float = Field(description="R of a user who copied every signal of the canary, over these slots.")
    control_r: float = Field(description="R of a user who copied every signal of the control, over these slots.")


class EquityResponse(ResponseModel):
    """Cumulative R of both versions at the same candles, marked to market. Long rollouts are thinned out."""

    at: list[datetime] = Field(description="Time of each value.")
    canary: list[float] = Field(description="Cumulative R of the canary.")
    control: list[float] = Field(description="Cumulative R of the control.")


class DayResponse(ResponseModel):
    """Both versions on one day."""

    day: datetime = Field(description="Midnight UTC at the start of the day. Days without a closed slot are left out.")
    slots: int = Field(description="Number of slots that closed on this day.")
    unlike: int = Field(description="Number of slots on which the versions decided differently.")
    canary_r: float = Field(description="R of the canary on this day.")
    control_r: float = Field(description="R of the control on this day.")
    mean: float = Field(description="Mean difference in R per slot (canary - control), up to the end of this day.")
    low: float | None = Field(description="Lower end of its 95 % interval, in R. Null on the first day.")
    high: float | None = Field(description="Upper end of its 95 % interval, in R. Null on the first day.")


class Slot(ResponseModel):
    """One candle of one symbol on which both versions decided."""

    position: int = Field(description="Order in which the rollout recorded it, from 0.")
    symbol: str = Field(description="Symbol of the feed.")
    timestamp: datetime = Field(description="Open time of the candle.")
    closed_at: datetime = Field(description="When both results were final.")
    booked_at: datetime = Field(description="When the rollout recorded it.")
    canary_r: float = Field(description="Result of the canary, in R.")
    active_r: float = Field(description="Result of the control, in R.")
    canary_side: int = Field(description="Decision of the canary: 1 buy, -1 sell, 0 hold.")
    active_side: int = Field(description="Decision of the control: 1 buy, -1 sell, 0 hold.")


class OpenAlert(ResponseModel):
    """An alert about the version that nobody had acknowledged."""

    id: int = Field(description="Id of the alert.")
    at: datetime = Field(description="When it was raised.")
    severity: Severity = Field(description="How urgent it is.")
    kind: str = Field(description="What happened, as a word for programs.")
    text: str = Field(description="The message.")


class FailedRunResponse(ResponseModel):
    """A shadow run in which the version could not be run."""

    at: datetime = Field(description="Time of the run.")
    reason: str = Field(description="Why it could not be run.")
    host_fault: str = Field(description="Why the host is at fault, or empty.")


class RollbackReportResponse(ResponseModel):
    """Why the version was rolled back, the rows behind the decision, and how many users it had served."""

    event: AuditEventResponse = Field(description="The rollback in the audit trail.")
    gate: VerdictResponse | None = Field(description="The deciding verdict. Null if a person decided.")
    verdicts: list[VerdictResponse] = Field(description="The verdicts of all gates, worst first.")
    slots: list[Slot] = Field(description="The last slots, newest first.")
    decisions: list[DecisionResponse] = Field(description="The version's last decisions before it, newest first.")
    errors: list[DecisionResponse] = Field(description="The version's newest errors before it, newest first.")
    failed_run: FailedRunResponse | None = Field(description="The newest run that could not run the version.")
    alerts: list[OpenAlert] = Field(description="Alerts about the version that were open, newest first.")
    served: list[ServedResponse] = Field(description="The version's share of users over time.")
    directory: int | None = Field(description="Number of users in the directory. Null if no directory is loaded.")
    now_active: str | None = Field(description="The version that serves users since then.")
    cost: CostResponse | None = Field(description="What the rollout cost or gained until then.")


class NightlyComparison(ResponseModel):
    """A stored nightly comparison."""

    shadow_version: str = Field(description="The compared version.")
    active_version: str = Field(description="The active version at that time.")
    period_start: datetime = Field(description="Start of the period, inclusive.")
    period_end: datetime = Field(description="End of the period, exclusive.")
    created_at: datetime = Field(description="When it was calculated.")
    comparison: Comparison = Field(description="The comparison.")
    equity: EquityResponse = Field(description="Cumulative R over the period.")
    days: list[DayResponse] = Field(description="Both versions by day.")


class RolloutReportResponse(ResponseModel):
    """The report of one rollout."""

    id: UUID = Field(description="Id of the rollout.")
    at: datetime = Field(description="Time of the report, or the end of the rollout.")
    rollout: RolloutDetail = Field(description="The rollout's status.")
    started_by: str | None = Field(description="Who started it.")
    percent: float = Field(description="Share of users who get the version at that time, in percent.")
    users: int | None = Field(description="Number of these users. Null if no directory is loaded.")
    directory: int | None = Field(description="Number of users in the directory. Null if no directory is loaded.")
    served: list[ServedResponse] = Field(description="The version's share of users over time.")
    harm: HarmPathResponse | None = Field(description="Evidence of harm over time.")
    excluded: dict[str, datetime] = Field(
        description="By symbol, since when it is excluded from the canary. Its later candles are in no figure."
    )
    cost: CostResponse = Field(description="What the rollout has cost or gained.")
    equity: EquityResponse = Field(description="Cumulative R over the rollout.")
    days: list[DayResponse] = Field(description="Both versions by day.")
    usual_unlike: float | None = Field(description="Share of slots (0 to 1) on which the versions differed in shadow.")
    comparison: NightlyComparison | None = Field(description="The newest nightly comparison of the two versions.")
    changes: list[AuditEventResponse] = Field(description="The newest audit events of the rollout, oldest first.")
    rolled_back: RollbackReportResponse | None = Field(description="The rollback, if there was one.")


class WhatIfRequest(PlanRequest):
    """Let a rollout run on the replayed candles that opened from *start* to *end*."""

    start: Time | None = Field(
        default=None, description="Start of the rollout. Default: 180 days after the first candle that is replayed."
    )
    end: Time | None = Field(default=None, description="Only candles before this time. Default: all that are replayed.")


class WhatIfStage(ResponseModel):
    """One stage, or the bake of the promoted version."""

    name: str = Field(description="The percent of users, or `bake`.")
    percent: float = Field(description="Share of users, in percent.")
    entered: datetime = Field(description="When it began.")
    left: datetime | None = Field(description="When it ended. Null if the period ended before.")
    step: str = Field(description="What ended it: advance, promote, complete or roll_back. hold if it did not end.")
    reason: str = Field(description="Why it ended, or what it waited for at the end of the period.")
    slots: int = Field(description="Number of slots that closed in it.")
    canary_r: float = Field(description="R of the canary in these slots, less the active version's.")
    users_r: float = Field(description="The same on average over all users: only those on the canary had it.")


class EarnedResponse(ResponseModel):
    """Cumulative R of the closed slots, less that of the active version. At most 400 points."""

    at: list[datetime] = Field(description="Time of each value.")
    users: list[float] = Field(description="R on average over all users.")
    canary: list[float] = Field(description="R of a user who was on the canary from the start.")


class BoundResponse(ResponseModel):
    """The difference in R per slot over time, as the gate `not_worse` measures it. At most 400 points."""

    at: list[datetime] = Field(description="Time of each value.")
    mean: list[float] = Field(description="Difference in R per slot, canary - active version.")
    low: list[float] = Field(description="Its lower bound.")
    limit: list[float] = Field(description="The stage's limit: it can be left while the bound is above it.")
    with_shadow: bool = Field(description="Whether slots before the start count too.")


class WhatIfResponse(ResponseModel):
    """How a rollout would have gone on replayed candles."""

    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="Name of the version.")
    active: str = Field(description="The active version that it is compared with.")
    start: datetime = Field(description="Start of the rollout.")
    end: datetime = Field(description="End of the period, exclusive.")
    ended: Literal["completed", "rolled_back", "running"] = Field(
        description="How the rollout ended. running if the period ended before."
    )
    verdict: str = Field(description="How it would have gone, in one sentence.")
    notes: list[str] = Field(description="The verdict, and what it is based on, a line each.")
    shadow_slots: int = Field(description="Number of replayed slots before the start, on which noise was measured.")
    shadow_days: float = Field(description="Number of days before the start that hold them, at most 180.")
    refused: str = Field(description="Why the start would have been refused, or empty. The stages are shown anyway.")
    left_out: list[str] = Field(description="Gates of the plan that have no data in the past.")
    unseen: list[str] = Field(description="Symbols that the active version alone trades, which are not replayed.")
    ticks: int = Field(description="Number of ticks, one a candle.")
    stages: list[WhatIfStage] = Field(description="The stages, in order.")
    earned: EarnedResponse = Field(description="What users had, against the active version.")
    bound: BoundResponse | None = Field(description="The difference and its bound. Null without the gate or a slot.")
    harm: HarmPathResponse | None = Field(description="Evidence of harm over time. Null without the gate or a slot.")


router = guarded_router("rollouts")


@router.post("/whatif", dependencies=[KEYED, HEAVY], summary="Let a rollout run on past candles")
def whatif(context: Requested, body: WhatIfRequest) -> WhatIfResponse:
    """Return how a rollout of the plan would have gone on replayed candles. Changes nothing.

    Every candle is a tick, and owners approve at once. At most 20,000 candles of each symbol: the command and the flow
    take longer periods.
    """
    context.reads(body.strategy_name)
    found = what_if(
        context.engine,
        strategy_name=body.strategy_name,
        version=body.version,
        plan=body.chosen_plan(context.engine),
        start=body.start,
        end=body.end,
        most_candles=MOST_CANDLES,
    )
    return WhatIfResponse.model_validate(asdict(found) | {"verdict": found.verdict, "notes": found.notes})


@router.get("/rollouts/{rollout_id}/report", dependencies=[HEAVY], summary="Show a rollout's report as JSON")
def show_report(context: Requested, rollout_id: RolloutId, response: Response) -> RolloutReportResponse:
    """Return the status, the users it reached, the results, and why it was rolled back."""
    found, generation = _read(context, rollout_id)
    response.headers["ETag"] = f'"{generation}"'
    going = found.progress
    rest = {name: getattr(found, name) for name in ("cost", "equity", "days", "usual_unlike", "changes", "rolled_back")}
    now = {
        name: getattr(going, name)
        for name in ("at", "started_by", "percent", "users", "directory", "served", "harm", "excluded")
    }
    about = {"id": rollout_id, "rollout": detail(going.status), "comparison": _nightly(found.comparison)}
    return RolloutReportResponse.model_validate(about | now | rest, from_attributes=True)


@router.get(
    "/rollouts/{rollout_id}/report.html",
    response_class=HTMLResponse,
    dependencies=[HEAVY],
    summary="Show a rollout's report as HTML",
)
def show_report_page(context: Requested, rollout_id: RolloutId) -> Response:
    """Return the report as one HTML page without scripts and other files."""
    found, generation = _read(context, rollout_id)
    page = html_page(page_title(found), rollout_markdown(found), folded=FOLDED)
    return HTMLResponse(page, headers={**HEADERS, "ETag": f'"{generation}"'})


def _read(context: RequestContext, rollout_id: UUID) -> tuple[reports.RolloutReport, int]:
    context.reads(queries.find_rollout(context.engine, rollout_id).strategy_name)
    found, generation = reports.read_report(
        context.engine, rollout_id, now=context.now, clock=context.backend.settings.clock_check
    )
    if found.rolled_back is not None:
        shown = [queries.visible_alert(each, context.principal.strategies) for each in found.rolled_back.alerts]
        found = replace(found, rolled_back=replace(found.rolled_back, alerts=shown))
    return found, generation


def _nightly(found: ComparisonCurves | None) -> NightlyComparison | None:
    if found is None:
        return None
    stored = found.report
    about = {name: getattr(stored, name) for name in ("shadow_version", "active_version", "period_start", "period_end")}
    measured = Comparison.model_validate(stored.report)
    rest = {"created_at": stored.created_at, "comparison": measured, "equity": found.equity, "days": found.days}
    return NightlyComparison.model_validate(about | rest, from_attributes=True)
