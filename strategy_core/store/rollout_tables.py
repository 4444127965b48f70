"""The tables of a canary's journey: rollouts, their evidence and verdicts, the audit trail and the alert outbox."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from strategy_core.domain.gates import Verdict
from strategy_core.domain.ramp import ENDED, State
from strategy_core.store.tables import _json, _one_of, _time

_OPEN = "NOT " + _one_of("state", sorted(ENDED))


class Rollout(SQLModel, table=True):
    """One canary's journey under a frozen plan. `generation` grows by one with each change of the row."""

    __table_args__ = (
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_rollout_version",
        ),
        ForeignKeyConstraint(
            ["strategy_name", "control_version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_rollout_control",
        ),
        CheckConstraint(_one_of("state", list(State)), name="ck_rollout_state"),
        CheckConstraint(f"({_OPEN}) = (ended_at IS NULL)", name="ck_rollout_ended"),
        CheckConstraint("stage_index >= 0", name="ck_stage_index"),
        CheckConstraint("version <> control_version", name="ck_rollout_control"),
        Index(
            "one_open_rollout_per_strategy",
            "strategy_name",
            unique=True,
            sqlite_where=text(_OPEN),
            postgresql_where=text(_OPEN),
        ),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    strategy_name: str
    version: str
    control_version: str  # the active version it is measured against; after promotion, the one to reinstate
    state: str
    stage_index: int = 0
    generation: int = 1
    plan: dict[str, Any] = Field(sa_column=_json())
    started_at: datetime = Field(sa_column=_time())
    stage_entered_at: datetime = Field(sa_column=_time())
    stage_extended_at: datetime = Field(sa_column=_time())  # the maximum stage time counts from here
    approved_stage: int | None = None
    blind_since: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    promoted_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    ended_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    last_tick_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))


class GateVerdict(SQLModel, table=True):
    """What a gate said and why, written when it says something new. Evidence: insert-only."""

    __tablename__ = "gate_verdict"
    __table_args__ = (
        UniqueConstraint("rollout_id", "gate", "ticked_at", name="uq_verdict"),
        CheckConstraint(_one_of("verdict", list(Verdict)), name="ck_verdict"),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    rollout_id: UUID = Field(foreign_key="rollout.id")
    ticked_at: datetime = Field(sa_column=_time())
    stage_index: int
    gate: str
    verdict: str
    armed: bool
    reason: str = Field(sa_column=Column(Text, nullable=False))
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


class RolloutBook(SQLModel, table=True):
    """What a rollout's paired gates rest on: the pair's shadow history, and running totals of its booked slots.

    The totals are a shortcut: they follow from `history` and the rows of `booked_slot`, to the same number.
    """

    __tablename__ = "rollout_book"
    rollout_id: UUID = Field(primary_key=True, foreign_key="rollout.id")
    history: dict[str, Any] = Field(sa_column=_json())  # measured when the rollout started; frozen
    slots: int = 0
    totals: dict[str, Any] = Field(sa_column=_json())


class BookedSlot(SQLModel, table=True):
    """A closed slot, in the order in which a rollout booked it. Evidence: insert-only."""

    __tablename__ = "booked_slot"
    __table_args__ = (
        UniqueConstraint("rollout_id", "symbol", "timestamp", name="uq_slot"),
        CheckConstraint("canary_side IN (-1, 0, 1) AND active_side IN (-1, 0, 1)", name="ck_sides"),
        CheckConstraint("canary_side <> 0 OR active_side <> 0", name="ck_signalled"),
    )
    rollout_id: UUID = Field(primary_key=True, foreign_key="rollout.id")
    position: int = Field(primary_key=True)
    symbol: str
    timestamp: datetime = Field(sa_column=_time())
    closed_at: datetime = Field(sa_column=_time())  # of the trade that closed last
    booked_at: datetime = Field(sa_column=_time())  # by which tick
    canary_r: float
    active_r: float
    canary_side: int
    active_side: int


class MetricSample(SQLModel, table=True):
    """One answer of an external metric, or why there was none. Evidence: insert-only."""

    __tablename__ = "metric_sample"
    __table_args__ = (
        UniqueConstraint("rollout_id", "gate", "taken_at", name="uq_sample"),
        CheckConstraint("(value IS NULL) = (problem <> '')", name="ck_sample"),
    )
    id: int | None = Field(default=None, primary_key=True)
    rollout_id: UUID = Field(foreign_key="rollout.id")
    gate: str
    taken_at: datetime = Field(sa_column=_time())
    value: float | None = None
    problem: str = Field(default="", sa_column=Column(Text, nullable=False))


class AuditEvent(SQLModel, table=True):
    """Who changed what, when, from what to what, and why: one row a change. Evidence: insert-only.

    The events of a strategy are a chain: `position` counts from 1, and `hash` covers every other column but `id`.
    """

    __tablename__ = "audit_event"
    __table_args__ = (
        Index("ix_audit_strategy", "strategy_name", "id"),
        Index("uq_audit_idempotency", "actor", "idempotency_key", unique=True),
    )
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_column=_time())
    actor: str
    role: str
    source: str
    action: str
    strategy_name: str
    version: str
    rollout_id: UUID | None = Field(default=None, index=True)
    before: dict[str, Any] = Field(sa_column=_json())
    after: dict[str, Any] = Field(sa_column=_json())
    reason: str = Field(sa_column=Column(Text, nullable=False))
    evidence: list[str] = Field(default_factory=list, sa_column=_json())  # ids of the rows that it rests on
    request_id: str = ""
    idempotency_key: str | None = None
    position: int
    previous_hash: str
    hash: str


class AlertOutbox(SQLModel, table=True):
    """An alert, written in the transaction of what it tells of; an acknowledgement alone is set later."""

    __tablename__ = "alert_outbox"
    __table_args__ = (
        UniqueConstraint("dedupe_key", name="uq_alert"),
        CheckConstraint("severity IN ('info', 'warning', 'critical')", name="ck_severity"),
        Index("ix_alert_counted", "kind", "severity", "strategy_name", "acknowledged_at"),
        Index("ix_alert_open", "severity", "acknowledged_at", "id"),
        Index("ix_alert_strategy", "strategy_name", "id"),
    )
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_column=_time(index=True))
    severity: str
    kind: str
    strategy_name: str
    rollout_id: UUID | None = None
    text: str = Field(sa_column=Column(Text, nullable=False))
    facts: dict[str, Any] = Field(sa_column=_json())
    dedupe_key: str
    acknowledged_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    acknowledged_by: str = ""
    acknowledged_because: str = ""


class AlertDelivery(SQLModel, table=True):
    """How far an alert has come on one channel, which is named without its secrets."""

    __tablename__ = "alert_delivery"
    __table_args__ = (Index("ix_delivery_due", "channel", "next_try_at"),)
    alert_id: int = Field(primary_key=True, foreign_key="alert_outbox.id")
    channel: str = Field(primary_key=True)
    number: int = 1  # the how-manieth time that it is told; a critical one is repeated
    due_at: datetime = Field(sa_column=_time())  # since when this time is tried
    next_try_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # None: nothing is left to do
    claimed_until: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    claimed_by: str = ""  # the pass that tries it
    attempts: int = 0  # in all, counted when they begin
    failures: int = 0  # since it was last taken
    sent_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    failed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    given_up_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    last_error: str = Field(default="", sa_column=Column(Text, nullable=False))
