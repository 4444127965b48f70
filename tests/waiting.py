"""Wait until somebody waits for a lock of PostgreSQL, as a test must before it goes on with what holds him up."""

from concurrent.futures import Future
from typing import Any

from sqlalchemy import Engine, text

_WAITING = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' "
    "AND pid <> pg_backend_pid()"
)


def until_somebody_waits(engine: Engine, *, unless: Future[Any]) -> None:
    """Return when a transaction of this database waits for another, or when what should have waited has ended."""
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while not unless.done() and not connection.execute(text(_WAITING)).scalar_one():
            connection.execute(text("SELECT pg_sleep(0.01)"))
