import pytest
from sqlalchemy import Engine

from tests.api.asking import Api, World, put_world


@pytest.fixture
def api(engine: Engine) -> Api:
    """The API on an empty database: SQLite, then PostgreSQL."""
    return Api(engine)


@pytest.fixture
def world(engine: Engine) -> World:
    return put_world(engine)
