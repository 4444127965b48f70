"""The audit trail: who changed what, when and why, newest first."""

import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

from fastapi import Query
from starlette.responses import Response

from strategy_core.api.console.page import Visited, console_router
from strategy_core.api.console.session import HOME
from strategy_core.api.problems import status_of, within_reach
from strategy_core.api.schemas import PRINTED
from strategy_core.domain.audit import shown_actor
from strategy_core.domain.errors import InvalidName, RolloutError, UnknownStrategy
from strategy_core.services.audit import read_events

PER_PAGE = 50
_LARGEST_ID = 2**63 - 1
_Word = Annotated[str, Query(max_length=200, pattern=rf"^$|{PRINTED}")]
_Day = Annotated[str, Query(max_length=10)]

router = console_router()


@router.get("/audit")
def show_audit(
    visit: Visited,
    strategy: _Word = "",
    actor: _Word = "",
    action: _Word = "",
    since: _Day = "",
    until: _Day = "",
    before: Annotated[int | None, Query(ge=1, le=_LARGEST_ID)] = None,
) -> Response:
    """List changes, newest first, that match all fields of the search."""
    words = {"strategy": strategy.strip(), "actor": actor.strip(), "action": action.strip()}
    problem, found, status = "", [], 200
    scope = visit.lists(words["strategy"] or None)
    try:
        found = list(
            read_events(
                visit.engine,
                scope.strategy_name,
                actor=words["actor"] or None,
                action=words["action"] or None,
                since=_start_of(since),
                until=_start_of(until, days=1),
                before_id=before,
                strategies=scope.names,
                limit=PER_PAGE + 1,
                newest=True,
            )
        )[::-1]
    except RolloutError as error:
        shown = within_reach(error, scope.strategies) if isinstance(error, UnknownStrategy) else error
        problem, status = str(shown), status_of(error)
    items = found[:PER_PAGE]
    return visit.render(
        "audit.html",
        status,
        items=items,
        older=items[-1].id if len(found) > PER_PAGE else None,
        words={**words, "since": since, "until": until},
        problem=problem,
        changed=changed,
        shown_actor=shown_actor,
        href=f"{HOME}/audit",
    )


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return (fact, before, after) of the facts that a change has changed."""
    names = dict.fromkeys([*before, *after])
    return [
        (name.replace("_", " "), _text(before.get(name)), _text(after.get(name)))
        for name in names
        if before.get(name) != after.get(name)
    ]


def _text(value: Any) -> str:
    if value is None or value == "":
        return "—"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _start_of(day: str, *, days: int = 0) -> datetime | None:
    if not day.strip():
        return None
    try:
        found = date.fromisoformat(day.strip()) + timedelta(days=days)
    except (ValueError, OverflowError):
        raise InvalidName("day", day, "a day such as 2026-03-02") from None
    return datetime(found.year, found.month, found.day, tzinfo=UTC)
