"""Routing from an SQLite file, which is checked five times a second and read only after a commit."""

import sqlite3
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock
from typing import Any

from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.errors import RoutingUnavailable
from strategy_core.router.source import AllRouting
from strategy_core.store import versions
from strategy_core.store.engine import failure

_CHECK_S = 0.2
_BUSY_S = 1.0


class SqliteSource:
    """Reads *file* without writing to it or creating it.

    The file is closed while the process forks, because SQLite does not allow an open connection in a child.
    """

    def __init__(self, file: Path) -> None:
        self.address = f"sqlite:///{file}"
        self._file = file.resolve()
        self._engine = create_engine(
            "sqlite+pysqlite://", creator=self._connect, poolclass=NullPool, isolation_level="AUTOCOMMIT"
        )
        self._connection: Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._lock = Lock()
        self._seen: int | None = None  # PRAGMA data_version, valid for one connection only

    def read(self) -> AllRouting | None:
        with self._lock:
            try:
                return self._read()
            except DBAPIError as error:
                raise RoutingUnavailable(self.address, failure(error)) from error

    def wait(self, stop: Event) -> None:
        stop.wait(_CHECK_S)

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

    def _read(self) -> AllRouting | None:
        identity = self._file_identity()
        if self._connection is None or identity != self._identity:  # the file was replaced, for example by a backup
            self._close()
            self._identity = identity  # read before opening, so that a replacement in between is noticed
            self._connection = self._engine.connect()
        data_version = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
        if data_version == self._seen:
            return None
        with Session(self._connection) as session:
            found = versions.all_routing(session)
        self._seen = data_version  # read before the query, so that a commit in between is noticed
        return found

    def _close(self) -> None:
        connection, self._connection, self._seen = self._connection, None, None
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
