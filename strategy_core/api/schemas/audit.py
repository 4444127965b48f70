"""The audit trail, as answers have it."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from strategy_core.api.schemas.shared import Told


class Event(Told):
    """One change: who, when, what, from what to what, and why."""

    id: int
    position: int = Field(description="In the trail of its strategy, from 1; the generation that the change made.")
    at: datetime
    actor: str
    role: str
    source: str = Field(description="Where the wish came in: sdk, cli, api or flow.")
    action: str
    strategy_name: str
    version: str
    rollout_id: UUID | None
    before: dict[str, Any]
    after: dict[str, Any]
    reason: str
    evidence: list[str] = Field(description="Ids of the rows that it rests on.")
    request_id: str
    idempotency_key: str | None
    previous_hash: str
    hash: str


class StateAt(Told):
    """Who served whom at a moment, from the trail alone."""

    strategy_name: str
    at: datetime
    active: str | None
    canary: str | None
    percent: float
    rollout: dict[str, Any] | None
    event: Event = Field(description="The newest change at that moment.")
    made_by: dict[str, Event] = Field(description="By fact, the change that had made it so.")


class Break(Told):
    position: int
    problem: str


class Trail(Told):
    strategy_name: str
    count: int
    head: str = Field(description="The newest event's hash: note it elsewhere, and ask for it as `known_head` later.")
    breaks: list[Break]


class Verification(Told):
    holds: bool
    trails: list[Trail]
    missing: list[str] = Field(description="Known heads that stand in no trail any more.")
