import time
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import AlreadyRolledBack, NothingToRollBack, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.canary import activate_canary
from strategy_core.services.queries import route_user
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.versions import activate_version
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import open_database, reading, transaction
from tests.builders import DAY, MONDAY, OWNER, put_pair, put_version
from tests.prepared import prepared


@pytest.fixture
def pair(engine: Engine) -> Engine:
    prepared(engine, put_pair)
    return engine


def test_a_rollback_takes_every_user_off_the_canary_and_ends_the_rollout(pair: Engine) -> None:
    rollout = start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    assert roll_back(pair, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi") == "2"

    routes = {route_user(pair, user_id=f"user_{i}", strategy_name="fib_rsi", now=MONDAY).version for i in range(50)}
    assert routes == {"1"}
    with reading(pair) as session:
        ended = rollouts.get_rollout(session, rollout.id)
        event = audit.events(session)[-1]
        alert = alerts.find_alerts(session)[-1]
    assert (ended.state, ended.reason) == ("rolled_back", "by ana: odd fills")
    assert (event.action, event.before["percent"], event.after["percent"]) == ("roll_back", 5.0, 0.0)
    assert alert.text == "fib_rsi 2 rolled back by ana: odd fills"


def test_a_change_that_is_stuck_gives_way(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that stands still in mid-change, or a machine that has gone, would hold the strategy for hours."""
    monkeypatch.setattr("strategy_core.store.engine.IDLE_SECONDS", 1)
    engine, stuck = open_database(postgresql_url), open_database(postgresql_url)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    def hold() -> str:
        with transaction(stuck) as session:
            versions.lock_strategy(session, "fib_rsi").salt = "never"
            return roll_back(engine, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

    with pytest.raises(DBAPIError, match="idle-in-transaction"):
        hold()

    with reading(engine) as session:
        assert versions.get_version(session, "fib_rsi", "2").status == "shadow"
        assert versions.get_strategy(session, "fib_rsi").salt != "never"
    for each in (engine, stuck):
        each.dispose()


def test_a_rollback_that_stood_still_is_not_made_again(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By then another version may be the canary: it would be taken off instead."""
    monkeypatch.setattr("strategy_core.store.engine.IDLE_SECONDS", 1)
    engine = open_database(postgresql_url)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    stops = iter([2.0])

    @event.listens_for(engine, "after_cursor_execute")
    def stand_still(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FOR UPDATE" in statement:
            time.sleep(next(stops, 0.0))

    with pytest.raises(DBAPIError, match="idle-in-transaction"):
        roll_back(engine, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

    with reading(engine) as session:
        assert versions.get_version(session, "fib_rsi", "2").status == "canary"
    engine.dispose()


@pytest.mark.parametrize("odd", ["\x00", "\udcff"])
def test_no_character_of_a_reason_stops_a_rollback(pair: Engine, odd: str) -> None:
    """A terminal of another encoding, or a broken client, may hand on what no database can hold."""
    start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    roll_back(pair, Command(OWNER, MONDAY, f"odd {odd} fills"), strategy_name="fib_rsi")

    with reading(pair) as session:
        assert audit.events(session)[-1].reason == "odd \ufffd fills"


def test_a_canary_without_a_rollout_is_withdrawn(pair: Engine) -> None:
    activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=20)

    assert roll_back(pair, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi") == "2"

    with reading(pair) as session:
        withdrawn = versions.get_version(session, "fib_rsi", "2")
    assert (withdrawn.status, withdrawn.quarantined_at) == ("shadow", MONDAY)


def test_an_activation_is_undone_when_its_version_is_named(pair: Engine) -> None:
    activate_version(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2")

    assert roll_back(pair, Command(OWNER, MONDAY, "users complain"), strategy_name="fib_rsi", version="2") == "2"

    with reading(pair) as session:
        assert versions.active_version(session, "fib_rsi").version == "1"
        assert versions.get_version(session, "fib_rsi", "2").quarantined_at == MONDAY


@pytest.mark.parametrize("planned", [True, False], ids=["under a plan", "by hand"])
def test_an_activation_is_undone_whatever_canary_is_on_its_way(pair: Engine, planned: bool) -> None:
    """It was measured against a version that serves nobody any more; it did no harm, and is not quarantined."""
    put_version(pair, "3")
    activate_version(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2")
    if planned:
        start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="3", plan=Plan())
    else:
        activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="3", rollout_percent=10)

    assert roll_back(pair, Command(OWNER, MONDAY, "users complain"), strategy_name="fib_rsi", version="2") == "2"

    with reading(pair) as session:
        third = versions.get_version(session, "fib_rsi", "3")
        assert versions.active_version(session, "fib_rsi").version == "1"
        assert (third.status, third.quarantined_at) == ("shadow", None)
        assert rollouts.get_canary(session, "fib_rsi").rollout_percent == 0.0
        assert [each.state for each in rollouts.list_rollouts(session)] == ["aborted"] * planned


def test_where_there_is_nothing_to_undo_it_says_so(pair: Engine) -> None:
    with pytest.raises(NothingToRollBack):
        roll_back(pair, Command(OWNER, MONDAY, "?"), strategy_name="fib_rsi")
    with pytest.raises(UnknownStrategy):
        roll_back(pair, Command(OWNER, MONDAY, "?"), strategy_name="ppo_gold")

    with reading(pair) as session:
        assert audit.events(session) == []


def test_a_call_that_comes_twice_takes_nobody_off_the_healthy_version(pair: Engine) -> None:
    put_version(pair, "0", Status.RETIRED, activated_at=MONDAY, retired_at=MONDAY)
    start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    roll_back(pair, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

    line = "fib_rsi 2 was rolled back already, at 2026-03-02 00:00 UTC by ana: no user gets it; the active version is 1"
    for version in (None, "2"):
        with pytest.raises(AlreadyRolledBack) as again:
            roll_back(pair, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi", version=version)
        assert str(again.value) == line
    with pytest.raises(NothingToRollBack, match="'0' cannot be undone"):
        roll_back(pair, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi", version="0")

    with reading(pair) as session:
        assert versions.active_version(session, "fib_rsi").version == "1"


def test_a_version_that_is_not_the_one_on_its_way_is_left_alone(pair: Engine) -> None:
    start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    with pytest.raises(NothingToRollBack, match="'1' cannot be undone: nothing was active before it"):
        roll_back(pair, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi", version="1")

    with reading(pair) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_percent == 5.0


def test_the_predecessor_is_the_one_that_was_activated_last(pair: Engine) -> None:
    put_version(pair, "old", Status.RETIRED, activated_at=MONDAY - 9 * DAY, retired_at=MONDAY)
    put_version(pair, "new", Status.RETIRED, activated_at=MONDAY - 2 * DAY, retired_at=MONDAY - DAY)

    roll_back(pair, Command(OWNER, MONDAY, "users complain"), strategy_name="fib_rsi", version="1")

    with reading(pair) as session:
        assert versions.active_version(session, "fib_rsi").version == "new"
