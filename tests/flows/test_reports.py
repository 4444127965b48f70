"""The flow that writes reports: what its receiver gets, though it runs again and again."""

from base64 import b64decode
from hashlib import sha256

import pytest
from sqlalchemy import Engine

from flows.alerts import deliver_alerts
from flows.compare import nightly_comparison
from flows.ramp import ramp_tick, start_canary
from flows.reports import reports
from strategy_core.services.owner_reports import list_owner_reports
from strategy_core.services.queries import Scope
from tests.builders import DAY, HOUR, MONDAY, put_pair
from tests.endpoint import Endpoint
from tests.flows.conftest import Clock
from tests.services.outbox import outbox, url_of
from tests.services.ramping import days

MIXED = {"1": 0.4, "2": 0.38}
MINUTE = HOUR / 60


def nights(at: Clock, *offsets: int) -> list[str | None]:
    """Run the flow three times in each of the nights, with a delivery after each run. Return its result lines."""
    lines = []
    for offset in offsets:
        for minute in range(3):
            at(MONDAY + offset * DAY + HOUR / 2 + minute * MINUTE)
            lines.append(reports.fn().message)
            deliver_alerts.fn()
    return lines


def test_a_receiver_gets_one_report_a_period_though_the_flow_runs_three_times(
    engine: Engine, at: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_REPORT_URLS", url_of(endpoint))
    monkeypatch.setenv("ROLLOUT_CONSOLE_URL", "https://rollout.example.org/console/")
    put_pair(engine)
    days(engine, MONDAY, 2, MIXED)
    at(MONDAY + 2 * DAY)
    assert nightly_comparison.fn().is_completed()

    lines = nights(at, 2, 3)

    assert lines == ["written: fib_rsi morning note", *["no report is due"] * 5]
    (posted,) = endpoint.posted
    assert posted["title"] == "[info] fib_rsi: morning note"
    (stored,) = list_owner_reports(engine, Scope())
    assert posted["message"].splitlines()[:2] == [f"fib_rsi: {stored.sentence}", f"details: rollout report {stored.id}"]
    assert posted["message"].splitlines()[-1] == f"https://rollout.example.org/console/reports/{stored.id}"
    (attached,) = posted["attachments"]
    assert (attached["filename"], attached["mimetype"]) == ("fib_rsi-morning-2026-03-04.html", "text/html")
    assert sha256(b64decode(attached["base64"])).hexdigest() == stored.html_sha256


def test_reports_go_to_their_own_channels_and_alerts_to_theirs(
    engine: Engine, at: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", url_of(endpoint, "/alerts"))
    monkeypatch.setenv("ROLLOUT_REPORT_URLS", url_of(endpoint, "/reports"))
    put_pair(engine)
    assert start_canary.fn("fib_rsi", "2", owner="ana").is_completed()
    at(days(engine, MONDAY, 4, {"1": 0.4, "2": -1.0}))

    assert ramp_tick.fn().is_completed()
    deliver_alerts.fn()

    kinds = [alert.kind for alert in outbox(engine)]
    assert kinds == ["rollout.started", "rollout.rolled_back", "report.ready"]
    titles = sorted(posted["title"] for posted in endpoint.posted)
    assert titles == ["[critical] fib_rsi 2: rolled back", "[info] fib_rsi 2: final report"]


def test_a_tick_rolls_back_though_the_report_of_it_cannot_be_written(engine: Engine, at: Clock) -> None:
    """The table of reports is away, so that neither a look into it nor a write succeeds."""
    put_pair(engine)
    assert start_canary.fn("fib_rsi", "2", owner="ana").is_completed()
    now = days(engine, MONDAY, 4, {"1": 0.4, "2": -1.0})
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE report RENAME TO report_away")
    at(now)

    state = ramp_tick.fn()

    assert state.is_completed()
    assert (state.message or "").startswith("fib_rsi 2: roll back, losing_streak")
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE report_away RENAME TO report")
    at(now + MINUTE)
    assert ramp_tick.fn().message == "no rollout is open"
    assert [each.kind for each in list_owner_reports(engine, Scope())] == ["final"]
