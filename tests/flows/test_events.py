"""Alerts as Prefect events: names, ids, and no delay of ticks."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED, temporary_settings
from sqlalchemy import Engine

from flows import events
from flows.events import EventChannel, events_of
from flows.ramp import ramp_tick, start_canary
from strategy_core.domain.alerts import HEADLINES, Raised, Severity, message
from strategy_core.domain.lifecycle import Status
from strategy_core.services.alerts import deliver
from tests.builders import DAY, HOUR, MONDAY, put_version
from tests.endpoint import Endpoint
from tests.flows.conftest import Clock
from tests.services.outbox import channel_to, deliveries, put_alert

TOLD = {
    "rollout.started": ["rollout.started"],
    "rollout.advanced": ["rollout.stage.advanced"],
    "rollout.awaiting_approval": ["rollout.awaiting_approval"],
    "rollout.approval_lapsed": ["rollout.held"],
    "rollout.awaiting_decision": ["rollout.held"],
    "rollout.frozen": ["rollout.held"],
    "rollout.start_refused": ["rollout.start_refused"],
    "rollout.symbol_excluded": ["rollout.symbol_excluded"],
    "canary.capital_exceeded": ["canary.capital_exceeded"],
    "canary.open_risk_exceeded": ["canary.open_risk_exceeded"],
    "rollout.blind": ["rollout.held"],
    "rollout.promoted": ["rollout.promoted"],
    "rollout.completed": ["rollout.completed"],
    "rollout.rolled_back": ["rollout.gate.failed", "rollout.rolled_back"],
    "rollout.tick_overdue": ["tick.overdue"],
    "shadow.overdue": ["shadow.overdue"],
    "shadow.isolation_breach": ["shadow.isolation_breach"],
    "version.tampered": ["version.tampered"],
    "version.refused": ["version.refused"],
    "feed.stale": ["feed.stale"],
    "candles.absent": ["candles.absent"],
    "candle.revised": ["candle.revised"],
    "alerts.channel_failed": ["alerts.channel_failed"],
    "audit.broken": ["audit.broken"],
    "strategy.closed": ["strategy.closed"],
    "incident.ended": ["incident.ended"],
    "positions.orphaned": ["positions.orphaned"],
    "positions.overdue": ["positions.overdue"],
    "report.ready": ["report.ready"],
    "race.nominated": ["race.nominated"],
    "race.lead_lost": ["race.lead_lost"],
    "proposal.waiting": ["proposal.waiting"],
    "user.loss_limit": ["user.loss_limit"],
    "host.overloaded": ["host.overloaded"],
    "owner.request_waiting": ["owner.request_waiting"],
    "clock.disagrees": ["clock.disagrees"],
    "watch.harm": ["watch.harm"],
    "watch.likely_harm": ["watch.likely_harm"],
}


def raised(kind: str, **facts: Any) -> Raised:
    given = {"version": "2", "gate": "losing_streak", "value": 40.0, "limit": 12.0, "n": 40} | facts
    return Raised(17, MONDAY, Severity.CRITICAL, kind, "fib_rsi", "odd\nfills", f"key of {kind}", given)


def names(alert: Raised) -> list[str]:
    return [event.event for event in events_of(alert, message(alert))]


@pytest.mark.parametrize("kind", HEADLINES)
def test_every_kind_of_alert_is_an_event(kind: str) -> None:
    assert names(raised(kind)) == TOLD[kind]


def test_a_rollback_by_an_owner_is_no_failed_gate() -> None:
    assert names(raised("rollout.rolled_back", gate="")) == ["rollout.rolled_back"]


def test_an_event_holds_what_an_owner_is_told() -> None:
    alert = raised("rollout.rolled_back", low=float("nan"))

    failed, _ = events_of(alert, message(alert), run="a-run")

    assert failed.resource.id == "rollout.fib_rsi"
    assert {each.role: each.id for each in failed.related} == {
        "version": "rollout.fib_rsi.version.2",
        "flow-run": "prefect.flow-run.a-run",
    }
    assert (
        failed.payload.items()
        >= {
            "gate": "losing_streak",
            "value": 40.0,
            "limit": 12.0,
            "n": 40,
            "at": "2026-03-02T00:00:00+00:00",
            "text": "odd fills",
            "command": "rollout verdicts fib_rsi",
            "severity": "critical",
            "alert": 17,
        }.items()
    )
    assert "gate losing_streak: " in failed.payload["message"]


def test_ids_are_the_same_for_ever() -> None:
    """Made otherwise by a later release, an event that is sent again would be another one."""
    alert = raised("rollout.rolled_back")

    assert [str(event.id) for event in events_of(alert, message(alert, number=3))] == IDS


IDS = ["863712f2-2c18-596f-a0f7-f4a8b58c32d6", "7d1e479c-746b-5806-bb6d-031a98df8371"]


@pytest.fixture
def server(endpoint: Endpoint) -> Iterator[Endpoint]:
    """Something that takes what is posted, where Prefect's server should be."""
    with temporary_settings({PREFECT_API_URL: endpoint.url, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        yield endpoint


def test_what_was_told_is_not_told_again_though_nobody_acknowledges_it(engine: Engine, server: Endpoint) -> None:
    put_alert(engine, "users lose money", "critical")
    owners = channel_to(server)

    for hours in range(3):
        deliver(engine, [EventChannel(), owners], now=MONDAY + hours * HOUR)

    told = [posted for posted in server.posted if isinstance(posted, list)]
    assert [[event["event"] for event in batch] for batch in told] == [["rollout.held"]]
    assert len(server.posted) == 1 + 3
    assert [row.next_try_at for row in deliveries(engine, channel="prefect")] == [None]


@pytest.mark.parametrize(("trouble", "problem"), [("silent", "no answer within 0.2 s"), ("broken", "failed: ")])
def test_a_server_in_trouble_is_not_waited_for_and_told_later(
    engine: Engine, server: Endpoint, monkeypatch: pytest.MonkeyPatch, trouble: str, problem: str
) -> None:
    monkeypatch.setattr(events, "PATIENCE_S", 0.2 if trouble == "silent" else 30.0)
    put_alert(engine, "users lose money")
    if trouble == "silent":
        server.let_go.clear()
    server.statuses = [400]

    (tried,) = deliver(engine, [EventChannel()], now=MONDAY)
    server.let_go.set()
    monkeypatch.setattr(events, "PATIENCE_S", 30.0)
    (again,) = deliver(engine, [EventChannel()], now=MONDAY + timedelta(minutes=2))

    assert tried.problem.startswith(problem)
    assert again.problem == ""
    assert len({event["id"] for batch in server.posted for event in batch}) == 1


def test_outside_a_run_nobody_is_told_and_a_tick_goes_on(engine: Engine, at: Clock, server: Endpoint) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    assert start_canary.fn("fib_rsi", "2", owner="ana").is_completed()
    at(MONDAY + DAY)

    assert ramp_tick.fn().is_completed()

    assert server.posted == []
    assert deliveries(engine) == []
