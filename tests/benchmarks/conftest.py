"""What benchmarks share: a database that may grow."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.store.engine import open_database
from tests.conftest import DATABASES


@pytest.fixture(params=DATABASES)
def vast(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database of its own, without a table: none that is lent may grow so."""
    on_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/vast.db" if on_sqlite else request.getfixturevalue("bare_postgresql_url")
    engine = open_database(url)
    yield engine
    engine.dispose()
    for file in tmp_path.glob("vast.db*"):
        file.unlink()
