import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Engine

from strategy_core.market.synthetic import SyntheticSource
from tests.conftest import DATABASES, SQLITE_FIRST
from tests.endpoint import Endpoint
from tests.faults.copies import Copies, PostgresqlCopies, SqliteCopies
from tests.faults.operations import World
from tests.faults.running import Row, table


@pytest.fixture(params=SQLITE_FIRST)
def database_url(request: pytest.FixtureRequest) -> str:
    """Use SQLite by default and PostgreSQL with `-m full`: what differs between them is tested with the services."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture(scope="session")
def sqlite_copies(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> SqliteCopies:
    return SqliteCopies(sqlite_template, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="session")
def postgresql_copies(postgresql: Engine) -> Iterator[PostgresqlCopies]:
    made = PostgresqlCopies(postgresql)
    yield made
    made.close()


@pytest.fixture(params=DATABASES)
def copies(request: pytest.FixtureRequest) -> Copies:
    """Copies of prepared databases, on SQLite and on PostgreSQL."""
    made: Copies = request.getfixturevalue(f"{request.param}_copies")
    return made


@pytest.fixture
def world(endpoint: Endpoint) -> Iterator[World]:
    made = World()
    made.receiver = endpoint
    yield made
    made.close()


@pytest.fixture(scope="session")
def market() -> SyntheticSource:
    return World().market


@pytest.fixture(scope="session")
def rows() -> Iterator[list[Row]]:
    """The rows of the table, which is printed once all are there."""
    found: list[Row] = []
    yield found
    print(f"\n{table(found)}")  # noqa: T201


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Silence the log of sent alerts."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()
