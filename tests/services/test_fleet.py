"""The overview of all strategies: what each row shows, what has stopped, and what it costs."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, event

from strategy_core.domain.alerts import SURE, ClockCheck
from strategy_core.domain.fleet import Urgency
from strategy_core.domain.gates.base import Freshness, Verdict
from strategy_core.domain.readings import ALL_PASS
from strategy_core.domain.rollout_verdict import VerdictKind
from strategy_core.market.calendars import CALENDARS
from strategy_core.services.fleet import Fleet, FleetRow, read_fleet
from strategy_core.services.users import load_users
from strategy_core.store import alerts
from strategy_core.store.engine import transaction
from strategy_core.store.tables import AlertDelivery
from tests.builders import HOUR, MONDAY, decision_row, put_decisions
from tests.fleets import put_fleet, put_rollout, put_strategy, raise_alert

NOW = MONDAY + 12 * HOUR + timedelta(minutes=30)
OVERDUE = timedelta(minutes=10)


def overview(engine: Engine, names: frozenset[str] | None = None, *, clock: ClockCheck = SURE, **more: Any) -> Fleet:
    facts: dict[str, Any] = {"now": NOW, "overdue": OVERDUE, "calendar": CALENDARS["always"]} | more
    return read_fleet(engine, names, clock=clock, **facts)


def rows(fleet: Fleet) -> dict[str, FleetRow]:
    return {row.strategy_name: row for row in fleet.rows}


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """Collect the statements that are executed within the block."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


def test_what_needs_an_owner_comes_first_in_words(engine: Engine) -> None:
    put_fleet(engine, NOW)

    fleet = overview(engine)

    assert [(row.strategy_name, [need.line for need in row.needs]) for row in fleet.rows] == [
        ("copper_scalp", ["refused to run", "no decisions for 3 candles"]),
        ("fx_carry", ["its gates have not run for 60 min", "its gates have no evidence"]),
        ("gold_trend", ["harm is likely"]),
        ("silver_swing", ["waits for your approval"]),
        ("index_mean", []),
        ("oil_breakout", []),
        ("platinum_slow", []),
    ]
    assert [row.urgency for row in fleet.rows] == [*[Urgency.NOW] * 3, Urgency.ASKED, *[Urgency.CALM] * 3]


def test_a_rollout_is_shown_with_its_stage_its_slots_and_the_days_left(engine: Engine) -> None:
    put_rollout(engine, "oil_breakout", NOW)

    (row,) = overview(engine).rows

    assert (row.active, row.canary, row.shadows, row.percent) == ("1.0.0", "2.0.0", ("3.0.0-rc1",), 10.0)
    found = row.rollout
    assert found is not None
    assert (found.stage, found.stages, found.stage_days, found.percent) == (2, 5, 4.0, 10.0)
    assert found.verdict.kind is VerdictKind.SAFE
    assert found.verdict.slots == 69
    assert found.verdict.slots_needed is not None
    assert found.verdict.end_days is not None
    assert found.verdict.end_days > (found.verdict.days_left or 0) + 7  # of the later stages and the bake too
    assert found.worst is not None
    assert found.worst.title == "proof of no loss" or found.worst.gate == "not_worse"
    assert row.newest_candle == NOW - HOUR - timedelta(minutes=30)


def test_where_every_gate_passes_none_is_named_as_the_worst(engine: Engine) -> None:
    put_rollout(engine, "oil_breakout", NOW, findings=[Freshness().found(Verdict.PASS, "decided")])

    (row,) = overview(engine).rows

    assert row.rollout is not None
    assert row.rollout.worst is ALL_PASS


def test_users_on_the_canary_are_counted_by_the_directory(engine: Engine) -> None:
    put_rollout(engine, "oil_breakout", NOW)
    put_strategy(engine, "copper_scalp", NOW)
    load_users(engine, ((f"u{number}", None) for number in range(1_000)), now=NOW)

    found = rows(overview(engine))

    assert 60 < (found["oil_breakout"].users_exposed or 0) < 140
    assert found["copper_scalp"].users_exposed is None  # it has no canary


