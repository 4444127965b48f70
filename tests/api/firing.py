"""How tests of firing alerts post them, and what became of them."""

import json
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine
from sqlmodel import select

from strategy_core.domain.audit import Command
from strategy_core.domain.plan import read_plan
from strategy_core.services.rollouts import start_rollout
from strategy_core.store.engine import reading
from strategy_core.store.tables import AuditEvent
from tests.alertmanager import notified
from tests.api.asking import PLAN, Api
from tests.builders import OWNER

MINUTE = timedelta(minutes=1)


def post(api: Api, *alerts: Any, **more: Any) -> Any:
    headers = {"Content-Type": "application/json", **more.pop("headers", {})}
    return api("POST", "/alertmanager", content=json.dumps(notified(*alerts)).encode(), headers=headers, **more)


def outcomes(response: Any) -> list[str]:
    assert response.status_code == 200, response.text
    return [each["outcome"] for each in response.json()["alerts"]]


def canaries(api: Api) -> dict[str, str]:
    return {each["strategy_name"]: each["version"] for each in api.get("/canary").json()["items"]}


def restart(engine: Engine, at: datetime, version: str = "2") -> None:
    """Ramp a version that was rolled back once more."""
    start_rollout(
        engine,
        Command(OWNER, at, override_reason="it was the broker"),
        strategy_name="fib_rsi",
        version=version,
        plan=read_plan(PLAN),
    )


def rollbacks(engine: Engine) -> list[AuditEvent]:
    with reading(engine) as session:
        return list(session.exec(select(AuditEvent).where(AuditEvent.action == "roll_back")).all())
