"""The clock of a replay is in the database, and every process that opens it uses that clock."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core import VersionRegistry
from strategy_core.domain.errors import InvariantRefused
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import (
    current_time,
    open_database,
    read_clock,
    remove_clock,
    start_clock,
    stop_clock,
    upgrade,
)
from strategy_core.settings import DatabaseClock, Settings
from strategy_core.store.engine import transaction
from strategy_core.store.tables import StoredClock
from tests.builders import DAY, HOUR, MONDAY
from tests.conftest import DATABASES

REAL = datetime(2030, 1, 1, tzinfo=MONDAY.tzinfo)
CLOCK = ReplayClock(REAL, MONDAY, 60.0)
MINUTE = timedelta(minutes=1)


@pytest.fixture(params=DATABASES)
def of_an_earlier_release(request: pytest.FixtureRequest, tmp_path: object) -> Iterator[Engine]:
    url = f"sqlite:///{tmp_path}/old.db" if request.param == "sqlite" else None
    engine = open_database(url or request.getfixturevalue("bare_postgresql_url"))
    upgrade(engine, "v0007")
    yield engine
    engine.dispose()


def test_the_clock_runs_stands_still_and_is_removed(engine: Engine) -> None:
    assert read_clock(engine) is None

    start_clock(engine, CLOCK)
    running = Settings().on_clock_of(engine, REAL)
    stopped = stop_clock(engine, CLOCK, real_now=REAL + MINUTE)
    still = Settings().on_clock_of(engine, REAL + DAY)

    assert stopped
    assert [running.at(REAL + each) for each in (MINUTE, HOUR)] == [MONDAY + HOUR, MONDAY + 60 * HOUR]
    assert (running.tick_overdue, running.clock_check.tolerance) == (600 * MINUTE, HOUR)
    assert [still.at(REAL + each) for each in (HOUR, 10 * DAY)] == [MONDAY + HOUR] * 2
    assert (remove_clock(engine), remove_clock(engine), read_clock(engine)) == (True, False, None)


def test_a_replay_stops_no_clock_but_its_own(engine: Engine) -> None:
    start_clock(engine, CLOCK)
    start_clock(engine, ReplayClock(REAL + MINUTE, MONDAY + DAY, 60.0))

    assert not stop_clock(engine, CLOCK, real_now=REAL + HOUR)

    assert read_clock(engine) == ReplayClock(REAL + MINUTE, MONDAY + DAY, 60.0)


@pytest.mark.parametrize("wrong", [{"id": 2}, {"speed": 0.0}, {"speed": 2_000_000.0}])
def test_there_is_one_clock_at_most_and_it_runs_forward(engine: Engine, wrong: dict[str, Any]) -> None:
    given: dict[str, Any] = {"replay_from": MONDAY, "speed": 1.0}

    with pytest.raises(InvariantRefused), transaction(engine) as session:
        session.add(StoredClock(**given | wrong))


def test_a_database_of_an_earlier_release_has_no_clock(of_an_earlier_release: Engine, tmp_path: object) -> None:
    assert read_clock(of_an_earlier_release) is None
    assert read_clock(open_database(f"sqlite:///{tmp_path}/none.db")) is None


@pytest.mark.parametrize(
    ("replay_from", "problem"),
    [
        (MONDAY + 2 * HOUR, ""),
        (MONDAY + 2 * HOUR + MINUTE, ""),
        (
            MONDAY,
            "clock disagrees: ROLLOUT_REPLAY_FROM shows 2026-03-02 00:00 UTC and the database's clock "
            "2026-03-02 02:00 UTC, which is used: unset ROLLOUT_REPLAY_*, or run: rollout db clock --remove",
        ),
    ],
)
def test_a_setting_that_disagrees_by_more_than_a_minute_is_named(
    engine: Engine, replay_from: datetime, problem: str
) -> None:
    start_clock(engine, CLOCK)

    found = Settings(replay_from=replay_from).on_clock_of(engine, REAL + 2 * MINUTE)

    assert found.clock_check.problem == problem
    assert found.at(REAL + 2 * MINUTE) == MONDAY + 2 * HOUR


def test_a_clock_that_ran_out_of_range_gives_way_to_real_time(engine: Engine) -> None:
    """A replay that was killed runs on: after a year at full speed no calendar has its time."""
    start_clock(engine, ReplayClock(REAL, MONDAY, 1_000_000.0))

    found = Settings().on_clock_of(engine, REAL + 365 * DAY)

    assert found.clock_check.problem.startswith("clock disagrees: the database stores a clock that cannot be: ")
    assert found.at(REAL) == REAL


def test_a_rollback_has_a_time_with_any_clock(engine: Engine) -> None:
    start_clock(engine, ReplayClock(None, MONDAY))
    away = open_database("postgresql://127.0.0.1:1/none")
    out_of_range = Settings(replay_from=datetime(9999, 12, 31, tzinfo=REAL.tzinfo))

    assert Settings().on_any_clock_of(engine).at(REAL) == MONDAY
    for settings, shown in (
        (Settings(), REAL),
        (out_of_range, REAL),
        (Settings(replay_from=MONDAY + DAY), MONDAY + DAY),
    ):
        found = settings.on_any_clock_of(away)
        assert found.at(REAL) == shown
        assert found.clock_check.problem == "clock disagrees: the database's clock cannot be used: OperationalError"


def test_a_server_follows_the_clock_and_keeps_it_while_the_database_is_away(engine: Engine) -> None:
    server = DatabaseClock(engine, Settings())
    start_clock(engine, ReplayClock(None, MONDAY))
    before = server.settings.replay_from

    assert (before, server.fresh_now()) == (None, MONDAY)

    start_clock(engine, ReplayClock(None, MONDAY + DAY))
    assert (server.now(), server.fresh_now()) == (MONDAY, MONDAY + DAY)
    server._engine = open_database("postgresql://127.0.0.1:1/none")
    assert server.fresh_now() == MONDAY + DAY


def test_the_sdk_uses_the_clock_of_the_database(engine: Engine) -> None:
    start_clock(engine, ReplayClock(None, MONDAY))

    assert VersionRegistry(engine)._command("why").now == current_time(engine) == MONDAY
