"""What comes by itself: nightly comparisons, and the reports that are written for owners."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Response
from fastapi.responses import HTMLResponse
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, RequestContext, Requested
from strategy_core.api.routes import PREFIX, guarded_router
from strategy_core.api.routes.reports import DayResponse, EquityResponse
from strategy_core.api.schemas import (
    Cursor,
    Limit,
    Page,
    ResponseModel,
    StrategyName,
    Time,
    VersionName,
    identity,
    moment,
    next_cursor,
    read_cursor,
)
from strategy_core.domain.comparison import Comparison, Interval
from strategy_core.domain.owner_reports import Kind
from strategy_core.report.comparison import comparison_markdown, difference_verdict
from strategy_core.report.comparison import page_title as comparison_title
from strategy_core.report.feed import MEDIA_TYPE, atom_feed
from strategy_core.report.html import HEADERS, html_page
from strategy_core.report.owner import owner_report_page
from strategy_core.services import owner_reports
from strategy_core.services.history import read_curves
from strategy_core.store.tables import ComparisonReport

IN_FEED = 50

ComparisonId = Annotated[UUID, Path(description="Id of the comparison.")]
ReportId = Annotated[UUID, Path(description="Id of the report.")]


class StoredComparison(ResponseModel):
    """A nightly comparison of a version with the active one."""

    id: UUID = Field(description="Id of the comparison.")
    strategy_name: str = Field(description="Name of the strategy.")
    shadow_version: str = Field(description="The compared version.")
    active_version: str = Field(description="The active version at that time.")
    period_start: datetime = Field(description="Start of the period, inclusive.")
    period_end: datetime = Field(description="End of the period, exclusive.")
    created_at: datetime = Field(description="When it was calculated.")
    verdict: str = Field(description="What the difference shows, in one sentence.")
    slots: int = Field(description="Number of slots, closed or not.")
    divergence_rate: float | None = Field(description="Percent of slots on which the two decided differently.")
    difference: Interval = Field(description="R per closed slot, version - active, with its 95 % interval.")


class ComparisonDetail(StoredComparison):
    """A nightly comparison in full."""

    comparison: Comparison = Field(description="All figures, also by regime.")
    equity: EquityResponse = Field(description="Cumulative R over the period.")
    days: list[DayResponse] = Field(description="Both versions by day.")


class OwnerReportResponse(ResponseModel):
    """A report that was written for owners."""

    id: UUID = Field(description="Id of the report.")
    kind: Kind = Field(description="morning, weekly, final or ready.")
    strategy_name: str = Field(description="Name of the strategy.")
    subject: str = Field(description="What it is about, once per kind: a day, a week, a rollout or a version.")
    period_start: datetime = Field(description="Start of its period, inclusive.")
    period_end: datetime = Field(description="End of its period, exclusive.")
    sentence: str = Field(description="The verdict with its figures and the next step.")
    html_sha256: str = Field(description="SHA-256 of its page as this release renders it.")
    created_at: datetime = Field(description="When it was written.")


router = guarded_router("reports")


@router.get("/comparisons", summary="List nightly comparisons")
def list_comparisons(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    version: Annotated[VersionName | None, Query(description="Only comparisons of this version.")] = None,
    since: Annotated[Time | None, Query(description="Only comparisons that were made from this time on.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[StoredComparison]:
    """List nightly comparisons, newest first."""
    found = owner_reports.list_comparisons(
        context.engine,
        context.lists(strategy_name),
        version=version,
        since=since,
        before=read_cursor(cursor, moment, identity),
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda row: (row.created_at, row.id))
    return Page[StoredComparison](
        items=[StoredComparison.model_validate(_summary(row)) for row in items], next_cursor=following
    )


@router.get(
    "/comparisons/{comparison_id}.html",
    response_class=HTMLResponse,
    dependencies=[HEAVY],
    summary="Show a nightly comparison as HTML",
)
def show_comparison_page(context: Requested, comparison_id: ComparisonId) -> Response:
    """Return the comparison as one HTML page without scripts and other files."""
    (found,) = read_curves(context.engine, [_comparison(context, comparison_id)])
    return HTMLResponse(html_page(comparison_title(found), comparison_markdown(found)), headers=HEADERS)


@router.get("/comparisons/{comparison_id}", dependencies=[HEAVY], summary="Show a nightly comparison")
def show_comparison(context: Requested, comparison_id: ComparisonId) -> ComparisonDetail:
    """Return a nightly comparison with its curves."""
    (found,) = read_curves(context.engine, [_comparison(context, comparison_id)])
    rest = {"comparison": found.report.report, "equity": found.equity, "days": found.days}
    return ComparisonDetail.model_validate(_summary(found.report) | rest, from_attributes=True)


@router.get("/reports", summary="List reports")
def list_reports(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[OwnerReportResponse]:
    """List the reports that were written for owners, newest first: morning notes, weekly, final and ready ones."""
    found = owner_reports.list_owner_reports(
        context.engine,
        context.lists(strategy_name),
        before=read_cursor(cursor, moment, identity),
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda row: (row.created_at, row.id))
    return Page[OwnerReportResponse](
        items=[OwnerReportResponse.model_validate(row) for row in items], next_cursor=following
    )


@router.get("/reports.atom", response_class=Response, summary="Show the newest reports as a feed")
def show_feed(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
) -> Response:
    """Return the newest 50 reports as an Atom feed. Each entry links to the report's page."""
    found = owner_reports.list_owner_reports(context.engine, context.lists(strategy_name), limit=IN_FEED)
    console = context.backend.settings.console_address
    page = f"{console}/reports/{{id}}" if console else f"{PREFIX}/reports/{{id}}.html"
    feed = atom_feed(found, page_url=page, self_url=f"{PREFIX}/reports.atom", updated=context.now)
    return Response(feed, media_type=MEDIA_TYPE)


@router.get(
    "/reports/{report_id}.html", response_class=HTMLResponse, dependencies=[HEAVY], summary="Show a report as HTML"
)
def show_owner_report(context: Requested, report_id: ReportId) -> Response:
    """Return the report as one HTML page without scripts and other files."""
    stored, facts = owner_reports.find_owner_report(context.engine, report_id)
    context.reads(stored.strategy_name)
    return HTMLResponse(owner_report_page(facts), headers=HEADERS)


def _comparison(context: RequestContext, comparison_id: UUID) -> ComparisonReport:
    found = owner_reports.find_comparison(context.engine, comparison_id)
    context.reads(found.strategy_name)
    return found


def _summary(row: ComparisonReport) -> dict[str, object]:
    measured = Comparison.model_validate(row.report)
    stored = {name: getattr(row, name) for name in StoredComparison.model_fields if hasattr(row, name)}
    return stored | {
        "verdict": difference_verdict(measured.difference, row.shadow_version, row.active_version),
        "slots": measured.slots,
        "divergence_rate": measured.divergence_rate,
        "difference": measured.difference,
    }