def test_only_the_asked_strategies_are_read(engine: Engine) -> None:
    put_fleet(engine, NOW)

    fleet = overview(engine, frozenset({"oil_breakout"}))

    assert [row.strategy_name for row in fleet.rows] == ["oil_breakout"]
    assert fleet.stopped == []


def test_gates_that_do_not_run_are_announced(engine: Engine) -> None:
    put_fleet(engine, NOW)

    (line,) = overview(engine).stopped

    assert line == "Gates do not run, so the users of these canaries are not protected: fx_carry 2.0.0 for 60 min."


def test_candle_runs_that_have_stopped_for_all_strategies_are_announced(engine: Engine) -> None:
    for name in ("copper_scalp", "oil_breakout"):
        put_strategy(engine, name, NOW, decided=4)

    (line,) = overview(engine).stopped

    assert line.startswith("Candle runs have stopped: no decision after the candle of 2026-03-02 07:00 UTC")


def test_a_closed_market_is_not_late(engine: Engine) -> None:
    put_strategy(engine, "copper_scalp", NOW)
    saturday = NOW + timedelta(days=5)
    put_decisions(engine, decision_row("1.0.0", MONDAY + timedelta(days=4, hours=21), strategy_name="copper_scalp"))

    closed = overview(engine, now=saturday, calendar=CALENDARS["metals"])
    around_the_clock = overview(engine, now=saturday)

    assert closed.stopped == []
    assert closed.rows[0].candles_behind == 0
    assert around_the_clock.rows[0].candles_behind == 14


def test_alerts_that_no_channel_got_are_announced(engine: Engine) -> None:
    put_strategy(engine, "copper_scalp", NOW)
    raise_alert(engine, "copper_scalp", "version.refused", "critical", "first", NOW - HOUR)
    raise_alert(engine, "copper_scalp", "version.refused", "critical", "second", NOW - HOUR)

    before = overview(engine).stopped
    with transaction(engine) as session:
        first, _ = alerts.find_alerts(session, "copper_scalp")
        delivery: dict[str, Any] = {"alert_id": first.id, "channel": "slack-1", "due_at": first.at, "sent_at": first.at}
        session.add(AlertDelivery(**delivery))
    after = overview(engine).stopped

    assert before == []  # no channel is set
    assert after == ["Alerts are not delivered: a critical alert of 2026-03-02 11:26 UTC waits."]


def test_messages_that_are_due_for_too_long_are_announced(engine: Engine) -> None:
    put_strategy(engine, "copper_scalp", NOW)
    raise_alert(engine, "copper_scalp", "version.refused", "critical", "first", NOW - HOUR)
    with transaction(engine) as session:
        (alert,) = alerts.find_alerts(session, "copper_scalp")
        session.add(AlertDelivery(alert_id=alert.id or 0, channel="slack-1", due_at=alert.at, next_try_at=alert.at))

    assert overview(engine).stopped == ["Alerts are not delivered: 1 to slack-1 since 2026-03-02 11:26 UTC."]


def test_with_a_wrong_clock_nothing_is_late(engine: Engine) -> None:
    put_fleet(engine, NOW)

    fleet = overview(engine, clock=ClockCheck("clock disagrees: by an hour"))

    assert fleet.stopped == []
    assert rows(fleet)["oil_breakout"].needs[0].line == "the clocks disagree"
    assert rows(fleet)["copper_scalp"].candles_behind == 0


@pytest.mark.parametrize("names", [None, frozenset({"oil_breakout", "s1", "s2"})], ids=["all", "some"])
def test_the_number_of_statements_depends_on_nothing(engine: Engine, names: frozenset[str] | None) -> None:
    put_rollout(engine, "oil_breakout", NOW)
    with statements(engine) as of_one:
        overview(engine, names)
    for number in range(5):
        put_rollout(engine, f"s{number}", NOW, state="paused" if number else "running")
    past = [NOW - hour * HOUR for hour in range(2, 60)]
    put_decisions(engine, *(decision_row("1.0.0", at, strategy_name="s1") for at in past))

    with statements(engine) as of_six:
        overview(engine, names)

    assert len(of_one) == len(of_six)
    assert len(of_one) <= 13
