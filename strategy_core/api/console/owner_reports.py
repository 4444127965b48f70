"""The page of a report that was written for owners, to which its message links."""

from typing import Annotated
from uuid import UUID

from fastapi import Path
from starlette.responses import HTMLResponse, Response

from strategy_core.api.console.page import Visited, console_router
from strategy_core.report.html import HEADERS
from strategy_core.report.owner import owner_report_page
from strategy_core.services.owner_reports import find_owner_report

router = console_router()


@router.get("/reports/{report_id}")
def show_owner_report(visit: Visited, report_id: Annotated[UUID, Path()]) -> Response:
    """Show the report."""
    stored, facts = find_owner_report(visit.engine, report_id)
    visit.reads(stored.strategy_name)
    return HTMLResponse(owner_report_page(facts), headers=HEADERS)
