"""Faults at a boundary, before or after any statement or commit of an engine: death, a lost connection, a full disk."""

import os
import resource
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine, event

At = Callable[[int, str, Any], None]  # number and name of a boundary, and the driver's connection

_PAGE = 5_000  # bytes: a page of SQLite in its log


class Killed(BaseException):
    """The process is killed. A BaseException, so that it is not caught."""


@contextmanager
def boundaries(engine: Engine, at: At) -> Iterator[list[str]]:
    """Call *at* at each boundary of the block, counted from 1. The list holds the names so far.

    Once *at* has raised Killed the process is dead: its connection is cut, as a kernel does for the dead, nothing is
    rolled back, and each later statement raises again.
    """
    passed: list[str] = []
    dead: list[bool] = []
    dialect: Any = engine.dialect
    commit, rollback = dialect.do_commit, dialect.do_rollback

    def reached(name: str, connection: Any) -> None:
        if dead:
            raise Killed(name)
        if "PRAGMA busy_timeout" in name:  # sent where the milliseconds left differ, so not in every run
            return
        driver = getattr(connection, "driver_connection", connection)
        passed.append(" ".join(name.split())[:80])
        try:
            at(len(passed), passed[-1], driver)
        except Killed:
            dead.append(True)
            if isinstance(driver, sqlite3.Connection):
                driver.rollback()  # a statement that is still open would keep the lock of a closed connection
            driver.close()
            raise

    def before(conn: Any, cursor: Any, sql: str, *_: Any) -> None:
        reached(f"before {sql}", conn.connection)

    def after(conn: Any, cursor: Any, sql: str, *_: Any) -> None:
        reached(f"after {sql}", conn.connection)

    def committing(connection: Any) -> None:
        reached("before COMMIT", connection)
        commit(connection)
        reached("after COMMIT", connection)

    def cutting(connection: Any) -> None:
        if not dead:
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


def raising_at(point: int) -> At:
    """Raise Killed at the boundary of that number."""

    def at(number: int, name: str, _: Any) -> None:
        if number == point:
            raise Killed(name)

    return at


def really_at(point: int) -> At:
    """End this process at the boundary of that number, as the kernel's killer of processes does."""

    def at(number: int, _name: str, _: Any) -> None:
        if number == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return at


def losing_at(point: int) -> At:
    """Lose PostgreSQL at the boundary of that number, once: after a commit, that is to lose the answer to it."""

    def at(number: int, name: str, connection: Any) -> None:
        if number == point:
            connection.close()
            if name == "after COMMIT":
                raise psycopg.OperationalError("server closed the connection unexpectedly")

    return at


@contextmanager
def full_at(point: int) -> Iterator[At]:
    """From the boundary of that number on SQLite finds no room for another page, or for more than one at a commit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def at(number: int, name: str, connection: Any) -> None:
        if number == point:
            connection.execute("PRAGMA max_page_count = 1")  # that is: no more than there are
        if number == point and name == "before COMMIT":
            wal = Path(connection.execute("PRAGMA database_list").fetchone()[2] + "-wal")
            resource.setrlimit(resource.RLIMIT_FSIZE, (wal.stat().st_size + _PAGE, before[1]))

    try:
        yield at
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
