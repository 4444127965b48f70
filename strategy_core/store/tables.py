"""The tables; never a schema of the API, and no rule: the domain checks first, a constraint backs it."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4, uuid5

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    Index,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DontWrapMixin
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel

from strategy_core.domain.errors import NaiveTime
from strategy_core.domain.gates.base import Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import ENDED, State
from strategy_core.domain.routing import as_percent
from strategy_core.domain.strategy import Action

JsonColumn = JSON().with_variant(JSONB(), "postgresql")


class _NaiveWrite(NaiveTime, DontWrapMixin):
    """Reaches the caller as it is: SQLAlchemy would wrap it into an error about SQL."""


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC: refuses naive writes, and restores the zone that SQLite drops."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise _NaiveWrite(f"a time to be stored ({value.isoformat()})")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


ERROR = "error"  # what stands in `decision` when a version gave none
SIGNALS = (Action.BUY.value, Action.SELL.value)
_DECISIONS = UUID("6f1b1c2e-53a5-4d0b-9a39-5f8f4a0c7d11")  # golden: decision ids derive from it


def decision_id(strategy_name: str, version: str, symbol: str, timestamp: datetime) -> UUID:
    """Return the id of a decision: the same on every machine, so that a second run writes the same row."""
    return uuid5(_DECISIONS, f"{strategy_name}\n{version}\n{symbol}\n{timestamp.timestamp():.0f}")


def _one_of(column: str, allowed: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in allowed)})"


def _time(index: bool = False, nullable: bool = False, primary_key: bool = False) -> Any:
    return Column(UtcDateTime(), nullable=nullable, index=index, primary_key=primary_key)


def _json() -> Any:
    return Column(JsonColumn, nullable=False)


class StrategyRow(SQLModel, table=True):
    """A name under which versions stand; its row is the lock that every change of it takes first.

    `generation` grows by one with each change of the strategy: it is the position of its newest audit event, whose hash
    is `audit_head`.
    """

    __tablename__ = "strategy"

    name: str = Field(primary_key=True)
    salt: str = ""
    scoring: dict[str, Any] = Field(sa_column=_json())
    created_at: datetime = Field(sa_column=_time())
    generation: int = 0
    audit_head: str = ""


class StrategyVersion(SQLModel, table=True):
    __tablename__ = "strategy_version"
    __table_args__ = (
        UniqueConstraint("strategy_name", "version", name="uq_strategy_version"),
        UniqueConstraint("strategy_name", "fingerprint", name="uq_strategy_fingerprint"),
        CheckConstraint(_one_of("status", list(Status)), name="ck_version_status"),
        CheckConstraint("status <> 'active' OR activated_at IS NOT NULL", name="ck_active_since"),
        CheckConstraint("status <> 'retired' OR retired_at IS NOT NULL", name="ck_retired_since"),
        CheckConstraint("warmup_bars > 0", name="ck_warmup_bars"),
        Index(
            "one_active_per_strategy",
            "strategy_name",
            unique=True,
            sqlite_where=text("status = 'active'"),
            postgresql_where=text("status = 'active'"),
        ),
        Index(
            "one_canary_per_strategy",
            "strategy_name",
            unique=True,
            sqlite_where=text("status = 'canary'"),
            postgresql_where=text("status = 'canary'"),
        ),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    strategy_name: str = Field(foreign_key="strategy.name")
    version: str
    status: str
    entry_point: str
    config: dict[str, Any] = Field(sa_column=_json())
    symbols: list[str] = Field(sa_column=_json())
    timeframe: str
    warmup_bars: int
    fingerprint: str
    fingerprint_parts: dict[str, str] = Field(sa_column=_json())
    registration_report: dict[str, Any] = Field(sa_column=_json())
    created_at: datetime = Field(sa_column=_time())
    activated_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    retired_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    quarantined_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))


class CanaryConfig(SQLModel, table=True):
    """What routing obeys: one row per strategy that ever had a canary; at 0 % nobody is routed to it."""

    __tablename__ = "canary_config"
    __table_args__ = (
        UniqueConstraint("strategy_name", name="uq_canary_strategy"),
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_canary_version",
        ),
        CheckConstraint("rollout_bp BETWEEN 0 AND 10000", name="ck_rollout_bp"),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    strategy_name: str
    version: str
    rollout_bp: int
    salt: str = ""
    generation: int = 1
    started_at: datetime = Field(sa_column=_time())

    @property
    def rollout_percent(self) -> float:
        return as_percent(self.rollout_bp)


class ShadowDecisionLog(SQLModel, table=True):
    """What each version said on each candle; `timestamp` is the candle's open time. Evidence: insert-only."""

    __tablename__ = "shadow_decision_log"
    __table_args__ = (
        UniqueConstraint("strategy_name", "version", "symbol", "timestamp", name="uq_decision"),
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_decision_version",
        ),
        CheckConstraint(_one_of("decision", [*Action, ERROR]), name="ck_decision"),
        CheckConstraint("confidence BETWEEN 0 AND 1", name="ck_confidence"),
        CheckConstraint("(decision = 'error') = (error_kind <> '')", name="ck_error_kind"),
        Index(
            "ix_decision_errors",
            "strategy_name",
            "version",
            "timestamp",
            sqlite_where=text("decision = 'error'"),
            postgresql_where=text("decision = 'error'"),
        ),
    )
    id: UUID = Field(primary_key=True)
    strategy_name: str
    version: str
    symbol: str
    timestamp: datetime = Field(sa_column=_time())
    decision: str
    confidence: float = 0.0
    features: dict[str, Any] = Field(sa_column=_json())
    reason: str = ""
    role: str
    window_hash: str
    duration_ms: float
    error_kind: str = ""
    error: str | None = Field(default=None, sa_column=Column(Text))
    logged_at: datetime = Field(sa_column=_time())


