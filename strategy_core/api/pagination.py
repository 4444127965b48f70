"""Cursors: where a page ended, as text that clients hand back and need not read."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from strategy_core.domain.errors import Invalid, InvalidName
from strategy_core.domain.lifecycle import utc

_LARGEST = 2**63 - 1


def moment(value: Any) -> datetime:
    return utc(datetime.fromisoformat(value), "cursor")


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(value)
    return value


def identity(value: Any) -> UUID:
    return UUID(text(value))


def number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise ValueError(value)
    return value


def write_cursor(*key: str | int | UUID | datetime) -> str:
    """Return the cursor of the item whose key this is."""
    plain = [part.isoformat() if isinstance(part, datetime) else part for part in key]
    return base64.urlsafe_b64encode(json.dumps(plain, default=str, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, *parts: Callable[[Any], Any]) -> Any:
    """Return the key as a tuple of these *parts*; None without a cursor.

    Raises:
        InvalidName: no page gave it.
    """
    if cursor is None:
        return None
    try:
        plain = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        return tuple(read(value) for read, value in zip(parts, list(plain), strict=True))
    except (ValueError, TypeError, RecursionError, binascii.Error, Invalid):
        raise InvalidName("cursor", cursor[:40], "`next_cursor` of a page of this listing") from None


def next_cursor(
    items: Sequence[Any], limit: int, key: Callable[[Any], Sequence[Any]]
) -> tuple[Sequence[Any], str | None]:
    """Return the items of the page, of which one more than *limit* was read, and the cursor of the next one."""
    if len(items) <= limit:
        return items, None
    return items[:limit], write_cursor(*key(items[limit - 1]))
