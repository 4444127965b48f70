"""Alerts: those that owners were told, and those that the platform's own monitoring tells of, as bodies have them."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from strategy_core.api.schemas.shared import Explained, Told
from strategy_core.domain.alert import Severity
from strategy_core.domain.firing import Alert as Sent

LARGEST_ID = 2**31 - 1


class Delivery(Told):
    """How far an alert has come on one channel."""

    channel: str
    number: int = Field(description="The how-manieth time that it is told; a critical one is repeated.")
    attempts: int
    failures: int = Field(description="Since the channel last took it.")
    sent_at: datetime | None
    failed_at: datetime | None
    last_error: str


class Alert(Told):
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


class Acknowledged(Told):
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


class AlertAnswer(Told):
    alertname: str
    fingerprint: str
    strategy_name: str | None
    version: str | None = Field(description="The version that no user gets any more.")
    outcome: Answered
    detail: str = Field(description="Why it was refused, or failed.")


class NotificationAnswer(Told):
    alerts: list[AlertAnswer]
    truncated: int
