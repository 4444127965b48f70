"""Concurrent changes and a lost database: the use case is retried, a rollback for longest."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy import Connection, Engine, make_url, text
from sqlalchemy.exc import OperationalError

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import Unsettled
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollback import roll_back
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store import decisions
from strategy_core.store.engine import (
    RetryPolicy,
    insert_if_new,
    is_transient,
    open_database,
    retry_transient,
    transaction,
)
from strategy_core.store.tables import ShadowDecisionLog
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_version
from tests.faults.killing import boundaries
from tests.faults.operations import NOW, bleeding, pair, ramped
from tests.lending import address
from tests.services.ramping import newest, ruled, standing
from tests.waiting import until_somebody_waits

ROLLED_BACK = ({"1": "active", "2": "shadow"}, 0.0)
OTHER = "UPDATE canary_config SET generation = generation"
LOCK = "SELECT name FROM strategy FOR UPDATE"


@contextmanager
def with_settings(url: str, **settings: str) -> Iterator[Engine]:
    """Yield an engine whose sessions of PostgreSQL have these settings."""
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    engine = open_database(address(make_url(url).update_query_dict({"options": options})))
    yield engine
    engine.dispose()


@contextmanager
def other(url: str, *statements: str) -> Iterator[Connection]:
    """Yield a connection in another transaction, which PostgreSQL does not choose as the victim of a deadlock."""
    with with_settings(url, deadlock_timeout="1h") as engine, engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
        yield connection


def in_a_deadlock(url: str, work: Callable[[Engine], object], first: str, second: str) -> object:
    """Return what *work* does although another transaction locks *first*, then *second*, in the opposite order."""
    with with_settings(url, deadlock_timeout="50ms") as engine, ThreadPoolExecutor(1) as thread:
        with other(url, first) as connection:
            done = thread.submit(work, engine)
            until_somebody_waits(engine, unless=done)
            connection.execute(text(second))  # returns when the other transaction was cancelled
            connection.rollback()
        return done.result()


def test_a_rollback_is_retried_after_a_deadlock(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    ramped(engine)

    taken_off = in_a_deadlock(
        postgresql_url, lambda mine: roll_back(mine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi"), OTHER, LOCK
    )

    assert taken_off == "2"
    assert standing(engine) == ROLLED_BACK
    engine.dispose()


def test_a_tick_that_met_a_deadlock_takes_its_step(postgresql_url: str, market: SyntheticSource) -> None:
    engine = open_database(postgresql_url)
    bleeding(engine)

    in_a_deadlock(
        postgresql_url,
        lambda mine: ruled(tick(mine, market, now=NOW))[0] is Step.ROLL_BACK or pytest.fail("no rollback"),
        OTHER,
        LOCK,
    )

    assert standing(engine) == ROLLED_BACK
    assert newest(engine).blind_since is None
    engine.dispose()


def test_decisions_that_met_a_deadlock_are_logged_once(postgresql_url: str) -> None:
    """Two runs write the same candles, the other one in an order that this release does not use."""
    engine = open_database(postgresql_url)
    pair(engine)
    rows = [decision_row("1", MONDAY + hour * HOUR) for hour in range(2)]

    @retry_transient()
    def log(mine: Engine) -> int:
        with transaction(mine) as session:
            return sum(decisions.log_decisions(session, [row]) for row in rows)

    with with_settings(postgresql_url, deadlock_timeout="50ms") as mine, ThreadPoolExecutor(1) as thread:
        with with_settings(postgresql_url, deadlock_timeout="1h") as theirs, transaction(theirs) as session:
            insert_if_new(session, ShadowDecisionLog, rows[1:])
            done = thread.submit(log, mine)
            until_somebody_waits(engine, unless=done)
            insert_if_new(session, ShadowDecisionLog, rows[:1])
            session.rollback()
        assert done.result() == 2
    engine.dispose()


def test_without_a_retry_a_deadlock_fails_the_work(postgresql_url: str) -> None:
    """The tests above provoke a real deadlock."""
    engine = open_database(postgresql_url)
    ramped(engine)

    def once(mine: Engine) -> None:
        with transaction(mine) as session:
            session.execute(text(LOCK))
            session.execute(text(OTHER))

    with pytest.raises(OperationalError) as met:
        in_a_deadlock(postgresql_url, once, OTHER, LOCK)

    assert isinstance(met.value.orig, DeadlockDetected)
    assert is_transient(met.value)
    engine.dispose()


def test_a_rollback_is_retried_after_a_serialization_failure(postgresql_url: str) -> None:
    """A stricter isolation level for the whole database does not change the rollback."""
    engine = open_database(postgresql_url)
    ramped(engine)

    with with_settings(postgresql_url, default_transaction_isolation="serializable") as mine:
        with ThreadPoolExecutor(1) as thread, other(postgresql_url, OTHER) as connection:
            done = thread.submit(roll_back, mine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")
            until_somebody_waits(engine, unless=done)
            connection.commit()  # the row changed after the rollback read it
        assert done.result() == "2"

    assert standing(engine) == ROLLED_BACK
    engine.dispose()


def test_a_lost_answer_to_a_commit_is_looked_up(postgresql_url: str) -> None:
    """The change was committed: it is not repeated, and the returned rows can be read."""
    engine = open_database(postgresql_url)
    ramped(engine)

    def at(_: int, name: str, connection: object) -> None:
        if name == "after COMMIT" and not lost:
            lost.append(name)
            _hang_up(connection)

    lost: list[str] = []
    with boundaries(engine, at):
        serving = activate_version(engine, Command(OWNER, NOW), strategy_name="fib_rsi", version="2")

    assert (lost, serving.version, serving.status) == (["after COMMIT"], "2", Status.ACTIVE)
    engine.dispose()


def test_an_unknown_commit_result_is_reported(postgresql_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_database(postgresql_url)
    ramped(engine)
    monkeypatch.setattr("strategy_core.store.engine._COMMIT_CHECK_WITHIN_S", 0.0)

    with (
        pytest.raises(Unsettled, match=r"may or may not have been saved .* read the current state before"),
        boundaries(engine, lambda _, name, connection: _hang_up(connection) if name == "after COMMIT" else None),
    ):
        roll_back(engine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")

    assert standing(engine) == ROLLED_BACK
    engine.dispose()


@contextmanager
def writing(url: str) -> Iterator[Connection]:
    """Yield a connection that holds SQLite's write lock."""
    engine = open_database(url)
    with engine.connect() as connection:
        connection.exec_driver_sql("ROLLBACK")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
        yield connection
    engine.dispose()


