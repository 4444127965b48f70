"""What requests and answers of the HTTP API look like; no table is one of them, and none of them is a table."""

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from strategy_core.domain.parsing import Moment

Item = TypeVar("Item")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
PRINTED = r"^[^\x00-\x1f\x7f]+$"

StrategyName = Annotated[
    str, StringConstraints(pattern=NAME, max_length=64), Field(description="The strategy's name.", examples=["fib_rsi"])
]
VersionName = Annotated[
    str, StringConstraints(pattern=NAME, max_length=64), Field(description="A version's name.", examples=["2.0.0"])
]
Symbol = Annotated[
    str, StringConstraints(pattern=NAME, max_length=64), Field(description="A symbol.", examples=["GOLD"])
]
UserId = Annotated[
    str,
    StringConstraints(pattern=PRINTED, min_length=1, max_length=200),
    Field(description="A user's id, as the platform has it.", examples=["user_123"]),
]
Cursor = Annotated[
    str | None,
    Field(description="`next_cursor` of the page before; the first page, unless given.", max_length=1_000),
]
Limit = Annotated[int, Field(ge=1, le=500, description="So many items at most.")]
Time = Annotated[
    Moment,
    WithJsonSchema({"type": "string", "format": "date-time"}),
    Field(description="ISO 8601 with its offset from UTC.", examples=["2026-03-02T00:00:00Z"]),
]
Reason = Annotated[
    str, StringConstraints(max_length=1_000), Field(description="Why; kept in the audit trail.", examples=["proven"])
]
NeededReason = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1_000, pattern=r"\S"),
    Field(description="Why; kept in the audit trail; not blank.", examples=["it bleeds"]),
]
OverrideReason = Annotated[
    str,
    StringConstraints(max_length=1_000),
    Field(description="Why a version that was rolled back, and is quarantined, may be tried again."),
]


class RequestModel(BaseModel):
    """A request's body; a field that is not known is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ResponseModel(BaseModel):
    """A part of an answer, made from the fields of a row or of a result of the same names."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


class Page(ResponseModel, Generic[Item]):
    items: list[Item]
    next_cursor: str | None = Field(description="Give it as `cursor` for the next page; null on the last one.")


class FieldProblem(BaseModel):
    field: str = Field(description="The field, with dots to those within it; empty when it is no single one.")
    problem: str


class Problem(BaseModel):
    """A refusal as of RFC 9457; the facts of the refusal stand beside these members, under their own names."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="What kind of refusal, for programs.", examples=["/problems/unknown-version"])
    title: str
    status: int
    detail: str = Field(description="What was refused and what would be allowed, in a line for people.")
    instance: str
    errors: list[FieldProblem] | None = Field(default=None, description="With 422: every field that is at fault.")


class Reasoned(RequestModel):
    reason: Reason = ""


class Explained(RequestModel):
    reason: NeededReason


Facts = dict[str, Any]
