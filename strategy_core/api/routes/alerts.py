"""Alerts: told to owners, listed and acknowledged; and told by the platform's own monitoring, to roll back."""

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

import structlog
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from strategy_core.api.dependencies import RequestContext, Requested
from strategy_core.api.pagination import next_cursor, number, read_cursor
from strategy_core.api.problems import status_of, within_reach
from strategy_core.api.routes import foreign, guarded
from strategy_core.api.schemas import Cursor, Explained, Limit, Page, ResponseModel, StrategyName
from strategy_core.domain.alerts import (
    CLOCKS_DIFFER,
    RollbackRequest,
    Severity,
    read_firing_alert,
    read_rollback_request,
)
from strategy_core.domain.alerts import FiringAlert as Sent
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError, UnknownStrategy
from strategy_core.services import alerts, queries
from strategy_core.services.rollback import roll_back_on_alert

LARGEST_ID = 2**31 - 1


class Delivery(ResponseModel):
    """How far an alert has come on one channel."""

    channel: str
    number: int = Field(description="The how-manieth time that it is told; a critical one is repeated.")
    attempts: int
    failures: int = Field(description="Since the channel last took it.")
    sent_at: datetime | None
    failed_at: datetime | None
    last_error: str


class AlertResponse(ResponseModel):
    id: int
    at: datetime
    severity: Severity
    kind: str
    strategy_name: str = Field(description="Empty where it concerns all of them.")
    rollout_id: UUID | None
    text: str
    facts: dict[str, Any]
    acknowledged_at: datetime | None
    acknowledged_by: str
    acknowledged_because: str
    deliveries: list[Delivery]


class Acknowledgement(Explained):
    """Nobody is told of the alert any more, an owner knows."""


class Acknowledged(ResponseModel):
    id: int
    acknowledged_at: datetime
    acknowledged_by: str
    acknowledged_because: str


class Answered(StrEnum):
    """What became of an alert of a notification."""

    ROLLED_BACK = "rolled_back"
    CAME_AGAIN = "came_again"
    BEGAN_LATER = "began_later"
    NOTHING_SERVES = "nothing_serves"
    NOT_ASKED = "not_asked"
    REFUSED = "refused"
    FAILED = "failed"


