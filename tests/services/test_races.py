"""Races: counted day by day, an owner or the race starts the nominee's rollout, and its lead may be lost."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
from sqlalchemy import Engine

from strategy_core.domain import race
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import CannotRace, InvalidRace, NoRace, RaceOpen
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.race_days import day_of
from strategy_core.services.audit import verify_trail
from strategy_core.services.evidence import Feed
from strategy_core.services.position_holds import positions_problem
from strategy_core.services.race_tick import RaceTick, tick_races
from strategy_core.services.races import (
    RaceView,
    close_race,
    enter_race,
    find_race,
    list_races,
    start_race,
    withdraw_from_race,
)
from strategy_core.services.release_times import set_freeze
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.transitions import replace_active
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store import alerts, races, rollouts, versions
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_day, put_decisions, put_version, without_caps
from tests.services.ramping import newest, standing

PLAN = without_caps(Plan())
BETTER = {"1": 0.1, "2": 0.5, "3": -0.3}
SIGNALS = range(0, 20, 5)


@pytest.fixture
def candidates(engine: Engine) -> Engine:
    """Version 1 is active, 2 and 3 are in shadow."""
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    for version in ("2", "3"):
        put_version(engine, version, recorded=True)
    return engine


def days(engine: Engine, first: datetime, count: int, worth: dict[str, float] = BETTER) -> datetime:
    """Log *count* days, on which results differ a little from day to day, and return when the last one is over."""
    for day in range(count):
        of_day = {version: r + (0.2 if day % 2 else -0.2) * (version != "1") for version, r in worth.items()}
        put_day(engine, first + day * DAY, dict.fromkeys(worth, "buy"), of_day, signal_hours=SIGNALS)
    return first + count * DAY


def begin(engine: Engine, *, starts: bool = False, of: Sequence[str] = ("2", "3"), now: datetime = MONDAY) -> RaceView:
    command = Command(OWNER, now, "which is best")
    return start_race(engine, command, strategy_name="fib_rsi", candidates=of, plan=PLAN, starts=starts)


def tick(engine: Engine, now: datetime) -> RaceTick:
    (ticked,) = tick_races(engine, now=now)
    assert not ticked.error
    return ticked


def status_of(view: RaceView) -> dict[str, str]:
    assert view.newest is not None
    return {row["version"]: row["status"] for row in view.newest.rows}


def told(engine: Engine, kind: str) -> list[str]:
    with reading(engine) as session:
        return [each.text for each in alerts.find_alerts(session) if each.kind == kind]


def test_the_leader_is_nominated_and_an_owner_is_asked_once(candidates: Engine) -> None:
    begun = begin(candidates)
    end = days(candidates, MONDAY, 20)

    first = tick(candidates, end + 3 * DAY)
    again = tick(candidates, end + 3 * DAY + HOUR)

    assert (first.days, again.days) == (21, 0)
    assert first.line.startswith("2 leads with +0.4")
    assert told(candidates, "race.nominated") == [f"fib_rsi: {first.line}"]
    view = find_race(candidates, begun.race.id)
    assert len(view.standings) == 21
    assert view.race.ruling == {"step": "nominate", "version": "2", "reason": first.line, "hold": False}
    (row,) = [row for row in view.standings[-1].rows if row["version"] == "2"]
    assert (row["slots"], row["days"]) == (80, 20)
    assert row["mean"] == pytest.approx(0.4)
    assert row["low"] < 0.4 < row["high"]
    assert not rollouts_of(candidates)


def rollouts_of(engine: Engine) -> list[str]:
    with reading(engine) as session:
        return [each.version for each in rollouts.list_rollouts(session)]


def test_a_race_that_starts_rollouts_starts_one(candidates: Engine) -> None:
    begun = begin(candidates, starts=True)
    end = days(candidates, MONDAY, 20)

    ticked = tick(candidates, end + 3 * DAY)
    tick(candidates, end + 3 * DAY + HOUR)

    assert ticked.line.endswith("its rollout is started")
    assert rollouts_of(candidates) == ["2"]
    assert standing(candidates) == ({"1": "active", "2": "canary", "3": "shadow"}, 5.0)
    assert find_race(candidates, begun.race.id).race.rollout_id == newest(candidates).id
    assert newest(candidates).plan == PLAN.model_dump(mode="json")
    assert verify_trail(candidates, "fib_rsi").holds


def test_a_race_ends_its_own_rollout_when_the_lead_is_gone(candidates: Engine) -> None:
    begin(candidates, starts=True)
    end = days(candidates, MONDAY, 20)
    tick(candidates, end + 3 * DAY)
    after = days(candidates, end, 40, BETTER | {"2": -1.0})

    ticked = tick(candidates, after + 3 * DAY)

    assert ticked.line.endswith("the rollout of 2 is ended")
    assert (newest(candidates).state, standing(candidates)[0]["2"]) == ("aborted", "shadow")
    with reading(candidates) as session:
        assert versions.get_version(session, "fib_rsi", "2").quarantined_at is None
    assert len(told(candidates, "race.lead_lost")) == 1
    assert verify_trail(candidates, "fib_rsi").holds


def test_a_version_that_falls_behind_is_held(candidates: Engine) -> None:
    begin(candidates, starts=True)
    end = days(candidates, MONDAY, 20)
    tick(candidates, end + 3 * DAY)
    after = days(candidates, end, 3, BETTER | {"2": -0.6})

    ticked = tick(candidates, after + 3 * DAY)

    assert "2 has lately fallen" in ticked.line
    plan = load_plan(newest(candidates).plan)
    with transaction(candidates) as session:
        held = positions_problem(session, newest(candidates), plan, Feed({}))
    assert held == ticked.line


def test_a_promoted_version_that_has_turned_is_told_once(candidates: Engine) -> None:
    begin(candidates)
    end = days(candidates, MONDAY, 20)
    with transaction(candidates) as session:
        chosen = versions.get_version(session, "fib_rsi", "2")
        replace_active(session, chosen, outgoing_becomes=Status.SHADOW, now=end)
    after = days(candidates, end, 12, BETTER | {"2": -0.6})

    tick(candidates, after + 3 * DAY)
    tick(candidates, after + 3 * DAY + HOUR)

    (text,) = told(candidates, "race.lead_lost")
    assert text.startswith("fib_rsi: 2 has lately fallen ")
    assert tick(candidates, after + 4 * DAY).line in text


def test_a_race_only_alerts_when_an_owner_started_the_rollout(candidates: Engine) -> None:
    begin(candidates)
    end = days(candidates, MONDAY, 20)
    tick(candidates, end + 3 * DAY)
    start_rollout(candidates, Command(OWNER, end + 3 * DAY), strategy_name="fib_rsi", version="2", plan=PLAN)
    after = days(candidates, end, 40, BETTER | {"2": -1.0})

    tick(candidates, after + 3 * DAY)
    tick(candidates, after + 5 * DAY)

    assert newest(candidates).state == "running"
    assert len(told(candidates, "race.lead_lost")) == 1


def test_a_freeze_holds_the_start(candidates: Engine) -> None:
    begin(candidates, starts=True)
    end = days(candidates, MONDAY, 20)
    now = end + 3 * DAY
    set_freeze(candidates, Command(OWNER, end, "holidays"), strategy_name="fib_rsi", ends_at=now + DAY)

    held = tick(candidates, now)
    later = tick(candidates, now + 2 * DAY)

    assert "it waits: " in held.line
    assert later.line.endswith("its rollout is started")


def test_a_day_is_counted_once_its_trades_have_closed(candidates: Engine) -> None:
    begun = begin(candidates)
    end = days(candidates, MONDAY, 3)
    put_decisions(candidates, *(decision_row(version, end, "buy") for version in BETTER))
    days(candidates, end + DAY, 1)

    assert tick(candidates, end + 2 * DAY).days == 4
    assert tick(candidates, end + 8 * DAY).days == 0
    assert tick(candidates, end + 20 * DAY).days > 0
    (waited,) = [each for each in find_race(candidates, begun.race.id).standings if each.day == end]
    assert [row["slots"] for row in waited.rows if row["version"] == "2"] == [12]


def test_a_version_that_fails_too_often_is_withdrawn(candidates: Engine) -> None:
    begun = begin(candidates)
    end = days(candidates, MONDAY, 10)
    hours = [end + hour * HOUR for hour in range(24)]
    put_decisions(candidates, *(decision_row("2", at, "error", error_kind="crash") for at in hours))
    put_decisions(candidates, *(decision_row(version, at) for at in hours for version in ("1", "3")))

    tick(candidates, end + 5 * DAY)

    view = find_race(candidates, begun.race.id)
    assert status_of(view)["2"] == "withdrawn"
    assert "errors on" in view.entries[1].withdrawn


def test_a_clearly_worse_version_is_out_for_good(candidates: Engine) -> None:
    begun = begin(candidates)
    end = days(candidates, MONDAY, 60, {"1": 0.1, "2": 0.2, "3": -1.0})

    tick(candidates, end + 3 * DAY)

    view = find_race(candidates, begun.race.id)
    assert status_of(view)["3"] == "eliminated"
    assert view.entries[2].eliminated_by in {"1", "2"}
    with pytest.raises(CannotRace, match="it is out already: eliminated by"):
        withdraw_from_race(candidates, Command(OWNER, end), strategy_name="fib_rsi", version="3")


def test_a_version_enters_later_and_another_one_leaves(candidates: Engine) -> None:
    begun = begin(candidates)
    end = days(candidates, MONDAY, 5)
    tick(candidates, end + 3 * DAY)
    put_version(candidates, "4", at=end, recorded=True)

    entered = enter_race(candidates, Command(OWNER, end + 3 * DAY), strategy_name="fib_rsi", version="4")
    left = withdraw_from_race(
        candidates, Command(OWNER, end + 3 * DAY, "a bad idea"), strategy_name="fib_rsi", version="3"
    )

    assert [each.version for each in entered.entries] == ["1", "2", "3", "4"]
    assert left.entries[2].withdrawn == "by ana: a bad idea"
    later = days(candidates, end, 5, {"1": 0.1, "2": 0.2, "3": 0.1, "4": 0.3})
    tick(candidates, later + 3 * DAY)
    view = find_race(candidates, begun.race.id)
    assert status_of(view) == {"1": "running", "2": "running", "3": "withdrawn", "4": "running"}
    assert view.newest is not None
    assert [row["days"] for row in view.newest.rows if row["version"] == "4"] == [5]
    assert (view.race.tried, verify_trail(candidates, "fib_rsi").holds) == (3, True)


def test_a_new_active_version_is_what_all_are_set_against(candidates: Engine) -> None:
    begun = begin(candidates)
    end = days(candidates, MONDAY, 3)
    tick(candidates, end + 3 * DAY)
    put_version(candidates, "9", at=end, recorded=True)
    activate_version(candidates, Command(OWNER, end, "urgent"), strategy_name="fib_rsi", version="9")
    later = days(candidates, end, 3, {"2": 0.5, "3": 0.1, "9": 0.0})

    tick(candidates, later + 3 * DAY)

    view = find_race(candidates, begun.race.id)
    assert view.newest is not None
    assert (view.newest.active, [each.version for each in view.entries]) == ("9", ["1", "2", "3", "9"])
    assert [row["mean"] for row in view.newest.rows if row["version"] == "9"] == [None]


def test_ticks_at_the_same_time_count_each_day_once(candidates: Engine) -> None:
    begun = begin(candidates, starts=True)
    end = days(candidates, MONDAY, 40)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: tick_races(candidates, now=end + 3 * DAY), range(4)))
    tick(candidates, end + 3 * DAY)

    view = find_race(candidates, begun.race.id)
    assert [each.day for each in view.standings] == [MONDAY + day * DAY for day in range(-1, 40)]
    assert rollouts_of(candidates) == ["2"]
    assert view.race.pairs == recounted(candidates, view)


def recounted(engine: Engine, view: RaceView) -> dict[str, object]:
    """Return the sums of the pairs that follow from the decision log."""
    names = [each.version for each in view.entries]
    pairs = race.begin(len(names))
    with reading(engine) as session:
        for each in view.standings:
            day = races.read_decided(session, "fib_rsi", names, start=each.day, end=each.day + DAY)
            pairs = race.add_day(pairs, day_of(day, names))
    return pairs.stored()


def test_what_may_not_race_is_refused(candidates: Engine) -> None:
    put_version(candidates, "5", recorded=True)
    retire_version(candidates, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="5")

    with pytest.raises(InvalidRace, match="it needs 2 to 32 candidates, and has 1"):
        begin(candidates, of=["2"])
    with pytest.raises(InvalidRace, match="named twice"):
        begin(candidates, of=["2", "2"])
    with pytest.raises(CannotRace, match="it is the active version"):
        begin(candidates, of=["1", "2"])
    with pytest.raises(CannotRace, match="it is retired"):
        begin(candidates, of=["2", "5"])
    with pytest.raises(NoRace, match="rollout race start fib_rsi"):
        close_race(candidates, Command(OWNER, MONDAY), strategy_name="fib_rsi")
    begin(candidates)
    with pytest.raises(RaceOpen, match="since 2026-03-02"):
        begin(candidates)
    with pytest.raises(CannotRace, match="entered before"):
        enter_race(candidates, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2")
    with pytest.raises(CannotRace, match="it was not entered"):
        withdraw_from_race(candidates, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="5")


def test_a_closed_race_is_kept_and_another_one_may_start(candidates: Engine) -> None:
    first = begin(candidates)
    days(candidates, MONDAY, 3)

    closed = close_race(candidates, Command(OWNER, MONDAY + DAY, "enough"), strategy_name="fib_rsi")
    second = begin(candidates, now=MONDAY + 2 * DAY)

    assert (closed.race.closed_by, closed.race.closed_because) == ("ana", "enough")
    assert [each.race.id for each in list_races(candidates, "fib_rsi")] == [second.race.id]
    assert {each.race.id for each in list_races(candidates, open_alone=False)} == {first.race.id, second.race.id}
    assert [each.race_id for each in tick_races(candidates, now=MONDAY + 9 * DAY)] == [second.race.id]
    assert verify_trail(candidates, "fib_rsi").holds