def test_work_gets_its_number_of_tries_after_its_time(sqlite_url: str) -> None:
    engine = open_database(f"{sqlite_url}?timeout=0.01")
    tries: list[float] = []

    @retry_transient(RetryPolicy(tries=3, seconds=0.0))
    def write() -> None:
        tries.append(time.monotonic())
        with transaction(engine) as session:
            session.execute(text("DELETE FROM api_answer"))

    with writing(sqlite_url), pytest.raises(OperationalError, match="database is locked"):
        write()
    write()

    assert len(tries) == 3 + 1
    engine.dispose()


def test_work_is_tried_during_its_time_after_its_number_of_tries(sqlite_url: str) -> None:
    engine = open_database(f"{sqlite_url}?timeout=0.01")
    tries: list[float] = []

    with writing(sqlite_url) as other_writer:

        @retry_transient(RetryPolicy(tries=1, seconds=60.0))
        def write() -> None:
            tries.append(time.monotonic())
            if len(tries) == 3:
                other_writer.exec_driver_sql("ROLLBACK")
            with transaction(engine) as session:
                session.execute(text("DELETE FROM api_answer"))

        write()

    assert len(tries) == 3
    engine.dispose()


def test_a_rollback_outlasts_a_writer_that_holds_sqlite(sqlite_url: str) -> None:
    """The writer holds the lock longer than a statement waits for it."""
    engine = open_database(f"{sqlite_url}?timeout=0.05")
    ramped(engine)

    with ThreadPoolExecutor(1) as thread:
        with writing(sqlite_url):
            done = thread.submit(roll_back, engine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")
            time.sleep(0.5)
        assert done.result() == "2"

    assert standing(engine) == ROLLED_BACK
    engine.dispose()


def test_a_lasting_error_is_not_retried(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE, at=MONDAY - DAY)
    tries: list[int] = []

    @retry_transient(RetryPolicy(tries=5, seconds=5.0))
    def write() -> None:
        tries.append(1)
        with transaction(engine) as session:
            session.execute(text("SELECT nothing FROM nowhere"))

    with pytest.raises(Exception, match="nowhere"):
        write()

    assert tries == [1]


def _hang_up(connection: object) -> None:
    import psycopg

    assert isinstance(connection, psycopg.Connection)
    connection.close()
    raise psycopg.OperationalError("server closed the connection unexpectedly")
