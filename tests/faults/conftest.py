from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DATABASES
from tests.endpoint import Endpoint
from tests.faults.copies import Copies, PostgresqlCopies, SqliteCopies
from tests.faults.operations import World


@pytest.fixture(scope="session", params=DATABASES)
def copies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    """Copies of prepared databases, on SQLite and on PostgreSQL."""
    made: Copies
    if request.param == "sqlite":
        empty: Path = request.getfixturevalue("sqlite_template")
        made = SqliteCopies(empty, tmp_path_factory.mktemp("faults"))
    else:
        made = PostgresqlCopies(request.getfixturevalue("postgresql"))
    yield made
    made.close()


@pytest.fixture
def world(endpoint: Endpoint) -> Iterator[World]:
    made = World()
    made.receiver = endpoint
    yield made
    made.close()
