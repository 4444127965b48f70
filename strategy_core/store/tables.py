"""The tables; never a schema of the API, and no rule: the domain checks first, a constraint backs it."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4, uuid5

from sqlalchemy import CheckConstraint, Column, ForeignKeyConstraint, Index, Text, UniqueConstraint, text
from sqlmodel import Field, SQLModel

from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import as_percent
from strategy_core.domain.strategy import Action
from strategy_core.store.types import JsonColumn, UtcDateTime

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


class Strategy(SQLModel, table=True):
    """A name under which versions stand; its row is the lock that every change of it takes first.

    `generation` grows by one with each change of the strategy: it is the position of its newest audit event, whose hash
    is `audit_head`.
    """

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
