"""The alert flows, on both databases."""

import json
from datetime import timedelta

import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_CSRF_SUPPORT_ENABLED,
    PREFECT_UI_URL,
    temporary_settings,
)
from sqlalchemy import Engine

from flows import events
from flows.alerts import deliver_alerts
from flows.ramp import start_canary
from flows.rollback import rollback
from strategy_core.domain.lifecycle import Status
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import start_clock
from tests.builders import HOUR, MONDAY, put_version
from tests.endpoint import Endpoint
from tests.flows.conftest import Clock
from tests.services.outbox import outbox, texts, url_of

RUN = "0a1b2c3d-0000-4000-8000-000000000001"


@pytest.fixture
def started(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    assert start_canary.fn("fib_rsi", "v2", owner="ana").is_completed()
    return engine


def test_what_was_raised_is_sent_once(started: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", url_of(endpoint))

    states = [deliver_alerts.fn() for _ in range(2)]

    assert [(state.is_completed(), state.message) for state in states] == [(True, "1 sent"), (True, "0 sent")]
    assert texts(endpoint) == ["fib_rsi v2 started at 5 % against v1"]


@pytest.mark.parametrize("server", ["answers", "closed"])
def test_an_alert_links_to_the_console_and_to_forms_if_the_server_tells_where_they_are(
    started: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", url_of(endpoint))
    monkeypatch.setenv("ROLLOUT_CONSOLE_URL", "https://rollout.example.org/console")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", RUN)
    monkeypatch.setattr(events, "PATIENCE_S", 0.2)
    endpoint.body = json.dumps([{"name": "rollback", "id": RUN}]).encode()
    url = endpoint.url if server == "answers" else "http://127.0.0.1:1"
    told = {PREFECT_API_URL: f"{url}/api", PREFECT_UI_URL: "https://prefect.example.org/"}

    with temporary_settings({**told, PREFECT_CLIENT_CSRF_SUPPORT_ENABLED: False}):
        deliver_alerts.fn()

    (body,) = [each["message"] for each in endpoint.posted if isinstance(each, dict) and "message" in each]
    assert "\nconsole: https://rollout.example.org/console/strategies/fib_rsi/rollouts/" in body
    form = f"form to roll back: https://prefect.example.org/deployments/deployment/{RUN}/run?parameters=%7B"
    assert (form in body) == (server == "answers")


def test_a_rollout_that_nobody_ticks_is_told_of_in_the_same_run(
    started: Engine, at: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", f"critical={url_of(endpoint)}")
    at(MONDAY + timedelta(minutes=9))
    assert deliver_alerts.fn().message == "0 sent"
    at(MONDAY + timedelta(minutes=10))

    assert deliver_alerts.fn().message == "1 sent"

    assert texts(endpoint)[0].startswith("fib_rsi v2 was last ticked at 2026-03-02 00:00 UTC")


def test_a_channel_that_takes_nothing_fails_the_run_and_keeps_no_other_from_sending(
    started: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", f"json://127.0.0.1:1/t0ken {url_of(endpoint)} slack//t0ken")

    state = deliver_alerts.fn()

    assert state.is_failed()
    assert state.message is not None
    assert state.message.startswith("1 sent; json-")
    assert ": cannot be reached; unreadable-" in state.message
    assert "t0ken" not in state.message
    assert len(endpoint.posted) == 1


def test_alerts_go_out_though_there_are_no_candles(
    started: Engine, at: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_FEED", "/nowhere/GOLD.csv")
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", url_of(endpoint))

    assert [deliver_alerts.fn().message for _ in range(3)] == ["1 sent", "1 sent", "0 sent"]

    assert [alert.kind for alert in outbox(started)] == ["rollout.started", "candles.absent"]


def test_without_a_channel_it_says_so_and_still_watches(started: Engine, at: Clock) -> None:
    at(MONDAY + HOUR)

    state = deliver_alerts.fn()

    assert state.message == "ROLLOUT_ALERT_URLS is not set: no alert is sent"
    assert "rollout.tick_overdue" in [alert.kind for alert in outbox(started)]


def test_in_a_replay_ticks_are_awaited_in_real_minutes(
    started: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a replay four days between two ticks are normal."""
    monkeypatch.setenv("ROLLOUT_REPLAY_SPEED", "5760")
    at(MONDAY + timedelta(days=4))
    deliver_alerts.fn()
    assert "rollout.tick_overdue" not in [alert.kind for alert in outbox(started)]
    at(MONDAY + timedelta(days=40))

    deliver_alerts.fn()

    assert "rollout.tick_overdue" in [alert.kind for alert in outbox(started)]


def test_a_clock_that_disagrees_fails_the_run_and_raises_nothing(started: Engine, at: Clock) -> None:
    start_clock(started, ReplayClock(None, MONDAY + 4 * HOUR))

    state = deliver_alerts.fn()

    assert state.is_failed()
    assert "clock disagrees: ROLLOUT_REPLAY_FROM shows 2026-03-02 00:00 UTC" in str(state.message)
    assert [alert.kind for alert in outbox(started)] == ["rollout.started"]
    assert rollback.fn("fib_rsi", owner="ana", reason="now").is_completed()


def test_a_flow_needs_no_settings_for_the_clock_of_a_replay(started: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REPLAY_FROM", "REPLAY_STARTED_AT"):
        monkeypatch.delenv(f"ROLLOUT_{name}")
    start_clock(started, ReplayClock(None, MONDAY + HOUR))

    state = deliver_alerts.fn()

    still = "the clock of this database stands still at 2026-03-02 01:00 UTC: rollout db clock --remove lets real time"
    assert (state.is_failed(), still in str(state.message)) == (True, True)  # as long as no replay runs
    (alert,) = (each for each in outbox(started) if each.kind == "rollout.tick_overdue")
    assert alert.at == MONDAY + HOUR
