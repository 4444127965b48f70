"""What tests of alerts share: alerts put into the outbox, channels to a server of this machine, and what it got."""

from datetime import datetime
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine
from sqlmodel import col, select

from strategy_core.domain.alerts import Severity
from strategy_core.observe.channels import AppriseChannel
from strategy_core.store import alerts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AlertDelivery, AlertOutbox
from tests.builders import MONDAY
from tests.endpoint import Endpoint


def put_alert(
    engine: Engine, text: str, severity: str = "warning", *, at: datetime = MONDAY, kind: str = "rollout.blind"
) -> int:
    """Raise an alert with *text*, which no other has, and return its id."""
    with transaction(engine) as session:
        alerts.raise_alert(
            session, kind, text, severity=severity, strategy_name="fib_rsi", dedupe_key=text, facts={}, now=at
        )
        return alerts.find_alerts(session)[-1].id or 0


def url_of(endpoint: Endpoint, path: str = "/hook") -> str:
    return f"json://127.0.0.1:{endpoint.url.rpartition(':')[2]}{path}"


def channel_to(
    endpoint: Endpoint, at_least: str = "info", *, timeout: float = 30.0, path: str = "/hook"
) -> AppriseChannel:
    return AppriseChannel(
        SecretStr(url_of(endpoint, path)), scheme="json", at_least=Severity(at_least), timeout=timeout
    )


def texts(endpoint: Endpoint) -> list[str]:
    """Return the first line of each message that came, in order."""
    return [posted["message"].splitlines()[0] for posted in endpoint.posted]


def ids(endpoint: Endpoint) -> list[str]:
    """Return the id by which a receiver tells messages apart, of each that came."""
    return [posted["message"].rpartition("id ")[2] for posted in endpoint.posted]


def outbox(engine: Engine) -> list[AlertOutbox]:
    with reading(engine) as session:
        return list(alerts.find_alerts(session))


def deliveries(engine: Engine, **wanted: Any) -> list[AlertDelivery]:
    with reading(engine) as session:
        query = select(AlertDelivery).filter_by(**wanted)
        return list(session.exec(query.order_by(col(AlertDelivery.alert_id), col(AlertDelivery.channel))).all())
