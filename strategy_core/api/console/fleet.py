"""The first page: a row per strategy, those that need an owner first, and what has stopped."""

from typing import Annotated

from fastapi import Query
from starlette.responses import Response

from strategy_core.api.console.page import Visited, console_router
from strategy_core.domain.fleet import Urgency
from strategy_core.services.fleet import FleetRow, read_fleet

TONES = {Urgency.NOW: "bad", Urgency.ASKED: "warn", Urgency.LOOK: "warn"}

router = console_router()


@router.get("")
def show_fleet(
    visit: Visited,
    text: Annotated[str, Query(alias="q", max_length=200)] = "",
    only_needs: Annotated[bool, Query(alias="needs")] = False,
) -> Response:
    """Show all strategies that the token covers, or those that match the filter."""
    settings = visit.backend.settings
    found = read_fleet(
        visit.engine,
        None if (names := visit.lists().names) is None else frozenset(names),
        now=visit.now,
        overdue=settings.tick_overdue,
        calendar=settings.open_calendar(),
        clock=settings.clock_check,
    )
    rows = [row for row in found.rows if _matches(row, text) and (row.needs or not only_needs)]
    return visit.render(
        "fleet.html",
        rows=rows,
        total=len(found.rows),
        needing=sum(1 for row in found.rows if row.needs),
        stopped=found.stopped,
        overlap=found.overlap,
        text=text,
        only_needs=only_needs,
        tones=TONES,
        with_users=any(row.users_exposed is not None for row in found.rows),
    )


def _matches(row: FleetRow, text: str) -> bool:
    names = (row.strategy_name, row.active or "", row.canary or "", *row.shadows)
    return all(any(word in name.lower() for name in names) for word in text.lower().split())
