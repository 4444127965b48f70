"""A length of time as plans have it: seconds where it is written down, never zero and never backwards."""

from datetime import timedelta
from typing import Annotated, Any

from pydantic import Field, PlainSerializer, WithJsonSchema

Span = Annotated[
    timedelta,
    Field(gt=timedelta(0)),
    PlainSerializer(lambda span: span.total_seconds(), float, "json"),
    WithJsonSchema({"type": "number", "exclusiveMinimum": 0, "description": "seconds"}),
]


def usually(span: timedelta, what: str | None = None) -> Any:
    """Return a field whose default is *span*, also in its JSON schema: pydantic would write that as ISO 8601 there.

    Args:
        span: the default.
        what: describes the field.
    """
    described = None if what is None else f"seconds; {what}"
    return Field(default=span, description=described, json_schema_extra={"default": span.total_seconds()})


def told(span: timedelta) -> str:
    """Return *span* as people are told it: in hours, from two days on in days."""
    hours = span.total_seconds() / 3600
    return f"{hours / 24:.1f} d" if hours >= 48 else f"{hours:.1f} h"
