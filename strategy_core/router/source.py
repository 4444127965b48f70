"""What a router reads routing from: the Source protocol, and the source that an address names."""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Event
from typing import Protocol

from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.routing import Routing

AllRouting = Mapping[str, Routing | None]  # by strategy name, or None if no version is active
_TOKEN = re.compile(r"[!-~]+")
_ADDRESS = "an address without a token, such as https://HOST"


class Source(Protocol):
    """A source of all routing, used by one thread. It connects on the first read, and again after `close`.

    Attributes:
        address: its name in logs, without secrets.
    """

    address: str

    def read(self) -> AllRouting | None:
        """Return all current routing, or None if it has not changed since the last read.

        Raises:
            RoutingUnavailable: there is no answer within a few seconds. The caller then calls `close` and tries again.
        """

    def wait(self, stop: Event) -> None:
        """Wait until routing may have changed, until the next read is due, or until soon after *stop* is set.

        Raises:
            RoutingUnavailable: the connection was lost.
        """

    def close(self) -> None:
        """Close the connection. The next read opens a new one."""

    def before_fork(self) -> None:
        """Prepare for a fork. Called by another thread than `read`."""

    def after_fork_in_parent(self) -> None:
        """Continue after a fork."""

    def after_fork_in_child(self) -> None:
        """Release the copied connection without harm to the parent. The child gets its own source."""


def open_routing_source(database_url: str | None, api_url: str | None, token: str | None) -> Callable[[], Source]:
    """Return a factory of the source, for one call per process. It does not connect yet.

    Raises:
        InvalidSetting: there is not exactly one address, or it is not valid.
    """
    if (database_url is None) == (api_url is None):
        raise InvalidSetting("Router", "both" if api_url else "neither", "exactly one of database_url and api_url")
    return _api_source(api_url, token) if api_url is not None else _database_source(database_url or "")


def _api_source(url: str, token: str | None) -> Callable[[], Source]:
    from strategy_core.router.http import HttpSource

    try:
        parsed = TypeAdapter(AnyHttpUrl).validate_python(url)
    except ValidationError:
        raise InvalidSetting("api_url", url if "@" not in url else "***", _ADDRESS) from None
    if parsed.username or parsed.password or parsed.query or parsed.fragment:
        raise InvalidSetting("api_url", "***", _ADDRESS)
    if token is not None and not _TOKEN.fullmatch(token):
        raise InvalidSetting("token", "***", "visible ASCII characters without a space")
    return partial(HttpSource, str(parsed).rstrip("/"), token)


def _database_source(url: str) -> Callable[[], Source]:
    from strategy_core.router.database import PostgresqlSource, SqliteSource
    from strategy_core.store.engine import open_database

    parsed = open_database(url).url
    if parsed.get_backend_name() == "postgresql":
        return partial(PostgresqlSource, parsed)
    if parsed.database in (None, "", ":memory:"):
        raise InvalidSetting("database_url", url, "a file: sqlite:///FILE")
    return partial(SqliteSource, Path(str(parsed.database)))
