"""The table of what the HTTP API has answered; never evidence: a row may be deleted when it is a day old."""

from datetime import datetime
from typing import Any

from sqlalchemy import Column, Text
from sqlmodel import Field, SQLModel

from strategy_core.store.tables import _json, _time


class ApiAnswer(SQLModel, table=True):
    """The first answer to a wish that came under an idempotency key, to be given again when the wish comes again."""

    __tablename__ = "api_answer"
    actor: str = Field(primary_key=True)
    idempotency_key: str = Field(primary_key=True)
    digest: str  # sha256 of the request: another one under the same key is not this wish
    strategies: list[str] = Field(sa_column=_json())  # that the wish was about
    status: int
    headers: dict[str, Any] = Field(sa_column=_json())
    body: str = Field(sa_column=Column(Text, nullable=False))
    answered_at: datetime = Field(sa_column=_time(index=True))
