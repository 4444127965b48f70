"""After the bake: the promoted version is watched against its predecessor, for as long as it serves."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.gates.on_slots import Harm
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import deliver
from strategy_core.services.audit import verify_trail
from strategy_core.services.evidence import Watch, read_watch, recompute
from strategy_core.services.reports import read_report
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.status import watch_of
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store import alerts, audit, evidence, rollouts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AlertOutbox, Counted, Rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.services.ramping import SAME, days, newest, ruled, standing
from tests.store.test_tallies import tallied

HARMED = {"1": 0.4, "2": -1.0}


def plan_of(watch: str = "alert") -> Plan:
    """A plan that promotes after a day and completes after another."""
    stage = {"percent": 100, "minimum_time": 86_400, "margins": {"pnl_r": 0.5}}
    gates = [Harm().model_dump()]
    return read_plan({"stages": [stage], "approve_before": [], "bake": 86_400, "watch": watch, "gates": gates})


@pytest.fixture
def two(engine: Engine) -> Engine:
    """Version 1 is active, version 2 in shadow, and the audit trail tells of both."""
    put_version(engine, "1", recorded=True)
    put_version(engine, "2", recorded=True)
    activate_version(engine, Command(OWNER, MONDAY - HOUR), strategy_name="fib_rsi", version="1")
    return engine


def complete(
    engine: Engine,
    market: SyntheticSource,
    now: datetime,
    plan: Plan | None = None,
    *,
    version: str = "2",
    worth: dict[str, float] = SAME,
) -> datetime:
    """Take *version* through a rollout, and return when it is completed."""
    start_rollout(engine, Command(OWNER, now), strategy_name="fib_rsi", version=version, plan=plan or plan_of())
    for step in (Step.PROMOTE, Step.COMPLETE):
        now = days(engine, now, 1, worth)
        assert ruled(tick(engine, market, now=now))[0] is step
    return now


def raised(engine: Engine, *kinds: str) -> list[AlertOutbox]:
    with reading(engine) as session:
        return [alert for alert in alerts.find_alerts(session) if alert.kind in kinds]


def watch(engine: Engine) -> Watch:
    with reading(engine) as session:
        found = read_watch(session, completed(engine))
    assert found is not None
    return found


def completed(engine: Engine) -> Rollout:
    with reading(engine) as session:
        return next(each for each in rollouts.list_rollouts(session) if each.state == "completed")


def test_the_predecessor_stays_in_shadow_and_each_new_slot_is_booked(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    ended = now
    assert watch_of(two, "fib_rsi") == "against 1 since 2026-03-04: no slot yet"

    for _ in range(3):
        now = days(two, now, 1)
        assert tick(two, market, now=now) == []

    assert standing(two)[0] == {"1": "shadow", "2": "active"}
    assert (watch(two).since, watch(two).book.totals.slots) == (ended, 30)
    assert watch_of(two, "fib_rsi").startswith("against 1 since 2026-03-04: +0.0 R in 30 slots (+0.0% of equity), E = ")
    assert raised(two, "watch.harm", "watch.likely_harm") == []
    assert verify_trail(two).holds


def test_harm_after_the_bake_is_alerted_once(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    for _ in range(6):
        now = days(two, now, 1, HARMED)
        tick(two, market, now=now)
        tick(two, market, now=now + HOUR / 2)

    likely, proven = raised(two, "watch.harm", "watch.likely_harm")

    assert (likely.kind, likely.severity) == ("watch.likely_harm", "warning")
    assert (proven.kind, proven.severity) == ("watch.harm", "critical")
    assert proven.text.startswith("fib_rsi 2 earns less than its predecessor, against 1 since 2026-03-04: -")
    assert "% of equity), E reached" in proven.text
    assert (proven.facts["gate"], proven.facts["control_version"]) == ("watch", "1")
    assert standing(two)[0] == {"1": "shadow", "2": "active"}


def test_an_alert_of_the_watch_is_closed_once_the_version_is_rolled_back(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    now = days(two, now, 6, HARMED)
    tick(two, market, now=now)
    deliver(two, [], now=now)
    (before,) = raised(two, "watch.harm")

    roll_back(two, Command(OWNER, now, "it loses"), strategy_name="fib_rsi", version="2")
    deliver(two, [], now=now + HOUR)

    (after,) = raised(two, "watch.harm")
    assert (before.acknowledged_by, after.acknowledged_by) == ("", "system")


def test_harm_is_alerted_again_in_the_next_quarter(two: Engine, market: SyntheticSource) -> None:
    ended = complete(two, market, MONDAY)
    now = days(two, ended, 6, HARMED)
    tick(two, market, now=now)
    now = days(two, ended + 91 * DAY, 6, HARMED)
    tick(two, market, now=now)

    assert len(raised(two, "watch.harm")) == 2
    assert (watch(two).since, watch(two).book.totals.slots) == (ended + 90 * DAY, 60)


def test_a_clock_that_is_set_back_begins_no_quarter(two: Engine, market: SyntheticSource) -> None:
    ended = complete(two, market, MONDAY)
    days(two, ended + 89 * DAY, 1)
    tick(two, market, now=ended + 91 * DAY)
    days(two, ended + DAY, 1)
    tick(two, market, now=ended + 2 * DAY)

    assert (watch(two).since, watch(two).book.totals.slots) == (ended + 90 * DAY, 20)


def test_a_plan_rolls_back_what_is_proven_to_earn_less(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY, plan_of("rollback"))
    now = days(two, now, 6, HARMED)

    tick(two, market, now=now)

    assert standing(two)[0] == {"1": "active", "2": "shadow"}
    (told,) = raised(two, "rollout.rolled_back", "watch.harm")
    assert (told.kind, told.severity, told.facts["gate"]) == ("rollout.rolled_back", "critical", "watch")
    assert told.text.startswith("fib_rsi 2 rolled back by ramp: standing watch against 1 since 2026-03-04: -")
    assert tallied(two, Counted.ROLLBACK) == {("watch",): 1}
    assert verify_trail(two).holds
    assert watch_of(two, "fib_rsi") == "not watched: no completed rollout made 1 active"
    assert tick(two, market, now=now + HOUR) == []


def test_a_rollout_against_the_version_that_is_rolled_back_is_aborted(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY, plan_of("rollback"))
    put_version(two, "3", recorded=True)
    start_rollout(two, Command(OWNER, now), strategy_name="fib_rsi", version="3", plan=Plan())
    now = days(two, now, 6, HARMED | {"3": -1.0})

    tick(two, market, now=now)

    assert standing(two)[0] == {"1": "active", "2": "shadow", "3": "shadow"}
    assert newest(two).state == "aborted"
    assert verify_trail(two).holds


def test_a_new_rollout_completes_meanwhile_and_the_older_predecessor_retires(
    two: Engine, market: SyntheticSource
) -> None:
    now = complete(two, market, MONDAY)
    put_version(two, "3", recorded=True)
    three = SAME | {"3": 0.4}

    start_rollout(two, Command(OWNER, now), strategy_name="fib_rsi", version="3", plan=plan_of())
    now = days(two, now, 1, three)
    tick(two, market, now=now)
    assert standing(two)[0] == {"1": "shadow", "2": "shadow", "3": "active"}
    assert watch_of(two, "fib_rsi") == "not yet: its rollout bakes, and the gates judge it"
    now = days(two, now, 1, three)
    tick(two, market, now=now)

    assert standing(two)[0] == {"1": "retired", "2": "shadow", "3": "active"}
    assert watch_of(two, "fib_rsi").startswith("against 2 since ")
    with reading(two) as session:
        done = [event for event in audit.events(session) if event.action == "complete"]
    assert [event.after["retired"] for event in done] == [[], ["1"]]
    assert verify_trail(two).holds


def test_the_watch_resumes_when_the_successor_is_rolled_back(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    put_version(two, "3", recorded=True)
    three = SAME | {"3": 0.4}
    start_rollout(two, Command(OWNER, now), strategy_name="fib_rsi", version="3", plan=plan_of())
    now = days(two, now, 1, three)
    tick(two, market, now=now)
    now = days(two, now, 1, three)
    roll_back(two, Command(OWNER, now, "harm"), strategy_name="fib_rsi")

    tick(two, market, now=now)

    assert standing(two)[0] == {"1": "shadow", "2": "active", "3": "shadow"}
    assert watch(two).book.totals.slots == 20
    assert verify_trail(two).holds


def test_a_rollback_by_hand_reinstates_the_predecessor_from_shadow(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)

    roll_back(two, Command(OWNER, now, "users complain"), strategy_name="fib_rsi", version="2")

    assert standing(two)[0] == {"1": "active", "2": "shadow"}
    assert verify_trail(two).holds


def test_retiring_the_predecessor_ends_the_watch(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY, plan_of("rollback"))
    retire_version(two, Command(OWNER, now), strategy_name="fib_rsi", version="1")
    now = days(two, now, 6, HARMED)

    tick(two, market, now=now)

    assert watch_of(two, "fib_rsi") == "not watched: its predecessor 1 is retired"
    assert standing(two)[0] == {"1": "retired", "2": "active"}
    assert raised(two, "watch.harm", "watch.likely_harm", "rollout.rolled_back") == []


def test_a_predecessor_that_is_rolled_back_as_a_canary_ends_the_watch(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    start_rollout(two, Command(OWNER, now), strategy_name="fib_rsi", version="1", plan=Plan())
    assert watch_of(two, "fib_rsi") == "not watched: its predecessor 1 is canary"
    roll_back(two, Command(OWNER, now, "harm"), strategy_name="fib_rsi")

    assert watch_of(two, "fib_rsi") == "not watched: its predecessor 1 is quarantined"


def test_a_version_that_was_active_in_between_ends_the_watch(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    put_version(two, "3")
    for version in ("3", "2"):
        activate_version(two, Command(OWNER, now), strategy_name="fib_rsi", version=version)

    assert watch_of(two, "fib_rsi") == "not watched: 3 was active after 1"


def test_without_a_watch_the_predecessor_retires(two: Engine, market: SyntheticSource) -> None:
    complete(two, market, MONDAY, plan_of("off"))

    assert standing(two)[0] == {"1": "retired", "2": "active"}
    assert watch_of(two, "fib_rsi") == "not watched: its plan has no watch"
    assert verify_trail(two).holds


def test_a_first_version_has_nothing_to_be_watched_against(two: Engine) -> None:
    assert watch_of(two, "fib_rsi") == "not watched: no completed rollout made 1 active"


def test_a_broken_watch_stops_no_rollback_and_is_alerted(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    with transaction(two) as session:
        book = evidence.get_book(session, newest(two).id)
        book.totals = book.totals | {"watch": {"since": "yesterday"}}
        session.add(book)
    for version, status in (("a", Status.ACTIVE), ("b", Status.SHADOW)):
        put_version(two, version, status, strategy_name="zigzag")
    days(two, now, 1)
    start_rollout(two, Command(OWNER, now), strategy_name="zigzag", version="b", plan=Plan())
    errors = {"error_kind": "raised", "strategy_name": "zigzag"}
    put_decisions(two, *(decision_row("b", now + hour * HOUR, "error", **errors) for hour in range(3)))

    (one,) = tick(two, market, now=now + DAY)

    assert (one.strategy_name, one.ruling and one.ruling.step) == ("zigzag", Step.ROLL_BACK)
    (told,) = raised(two, "rollout.blind")
    assert told.text.startswith("fib_rsi 2 blind: its standing watch failed: ")


def test_a_watch_of_another_scheme_is_recomputed_from_its_slots(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    for _ in range(2):
        now = days(two, now, 1, {"1": 0.4, "2": 0.1})
        tick(two, market, now=now)
    before = watch(two)
    with transaction(two) as session:
        book = evidence.get_book(session, newest(two).id)
        book.totals = book.totals | {"watch": book.totals["watch"] | {"book": {"scheme": 0}}}
        session.add(book)

    assert watch(two).book.totals == before.book.totals
    with reading(two) as session:
        stored = evidence.get_book(session, newest(two).id).totals["book"]["totals"]
        assert stored["slots"] == recompute(session, newest(two)).slots == 40


def test_a_report_of_the_rollout_counts_its_own_slots_alone(two: Engine, market: SyntheticSource) -> None:
    now = complete(two, market, MONDAY)
    now = days(two, now, 2, HARMED)
    tick(two, market, now=now)

    report, _ = read_report(two, newest(two).id, now=now + timedelta(hours=1))

    assert (report.cost.slots, sum(day.slots for day in report.days)) == (20, 20)