class Outcome(SQLModel, table=True):
    """What a decision was worth, booked once its trade has closed. Evidence: insert-only."""

    __table_args__ = (
        UniqueConstraint("strategy_name", "version", "symbol", "timestamp", name="uq_outcome"),
        Index("ix_outcome_closed", "strategy_name", "version", "closed_at"),
    )
    decision_id: UUID = Field(primary_key=True, foreign_key="shadow_decision_log.id")
    strategy_name: str
    version: str
    symbol: str
    timestamp: datetime = Field(sa_column=_time())
    opened_at: datetime = Field(sa_column=_time())
    closed_at: datetime = Field(sa_column=_time())
    entry_price: float
    exit_price: float
    exit_reason: str
    risk: float
    pnl: float
    return_fraction: float
    r_multiple: float


class EquityMark(SQLModel, table=True):
    """The change of a version's marked-to-market R over one candle, open trades included. Evidence: insert-only."""

    __tablename__ = "equity_mark"
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    timestamp: datetime = Field(sa_column=_time(primary_key=True))
    r: float


class ComparisonReport(SQLModel, table=True):
    """One nightly comparison, as it was seen. Evidence: insert-only."""

    __tablename__ = "comparison_report"
    __table_args__ = (
        UniqueConstraint(
            "strategy_name",
            "shadow_version",
            "active_version",
            "symbol",
            "period_start",
            "period_end",
            name="uq_report",
        ),
        Index("ix_report_newest", "strategy_name", "shadow_version", "symbol", "created_at"),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    strategy_name: str = Field(foreign_key="strategy.name")
    shadow_version: str
    active_version: str
    symbol: str = ""  # "" is all symbols: NULLs would not be unique
    period_start: datetime = Field(sa_column=_time())
    period_end: datetime = Field(sa_column=_time())
    report: dict[str, Any] = Field(sa_column=_json())
    created_at: datetime = Field(sa_column=_time())


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


class PlatformUser(SQLModel, table=True):
    """One user of the platform, as its directory has had him since *loaded_at*."""

    __tablename__ = "platform_user"
    __table_args__ = (CheckConstraint("capital >= 0", name="ck_capital"),)
    user_id: str = Field(primary_key=True)
    capital: float | None = None  # in the platform's own unit of account
    loaded_at: datetime = Field(sa_column=_time())


class LiveTrade(SQLModel, table=True):
    """What the broker reports of one user's trade, under the platform's own trade id. Evidence: insert-only.

    A trade has up to two rows: `open`, then `closed`; an order that failed has one.
    """

    __tablename__ = "live_trade"
    __table_args__ = (
        UniqueConstraint("trade_id", "state", name="uq_live_trade"),
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_live_trade_version",
        ),
        CheckConstraint("state IN ('open', 'closed', 'failed')", name="ck_live_state"),
        CheckConstraint("(state = 'closed') = (closed_at IS NOT NULL AND pnl IS NOT NULL)", name="ck_live_closed"),
        CheckConstraint("(state = 'failed') = (error <> '')", name="ck_live_failed"),
        CheckConstraint("risk > 0", name="ck_live_risk"),
        CheckConstraint("state <> 'closed' OR risk IS NOT NULL", name="ck_live_r"),
        CheckConstraint("latency_ms >= 0", name="ck_live_latency"),
        Index("ix_live_trade", "strategy_name", "opened_at"),
        Index(
            "ix_live_misrouted",
            "strategy_name",
            "opened_at",
            sqlite_where=text("misrouted = 1"),
            postgresql_where=text("misrouted"),
        ),
    )
    id: int | None = Field(default=None, primary_key=True)  # rises in the order of arrival
    trade_id: str
    state: str
    user_id: str
    strategy_name: str
    version: str
    symbol: str
    opened_at: datetime = Field(sa_column=_time())  # of an order that failed: when it was tried
    candle_s: int = Field(sa_type=BigInteger)  # its open, in seconds since 1970; of one longer than an hour, the hour
    closed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    pnl: float | None = None  # in price units, as outcomes have it; any other will do for R, which is pnl / risk
    risk: float | None = None  # distance from entry to stop, in the same unit
    error: str = Field(default="", sa_column=Column(Text, nullable=False))
    latency_ms: float | None = None  # from the signal to the fill
    canary_bp: int  # share of users that routing sent to the canary when it was opened
    misrouted: bool  # its version is not what routing gave this user then
    ingested_at: datetime = Field(sa_column=_time())


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


