"""Alerts as Prefect events: one more alert channel. A failure here does not affect ticks or other channels.

Events are sent over HTTP, because Prefect's own emitter gives no answer about whether the server received them.
"""

import threading
from collections.abc import Mapping, Sequence
from contextvars import copy_context
from typing import Any
from uuid import UUID, uuid5

import structlog
from prefect.client.orchestration import get_client
from prefect.events.schemas.events import Event, RelatedResource, Resource
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from pydantic import TypeAdapter

from flows.artifacts import links_when_needed
from flows.runtime import Runtime
from strategy_core.domain.alerts import Message, Raised, Severity, clipped
from strategy_core.market.source import CandleSource
from strategy_core.services.alerts import deliver
from strategy_core.services.watchdog import watch_shadow

NAMES: Mapping[str, str] = {  # event names that differ from the alert kind
    "rollout.advanced": "rollout.stage.advanced",
    "rollout.approval_lapsed": "rollout.held",
    "rollout.awaiting_decision": "rollout.held",
    "rollout.frozen": "rollout.held",
    "rollout.blind": "rollout.held",
    "rollout.tick_overdue": "tick.overdue",
}
GATE_FAILED = "rollout.gate.failed"
PATIENCE_S = 3.0
_IDS = UUID(
    "5d0a5c37-6a55-5f0f-8d9b-6f6a7a3a1c52"
)  # do not change: events sent twice are recognised by ids made from it
_EVENTS = TypeAdapter(list[Event])
log = structlog.get_logger()


class EventChannel:
    """An alert channel to the Prefect server of the current flow run."""

    name = "prefect"
    at_least = Severity.INFO
    repeats = False  # a repeated alert is not a new event

    def __init__(self) -> None:
        self._context = copy_context()
        self._run = str(flow_run.id or "")

    def takes(self, kind: str) -> bool:
        """Return True: every alert is an event."""
        return True

    def prepare(self) -> None:
        """Do nothing: Prefect is imported."""

    def send(self, message: Message, severity: Severity) -> str:
        """Send the events of an alert. Return an empty text on success, or the reason of the failure."""
        if message.raised is None:
            return ""
        events = events_of(message.raised, message, self._run)
        answers: list[str] = []
        thread = threading.Thread(  # a daemon thread: Prefect's client retries for a long time
            target=lambda: answers.append(self._context.copy().run(_post, events)), daemon=True, name="prefect events"
        )
        thread.start()
        thread.join(PATIENCE_S)
        return answers[0] if answers else f"no answer within {PATIENCE_S:g} s"


def channels() -> list[EventChannel]:
    """Return the event channel of the current flow run, or an empty list outside a flow run."""
    return [EventChannel()] if flow_run.id and PREFECT_API_URL.value() else []


def follow_up(runtime: Runtime, source: CandleSource) -> None:
    """After a tick: send its alerts to Prefect and check for overdue shadow runs.

    Errors are only logged. The next delivery sends what was not sent now.
    """
    try:
        settings = runtime.settings
        links = links_when_needed(settings)
        deliver(runtime.engine, channels(), now=runtime.now, pace=settings.alert_pace, links=links)
        if not settings.clock_check.problem:
            watch_shadow(
                runtime.engine,
                source,
                now=runtime.now,
                overdue=settings.tick_overdue,
                quiet=settings.alert_pace.quiet,
            )
    except Exception as error:  # noqa: BLE001  the tick is committed and must not fail now
        log.warning("events.not_sent", error=type(error).__name__)


def events_of(raised: Raised, message: Message, run: str = "") -> list[Event]:
    """Return the events of an alert. An alert that is sent again gives the same event ids."""
    names = [NAMES.get(raised.kind, raised.kind)]
    if raised.kind == "rollout.rolled_back" and raised.facts.get("gate"):
        names.insert(0, GATE_FAILED)
    payload = {
        **raised.facts,
        "alert": raised.id,
        "kind": raised.kind,
        "severity": raised.severity.value,
        "at": raised.at.isoformat(),  # market time. `occurred` is real time, which triggers need.
        "text": clipped(raised.text),
        "message": message.body,
        "command": message.action,
        "rollout_id": str(raised.rollout_id) if raised.rollout_id else None,
    }
    name = raised.strategy_name or "alerts"
    return [
        Event(
            event=event,
            resource=Resource({"prefect.resource.id": f"rollout.{name}", "prefect.resource.name": name}),
            related=_related(raised, run),
            payload=payload,
            id=uuid5(_IDS, f"{event} {raised.dedupe_key}"),
        )
        for event in names
    ]


def _related(raised: Raised, run: str) -> list[RelatedResource]:
    version = raised.facts.get("version")
    found: dict[str, tuple[str, str]] = {}
    if version:
        found["version"] = (f"rollout.{raised.strategy_name}.version.{version}", str(version))
    if raised.rollout_id:
        found["rollout"] = (f"rollout.{raised.strategy_name}.rollout.{raised.rollout_id}", str(raised.rollout_id))
    if run:
        found["flow-run"] = (f"prefect.flow-run.{run}", "")
    return [
        RelatedResource(
            {"prefect.resource.id": resource, "prefect.resource.role": role}
            | ({"prefect.resource.name": name} if name else {})
        )
        for role, (resource, name) in found.items()
    ]


def _post(events: Sequence[Event]) -> str:
    body = _EVENTS.dump_json(list(events))
    headers: dict[str, Any] = {"Content-Type": "application/json"}
    try:
        with get_client(sync_client=True) as client:
            client._client.post("/events", content=body, headers=headers).raise_for_status()
    except Exception as error:  # noqa: BLE001  an error of Prefect must not fail the tick
        return f"failed: {type(error).__name__}"
    return ""
