import shutil
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.store.engine import open_database
from tests.api.asking import Api, World, put_world
from tests.conftest import SQLITE_FIRST
from tests.prepared import prepared


@pytest.fixture(params=SQLITE_FIRST)
def database_url(request: pytest.FixtureRequest) -> str:
    """Use SQLite by default and PostgreSQL with `-m full`: what differs between them is tested with the services."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def api(engine: Engine) -> Api:
    """The API on an empty database: SQLite, then PostgreSQL."""
    return Api(engine)


@pytest.fixture
def world(engine: Engine) -> World:
    return prepared(engine, put_world)


@pytest.fixture(scope="module")
def shared(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One API for all requests that change nothing."""
    file = tmp_path_factory.mktemp("shared") / "rollout.db"
    shutil.copy(sqlite_template, file)
    engine = open_database(f"sqlite:///{file}")
    yield Api(engine), put_world(engine)
    engine.dispose()
