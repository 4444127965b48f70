"""Routing, or toggles, from a database: PostgreSQL, read after a notification and every two seconds, or an SQLite file.

The file is checked five times a second and read only after a commit.
"""

import os
import selectors
import sqlite3
from collections.abc import Callable, Generator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

import psycopg
from sqlalchemy import URL, Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.errors import RoutingUnavailable, reason_of
from strategy_core.domain.toggles import AllToggles
from strategy_core.router.source import AllRouting
from strategy_core.store import toggles
from strategy_core.store.engine import failure
from strategy_core.store.routing_reader import RoutingReader

Read = TypeVar("Read")
Read_co = TypeVar("Read_co", covariant=True)
CHANNEL = "rollout_strategy"  # a trigger on the table `strategy` notifies it
_CHECK_S = 0.2  # of an SQLite file
_BUSY_S = 1.0
_HEARTBEAT_S = 2.0  # between two reads, in case a pooler or the network loses a notification
_ANSWER_S = 5.0
_SLICE_S = 0.25  # how soon a wait notices that it must stop
_CONNECTION = {  # defaults that detect a dead connection
    "connect_timeout": 3,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,
    "application_name": "rollout router",
}


class _Bounded(psycopg.Connection[Any]):
    """A connection with a timeout of `_ANSWER_S` for every answer, because a server can hang on a healthy network."""

    def wait(self, gen: Generator[Any, Any, Any], *_: Any, **__: Any) -> Any:
        deadline = monotonic() + _ANSWER_S
        try:
            wanted = next(gen)
            while (left := deadline - monotonic()) > 0:
                gen_ready = _ready(self.pgconn.socket, wanted, left)
                if gen_ready:
                    wanted = gen.send(gen_ready)
        except StopIteration as done:
            return done.value
        self.pgconn.finish()  # else close() would wait for the answer again
        raise psycopg.OperationalError(f"no answer within {_ANSWER_S:g} s")


class Reader(Protocol[Read_co]):
    """Reads from the sessions of one connection."""

    @property
    def behind(self) -> bool:
        """Whether the next read is due at once."""

    def is_due(self) -> bool:
        """Return whether a read is due although the database has not changed."""

    def read(self, session: Session) -> Read_co | None:
        """Return all that there is, or None if it has not changed since the last call."""

    def reconnect(self) -> None:
        """Expect that the next session is of another connection."""


class RoutingReads:
    """Reads all routing.

    Args:
        now: the time by which exclusions of users run out.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self._reader = RoutingReader()

    @property
    def behind(self) -> bool:
        return self._reader.behind

    def is_due(self) -> bool:
        return self._reader.is_due(self._now())

    def read(self, session: Session) -> AllRouting:
        return self._reader.read(session, self._now())

    def reconnect(self) -> None:
        self._reader.reconnect()


class ToggleReads:
    """Reads all toggles, and nothing while their revision is the same."""

    behind = False

    def __init__(self) -> None:
        self._seen: str | None = None

    def is_due(self) -> bool:
        return False

    def read(self, session: Session) -> AllToggles | None:
        found = toggles.revision(session)  # before the toggles, so that a commit in between is noticed
        if found == self._seen:
            return None
        read = toggles.all_toggles(session)
        self._seen = found
        return read

    def reconnect(self) -> None:
        self._seen = None


class PostgresqlSource(Generic[Read]):
    """Listens and reads on one connection.

    Behind a pooler in transaction mode there are no notifications, so changes are seen by the heartbeat.
    """

    def __init__(self, url: URL, make_reader: "Callable[[], Reader[Read]]") -> None:
        self._reader = make_reader()
        self.address = url.set(drivername="postgresql").render_as_string(hide_password=True)
        self._engine = create_engine(
            url, creator=self._connect, poolclass=NullPool, isolation_level="AUTOCOMMIT", pool_reset_on_return=None
        )
        self._url = url
        self._connection: Connection | None = None
        self._driver: psycopg.Connection[Any] | None = None
        self._notified = False

    def read(self) -> Read | None:
        try:
            if self._connection is None or self._connection.invalidated:
                self._connection = self._engine.connect()
                self._connection.exec_driver_sql(f"LISTEN {CHANNEL}")  # before the read, so that no change is missed
            self._notified = False
            with Session(self._connection) as session:
                return self._reader.read(session)
        except DBAPIError as error:
            raise RoutingUnavailable(self.address, failure(error)) from error

    def wait(self, stop: Event) -> None:
        deadline = monotonic() + (0.0 if self._reader.behind else _HEARTBEAT_S)
        try:
            while not (self._has_notification() or stop.is_set()) and (left := deadline - monotonic()) > 0:
                self._listen(min(left, _SLICE_S))
        except psycopg.Error as error:
            raise RoutingUnavailable(self.address, reason_of(error)) from error

    def close(self) -> None:
        connection, self._connection, self._driver = self._connection, None, None
        self._reader.reconnect()  # the next server may have other data, as after a failover
        if connection is not None:
            with suppress(DBAPIError, psycopg.Error):
                connection.invalidate()
                connection.close()

    def before_fork(self) -> None:
        """No action: an open connection may stay open."""

    def after_fork_in_parent(self) -> None:
        """No action is needed."""

    def after_fork_in_child(self) -> None:
        """Replace the copied socket, without closing the parent's connection."""
        if self._driver is not None and not self._driver.closed:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._driver.pgconn.socket)  # else the connection stays open until the child ends
            os.close(nowhere)

    def _has_notification(self) -> bool:
        """Return whether a notification has arrived, also one together with an answer."""
        while self._driver is not None and self._driver.pgconn.notifies() is not None:
            self._notified = True
        return self._notified

    def _listen(self, seconds: float) -> None:
        if self._driver is not None and _ready(self._driver.pgconn.socket, selectors.EVENT_READ, seconds):
            self._driver.pgconn.consume_input()

    def _connect(self) -> psycopg.Connection[Any]:
        arguments, options = self._engine.dialect.create_connect_args(self._url)
        self._driver = _Bounded.connect(*arguments, **{**_CONNECTION, **options}, autocommit=True)
        self._driver.add_notify_handler(self._set_notified)
        return self._driver

    def _set_notified(self, _: psycopg.Notify) -> None:
        self._notified = True