class Notification(BaseModel):
    """What Alertmanager posts to a webhook, version 4 of its format; whatever is not known here is passed over.

    It is read alert by alert, so that one of them that cannot be read keeps no other from rolling back.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    alerts: Annotated[
        list[Any],
        WithJsonSchema({"type": "array", "items": Sent.model_json_schema()}),
        Field(
            description="Those that fire with the label `rollout_action` of the value `rollback` take users off the "
            "version that their labels `strategy` and `version` name, or whichever is on its way; others do nothing."
        ),
    ]
    truncated_alerts: Annotated[Any, WithJsonSchema({"type": "integer"})] = Field(
        default=0, alias="truncatedAlerts", description="How many were left off: they roll nothing back."
    )


class AlertAnswer(ResponseModel):
    alertname: str
    fingerprint: str
    strategy_name: str | None
    version: str | None = Field(description="The version that no user gets any more.")
    outcome: Answered
    detail: str = Field(description="Why it was refused, or failed.")


class NotificationAnswer(ResponseModel):
    alerts: list[AlertAnswer]
    truncated: int


AT_ONCE = 16  # strategies of one notification: one whose rollback waits keeps no other's waiting

router = APIRouter()
_own = guarded("alerts")
_foreign = foreign("alerts")
log = structlog.get_logger(__name__)


@_own.get("/alerts")
def list_alerts(
    ask: Requested,
    strategy_name: Annotated[StrategyName | None, Query()] = None,
    severity: Annotated[Severity | None, Query(description="Only those of this severity.")] = None,
    unacknowledged: Annotated[bool, Query(description="Only those that no owner has acknowledged.")] = False,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 50,
) -> Page[AlertResponse]:
    """List what owners were told, newest first, with how far it has come on each channel."""
    (before_id,) = read_cursor(cursor, number) or (None,)
    found = queries.list_alerts(
        ask.engine,
        ask.lists(strategy_name),
        severity=severity,
        unacknowledged=unacknowledged,
        before_id=before_id,
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda each: (each.alert.id,))
    shown = [
        AlertResponse.model_validate(
            {**each.alert.model_dump(), "deliveries": list(each.deliveries)}, from_attributes=True
        )
        for each in items
    ]
    return Page[AlertResponse](items=shown, next_cursor=following)


@_own.post("/alerts/{alert_id}/acknowledge")
def acknowledge(
    ask: Requested, alert_id: Annotated[int, Path(ge=1, le=LARGEST_ID)], wish: Acknowledgement
) -> Acknowledged:
    """Have nobody told of an alert any more; the first who says so is kept."""
    strategy_name = queries.find_alert(ask.engine, alert_id).strategy_name
    actor = ask.acknowledges(strategy_name or None)
    (found,) = alerts.acknowledge(ask.engine, Command(actor, ask.now, wish.reason), [alert_id])
    return Acknowledged.model_validate(found)


@_foreign.post("/rollbacks")
def roll_back_on_alerts(ask: Requested, told: Notification) -> NotificationAnswer:
    """Roll back what the firing alerts of an Alertmanager's notification name, each strategy by itself.

    Told again, a firing does nothing again, and it takes nobody off what began after it. 503 if any of them could not
    be acted on now: Alertmanager then tells all of them again. 200 otherwise, unless every one that asks was refused:
    then the refusal of the first. Others were rolled back whatever became of one.
    """
    ask.principal.check_changes()
    sent = [read_firing_alert(each) for each in told.alerts]
    tried = _rolled_back(ask, [each for each in sent if each.asks])
    truncated = told.truncated_alerts if type(told.truncated_alerts) is int else 0
    for each in tried:
        log.info("alert.acted_on", **each.answer.model_dump(mode="json"))
    if truncated:
        log.warning("alert.truncated", alerts=truncated)
    failed = [each.answer for each in tried if each.answer.outcome is Answered.FAILED]
    if failed:
        raise HTTPException(
            503, f"{len(failed)} of {len(tried)} alerts wait: {failed[0].detail}; tell all of them again"
        )
    refused = [each.error for each in tried if each.error is not None]
    if refused and len(refused) == len(tried):
        raise refused[0]
    ask.has_changed(each.answer.strategy_name or "" for each in tried if each.answer.version is not None)
    left = [_answer(each, Answered.NOT_ASKED) for each in sent if not each.asks]
    return NotificationAnswer(alerts=[*(each.answer for each in tried), *left], truncated=truncated)


@dataclass(frozen=True, slots=True)
class _Tried:
    answer: AlertAnswer
    error: RolloutError | None = None


def _rolled_back(ask: RequestContext, asking: Sequence[Sent]) -> list[_Tried]:
    """Act on the alerts that ask for it: those of one strategy in turn, those of two at once."""
    by_strategy: dict[str, list[Sent]] = defaultdict(list)
    for each in asking:
        by_strategy[each.labels.get("strategy", "")].append(each)
    if not by_strategy:
        return []
    with ThreadPoolExecutor(min(AT_ONCE, len(by_strategy)), thread_name_prefix="rollbacks") as threads:
        passes = [threads.submit(lambda these: [_try(ask, each) for each in these], g) for g in by_strategy.values()]
    return [each for one in passes for each in one.result()]


def _try(ask: RequestContext, alert: Sent) -> _Tried:
    try:
        firing = read_rollback_request(alert)
        outcome, version = ask.rolls_back_beside_others(
            firing.strategy_name,
            firing.key,
            lambda actor: roll_back_on_alert(
                ask.engine, Command(actor, ask.now), firing, fired_at=_fired_at(ask, firing)
            ),
        )
    except UnknownStrategy as error:
        known = within_reach(error, ask.principal.strategies)
        return _Tried(_answer(alert, Answered.REFUSED, str(known)), known)
    except RolloutError as error:
        if status_of(error) >= 500:
            return _Tried(_answer(alert, Answered.FAILED, str(error)))
        return _Tried(_answer(alert, Answered.REFUSED, str(error)), error)
    except HTTPException as error:  # no turn came
        return _Tried(_answer(alert, Answered.FAILED, error.detail))
    except SQLAlchemyError as error:
        log.warning("alert.not_acted_on", error=type(error).__name__)
        return _Tried(_answer(alert, Answered.FAILED, "the database cannot be had now"))
    return _Tried(_answer(alert, Answered(outcome.value), version=version))


def _fired_at(ask: RequestContext, firing: RollbackRequest) -> datetime:
    """Return when it began to fire by the market's clock, as late as the difference of two real ones may make it."""
    return ask.backend.settings.at(min(firing.since, datetime.now(UTC)) + CLOCKS_DIFFER)


def _answer(alert: Sent, outcome: Answered, detail: str = "", *, version: str | None = None) -> AlertAnswer:
    return AlertAnswer(
        alertname=alert.name,
        fingerprint=alert.identity,
        strategy_name=alert.labels.get("strategy"),
        version=version,
        outcome=outcome,
        detail=detail,
    )


router.include_router(_own)
router.include_router(_foreign)