class DecisionTally(SQLModel, table=True):
    """What one version has said on one symbol, ever, and the newest candle that it was asked about."""

    __tablename__ = "decision_tally"
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    buy: int = Field(sa_type=BigInteger)
    sell: int = Field(sa_type=BigInteger)
    hold: int = Field(sa_type=BigInteger)
    error: int = Field(sa_type=BigInteger)
    newest_candle_s: int = Field(sa_type=BigInteger)  # its open, in seconds since 1970


class Counted(StrEnum):
    """What rows of `tally` count, each with what its `name` and `detail` are."""

    ACTIVATION = "activation"  # version
    ERROR = "error"  # version, kind of error
    ROLLBACK = "rollback"  # cause
    VERDICT = "verdict"  # gate, verdict


class Tally(SQLModel, table=True):
    """How often something has happened to a strategy, ever.

    Each row is one strategy's alone: a change of one strategy must never wait for that of another.
    """

    strategy_name: str = Field(primary_key=True)
    what: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    detail: str = Field(primary_key=True)
    total: int = Field(sa_type=BigInteger)


class DirectoryTally(SQLModel, table=True):
    """How many of the directory's users lie below each bucket under a salt; there is none before one is loaded."""

    __tablename__ = "directory_tally"
    salt: str = Field(primary_key=True)
    users: int
    below: bytes  # 10,001 big-endian numbers of four bytes: users below bucket 0, 1, … 10,000
