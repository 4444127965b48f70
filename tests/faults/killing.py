"""Death at a boundary: before or after any statement or commit of an engine, as a raise or as a real SIGKILL."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event


class Killed(BaseException):
    """What a killed process looks like from inside: nothing catches it."""


@contextmanager
def boundaries(engine: Engine, at: Callable[[int, str], None]) -> Iterator[list[str]]:
    """Call *at* with number and name of each boundary of the block, from 1; the list holds the names so far.

    Once *at* has raised Killed the process is dead: each later statement raises again, and instead of a rollback the
    connection is cut, as a kernel does for the dead.
    """
    passed: list[str] = []
    dead: list[bool] = []
    dialect: Any = engine.dialect
    commit, rollback = dialect.do_commit, dialect.do_rollback

    def reached(name: str) -> None:
        if dead:
            raise Killed(name)
        passed.append(" ".join(name.split())[:80])
        try:
            at(len(passed), passed[-1])
        except Killed:
            dead.append(True)
            raise

    def before(conn: Any, cursor: Any, sql: str, *_: Any) -> None:
        reached(f"before {sql}")

    def after(conn: Any, cursor: Any, sql: str, *_: Any) -> None:
        reached(f"after {sql}")

    def committing(connection: Any) -> None:
        reached("before COMMIT")
        commit(connection)
        reached("after COMMIT")

    def cutting(connection: Any) -> None:
        if dead:
            getattr(connection, "driver_connection", connection).close()
        else:
            rollback(connection)

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    dialect.do_commit, dialect.do_rollback = committing, cutting
    try:
        yield passed
    finally:
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "after_cursor_execute", after)
        del dialect.do_commit, dialect.do_rollback


def raising_at(point: int) -> Callable[[int, str], None]:
    """Raise Killed at the boundary of that number; 0 is none."""

    def at(number: int, name: str) -> None:
        if number == point:
            raise Killed(name)

    return at


def really_at(point: int) -> Callable[[int, str], None]:
    """End this process at the boundary of that number, as the kernel's killer of processes does."""

    def at(number: int, name: str) -> None:
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return at
