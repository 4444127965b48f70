"""Alerts: those that are open and those that are past, and the acknowledgement of one."""

from typing import Annotated, Literal

from fastapi import Path, Query
from starlette.responses import Response

from strategy_core.api.console.page import OwnerAct, Visited, console_router
from strategy_core.api.console.session import HOME, SentForm
from strategy_core.api.routes.alerts import LARGEST_ID
from strategy_core.domain.alerts import HEADLINES, Severity
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import UnknownStrategy
from strategy_core.services import alerts, queries
from strategy_core.services.alerts import AlertStatus

PER_PAGE = 50
TONES = {Severity.CRITICAL: "bad", Severity.WARNING: "warn", Severity.INFO: "quiet"}

router = console_router()


@router.get("/alerts")
def show_alerts(
    visit: Visited,
    shown: Annotated[Literal["open", "past", "all"], Query()] = "open",
    severity: Annotated[Literal["", "info", "warning", "critical"], Query()] = "",
    strategy: Annotated[str, Query(max_length=64)] = "",
    before: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
) -> Response:
    """List alerts, newest first."""
    problem, found, status = "", [], 200
    scope = visit.lists(strategy.strip() or None)
    try:
        found = queries.list_alerts(
            visit.engine,
            scope,
            severity=Severity(severity) if severity else None,
            only=None if shown == "all" else shown,
            before_id=before,
            limit=PER_PAGE + 1,
        )
    except UnknownStrategy as error:
        problem, status = str(error), 404
    items = found[:PER_PAGE]
    return visit.render(
        "alerts.html",
        status,
        items=items,
        older=items[-1].alert.id if len(found) > PER_PAGE else None,
        shown=shown,
        severity=severity,
        strategy=strategy,
        problem=problem,
        headlines=HEADLINES,
        tones=TONES,
        is_open=is_open,
        href=f"{HOME}/alerts",
    )


def is_open(one: AlertStatus) -> bool:
    """Return whether an alert waits for an owner."""
    return one.alert.acknowledged_at is None and one.alert.severity != Severity.INFO


@router.get("/alerts/{alert_id}/acknowledge")
@router.post("/alerts/{alert_id}/acknowledge")
def acknowledge(visit: Visited, alert_id: Annotated[int, Path(ge=1, le=LARGEST_ID)]) -> Response:
    """Acknowledge an alert."""

    def describe() -> OwnerAct:
        alert = queries.find_alert(visit.engine, alert_id)
        visit.check_reading(alert.strategy_name or None)
        headline = HEADLINES.get(alert.kind, alert.kind)
        about = f"{alert.strategy_name}: {headline}" if alert.strategy_name else headline
        effects = ["it is not sent again, and counts as seen by you", "nothing else changes, users keep their versions"]
        notes = []
        if alert.acknowledged_at is not None:
            by = f"{alert.acknowledged_by} at {alert.acknowledged_at:%Y-%m-%d %H:%M} UTC"
            notes = [f"it was acknowledged already, by {by}: this first acknowledgement is kept"]
        return OwnerAct(
            f"Acknowledge alert {alert_id}, {about}",
            effects,
            "Acknowledge",
            reason="required",
            notes=notes,
            about=alert.text,
        )

    def perform(_form: SentForm) -> str:
        actor = visit.acknowledges(queries.find_alert(visit.engine, alert_id).strategy_name or None)
        (found,) = alerts.acknowledge(visit.engine, Command(actor, visit.now, visit.reason(required=True)), [alert_id])
        return f"alert {alert_id} is acknowledged by {found.acknowledged_by}"

    return visit.act(describe, perform, back=f"{HOME}/alerts")
