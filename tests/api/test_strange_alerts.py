"""An alert that is refused, or is strange in any way, keeps nobody else on a version."""

from typing import Any

import pytest
from sqlalchemy import Engine

from tests.alertmanager import alarm, notified
from tests.api.asking import Api, World
from tests.api.every import fields, refused
from tests.api.firing import canaries, outcomes, post, rollbacks


def test_one_refusal_keeps_nobody_else_on_a_version(api: Api, world: World) -> None:
    response = post(
        api,
        alarm("nobodys"),
        alarm(None),
        alarm("fib_rsi", "nope"),
        alarm("ppo_gold", "1"),
        {**alarm("ppo_gold"), "startsAt": "yesterday"},
        alarm("fib_rsi"),
        alarm("fib_rsi", alertname="Slippage"),
        alarm("fib_rsi", status="resolved"),
    )

    told = {(each["strategy_name"], each["outcome"], each["detail"][:34]) for each in response.json()["alerts"]}
    assert response.status_code == 200
    assert told == {
        ("nobodys", "refused", "no strategy 'nobodys'; known strat"),
        (None, "refused", "'' is not a strategy name; allowed"),
        ("fib_rsi", "refused", "no version 'nope' of 'fib_rsi'; kn"),
        ("ppo_gold", "refused", "'1' cannot be undone: nothing was "),
        ("ppo_gold", "refused", "'yesterday' is not a startsAt; all"),
        ("fib_rsi", "rolled_back", ""),
        ("fib_rsi", "nothing_serves", ""),
        ("fib_rsi", "not_asked", ""),
    }
    assert canaries(api) == {}


@pytest.mark.parametrize(
    ("alert", "status", "field"),
    [
        (alarm("nobodys"), 404, None),
        (alarm("fib_rsi", "nope"), 404, None),
        (alarm("ppo_gold", "1"), 409, None),
        (alarm(None), 422, "strategy_name"),
        ({**alarm("fib_rsi"), "startsAt": "yesterday"}, 422, "startsAt"),
        ({**alarm("fib_rsi"), "startsAt": None}, 422, "startsAt"),
        ({**alarm("fib_rsi"), "startsAt": "0001-01-01T00:00:00Z"}, 422, "startsAt"),
    ],
)
def test_what_no_repetition_mends_is_refused_as_such(
    api: Api, world: World, alert: Any, status: int, field: str | None
) -> None:
    problem = refused(post(api, alert), status)

    assert field is None or fields(problem) == [field]
    assert canaries(api) == {"fib_rsi": "2"}


STRANGE: list[Any] = [
    None,
    7,
    "firing",
    [],
    {},
    {"status": "firing", "labels": None},
    {"status": "firing", "labels": {"rollout_action": "rollback", "strategy": ["fib_rsi"]}},
    {"status": {"firing": True}, "labels": {"a": {"b": {}}}, "annotations": 3, "startsAt": 1e300},
    alarm("no name; DROP TABLE strategy"),
    alarm("fib_rsi\x00"),
    alarm("\ud800"),
    alarm("ppo_gold", "\x00"),
    alarm("x" * 100_000, alertname="y" * 100_000),
    {**alarm("ppo_gold"), "startsAt": "9999-12-31T23:59:59Z"},
    {
        **alarm("ppo_gold"),
        "fingerprint": "../../etc\n" * 1000,
        "generatorURL": "\x00",
        "annotations": {"\x00": "\x01"},
    },
]


def test_strange_alerts_keep_nobody_else_on_a_version(api: Api, engine: Engine, world: World) -> None:
    response = post(api, *STRANGE, alarm("fib_rsi"), *STRANGE)

    assert outcomes(response).count("rolled_back") == 1
    assert canaries(api) == {}


def test_what_an_alert_says_is_kept_as_one_line_of_its_own_length(api: Api, engine: Engine, world: World) -> None:
    alert = alarm("fib_rsi", alertname="Bleeding\x00\nfake: line\u202e")
    alert |= {"annotations": {"summary": "x" * 5_000}, "generatorURL": "\ud800" * 5_000}

    post(api, alert)

    (event,) = rollbacks(engine)
    assert event.reason.startswith("alert Bleeding\ufffd fake: line, firing since 2026-03-02 01:00:00 UTC: xxx")
    assert event.reason.isprintable()
    assert len(event.reason) < 1_000


def test_what_was_left_off_a_notification_is_told(api: Api, world: World) -> None:
    response = api.post("/alertmanager", notified(alarm("fib_rsi"), truncatedAlerts=3))

    assert (outcomes(response), response.json()["truncated"]) == (["rolled_back"], 3)


def test_a_format_that_has_grown_is_read_all_the_same(api: Api, world: World) -> None:
    response = api.post("/alertmanager", notified({**alarm("fib_rsi"), "silenceURL": ""}, version="5", orgId=1))

    assert outcomes(response) == ["rolled_back"]
