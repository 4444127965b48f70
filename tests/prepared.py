"""Rows that many tests begin with: written once on SQLite, and copied from then on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from sqlalchemy import Engine

T = TypeVar("T")
_written: dict[Callable[[Engine], Any], tuple[bytes, Any]] = {}


def prepared(engine: Engine, write: Callable[[Engine], T]) -> T:
    """Return what *write* returned, with *engine*, an empty database, as *write* left it.

    What it returns is shared between tests, so it holds no engine.
    """
    if engine.dialect.name != "sqlite":
        return write(engine)
    file = Path(str(engine.url.database))
    if write in _written:
        rows, kept = _written[write]
        engine.dispose()
        file.write_bytes(rows)
        return cast(T, kept)
    made = write(engine)
    engine.dispose()  # the last connection that is closed writes everything into the one file
    _written[write] = (file.read_bytes(), made)
    return made
