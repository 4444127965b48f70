"""What services raise holds all that an owner is told: from the evidence to the words."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import FingerprintMismatch, IsolationBreach, RolloutError, StrategyFailed
from strategy_core.domain.lifecycle import Status
from strategy_core.isolation.protocol import Answer
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services import version_alerts
from strategy_core.services.alerts import alert_message, deliver, note_refused, open_incidents
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import approve
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store import versions
from strategy_core.store.engine import transaction
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.services.outbox import outbox
from tests.services.ramping import days


def newest_lines(engine: Engine) -> tuple[str, list[str]]:
    """Return title and lines of what was raised last; not the last line, which holds ids."""
    said = alert_message(outbox(engine)[-1])
    return said.title, said.body.splitlines()[:-1]


def test_proven_harm_says_which_gate_how_far_and_to_whom(ramped: Engine, market: SyntheticSource) -> None:
    tick(ramped, market, now=days(ramped, MONDAY, 4, {"1": 0.4, "2": -1.0}))

    title, (text, *lines) = newest_lines(ramped)
    assert title == "[critical] fib_rsi 2: rolled back"
    assert text.startswith("fib_rsi 2 rolled back: losing_streak: 40 slots in a row")
    assert lines[:2] == [
        "users: 0 % now, 5 % before; for 4 days, since 2026-03-02 00:00 UTC",
        "losing streak: breach, 40 in a row against limit 12 in a row, 40 slots",
    ]
    assert lines[2] == "details: rollout verdicts fib_rsi"


def test_each_step_of_a_ramp_says_how_many_users_it_reached(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    said = []
    for _ in range(4):
        tick(ramped, market, now=now)
        said.append(newest_lines(ramped))
        now = days(ramped, now, 1)
    tick(ramped, market, now=now)
    approve(ramped, Command(OWNER, now, "reviewed"), strategy_name="fib_rsi")
    for _ in range(2):
        tick(ramped, market, now=now)
        said.append(newest_lines(ramped))
        now = days(ramped, now, 1)
    tick(ramped, market, now=days(ramped, now, 6))
    said.append(newest_lines(ramped))
    deliver(ramped, [], now=now)

    assert {alert.acknowledged_by for alert in outbox(ramped) if "awaiting" in alert.kind} == {"system"}
    assert [(title, lines[2] if "gate" in lines[1] else lines[1]) for title, lines in said] == [
        ("[info] fib_rsi 2: advanced to more users", line)
        for line in (
            "users: 10 % now, 5 % before; for 4 days, since 2026-03-02 00:00 UTC",
            "users: 25 % now, 10 % before; for 5 days, since 2026-03-02 00:00 UTC",
            "users: 50 % now, 25 % before; for 6 days, since 2026-03-02 00:00 UTC",
        )
    ] + [
        (
            "[warning] fib_rsi 2: waits for your approval",
            "users: 50 % get it; for 7 days, since 2026-03-02 00:00 UTC",
        ),
        (
            "[info] fib_rsi 2: advanced to more users",
            "users: 100 % now, 50 % before; for 8 days, since 2026-03-02 00:00 UTC",
        ),
        (
            "[warning] fib_rsi 2: promoted, baking",
            "users: 100 % get it; for 9 days, since 2026-03-02 00:00 UTC",
        ),
        ("[info] fib_rsi 2: completed", "users: 100 % get it; for 7 days, since 2026-03-11 00:00 UTC"),
    ]


def test_without_sight_it_says_who_is_unprotected(ramped: Engine, market: SyntheticSource) -> None:
    tick(ramped, market, now=MONDAY + 9 * HOUR)

    title, lines = newest_lines(ramped)
    assert title == "[warning] fib_rsi 2: blind: no evidence"
    assert lines[1:] == [
        "users: 5 % get it; for 9 h, since 2026-03-02 00:00 UTC",
        "details: rollout status fib_rsi",
        'to undo: rollout rollback fib_rsi --reason "..."',
    ]


def test_an_activation_that_is_undone_says_who_had_it(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2")
    roll_back(engine, Command(OWNER, MONDAY + DAY, "odd"), strategy_name="fib_rsi", version="2")

    _, lines = newest_lines(engine)
    assert lines[1] == "users: 0 % now, 100 % before; for 24 h, since 2026-03-02 00:00 UTC"


def test_a_version_that_cannot_be_asked_is_told_of_anew_once_it_had_recovered(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)

    def refuse(hour: int) -> None:
        with transaction(engine) as session:
            version = versions.get_version(session, "fib_rsi", "1")
            error = FingerprintMismatch("fib_rsi", "1", ["source"])
            version_alerts.alert_refused(session, version, version.symbols, error, MONDAY + hour * HOUR)

    refuse(1)
    refuse(2)
    put_decisions(engine, decision_row("1", MONDAY + 2 * HOUR))
    refuse(4)
    refuse(30)

    assert [(alert.kind, alert.at) for alert in outbox(engine)] == [
        ("version.tampered", MONDAY + HOUR),
        ("version.tampered", MONDAY + 4 * HOUR),
    ]


def test_a_share_that_is_refused_is_told_of_once_while_others_go_on_deciding(engine: Engine) -> None:
    """One machine of a cluster has another build: that is one alert, not one a candle."""
    put_version(engine, "1", Status.ACTIVE, symbols=[GOLD, "SILVER"])
    error = FingerprintMismatch("fib_rsi", "1", ["source"])

    for hour in range(1, 4):
        put_decisions(engine, decision_row("1", MONDAY + hour * HOUR))
        with transaction(engine) as session:
            version = versions.get_version(session, "fib_rsi", "1")
            version_alerts.alert_refused(session, version, ["SILVER"], error, MONDAY + hour * HOUR)

    assert [alert.kind for alert in outbox(engine)] == ["version.tampered"]


def test_a_refusal_is_closed_once_the_version_decides_again_or_is_retired(engine: Engine) -> None:
    for name, partly in (("1", False), ("2", False), ("3", False), ("4", True)):
        version = put_version(engine, name)
        with transaction(engine) as session:
            error = StrategyFailed(f"no module of {name}")
            version_alerts.alert_refused(session, version, [GOLD], error, MONDAY, partly=partly)
    put_decisions(engine, *(decision_row(name, MONDAY) for name in ("1", "4")))
    with transaction(engine) as session:
        versions.move(session, versions.get_version(session, "fib_rsi", "2"), Status.RETIRED, MONDAY)

    deliver(engine, [], now=MONDAY + 2 * HOUR)

    assert [(alert.facts["version"], alert.acknowledged_by) for alert in outbox(engine)] == [
        ("1", "system"),
        ("2", "system"),
        ("3", ""),
        ("4", ""),
    ]


def test_a_refusal_is_over_once_the_version_decides_again_and_silently_if_it_is_retired(engine: Engine) -> None:
    """Until then it goes on, also if nothing asks the version for hours because the feed is away."""
    for name in ("1", "2", "3"):
        version = put_version(engine, name)
        for minute in (0, 30):
            note_refused(engine, [version], now=MONDAY + timedelta(minutes=minute))
    with transaction(engine) as session:
        versions.move(session, versions.get_version(session, "fib_rsi", "2"), Status.RETIRED, MONDAY)
    deliver(engine, [], now=MONDAY + 5 * HOUR)
    still_open = [each.cause for each in open_incidents(engine, "refused")]
    put_decisions(engine, decision_row("1", MONDAY + 5 * HOUR))

    for hour in (7, 8):
        deliver(engine, [], now=MONDAY + hour * HOUR)

    assert still_open == ["refused fib_rsi 1", "refused fib_rsi 3"]
    assert [each.cause for each in open_incidents(engine, "refused")] == ["refused fib_rsi 3"]
    assert [(each.kind, each.text) for each in outbox(engine)] == [
        ("incident.ended", "fib_rsi 1 refused to run: over after 30 min")
    ]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (IsolationBreach("open for writing: x"), "shadow.isolation_breach"),
        (StrategyFailed("no module"), "version.refused"),
    ],
)
def test_why_a_version_cannot_be_asked_is_the_kind_of_its_alert(engine: Engine, error: RolloutError, kind: str) -> None:
    put_version(engine, "1", Status.ACTIVE)

    with transaction(engine) as session:
        version_alerts.alert_refused(session, versions.get_version(session, "fib_rsi", "1"), [GOLD], error, MONDAY)

    assert [alert.kind for alert in outbox(engine)] == [kind]


@pytest.mark.parametrize(
    ("status", "severity", "act"),
    [
        (Status.SHADOW, "warning", 'to retire it: rollout retire fib_rsi 1 --reason "..."'),
        (Status.CANARY, "critical", 'to undo: rollout rollback fib_rsi --reason "..."'),
        (Status.ACTIVE, "critical", 'to undo: rollout rollback fib_rsi --version 1 --reason "..."'),
    ],
)
def test_a_version_that_reaches_out_is_told_of_once_a_day(
    engine: Engine, status: Status, severity: str, act: str
) -> None:
    put_version(engine, "1", status)
    tried = [Answer(None, "open for writing: stolen.txt", "breach"), Answer(None, "late", "deadline")]

    for hour in (1, 2, 30):
        with transaction(engine) as session:
            version = versions.get_version(session, "fib_rsi", "1")
            version_alerts.alert_breaches(session, version, tried, MONDAY + hour * HOUR)
            version_alerts.alert_breaches(session, version, tried[1:], MONDAY + hour * HOUR)

    alerts = outbox(engine)
    assert [(alert.kind, alert.severity) for alert in alerts] == [("shadow.isolation_breach", severity)] * 2
    _, lines = newest_lines(engine)
    assert lines[0] == "fib_rsi 1 tried to touch the outside in 1 of 2 answers: open for writing: stolen.txt"
    assert act in lines
