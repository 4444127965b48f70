"""Field types, base models and pagination cursors that the endpoints share.

The models are separate from the database tables. A cursor is the position where a page ended, as opaque text.
"""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar
from uuid import UUID

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from strategy_core.domain.errors import Invalid, InvalidName
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.parsing import Moment

Item = TypeVar("Item")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
PRINTED = r"^[^\x00-\x1f\x7f]+$"

StrategyOrAll = Annotated[
    str,
    StringConstraints(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._+-]{0,63})$", max_length=64),
    Field(description="Name of the strategy, or `*` for all strategies.", examples=["*"]),
]
StrategyName = Annotated[
    str,
    StringConstraints(pattern=NAME, max_length=64),
    Field(description="Name of the strategy.", examples=["fib_rsi"]),
]
VersionName = Annotated[
    str, StringConstraints(pattern=NAME, max_length=64), Field(description="Name of the version.", examples=["2.0.0"])
]
Symbol = Annotated[
    str, StringConstraints(pattern=NAME, max_length=64), Field(description="Symbol of the feed.", examples=["GOLD"])
]
UserId = Annotated[
    str,
    StringConstraints(pattern=PRINTED, min_length=1, max_length=200),
    Field(description="The platform's id of the user.", examples=["user_123"]),
]
VersionId = Annotated[UUID, Path(description="Id of the version.")]
RolloutId = Annotated[UUID, Path(description="Id of the rollout.")]
Cursor = Annotated[
    str | None,
    Query(description="`next_cursor` of the previous page. Default: the first page.", max_length=1_000),
]
Limit = Annotated[int, Query(ge=1, le=500, description="Maximum number of items.")]
Time = Annotated[
    Moment,
    WithJsonSchema({"type": "string", "format": "date-time"}),
    Field(description="ISO 8601 with an offset from UTC.", examples=["2026-03-02T00:00:00Z"]),
]
Reason = Annotated[
    str,
    StringConstraints(max_length=1_000),
    Field(description="Why you do this. Kept in the audit trail.", examples=["better in shadow for 30 days"]),
]
RequiredReasonText = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1_000, pattern=r"\S"),
    Field(description="Why you do this. Required. Kept in the audit trail.", examples=["users lose money"]),
]
OverrideReason = Annotated[
    str,
    StringConstraints(max_length=1_000),
    Field(
        description="Why a version that is quarantined after a rollback may serve users again, or why this is done in "
        "a freeze or outside the release windows, which needs the role admin."
    ),
]


class RequestModel(BaseModel):
    """A request body. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResponseModel(BaseModel):
    """A part of an answer, built from the attributes of a row or result with the same names."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Page(ResponseModel, Generic[Item]):
    """One page of a listing."""

    items: list[Item] = Field(description="The items of this page.")
    next_cursor: str | None = Field(description="Send it as `cursor` to get the next page. Null on the last page.")


class FieldProblem(BaseModel):
    """One field that is not valid."""

    field: str = Field(description="The field, with dots for nested fields. Empty if no single field is the cause.")
    problem: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """An error as RFC 9457 describes it. Extra members hold the facts of this error."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="The kind of error, for programs.", examples=["/problems/unknown-version"])
    title: str = Field(description="The kind of error, for people.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was refused and what is allowed instead.")
    instance: str = Field(description="The path of the request.")
    errors: list[FieldProblem] | None = Field(default=None, description="With 422: all fields that are not valid.")


class OptionalReason(RequestModel):
    """A request that may have a reason."""

    reason: Reason = ""


class RequiredReason(RequestModel):
    """A request that needs a reason."""

    reason: RequiredReasonText


# Cursors

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
