"""What a router reads routing and toggles from: the Source protocol, and the source that an address names."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Protocol, TypeVar

from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.routing import Routing
from strategy_core.domain.toggles import AllToggles

if TYPE_CHECKING:
    from strategy_core.router.database import Reader

Read = TypeVar("Read")
Read_co = TypeVar("Read_co", covariant=True)
AllRouting = Mapping[str, Routing | None]  # by strategy name, or None if no version is active
_TOKEN = re.compile(r"[!-~]+")
_ADDRESS = "an address without a token, such as https://HOST"


class Source(Protocol[Read_co]):
    """A source of all routing, or of all toggles, used by one thread.

    It connects on the first read, and again after `close`.

    Attributes:
        address: its name in logs, without secrets.
    """

    address: str

    def read(self) -> Read_co | None:
        """Return all that there is, or None if it has not changed since the last read.

        Raises:
            RoutingUnavailable: there is no answer within a few seconds. The caller then calls `close` and tries again.
        """

    def wait(self, stop: Event) -> None:
        """Wait until it may have changed, until the next read is due, or until soon after *stop* is set.

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


def open_routing_source(
    database_url: str | None, api_url: str | None, token: str | None, now: Callable[[], datetime]
) -> Callable[[], Source[AllRouting]]:
    """Return a factory of the source, for one call per process. It does not connect yet.

    Args:
        now: the time by which exclusions of users run out. The API uses its own.

    Raises:
        InvalidSetting: there is not exactly one address, or it is not valid.
    """
    _check_one(database_url, api_url)
    if api_url is not None:
        from strategy_core.router.http import routing_source

        return partial(routing_source, api_address(api_url, token), token)
    from strategy_core.router.database import RoutingReads

    return _database_source(database_url or "", partial(RoutingReads, now))


def open_toggle_source(
    database_url: str | None, api_url: str | None, token: str | None
) -> Callable[[], Source[AllToggles]]:
    """Return a factory of the source of toggles, as `open_routing_source` does."""
    _check_one(database_url, api_url)
    if api_url is not None:
        from strategy_core.router.http import toggle_source

        return partial(toggle_source, api_address(api_url, token), token)
    from strategy_core.router.database import ToggleReads

    return _database_source(database_url or "", ToggleReads)


def _check_one(database_url: str | None, api_url: str | None) -> None:
    if (database_url is None) == (api_url is None):
        raise InvalidSetting("Router", "both" if api_url else "neither", "exactly one of database_url and api_url")


def api_address(url: str, token: str | None) -> str:
    """Return the address of an API without its last slash. Raises InvalidSetting, also for a token that is none."""
    try:
        parsed = TypeAdapter(AnyHttpUrl).validate_python(url)
    except ValidationError:
        raise InvalidSetting("api_url", url if "@" not in url else "***", _ADDRESS) from None
    if parsed.username or parsed.password or parsed.query or parsed.fragment:
        raise InvalidSetting("api_url", "***", _ADDRESS)
    if token is not None and not _TOKEN.fullmatch(token):
        raise InvalidSetting("token", "***", "visible ASCII characters without a space")
    return str(parsed).rstrip("/")


def _database_source(url: str, make_reader: "Callable[[], Reader[Read]]") -> Callable[[], Source[Read]]:
    from strategy_core.router.database import PostgresqlSource, SqliteSource
    from strategy_core.store.engine import open_database

    parsed = open_database(url).url
    if parsed.get_backend_name() == "postgresql":
        return lambda: PostgresqlSource(parsed, make_reader)
    if parsed.database in (None, "", ":memory:"):
        raise InvalidSetting("database_url", url, "a file: sqlite:///FILE")
    file = Path(str(parsed.database))
    return lambda: SqliteSource(file, make_reader)
