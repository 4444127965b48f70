"""`rollout alerts`: list, deliver, test and acknowledge."""

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import HOUR, MONDAY, put_version
from tests.cli.conftest import Rollout, set_clock
from tests.endpoint import Endpoint
from tests.services.outbox import put_alert, texts, url_of

SECRET = "s3cr3t"


@pytest.fixture
def channel(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", url_of(endpoint, f"/{SECRET}"))
    return endpoint


def test_alerts_are_delivered_once_and_listed(rollout: Rollout, database: Engine, channel: Endpoint) -> None:
    put_alert(database, "the feed is down")
    assert rollout("alerts", "list", "--json").data["alerts"][0]["deliveries"] == []

    (sent,) = rollout("alerts", "deliver", "--json").data
    assert rollout("alerts", "deliver").out == "nothing is due\n"

    assert (sent["alert_id"], sent["problem"]) == (1, "")
    assert texts(channel) == ["the feed is down"]
    listed = rollout("alerts", "list")
    assert "the feed is down" in listed.out
    assert sent["channel"] in listed.out
    assert SECRET not in listed.out


def test_an_acknowledged_alert_is_told_no_more(rollout: Rollout, database: Engine, channel: Endpoint) -> None:
    put_alert(database, "users lose money", "critical")

    said = rollout("alerts", "acknowledge", "1", "--reason", "looking", "--actor", "ana")

    assert said.out == "alert 1 is acknowledged by ana: looking\n"
    assert rollout("alerts", "deliver").out == "nothing is due\n"
    (alert,) = rollout("alerts", "list", "--json").data["alerts"]
    assert (alert["acknowledged_by"], alert["acknowledged_because"]) == ("ana", "looking")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["ack", "1", "9", "--reason", "looking"], 4, "error: no alert 9; see: rollout alerts list"),
        (["ack", "1", "--reason", " "], 2, "error: ' ' is not a reason; allowed: a text that is not blank"),
        (["ack", "1"], 2, "Missing option '--reason'"),
        (["test", "slack"], 4, "error: no alert channel 'slack'; known channels: json-"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_line(
    rollout: Rollout, database: Engine, channel: Endpoint, arguments: list[str], code: int, line: str
) -> None:
    put_alert(database, "users lose money", "critical")

    said = rollout("alerts", *arguments)

    assert said.code == code
    assert line in said.err
    assert rollout("alerts", "list", "--json").data["alerts"][0]["acknowledged_at"] is None


@pytest.mark.parametrize("named", [[], ["json"]])
def test_a_channel_is_tried_without_an_alert(rollout: Rollout, channel: Endpoint, named: list[str]) -> None:
    said = rollout("alerts", "test", *named)

    assert said.code == 0
    assert "sent" in said.out
    assert texts(channel)[0].startswith("This is a test of json-")
    assert rollout("alerts", "list", "--json").data["alerts"] == []


def test_a_channel_that_takes_nothing_is_an_error(rollout: Rollout, database: Engine, channel: Endpoint) -> None:
    put_alert(database, "the feed is down")
    channel.status = 401

    tried, delivered = rollout("alerts", "test"), rollout("alerts", "deliver")

    assert (tried.code, delivered.code) == (1, 1)
    assert "HTTP 401" in tried.out
    assert "HTTP 401" in delivered.out
    assert "HTTP 401" in rollout("alerts", "list").out
    assert SECRET not in tried.out + tried.err + delivered.out + delivered.err


def test_missing_ticks_are_shown_to_who_lists_and_alerted_on_by_who_delivers(
    rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    rollout("start", "fib_rsi", "2", "--yes")
    set_clock(monkeypatch, MONDAY + HOUR)
    late = "fib_rsi 2 was last ticked at 2026-03-02 00:00 UTC: its gates do not run"

    listed = rollout("alerts", "list", "--json").data
    shown = rollout("alerts", "list").out
    rollout("alerts", "deliver")

    assert ([each["kind"] for each in listed["alerts"]], listed["overdue"]) == (["rollout.started"], [late])
    assert f"not ticked: {late}\n" in shown
    assert "rollout.tick_overdue" in [each["kind"] for each in rollout("alerts", "list", "--json").data["alerts"]]


def test_alerts_are_read_without_what_sends_them(
    rollout: Rollout, database: Engine, channel: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_alert(database, "the feed is down")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    listed, delivered = rollout("alerts", "list"), rollout("alerts", "deliver")

    assert "the feed is down" in listed.out
    assert "strategy-rollout[alerts]" in listed.out
    assert (delivered.code, "strategy-rollout[alerts]" in delivered.err) == (2, True)


def test_without_channels_it_says_so(rollout: Rollout, database: Engine) -> None:
    assert "ROLLOUT_ALERT_URLS is not set" in rollout("alerts", "list").out
    assert rollout("alerts", "deliver").out == "ROLLOUT_ALERT_URLS is not set: no alert is sent\n"
    assert rollout("alerts", "test").err == "error: no alert channel; set ROLLOUT_ALERT_URLS\n"
