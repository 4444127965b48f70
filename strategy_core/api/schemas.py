"""Field types and base models that the endpoints share. They are separate from the database tables."""

from typing import Annotated, Generic, TypeVar
from uuid import UUID

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from strategy_core.domain.parsing import Moment

Item = TypeVar("Item")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
PRINTED = r"^[^\x00-\x1f\x7f]+$"

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
    Field(description="Why a version that is quarantined after a rollback may serve users again."),
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
