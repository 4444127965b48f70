"""Alerts are delivered once to each channel, tried again until they are taken, and repeated until somebody knows."""

import socket
from collections.abc import Iterator
from datetime import timedelta

import pytest
from sqlalchemy import Engine
from structlog.testing import capture_logs

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import UnknownAlert
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.alerts import acknowledge, deliver, read_channel_states
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.users import load_users
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_version
from tests.endpoint import Endpoint, serving
from tests.services.outbox import channel_to, deliveries, ids, outbox, put_alert, texts

MINUTE = timedelta(minutes=1)


@pytest.fixture
def other() -> Iterator[Endpoint]:
    """A second receiver."""
    with serving() as served:
        yield served


def test_an_alert_is_delivered_once_to_each_channel(engine: Engine, endpoint: Endpoint, other: Endpoint) -> None:
    put_alert(engine, "the feed is down")
    channels = [channel_to(endpoint), channel_to(other)]

    for minute in range(3):
        deliver(engine, channels, now=MONDAY + minute * MINUTE)

    assert texts(endpoint) == texts(other) == ["the feed is down"]
    assert endpoint.posted[0]["title"] == "[warning] fib_rsi: blind: no evidence"
    assert endpoint.posted[0]["type"] == "warning"
    assert ids(endpoint) == ids(other)


def test_the_worst_comes_first_then_the_oldest(engine: Engine, endpoint: Endpoint) -> None:
    for text, severity, hour in [("a", "info", 0), ("b", "critical", 3), ("c", "warning", 2), ("d", "warning", 1)]:
        put_alert(engine, text, severity, at=MONDAY + hour * HOUR)

    deliver(engine, [channel_to(endpoint)], now=MONDAY + 4 * HOUR)

    assert texts(endpoint) == ["b", "d", "c", "a"]


def test_a_channel_gets_nothing_below_its_severity(engine: Engine, endpoint: Endpoint) -> None:
    for severity in ("info", "warning", "critical"):
        put_alert(engine, severity, severity)

    deliver(engine, [channel_to(endpoint, "warning")], now=MONDAY)

    assert texts(endpoint) == ["critical", "warning"]


def test_refused_broken_and_hanging_first_it_is_delivered_once_in_the_end(engine: Engine) -> None:
    put_alert(engine, "the feed is down")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    channel = channel_to(Endpoint(url=f"http://127.0.0.1:{port}"), timeout=0.5)

    problems = [each.problem for each in deliver(engine, [channel], now=MONDAY)]
    with serving(port) as late:
        late.statuses = [500]
        problems += [each.problem for each in deliver(engine, [channel], now=MONDAY + 1 * HOUR)]
        late.let_go.clear()
        problems += [each.problem for each in deliver(engine, [channel], now=MONDAY + 2 * HOUR)]
        late.let_go.set()
        channel.timeout = 30
        late.posted.clear()
        for hour in (3, 4, 5):
            problems += [each.problem for each in deliver(engine, [channel], now=MONDAY + hour * HOUR)]

        assert problems == ["cannot be reached", "HTTP 500", "no answer within 0.5 s", ""]
        assert texts(late) == ["the feed is down"]
    (row,) = deliveries(engine)
    assert (row.attempts, row.failures, row.sent_at, row.next_try_at) == (4, 0, MONDAY + 3 * HOUR, None)


def test_it_is_tried_again_when_its_wait_is_over_and_not_before(engine: Engine, endpoint: Endpoint) -> None:
    put_alert(engine, "the feed is down")
    channel = channel_to(endpoint)
    endpoint.status = 500
    now, waits = MONDAY, []

    for jitter in (0.0, 0.0, 0.5, 0.0, 0.0, 0.0, 0.0):
        assert len(deliver(engine, [channel], now=now, jitter=lambda share=jitter: share)) == 1  # type: ignore[misc]
        (row,) = deliveries(engine)
        assert row.next_try_at is not None
        assert deliver(engine, [channel], now=row.next_try_at - timedelta(microseconds=1)) == []
        waits.append(row.next_try_at - now)
        now = row.next_try_at

    assert waits == [minutes * MINUTE for minutes in (1, 2, 3, 8, 16, 30, 30)]
    assert len(endpoint.posted) == 7


