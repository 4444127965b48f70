"""On PostgreSQL a router is told at once, looks for itself anyway, and gets over whatever becomes of its connection."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, text

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import RoutingUnavailable
from strategy_core.router import database as postgresql
from strategy_core.services.rollback import roll_back
from tests.builders import MONDAY, OWNER
from tests.router.conftest import until

pytestmark = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
_BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'rollout router' AND datname = current_database()"
)


def ask(engine: Engine, statement: str) -> list[int]:
    with engine.begin() as connection:
        found = connection.execute(text(statement))
        return list(found.scalars()) if found.returns_rows else []


def test_a_notification_is_enough(canary: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "_HEARTBEAT_S", 3_600.0)
    with Router(database_url) as router:
        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

        until(lambda: router.generation("fib_rsi") == 2)


def test_without_notifications_the_heartbeat_finds_the_change(
    canary: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler between them keeps notifications to itself."""
    monkeypatch.setattr(postgresql, "_HEARTBEAT_S", 0.05)
    ask(canary, "ALTER TABLE strategy DISABLE TRIGGER tell_strategy")
    with Router(database_url) as router:
        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

        until(lambda: router.generation("fib_rsi") == 2)


def test_a_change_made_while_its_connection_is_down_is_caught_up_with(
    canary: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "_HEARTBEAT_S", 3_600.0)
    with Router(database_url) as router:
        (first,) = ask(canary, _BACKENDS)

        ask(canary, _BACKENDS.replace("pid", "pg_terminate_backend(pid)", 1))
        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

        until(lambda: router.generation("fib_rsi") == 2)
        until(lambda: ask(canary, _BACKENDS) not in ([], [first]))


def test_a_backend_that_hangs_is_given_up(canary: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its socket lives, and says nothing: neither an error nor the end of the stream would ever come."""
    monkeypatch.setattr(postgresql, "_HEARTBEAT_S", 0.05)
    monkeypatch.setattr(postgresql, "_ANSWER_S", 0.5)
    with Router(database_url) as router:
        (backend,) = ask(canary, _BACKENDS)
        with stopped(backend):
            roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

            until(lambda: router.generation("fib_rsi") == 2)


def test_a_server_that_takes_calls_and_says_nothing_is_not_waited_for(database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RoutingUnavailable, match="timeout"):
        Router(f"postgresql://ana@127.0.0.1:{silent.getsockname()[1]}/x?connect_timeout=2")


def test_closing_gives_the_connection_back(canary: Engine, database_url: str) -> None:
    with Router(database_url):
        assert len(ask(canary, _BACKENDS)) == 1

    until(lambda: ask(canary, _BACKENDS) == [])


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
