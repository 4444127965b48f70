"""A rollout's report: as data for programs, and as one page for people."""

from datetime import datetime
from uuid import UUID

from fastapi import Response
from fastapi.responses import HTMLResponse
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, RequestContext, Requested
from strategy_core.api.routes import guarded
from strategy_core.api.routes.audit import AuditEventResponse
from strategy_core.api.routes.evidence import DecisionResponse
from strategy_core.api.routes.rollouts import RolloutDetail, VerdictResponse, detail
from strategy_core.api.schemas import ResponseModel
from strategy_core.domain.comparison import Comparison
from strategy_core.report.html import HEADERS, html_page
from strategy_core.report.rollout import page_title, rollout_markdown
from strategy_core.services import queries, reports
from strategy_core.services.history import ComparisonCurves


class ServedResponse(ResponseModel):
    """The version's share of users over one span of time."""

    since: datetime
    until: datetime
    percent: float
    users: int | None = Field(description="Of the directory; null where none is loaded.")


class HarmPathResponse(ResponseModel):
    """The e-process of harm over time, as log10 E; each value stands until the next."""

    at: list[datetime]
    log_e: list[float]
    limit: float = Field(description="It is rolled back from there on.")
    freeze_at: float = Field(description="Its stage is held from there on.")


class CostResponse(ResponseModel):
    slots: int
    canary_r: float = Field(description="R of a user who copied every signal of the canary, over these slots.")
    control_r: float = Field(description="R of one who copied its control.")


class EquityResponse(ResponseModel):
    """Cumulative R of both versions at the same candles, marked to market; some of a long rollout's."""

    at: list[datetime]
    canary: list[float]
    control: list[float]


class DayResponse(ResponseModel):
    day: datetime = Field(description="Its midnight, UTC; days without a closed slot are left out.")
    slots: int
    unlike: int = Field(description="Slots on which the two said different things.")
    canary_r: float
    control_r: float
    mean: float = Field(description="Canary's R - control's R per slot, over all days to the end of this one.")
    low: float | None = Field(description="Of its 95 % interval; null on the first day.")
    high: float | None


class Slot(ResponseModel):
    position: int = Field(description="In the order in which the rollout booked them, from 0.")
    symbol: str
    timestamp: datetime = Field(description="The candle's open time.")
    closed_at: datetime
    booked_at: datetime
    canary_r: float
    active_r: float
    canary_side: int = Field(description="1 buy, -1 sell, 0 hold.")
    active_side: int


class RollbackReportResponse(ResponseModel):
    """Why users were taken off, on which rows that rests, and whom it had reached."""

    event: AuditEventResponse
    gate: VerdictResponse | None = Field(description="The verdict that decided; null when a person did.")
    verdicts: list[VerdictResponse] = Field(description="What every gate said, the worst first.")
    slots: list[Slot] = Field(description="Booked last, newest first.")
    decisions: list[DecisionResponse] = Field(description="Of the version before that moment, newest first.")
    served: list[ServedResponse]
    directory: int | None = Field(description="Users in the directory; null where none is loaded.")
    now_active: str | None = Field(description="Who serves users since.")
    cost: CostResponse | None


class NightlyComparison(ResponseModel):
    shadow_version: str
    active_version: str
    period_start: datetime
    period_end: datetime
    created_at: datetime
    comparison: Comparison
    equity: EquityResponse
    days: list[DayResponse]


class RolloutReportResponse(ResponseModel):
    id: UUID
    at: datetime = Field(description="The moment of the report; of its end, if the rollout has ended.")
    rollout: RolloutDetail
    started_by: str | None
    percent: float = Field(description="Of users who get its version at that moment.")
    users: int | None = Field(description="So many of the directory; null where none is loaded.")
    directory: int | None
    served: list[ServedResponse] = Field(description="Whom it has served, by share and time.")
    harm: HarmPathResponse | None
    cost: CostResponse
    equity: EquityResponse
    days: list[DayResponse]
    usual_unlike: float | None = Field(description="Share of slots on which the two differed in shadow.")
    comparison: NightlyComparison | None = Field(description="The newest nightly one of the two.")
    changes: list[AuditEventResponse] = Field(description="The newest of its audit events, oldest first.")
    rolled_back: RollbackReportResponse | None


router = guarded("rollouts")


@router.get("/rollouts/{rollout_id}/report", dependencies=[HEAVY])
def show_report(ask: Requested, rollout_id: UUID, response: Response) -> RolloutReportResponse:
    """Show all that is told of a rollout: how it goes, whom it reached, what it came to, why it was rolled back."""
    found, generation = _read(ask, rollout_id)
    response.headers["ETag"] = f'"{generation}"'
    going = found.progress
    rest = {name: getattr(found, name) for name in ("cost", "equity", "days", "usual_unlike", "changes", "rolled_back")}
    now = {
        name: getattr(going, name) for name in ("at", "started_by", "percent", "users", "directory", "served", "harm")
    }
    about = {"id": rollout_id, "rollout": detail(going.status), "comparison": _nightly(found.comparison)}
    return RolloutReportResponse.model_validate(about | now | rest, from_attributes=True)


@router.get("/rollouts/{rollout_id}/report.html", response_class=HTMLResponse, dependencies=[HEAVY])
def show_report_page(ask: Requested, rollout_id: UUID) -> Response:
    """Show the same as one HTML page, which needs no other file and runs nothing."""
    found, generation = _read(ask, rollout_id)
    page = html_page(page_title(found), rollout_markdown(found))
    return HTMLResponse(page, headers={**HEADERS, "ETag": f'"{generation}"'})


def _read(ask: RequestContext, rollout_id: UUID) -> tuple[reports.RolloutReport, int]:
    ask.reads(queries.find_rollout(ask.engine, rollout_id).strategy_name)
    return reports.read_report(ask.engine, rollout_id, now=ask.now)


def _nightly(found: ComparisonCurves | None) -> NightlyComparison | None:
    if found is None:
        return None
    stored = found.report
    about = {name: getattr(stored, name) for name in ("shadow_version", "active_version", "period_start", "period_end")}
    measured = Comparison.model_validate(stored.report)
    rest = {"created_at": stored.created_at, "comparison": measured, "equity": found.equity, "days": found.days}
    return NightlyComparison.model_validate(about | rest, from_attributes=True)
