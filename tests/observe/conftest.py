import pytest

from tests.conftest import SQLITE_FIRST


@pytest.fixture(params=SQLITE_FIRST)
def database_url(request: pytest.FixtureRequest) -> str:
    """Use SQLite by default and PostgreSQL with `-m full`: what differs between them is tested with the store."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url
