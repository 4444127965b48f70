"""What a flow finds in its environment: a database, a feed, and a clock that stands still until a test moves it."""

from collections.abc import Callable
from datetime import datetime

import pytest

from tests.builders import MONDAY
from tests.conftest import SQLITE_FIRST

FEED = "synthetic:GOLD?symbols=1&start=2026-01-01&days=300"
Clock = Callable[[datetime], None]


@pytest.fixture(params=SQLITE_FIRST)
def database_url(request: pytest.FixtureRequest) -> str:
    """Use SQLite by default and PostgreSQL with `-m full`: what differs between them is tested with the services."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Clock:
    """Return a function that sets the time of later flows, which use the database of `engine`. It starts on Monday."""

    def set_time(moment: datetime) -> None:
        monkeypatch.setenv("ROLLOUT_REPLAY_FROM", moment.isoformat())

    monkeypatch.setenv("ROLLOUT_DATABASE_URL", database_url)
    monkeypatch.setenv("ROLLOUT_FEED", FEED)
    monkeypatch.setenv("ROLLOUT_REPLAY_STARTED_AT", "2199-01-01T00:00:00+00:00")  # a replay stands still until then
    set_time(MONDAY)
    return set_time
