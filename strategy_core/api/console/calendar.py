"""The release calendar: freezes, release windows and scheduled starts of a month, and forms to change them."""

from datetime import date
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query
from starlette.responses import Response

from strategy_core.api.console.page import FormField, OwnerAct, Visited, console_router
from strategy_core.api.console.session import HOME, SentForm
from strategy_core.api.console.words import stamp
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.parsing import owners_time
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.services import release_times, scheduled_starts
from strategy_core.services.release_calendar import read_calendar

CALENDAR = f"{HOME}/calendar"
_HELD = [
    "no rollout starts, no stage is entered, and no version is activated or promoted",
    "users keep the version that they have",
    "gates go on, and rollbacks, pauses and exclusions stay possible at any time",
]
_TIME_HINT = "2026-12-24, or 2026-12-24T12:00Z"

router = console_router()


@router.get("/calendar")
def show_calendar(
    visit: Visited, month: Annotated[str, Query(pattern=r"^(20\d\d-(0[1-9]|1[0-2]))?$")] = ""
) -> Response:
    """Show one month."""
    first = date.fromisoformat(f"{month}-01") if month else visit.now.date().replace(day=1)
    found = read_calendar(visit.engine, visit.lists(), month=first, now=visit.now)
    may_freeze = visit.can_change(None) or any(visit.can_change(name) for name in found.strategies)
    return visit.render("calendar.html", found=found, href=CALENDAR, may_freeze=may_freeze, all=ALL_STRATEGIES)


@router.get("/calendar/freeze")
@router.post("/calendar/freeze")
def freeze(visit: Visited, strategy: Annotated[str, Query(max_length=64)] = "") -> Response:
    """Freeze a strategy, or all."""

    def describe() -> OwnerAct:
        names = read_calendar(visit.engine, visit.lists(), month=visit.now.date().replace(day=1), now=visit.now)
        options = [(name, name) for name in names.strategies if visit.can_change(name)]
        if visit.can_change(None):
            options.insert(0, (ALL_STRATEGIES, "all strategies"))
        fields = [
            FormField("strategy", "Strategy", "choice", value=strategy, options=options, required=True),
            FormField("from", "From", hint=f"{_TIME_HINT}. Empty: now"),
            FormField("to", "To", hint=_TIME_HINT, required=True),
        ]
        return OwnerAct("Freeze releases", _HELD, "Freeze", reason="required", fields=fields)

    def perform(form: SentForm) -> str:
        name, start = form.get("strategy", ""), form.get("from", "").strip()
        ends_at = owners_time(form.get("to", "").strip(), "to")
        starts_at = owners_time(start or None, "from")
        command = Command(_actor(visit, name), visit.now, visit.reason(required=True))
        found = release_times.set_freeze(
            visit.engine, command, strategy_name=name, starts_at=starts_at, ends_at=ends_at
        )
        return f"releases of {found.shown_strategy} are frozen, {found.span}"

    return visit.act(describe, perform, back=CALENDAR)


@router.get("/calendar/freezes/{freeze_id}/lift")
@router.post("/calendar/freezes/{freeze_id}/lift")
def lift(visit: Visited, freeze_id: Annotated[int, Path(ge=1, le=2**31 - 1)]) -> Response:
    """Lift a freeze."""

    def describe() -> OwnerAct:
        found = release_times.find_freeze(visit.engine, freeze_id)
        visit.check_reading(None if found.covers_all else found.strategy_name)
        notes = [] if found.lifted_at is None else [f"it was lifted already, by {found.lifted_by}"]
        return OwnerAct(
            f"Lift freeze {freeze_id} of {found.shown_strategy}",
            ["the next tick enters the stages whose gates pass", "scheduled starts that waited for it begin"],
            "Lift",
            reason="required",
            notes=notes,
            about=f"{found.span}, by {found.set_by}: {found.reason}",
        )

    def perform(_form: SentForm) -> str:
        name = release_times.find_freeze(visit.engine, freeze_id).strategy_name
        command = Command(_actor(visit, name), visit.now, visit.reason(required=True))
        found = release_times.lift_freeze(visit.engine, command, freeze_id)
        return f"freeze {freeze_id} of {found.shown_strategy} is lifted"

    return visit.act(describe, perform, back=CALENDAR)


@router.get("/calendar/starts/{start_id}/cancel")
@router.post("/calendar/starts/{start_id}/cancel")
def cancel(visit: Visited, start_id: UUID) -> Response:
    """Cancel a scheduled start."""

    def describe() -> OwnerAct:
        found = scheduled_starts.find_start(visit.engine, start_id)
        visit.reads(found.strategy_name)
        return OwnerAct(
            f"Cancel the start of {found.strategy_name} {found.version}",
            [f"the rollout does not start at {stamp(found.start_at)}", f"{found.version} stays in shadow"],
            "Cancel the start",
            about=f"scheduled by {found.actor}" + (f": {found.reason}" if found.reason else ""),
        )

    def perform(_form: SentForm) -> str:
        name = scheduled_starts.find_start(visit.engine, start_id).strategy_name
        command = Command(visit.changes(name), visit.now, visit.reason())
        found = scheduled_starts.cancel_start(visit.engine, command, strategy_name=name, start_id=start_id)
        return f"the start of {name} {found.version} is cancelled"

    return visit.act(describe, perform, back=CALENDAR)


def _actor(visit: Visited, strategy_name: str) -> Actor:
    if strategy_name == ALL_STRATEGIES:
        visit.principal.check_change(None)
    return visit.changes(strategy_name)
