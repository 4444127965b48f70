"""Notifications as Alertmanager posts them to a webhook, version 4 of its format."""

import json
from datetime import datetime
from hashlib import sha256
from typing import Any

from tests.builders import HOUR, MONDAY

FIRED = MONDAY + HOUR  # after the rollout of the API's tests began, and before its `now`


def alarm(
    strategy: str | None, version: str | None = None, *, fired: datetime = FIRED, status: str = "firing", **labels: str
) -> dict[str, Any]:
    """Return one alert that asks for a rollback; a label of *labels* replaces what it would have, an empty one none."""
    named = {"alertname": "Bleeding", "severity": "critical", "rollout_action": "rollback"}
    named |= {"strategy": strategy or "", "version": version or ""} | labels
    shown = {name: value for name, value in named.items() if value}
    return {
        "status": status,
        "labels": shown,
        "annotations": {"summary": "the loss of copied accounts is beyond 2 %"},
        "startsAt": fired.isoformat().replace("+00:00", ".123456789Z"),
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://monitoring.example/graph?g0.expr=loss+%3E+2",
        "fingerprint": sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16],
    }


def notified(*alerts: Any, **more: Any) -> dict[str, Any]:
    """Return the body of a notification of these alerts."""
    return {
        "receiver": "rollout",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {"strategy": "fib_rsi"},
        "commonLabels": {"severity": "critical"},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example:9093",
        "version": "4",
        "groupKey": '{}:{strategy="fib_rsi"}',
        "truncatedAlerts": 0,
        **more,
    }
