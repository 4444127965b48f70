"""What was raised, told to Prefect as events: one more channel of the outbox, which nothing waits for or fails by.

Emitted over HTTP: only an answered request says that the server has an event; Prefect's own emitter tells nobody.
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

from flows.runtime import Runtime
from strategy_core.domain.alerts import Message, Raised, Severity, clipped
from strategy_core.market.source import CandleSource
from strategy_core.services.alerts import deliver
from strategy_core.services.watchdog import watch_shadow

NAMES: Mapping[str, str] = {  # of kinds that are told under another name; every other kind is its event's name
    "rollout.advanced": "rollout.stage.advanced",
    "rollout.approval_lapsed": "rollout.held",
    "rollout.awaiting_decision": "rollout.held",
    "rollout.frozen": "rollout.held",
    "rollout.blind": "rollout.held",
    "rollout.tick_overdue": "tick.overdue",
}
GATE_FAILED = "rollout.gate.failed"
PATIENCE_S = 3.0
_IDS = UUID("5d0a5c37-6a55-5f0f-8d9b-6f6a7a3a1c52")  # never changed: an id made from another tells the server twice
_EVENTS = TypeAdapter(list[Event])
log = structlog.get_logger()


class EventChannel:
    """Prefect, as a channel of alerts; made inside a flow run, whose settings it keeps."""

    name = "prefect"
    at_least = Severity.INFO
    repeats = False  # a repetition is no new event

    def __init__(self) -> None:
        self._context = copy_context()
        self._run = str(flow_run.id or "")

    def send(self, message: Message, severity: Severity) -> str:
        """Return an empty text when the server has taken the events of this alert; else, in a line, why not."""
        if message.raised is None:
            return ""
        events = events_of(message.raised, message, self._run)
        said: list[str] = []
        thread = threading.Thread(  # a daemon: Prefect's client tries again and again, and nobody may wait for that
            target=lambda: said.append(self._context.copy().run(_post, events)), daemon=True, name="prefect events"
        )
        thread.start()
        thread.join(PATIENCE_S)
        return said[0] if said else f"no answer within {PATIENCE_S:g} s"


def channels() -> list[EventChannel]:
    """Return the channel to the server that runs this flow; none outside of a flow run."""
    return [EventChannel()] if flow_run.id and PREFECT_API_URL.value() else []


def follow_up(runtime: Runtime, source: CandleSource) -> None:
    """Once a tick is committed: tell Prefect of what was raised, now, and look whether shadow runs come.

    It fails nothing: what is not told now is told by the next run that delivers alerts.
    """
    try:
        deliver(runtime.engine, channels(), now=runtime.now, pace=runtime.settings.alert_pace)
        watch_shadow(runtime.engine, source, now=runtime.now, overdue=runtime.settings.tick_overdue)
    except Exception as error:  # noqa: BLE001  the tick is done, and must not be told to have failed
        log.warning("events.not_sent", error=type(error).__name__)


def events_of(raised: Raised, message: Message, run: str = "") -> list[Event]:
    """Return the events of an alert, each with the same id however often it is told."""
    names = [NAMES.get(raised.kind, raised.kind)]
    if raised.kind == "rollout.rolled_back" and raised.facts.get("gate"):
        names.insert(0, GATE_FAILED)
    payload = {
        **raised.facts,
        "alert": raised.id,
        "kind": raised.kind,
        "severity": raised.severity.value,
        "at": raised.at.isoformat(),  # the market's time; when it occurred is the real one, which triggers go by
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
    except Exception as error:  # noqa: BLE001  whatever it is, Prefect's trouble is not the tick's
        return f"failed: {type(error).__name__}"
    return ""
