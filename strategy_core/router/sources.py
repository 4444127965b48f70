"""How a router's source is named: one address, checked before anything is read; its secrets are told to nobody."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pydantic import AnyHttpUrl, TypeAdapter, ValidationError

from strategy_core.domain.errors import InvalidSetting
from strategy_core.router.source import Source

_TOKEN = re.compile(r"[!-~]+")
_ADDRESS = "an address alone, such as https://HOST; the token is given apart"


def open_source(database_url: str | None, api_url: str | None, token: str | None) -> Callable[[], Source]:
    """Return what makes the source, one for each process; nothing is connected yet.

    Raises:
        InvalidSetting: not exactly one address, or one that is not valid. MissingExtra: PostgreSQL without its driver.
    """
    if (database_url is None) == (api_url is None):
        raise InvalidSetting("Router", "both" if api_url else "neither", "one of database_url and api_url")
    return _of_api(api_url, token) if api_url is not None else _of_database(database_url or "")


def _of_api(url: str, token: str | None) -> Callable[[], Source]:
    from strategy_core.router.http import HttpSource

    try:
        parsed = TypeAdapter(AnyHttpUrl).validate_python(url)
    except ValidationError:
        raise InvalidSetting("api_url", url if "@" not in url else "***", _ADDRESS) from None
    if parsed.username or parsed.password or parsed.query or parsed.fragment:
        raise InvalidSetting("api_url", "***", _ADDRESS)
    if token is not None and not _TOKEN.fullmatch(token):
        raise InvalidSetting("token", "***", "plain characters without a space")
    return partial(HttpSource, str(parsed).rstrip("/"), token)


def _of_database(url: str) -> Callable[[], Source]:
    from strategy_core.store.engine import open_database

    parsed = open_database(url).url
    if parsed.get_backend_name() == "postgresql":
        from strategy_core.router.postgresql import PostgresqlSource

        return partial(PostgresqlSource, parsed)
    from strategy_core.router.sqlite import SqliteSource

    if parsed.database in (None, "", ":memory:"):
        raise InvalidSetting("database_url", url, "a file: sqlite:///FILE")
    return partial(SqliteSource, Path(str(parsed.database)))