def test_a_channel_that_refuses_one_message_is_not_stormed_with_the_others(engine: Engine, endpoint: Endpoint) -> None:
    for text in "abc":
        put_alert(engine, text)
    endpoint.status = 500

    tried = deliver(engine, [channel_to(endpoint)], now=MONDAY)

    assert len(tried) == len(endpoint.posted) == 1


def test_a_message_that_a_channel_never_takes_does_not_keep_back_the_others(engine: Engine, endpoint: Endpoint) -> None:
    put_alert(engine, "too much for it", "critical")
    put_alert(engine, "b")
    endpoint.statuses = [413]

    for minute in range(2):
        deliver(engine, [channel_to(endpoint)], now=MONDAY + minute * timedelta(seconds=20), jitter=lambda: 0)

    assert texts(endpoint) == ["too much for it", "b"]


def test_a_critical_alert_is_repeated_until_an_owner_knows(engine: Engine, endpoint: Endpoint) -> None:
    alert = put_alert(engine, "users lose money", "critical")
    put_alert(engine, "no harm", "warning")
    channel = channel_to(endpoint)

    for minute in range(0, 100, 5):
        deliver(engine, [channel], now=MONDAY + minute * MINUTE)
    acknowledge(engine, Command(OWNER, MONDAY + 100 * MINUTE, "looking"), [alert])
    for minute in range(100, 200, 5):
        deliver(engine, [channel], now=MONDAY + minute * MINUTE)

    assert texts(endpoint) == ["users lose money", "no harm", *["users lose money"] * 3]
    assert len(set(ids(endpoint))) == 5
    assert "sent 4 times" in endpoint.posted[-1]["message"]


def test_an_acknowledgement_says_who_when_and_why_and_the_first_one_stays(engine: Engine) -> None:
    alert = put_alert(engine, "users lose money", "critical")
    acknowledge(engine, Command(OWNER, MONDAY + HOUR, "looking"), [alert])

    acknowledge(engine, Command(OWNER, MONDAY + DAY, "again"), [alert])

    (row,) = outbox(engine)
    assert (row.acknowledged_by, row.acknowledged_at, row.acknowledged_because) == ("ana", MONDAY + HOUR, "looking")


def test_of_several_alerts_one_of_which_is_unknown_none_is_acknowledged(engine: Engine) -> None:
    alert = put_alert(engine, "users lose money", "critical")

    with pytest.raises(UnknownAlert, match="no alert 99"):
        acknowledge(engine, Command(OWNER, MONDAY, "looking"), [alert, 99])

    assert outbox(engine)[0].acknowledged_at is None


