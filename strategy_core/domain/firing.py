"""An alert of the platform's own monitoring, as Alertmanager tells of it: what it asks for, and which firing it is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from strategy_core.domain.alert import clipped
from strategy_core.domain.audit import storable
from strategy_core.domain.errors import InvalidName
from strategy_core.domain.rows import Moment

ACTION, ROLLBACK = "rollout_action", "rollback"  # the label without which an alert rolls nothing back, and its value
FIRING = "firing"
CLOCKS_DIFFER = timedelta(seconds=60)  # those of the monitoring and of the platform, at most

_LONGEST = 250  # characters of each part of a reason
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}")


def _texts(given: Any) -> Any:
    """Return a mapping of texts, whatever stands in it: a strange annotation must not keep users on a version."""
    return (
        {storable(str(name)): storable(str(value)) for name, value in given.items()} if isinstance(given, dict) else {}
    )


Texts = Annotated[dict[str, str], BeforeValidator(_texts)]
Text = Annotated[str, BeforeValidator(lambda given: storable(str(given)))]


class Alert(BaseModel):
    """One alert of a notification, of which all but the labels may be absent or strange."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Text = Field(default="", description="Only `firing` asks for anything.")
    labels: Texts = Field(default={}, description="`strategy`, `version` if one is meant, and `rollout_action`.")
    annotations: Texts = {}
    starts_at: Any = Field(default=None, alias="startsAt", description="Since when it fires.")
    generator_url: Text = Field(default="", alias="generatorURL")
    fingerprint: Text = Field(default="", description="Of the labels.")

    @property
    def name(self) -> str:
        return _short(self.labels.get("alertname", ""))

    @property
    def asks(self) -> bool:
        """Whether it fires, and somebody has meant it to roll back."""
        return self.status == FIRING and self.labels.get(ACTION) == ROLLBACK

    @property
    def identity(self) -> str:
        """Its fingerprint; without one, a digest of its labels."""
        if _FINGERPRINT.fullmatch(self.fingerprint):
            return self.fingerprint
        return sha256(repr(sorted(self.labels.items())).encode()).hexdigest()[:16]


class _Since(BaseModel):
    at: Moment


@dataclass(frozen=True, slots=True)
class Firing:
    """What an alert that fires asks for.

    Attributes:
        version: that users shall be taken off; None: whichever is on its way.
        since: when it began to fire, by the monitoring's clock.
        key: tells this firing from every other, and is the same each time that it is told.
        reason: for the audit trail.
    """

    strategy_name: str
    version: str | None
    since: datetime
    key: str
    reason: str


def read_alert(given: Any) -> Alert:
    """Return an alert as it was sent, whatever was; one that is none asks for nothing."""
    return Alert.model_validate(given if isinstance(given, Mapping) else {})


def read_firing(alert: Alert) -> Firing:
    """Return what *alert* asks for.

    Raises:
        InvalidName: it names no strategy, or no time since when it fires.
    """
    strategy_name = alert.labels.get("strategy", "")
    if not strategy_name:
        raise InvalidName("strategy name", "", "the name of a strategy, in the label `strategy` of the alert")
    try:
        since = _Since(at=alert.starts_at).at
    except ValidationError:
        raise InvalidName("startsAt", _short(str(alert.starts_at)), "ISO 8601 with its offset") from None
    about = f"alert {alert.name or 'without a name'}, firing since {since:%Y-%m-%d %H:%M:%S} UTC"
    summary = _short(alert.annotations.get("summary") or alert.annotations.get("description", ""))
    source = _short(alert.generator_url)
    origin = f"fingerprint {alert.identity}{f', {source}' if source else ''}"
    return Firing(
        strategy_name=strategy_name[:_LONGEST],
        version=alert.labels.get("version", "")[:_LONGEST] or None,
        since=since,
        key=f"alert:{alert.identity}:{strategy_name[:_LONGEST]}:{since.isoformat()}",
        reason=f"{about}{f': {summary}' if summary else ''} ({origin})",
    )


def _short(text: str) -> str:
    line = clipped(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
