"""Pagination cursors: the position where a page ended, as opaque text."""

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
    """Return the cursor for the item with this sort key."""
    plain = [part.isoformat() if isinstance(part, datetime) else part for part in key]
    return base64.urlsafe_b64encode(json.dumps(plain, default=str, separators=(",", ":")).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, *parts: Callable[[Any], Any]) -> Any:
    """Return the sort key in *cursor* as a tuple, each part read by one of *parts*, or None without a cursor.

    Raises:
        InvalidName: the cursor is not from this listing.
    """
    if cursor is None:
        return None
    try:
        plain = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        return tuple(read(value) for read, value in zip(parts, list(plain), strict=True))
    except (ValueError, TypeError, RecursionError, binascii.Error, Invalid):
        raise InvalidName("cursor", cursor[:40], "the `next_cursor` of a page of this listing") from None


def next_cursor(
    items: Sequence[Any], limit: int, key: Callable[[Any], Sequence[Any]]
) -> tuple[Sequence[Any], str | None]:
    """Return the first *limit* items and the cursor of the next page.

    Args:
        items: up to *limit* + 1 of them. The extra one shows that there is a next page.
    """
    if len(items) <= limit:
        return items, None
    return items[:limit], write_cursor(*key(items[limit - 1]))