@pytest.mark.full
def test_after_a_day_it_is_given_up_aloud(engine: Engine, endpoint: Endpoint) -> None:
    alert = put_alert(engine, "the feed is down")
    channel = channel_to(endpoint)
    endpoint.status = 500

    with capture_logs() as logs:
        for hour in range(0, 30):
            deliver(engine, [channel], now=MONDAY + hour * HOUR)

    (row,) = deliveries(engine)
    assert (row.given_up_at, row.next_try_at, row.attempts) == (MONDAY + DAY, None, 25)
    (loud,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (loud["event"], loud["alert"], loud["channel"]) == ("alert.given_up", alert, channel.name)
    assert loud["problem"] == "HTTP 500"


@pytest.mark.full
def test_a_critical_one_is_tried_on_though_its_failure_was_told(engine: Engine, endpoint: Endpoint) -> None:
    put_alert(engine, "users lose money", "critical")
    endpoint.status = 500
    with capture_logs() as logs:
        for hour in range(0, 30):
            deliver(engine, [channel_to(endpoint)], now=MONDAY + hour * HOUR)
    endpoint.status = 200

    deliver(engine, [channel_to(endpoint)], now=MONDAY + 31 * HOUR)

    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["alert.given_up"]
    assert len(endpoint.posted) == 31
    assert deliveries(engine)[0].sent_at == MONDAY + 31 * HOUR


@pytest.mark.full
def test_that_a_channel_has_failed_is_told_on_another_once(engine: Engine, endpoint: Endpoint, other: Endpoint) -> None:
    put_alert(engine, "the feed is down")
    dead, alive = channel_to(endpoint), channel_to(other)
    endpoint.status = 500

    for hour in range(0, 60):
        deliver(engine, [dead, alive], now=MONDAY + hour * HOUR)

    assert texts(other) == [
        "the feed is down",
        f"{dead.name} has taken no alert since it was set; 0 wait for it",
    ]
    assert f"rollout alerts test {dead.name}" in other.posted[-1]["message"]
    assert set(texts(endpoint)) == {"the feed is down"}


@pytest.mark.full
def test_while_every_channel_fails_nobody_can_be_told_until_one_works(
    engine: Engine, endpoint: Endpoint, other: Endpoint
) -> None:
    put_alert(engine, "the feed is down")
    channels = [channel_to(endpoint), channel_to(other)]
    endpoint.status = other.status = 500
    for hour in range(0, 50):
        deliver(engine, channels, now=MONDAY + hour * HOUR)
    assert [alert.kind for alert in outbox(engine)] == ["rollout.blind"]
    other.status = 200
    other.posted.clear()
    put_alert(engine, "users lose money", "critical", at=MONDAY + 50 * HOUR)

    for minute in range(2):
        deliver(engine, channels, now=MONDAY + 50 * HOUR + minute * MINUTE)

    assert [alert.kind for alert in outbox(engine)][2:] == ["alerts.channel_failed"]
    assert texts(other)[0] == "users lose money"
    assert texts(other)[1].startswith(f"{channels[0].name} has taken no alert since")
    states = {state.channel: state for state in read_channel_states(engine, channels)}
    assert (states[channels[0].name].given_up, states[channels[1].name].given_up) == (True, False)


def test_a_new_channel_hears_the_news_and_what_nobody_has_acknowledged(engine: Engine, endpoint: Endpoint) -> None:
    put_alert(engine, "old", at=MONDAY - 2 * DAY)
    put_alert(engine, "old and unknown to all", "critical", at=MONDAY - 9 * DAY)
    known = put_alert(engine, "old and known", "critical", at=MONDAY - 9 * DAY)
    put_alert(engine, "of today", at=MONDAY - 2 * HOUR)
    acknowledge(engine, Command(OWNER, MONDAY, "looking"), [known])

    deliver(engine, [channel_to(endpoint)], now=MONDAY)

    assert texts(endpoint) == ["old and unknown to all", "of today"]


def test_without_a_channel_nothing_is_sent_and_nothing_is_lost(engine: Engine, endpoint: Endpoint) -> None:
    put_alert(engine, "the feed is down")
    assert deliver(engine, [], now=MONDAY) == []

    deliver(engine, [channel_to(endpoint)], now=MONDAY + HOUR)

    assert texts(endpoint) == ["the feed is down"]


def test_an_owner_reads_how_many_users_had_it_and_for_how_long(engine: Engine, endpoint: Endpoint) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    load_users(engine, [(f"user_{number}", None) for number in range(1_000)], now=MONDAY)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    roll_back(engine, Command(OWNER, MONDAY + 6 * HOUR, "odd fills"), strategy_name="fib_rsi")

    deliver(engine, [channel_to(endpoint)], now=MONDAY + 6 * HOUR)

    undone, started = (posted["message"].splitlines() for posted in endpoint.posted)
    assert started[:3] == [
        "fib_rsi 2 started at 5 % against 1",
        "users: 5 % (53) get it; for 0 s, since 2026-03-02 00:00 UTC",
        'to undo: rollout rollback fib_rsi --reason "..."',
    ]
    assert undone[:2] == [
        "fib_rsi 2 rolled back by ana: odd fills",
        "users: 0 % now, 5 % (53) before; for 6 h, since 2026-03-02 00:00 UTC",
    ]
