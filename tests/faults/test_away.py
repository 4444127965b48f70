"""PostgreSQL dies during a transaction and returns: one line of error, no partial change, and work goes on."""

import time
from collections.abc import Iterator
from contextlib import suppress
from threading import Timer
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from flows.ramp import ramp_tick
from strategy_core import Router
from strategy_core.cli import main
from strategy_core.domain.audit import Command
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollback import roll_back
from strategy_core.services.tick import tick
from strategy_core.store.engine import open_database
from tests.builders import OWNER
from tests.faults.copies import PostgresqlCopies
from tests.faults.killing import boundaries
from tests.faults.operations import NOW, OPERATIONS, World, bleeding, ramped
from tests.faults.running import Row, restart, run_whole
from tests.faults.server import Server, own_server
from tests.flows.conftest import FEED
from tests.services.ramping import newest, standing

ROLLED_BACK = ({"1": "active", "2": "shadow"}, 0.0)
_COLUMN = "server died"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with own_server() as server:
        yield server


@pytest.fixture(scope="module")
def own_copies(server: Server) -> Iterator[PostgresqlCopies]:
    copies = PostgresqlCopies(server.admin, dies=True)
    yield copies
    copies.close()


@pytest.mark.full
def test_a_rollback_amid_which_the_database_dies_is_done_once_it_is_back(
    server: Server, own_copies: PostgresqlCopies
) -> None:
    with own_copies.copy(ramped) as copy:
        died: list[Timer] = []

        def at(_: int, name: str, __: object) -> None:
            if name.startswith("after UPDATE canary_config") and not died:
                died.append(server.die_for(0.5))

        with boundaries(copy.dying, at):
            taken_off = roll_back(copy.dying, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")

        died[0].join()
        assert taken_off == "2"
        assert standing(copy.living) == ROLLED_BACK


def test_while_the_database_is_away_people_read_one_line_and_users_stay_where_they_are(
    server: Server,
    own_copies: PostgresqlCopies,
    market: SyntheticSource,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    users = [f"user_{number}" for number in range(200)]
    with own_copies.copy(bleeding) as copy, Router(copy.url) as router:
        set_environment(monkeypatch, copy.url)
        before = router.assign(users, "fib_rsi")
        server.die()

        code = main(["status"])
        line = capsys.readouterr().err
        state = ramp_tick.fn()
        with pytest.raises(DBAPIError):
            tick(copy.living, market, now=NOW)
        assert router.assign(users, "fib_rsi") == before

        server.come_back()
        assert (code, line.count("\n")) == (1, 1)
        assert line.startswith("error: the database refuses to work: ")
        assert state.is_failed()
        assert (state.message or "").startswith("the database refuses to work: ")
        tick(copy.living, market, now=NOW)  # by the engine that knew the server before
        assert standing(copy.living) == ROLLED_BACK
        deadline = time.monotonic() + 60
        while set(router.assign(users, "fib_rsi")) != {"1"}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.full
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_server_dies_amid_any_work(
    server: Server, own_copies: PostgresqlCopies, world: World, rows: list[Row], name: str
) -> None:
    """The server is back after half a second. Work that has failed by then is repeated."""
    whole = run_whole(own_copies, name, world)
    commits = [at for at, boundary in enumerate(whole.points, start=1) if boundary.endswith("COMMIT")]
    row = Row(name, "PostgreSQL", _COLUMN, len(whole.points))
    for point in sorted({len(whole.points) // 3, commits[-2] - 5, *commits[-2:]}):
        with own_copies.copy(OPERATIONS[name].prepare) as copy:
            world.receiver.posted.clear()
            died: list[Timer] = []

            def at(number: int, _: str, __: object, point: int = point, died: list[Timer] = died) -> None:
                if number == point:
                    died.append(server.die_for(0.5))

            with boundaries(copy.dying, at), suppress(DBAPIError):
                OPERATIONS[name].act(copy.dying, world, NOW)
            died[0].join()
            row.faults += 1
            restart(copy.living, name, world, whole, row, f"{_COLUMN} {whole.points[point - 1]} ({point})")

    rows.append(row)
    assert row.violations == []


@pytest.mark.full
def test_after_a_minute_without_a_database_the_next_tick_does_what_is_due(
    server: Server, own_copies: PostgresqlCopies, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_copies.copy(bleeding) as copy:
        set_environment(monkeypatch, copy.url)
        back = server.die_for(60)
        while back.is_alive():
            state = ramp_tick.fn()
            if not back.is_alive():
                break
            assert (state.message or "").startswith("the database refuses to work: ")
            time.sleep(5)
        back.join()
        ramp_tick.fn()

        assert newest(copy.living).state == "rolled_back"
        assert standing(copy.living) == ROLLED_BACK


def test_a_server_that_is_gone_without_a_word_is_not_waited_for_long(postgresql_url: str) -> None:
    """What an operator sets in the address wins."""
    usual = parameters(postgresql_url)
    asked = parameters(str(make_url(postgresql_url).update_query_dict({"connect_timeout": "3"})))

    assert (usual["connect_timeout"], usual["tcp_user_timeout"], usual["keepalives_idle"]) == ("10", "30000", "20")
    assert (asked["connect_timeout"], asked["tcp_user_timeout"]) == ("3", "30000")


def parameters(url: str) -> dict[str, str]:
    engine: Engine = open_database(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        driver: Any = connection.connection.driver_connection
        found: dict[str, str] = driver.info.get_parameters()
    engine.dispose()
    return found


def set_environment(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", url)
    monkeypatch.setenv("ROLLOUT_FEED", FEED)
    monkeypatch.setenv("ROLLOUT_REPLAY_STARTED_AT", "2199-01-01T00:00:00+00:00")  # the clock stands still
    monkeypatch.setenv("ROLLOUT_REPLAY_FROM", NOW.isoformat())
