"""A rollout's report: as data for programs, and as one page for people."""

from uuid import UUID

from fastapi import Response
from fastapi.responses import HTMLResponse

from strategy_core.api.deps import HEAVY, Ask, Asking
from strategy_core.api.routes import guarded
from strategy_core.api.routes.rollouts import detail
from strategy_core.api.schemas.report import NightlyComparison, RolloutReport
from strategy_core.domain.comparison import Comparison
from strategy_core.report.page import HEADERS, html_page
from strategy_core.report.rollout import rollout_markdown, title
from strategy_core.services import browse, report
from strategy_core.services.curves import ComparisonCurves

router = guarded("rollouts")


@router.get("/rollouts/{rollout_id}/report", dependencies=[HEAVY])
def show_report(ask: Asking, rollout_id: UUID, response: Response) -> RolloutReport:
    """Show all that is told of a rollout: how it goes, whom it reached, what it came to, why it was rolled back."""
    found, generation = _read(ask, rollout_id)
    response.headers["ETag"] = f'"{generation}"'
    going = found.progress
    rest = {name: getattr(found, name) for name in ("cost", "equity", "days", "usual_unlike", "changes", "rolled_back")}
    now = {
        name: getattr(going, name) for name in ("at", "started_by", "percent", "users", "directory", "served", "harm")
    }
    about = {"id": rollout_id, "rollout": detail(going.status), "comparison": _nightly(found.comparison)}
    return RolloutReport.model_validate(about | now | rest, from_attributes=True)


@router.get("/rollouts/{rollout_id}/report.html", response_class=HTMLResponse, dependencies=[HEAVY])
def show_report_page(ask: Asking, rollout_id: UUID) -> Response:
    """Show the same as one HTML page, which needs no other file and runs nothing."""
    found, generation = _read(ask, rollout_id)
    page = html_page(title(found), rollout_markdown(found))
    return HTMLResponse(page, headers={**HEADERS, "ETag": f'"{generation}"'})


def _read(ask: Ask, rollout_id: UUID) -> tuple[report.RolloutReport, int]:
    ask.reads(browse.find_rollout(ask.engine, rollout_id).strategy_name)
    return report.read_report(ask.engine, rollout_id, now=ask.now)


def _nightly(found: ComparisonCurves | None) -> NightlyComparison | None:
    if found is None:
        return None
    stored = found.report
    about = {name: getattr(stored, name) for name in ("shadow_version", "active_version", "period_start", "period_end")}
    measured = Comparison.model_validate(stored.report)
    rest = {"created_at": stored.created_at, "comparison": measured, "equity": found.equity, "days": found.days}
    return NightlyComparison.model_validate(about | rest, from_attributes=True)