def _ready(socket: int, wanted: int, seconds: float) -> Any:
    """Return the events of *wanted* that *socket* is ready for, or 0 after *seconds*."""
    with selectors.DefaultSelector() as selector:
        selector.register(socket, wanted)
        found = selector.select(seconds)
    return found[0][1] if found else 0


class SqliteSource(Generic[Read]):
    """Reads *file* without writing to it or creating it.

    The file is closed while the process forks, because SQLite does not allow an open connection in a child.
    """

    def __init__(self, file: Path, make_reader: "Callable[[], Reader[Read]]") -> None:
        self._make_reader = make_reader
        self._reader = make_reader()
        self.address = f"sqlite:///{file}"
        self._file = file.resolve()
        self._engine = create_engine(
            "sqlite+pysqlite://", creator=self._connect, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._lock = Lock()
        self._seen: int | None = None  # PRAGMA data_version, valid for one connection only

    def read(self) -> Read | None:
        with self._lock:
            try:
                return self._read()
            except DBAPIError as error:
                raise RoutingUnavailable(self.address, failure(error)) from error

    def wait(self, stop: Event) -> None:
        stop.wait(0.0 if self._reader.behind else _CHECK_S)

    def close(self) -> None:
        with self._lock:
            self._close()

    def before_fork(self) -> None:
        self._lock.acquire()
        self._close()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        self._lock = Lock()

    def _read(self) -> Read | None:
        identity = self._file_identity()
        if self._connection is None or identity != self._identity:  # the file was replaced, for example by a backup
            self._close()
            if identity != self._identity:
                self._reader = self._make_reader()
            self._identity = identity  # read before opening, so that a replacement in between is noticed
            self._connection = self._engine.connect()
        data_version = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
        if data_version == self._seen and not self._reader.is_due():
            return None
        with Session(self._connection) as session:
            found = self._reader.read(session)
        self._seen = data_version  # read before the query, so that a commit in between is noticed
        return found

    def _close(self) -> None:
        connection, self._connection, self._seen = self._connection, None, None
        self._reader.reconnect()
        if connection is not None:
            with suppress(DBAPIError):
                connection.close()

    def _file_identity(self) -> tuple[int, int]:
        try:
            found = self._file.stat()
        except OSError as error:
            raise RoutingUnavailable(self.address, error.strerror or type(error).__name__) from None
        return found.st_dev, found.st_ino

    def _connect(self) -> Any:
        return sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S, check_same_thread=False)
