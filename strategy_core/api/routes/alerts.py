"""Alerts: list and acknowledge them, and roll back when Alertmanager's webhook asks for it."""

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
from strategy_core.api.problems import status_of, within_reach
from strategy_core.api.routes import guarded_router, webhook_router
from strategy_core.api.schemas import (
    Cursor,
    Limit,
    Page,
    RequiredReason,
    ResponseModel,
    StrategyName,
    next_cursor,
    number,
    read_cursor,
)
from strategy_core.domain.alerts import (
    CLOCKS_DIFFER,
    FiringAlert,
    RollbackRequest,
    Severity,
    read_firing_alert,
    read_rollback_request,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RolloutError, UnknownStrategy
from strategy_core.services import alerts, queries
from strategy_core.services.rollback import roll_back_on_alert

LARGEST_ID = 2**31 - 1
STRATEGIES_AT_ONCE = 16  # of one notification: a rollback that waits must not delay those of other strategies

log = structlog.get_logger(__name__)


class Delivery(ResponseModel):
    """Delivery of one alert to one channel."""

    channel: str = Field(description="Name of the channel.")
    number: int = Field(description="Number of this delivery, from 1. A critical alert is sent again as a reminder.")
    attempts: int = Field(description="Number of attempts to send it.")
    failures: int = Field(description="Failed attempts in a row. 0 after a success.")
    sent_at: datetime | None = Field(description="When the channel accepted it. Null if it has not yet.")
    failed_at: datetime | None = Field(description="When the last attempt failed.")
    last_error: str = Field(description="Error of the last failed attempt, or empty.")


class AlertResponse(ResponseModel):
    """An alert that was raised for the owners."""

    id: int = Field(description="Id of the alert.")
    at: datetime = Field(description="When it was raised.")
    severity: Severity = Field(description="How urgent it is.")
    kind: str = Field(description="What happened, as a word for programs.")
    strategy_name: str = Field(description="The strategy. Empty if the alert concerns several or all strategies.")
    rollout_id: UUID | None = Field(description="The rollout, if the alert concerns one.")
    text: str = Field(description="The message.")
    facts: dict[str, Any] = Field(description="The values behind the message.")
    acknowledged_at: datetime | None = Field(description="When an owner acknowledged it.")
    acknowledged_by: str = Field(description="Who acknowledged it, or empty.")
    acknowledged_because: str = Field(description="The reason that was given, or empty.")
    deliveries: list[Delivery] = Field(description="Deliveries per channel.")


class Acknowledgement(RequiredReason):
    """Acknowledge an alert, so that it is not sent again."""


class AcknowledgedResponse(ResponseModel):
    """An acknowledged alert."""

    id: int = Field(description="Id of the alert.")
    acknowledged_at: datetime = Field(description="When it was acknowledged.")
    acknowledged_by: str = Field(description="Who acknowledged it first.")
    acknowledged_because: str = Field(description="The reason of the first acknowledgement.")


class AlertOutcome(StrEnum):
    """What was done for one alert of a notification."""

    ROLLED_BACK = "rolled_back"
    CAME_AGAIN = "came_again"
    BEGAN_LATER = "began_later"
    NOTHING_SERVES = "nothing_serves"
    NOT_ASKED = "not_asked"
    REFUSED = "refused"
    FAILED = "failed"


class AlertmanagerNotification(BaseModel):
    """An Alertmanager webhook notification (format version 4). Unknown fields are ignored.

    Each alert is read separately, so that an unreadable one does not stop the rollbacks of others.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    alerts: Annotated[
        list[Any],
        WithJsonSchema({"type": "array", "items": FiringAlert.model_json_schema()}),
        Field(
            description="A firing alert with the label `rollout_action=rollback` rolls back the version in its labels "
            "`strategy` and `version`. Without `version`, it rolls back the current rollout or canary. Other alerts do "
            "nothing."
        ),
    ]
    truncated_alerts: Annotated[Any, WithJsonSchema({"type": "integer"})] = Field(
        default=0,
        alias="truncatedAlerts",
        description="Number of alerts that Alertmanager left out. They cannot roll back.",
    )


class AlertResult(ResponseModel):
    """What was done for one alert."""

    alertname: str = Field(description="The alert's name.")
    fingerprint: str = Field(description="Alertmanager's fingerprint of the alert.")
    strategy_name: str | None = Field(description="The label `strategy`, if there is one.")
    version: str | None = Field(description="The version that was rolled back.")
    outcome: AlertOutcome = Field(description="What was done.")
    detail: str = Field(description="Why it was refused or failed. Otherwise empty.")


class AlertmanagerResponse(ResponseModel):
    """What was done for each alert of a notification."""

    alerts: list[AlertResult] = Field(description="First the alerts that ask for a rollback, then the others.")
    truncated: int = Field(description="Number of alerts that Alertmanager left out.")


router = APIRouter()
_guarded = guarded_router("alerts")
_webhook = webhook_router("alerts")


@_guarded.get("/alerts", summary="List alerts")
def list_alerts(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only alerts that affect this strategy.")] = None,
    severity: Annotated[Severity | None, Query(description="Only alerts of this severity.")] = None,
    unacknowledged: Annotated[bool, Query(description="Only alerts that are not acknowledged.")] = False,
    cursor: Cursor = None,
    limit: Limit = 50,
) -> Page[AlertResponse]:
    """List alerts, newest first, with their deliveries per channel.

    A token that is limited to some strategies also lists alerts about several strategies that affect one of them. Other
    strategies are counted in them and not named.
    """
    (before_id,) = read_cursor(cursor, number) or (None,)
    found = queries.list_alerts(
        context.engine,
        context.lists(strategy_name),
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


@_guarded.post("/alerts/{alert_id}/acknowledge", summary="Acknowledge an alert")
def acknowledge(
    context: Requested,
    alert_id: Annotated[int, Path(ge=1, le=LARGEST_ID, description="Id of the alert.")],
    body: Acknowledgement,
) -> AcknowledgedResponse:
    """Acknowledge an alert, so that it is not sent again. The first acknowledgement is kept."""
    strategy_name = queries.find_alert(context.engine, alert_id).strategy_name
    actor = context.acknowledges(strategy_name or None)
    (found,) = alerts.acknowledge(context.engine, Command(actor, context.now, body.reason), [alert_id])
    return AcknowledgedResponse.model_validate(found)


@_webhook.post(
    "/rollbacks", name="roll_back_on_alerts_old_path", deprecated=True, summary="Old path of POST /alertmanager"
)
@_webhook.post("/alertmanager", summary="Receive an Alertmanager notification and roll back")
def roll_back_on_alerts(context: Requested, notification: AlertmanagerNotification) -> AlertmanagerResponse:
    """Roll back the versions that the firing alerts of an Alertmanager notification name.

    Strategies are rolled back independently of each other. A repeated notification is not acted on twice, and an alert
    does not roll back what started after it began to fire.

    Answers 503 if a rollback failed for now, so that Alertmanager sends the notification again. If all alerts that ask
    for a rollback are refused, answers with the first refusal. Answers 200 otherwise.
    """
    context.principal.check_changes()
    sent = [read_firing_alert(each) for each in notification.alerts]
    attempts = _roll_back_each(context, [each for each in sent if each.asks])
    truncated = notification.truncated_alerts if type(notification.truncated_alerts) is int else 0
    for each in attempts:
        log.info("alert.acted_on", **each.result.model_dump(mode="json"))
    if truncated:
        log.warning("alert.truncated", alerts=truncated)
    failed = [each.result for each in attempts if each.result.outcome is AlertOutcome.FAILED]
    if failed:
        raise HTTPException(
            503, f"{len(failed)} of {len(attempts)} alerts failed: {failed[0].detail}; send the notification again"
        )
    refused = [each.error for each in attempts if each.error is not None]
    if refused and len(refused) == len(attempts):
        raise refused[0]
    context.has_changed(each.result.strategy_name or "" for each in attempts if each.result.version is not None)
    others = [_result(each, AlertOutcome.NOT_ASKED) for each in sent if not each.asks]
    return AlertmanagerResponse(alerts=[*(each.result for each in attempts), *others], truncated=truncated)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A rollback that an alert asked for. *error* is set if it was refused."""

    result: AlertResult
    error: RolloutError | None = None


def _roll_back_each(context: RequestContext, asking: Sequence[FiringAlert]) -> list[_Attempt]:
    """Act on the alerts: one after another within a strategy, at the same time for different strategies."""
    by_strategy: dict[str, list[FiringAlert]] = defaultdict(list)
    for each in asking:
        by_strategy[each.labels.get("strategy", "")].append(each)
    if not by_strategy:
        return []
    with ThreadPoolExecutor(min(STRATEGIES_AT_ONCE, len(by_strategy)), thread_name_prefix="rollbacks") as threads:
        passes = [
            threads.submit(lambda group: [_roll_back_one(context, each) for each in group], group)
            for group in by_strategy.values()
        ]
    return [each for one in passes for each in one.result()]


def _roll_back_one(context: RequestContext, alert: FiringAlert) -> _Attempt:
    try:
        firing = read_rollback_request(alert)
        outcome, version = context.rolls_back_beside_others(
            firing.strategy_name,
            firing.key,
            lambda actor: roll_back_on_alert(
                context.engine, Command(actor, context.now), firing, fired_at=_fired_at(context, firing)
            ),
        )
    except UnknownStrategy as error:
        known = within_reach(error, context.principal.strategies)
        return _Attempt(_result(alert, AlertOutcome.REFUSED, str(known)), known)
    except RolloutError as error:
        if status_of(error) >= 500:
            return _Attempt(_result(alert, AlertOutcome.FAILED, str(error)))
        return _Attempt(_result(alert, AlertOutcome.REFUSED, str(error)), error)
    except HTTPException as error:  # the bulkhead stayed full
        return _Attempt(_result(alert, AlertOutcome.FAILED, error.detail))
    except SQLAlchemyError as error:
        log.warning("alert.not_acted_on", error=type(error).__name__)
        return _Attempt(_result(alert, AlertOutcome.FAILED, "the database is not available"))
    return _Attempt(_result(alert, AlertOutcome(outcome.value), version=version))


def _fired_at(context: RequestContext, firing: RollbackRequest) -> datetime:
    """Return when the alert began to fire, in market time. Allows for the difference between the two clocks."""
    return context.backend.settings.at(min(firing.since, datetime.now(UTC)) + CLOCKS_DIFFER)


def _result(alert: FiringAlert, outcome: AlertOutcome, detail: str = "", *, version: str | None = None) -> AlertResult:
    return AlertResult(
        alertname=alert.name,
        fingerprint=alert.identity,
        strategy_name=alert.labels.get("strategy"),
        version=version,
        outcome=outcome,
        detail=detail,
    )


router.include_router(_guarded)
router.include_router(_webhook)
