"""All tables of the database, with their constraints and indexes."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID, uuid4, uuid5

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    String,
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
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.routing import as_percent
from strategy_core.domain.strategy import Action
from strategy_core.domain.user_exclusions import ExclusionKind

JsonColumn = JSON().with_variant(JSONB(), "postgresql")


class _NaiveWrite(NaiveTime, DontWrapMixin):  # with the mixin SQLAlchemy does not wrap it in a StatementError
    pass


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC. Refuses naive datetimes on write and restores the time zone that SQLite drops."""

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


ERROR = "error"  # value of `decision` when a version gave no valid decision
SIGNALS = (Action.BUY.value, Action.SELL.value)
_DECISIONS = UUID("6f1b1c2e-53a5-4d0b-9a39-5f8f4a0c7d11")  # golden: decision ids derive from it


def decision_id(strategy_name: str, version: str, symbol: str, timestamp: datetime) -> UUID:
    """Return the id of a decision. It is the same on every machine, so that a second run writes the same row."""
    return uuid5(_DECISIONS, f"{strategy_name}\n{version}\n{symbol}\n{timestamp.timestamp():.0f}")


def _one_of(column: str, allowed: list[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(value)) for value in allowed)})"


def _time(index: bool = False, nullable: bool = False, primary_key: bool = False) -> Any:
    return Column(UtcDateTime(), nullable=nullable, index=index, primary_key=primary_key)


def _intent() -> Any:
    return Column(String, nullable=False, server_default="open")


def _json() -> Any:
    return Column(JsonColumn, nullable=False)


# Strategies, versions and routing


class StrategyRow(SQLModel, table=True):
    """A strategy. Every change of it locks this row first."""

    __tablename__ = "strategy"

    name: str = Field(primary_key=True)
    salt: str = ""  # of user bucketing, set with the first version
    scoring: dict[str, Any] = Field(sa_column=_json())
    created_at: datetime = Field(sa_column=_time())
    generation: int = 0  # position of the newest audit event, raised by one with each change
    audit_head: str = ""  # hash of that event


class StrategyPolicy(SQLModel, table=True):
    """The rules for rollouts of a strategy that has any. Apart from its row, which every rollback locks and reads."""

    __tablename__ = "strategy_policy"

    strategy_name: str = Field(primary_key=True, foreign_key="strategy.name")
    policy: dict[str, Any] = Field(sa_column=_json())  # of `domain.policy.Policy`


class StrategyVersion(SQLModel, table=True):
    """A registered version. Everything but `status` and its three times is immutable.

    `status` is a `domain.lifecycle.Status`. Owners and rollouts move it on through `store.versions.move`, which checks
    the transition. A quarantined version is not reinstated without an owner's reason. Versions are not deleted:
    decisions, outcomes and audit events refer to them.
    """

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
    activated_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # last activation
    retired_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # last retirement
    quarantined_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # set by a rollback

    @property
    def trained_until(self) -> datetime | None:
        """End of the candles that the version was fitted to, if it says so. Earlier candles are in its sample."""
        text = self.registration_report.get("trained_until")
        return None if text is None else datetime.fromisoformat(text)


class RecordedAnswers(SQLModel, table=True):
    """The windows of a version's vetting and its answers, asked again by each worker. Inserted and not changed."""

    __tablename__ = "recorded_answers"
    __table_args__ = (
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_answers_version",
        ),
    )
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    content: bytes = Field(sa_column=Column(LargeBinary, nullable=False))  # of `isolation.vetting.KnownAnswers`


class CanaryConfig(SQLModel, table=True):
    """What routing follows: one row per strategy that has had a canary. At 0 % no user is routed to it."""

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
    asked_bp: int = 0  # of the stage. More than `rollout_bp` where the cap on capital leaves users out
    salt: str = ""
    generation: int = 1
    started_at: datetime = Field(sa_column=_time())
    excluded_symbols: dict[str, str] = Field(default_factory=dict, sa_column=_json())  # symbol -> since

    @property
    def rollout_percent(self) -> float:
        return as_percent(self.rollout_bp)

    @property
    def asked_percent(self) -> float:
        return as_percent(max(self.asked_bp, self.rollout_bp))  # an earlier release does not set `asked_bp`


class UserExclusionRow(SQLModel, table=True):
    """An exclusion of one user, for one strategy or for all (`*`). Only its end is set later, and once.

    An owner, the platform or a tick sets it and ends it through `store.user_exclusions`. After `until` it no longer
    counts, whether or not it was ended. Ended rows are kept: trades are checked by the exclusions of their time.
    """

    __tablename__ = "canary_exclusion"
    __table_args__ = (  # without a foreign key, as `release_freeze`: a row may be about all strategies
        CheckConstraint(_one_of("kind", list(ExclusionKind)), name="ck_exclusion_kind"),
        CheckConstraint("user_id <> ''", name="ck_exclusion_user"),
        CheckConstraint("valid_to >= valid_from", name="ck_exclusion_span"),
        CheckConstraint("until > valid_from", name="ck_exclusion_until"),
        Index(
            "one_exclusion_per_user",
            "strategy_name",
            "kind",
            "user_id",
            unique=True,
            sqlite_where=text("valid_to IS NULL"),
            postgresql_where=text("valid_to IS NULL"),
        ),
        Index("ix_exclusion_user", "user_id", "strategy_name"),
    )
    id: int | None = Field(default=None, primary_key=True)
    strategy_name: str
    user_id: str
    kind: str  # a `domain.user_exclusions.ExclusionKind`
    valid_from: datetime = Field(sa_column=_time())
    valid_to: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # empty: it was not ended
    until: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # as it was set. Empty: no limit
    reason: str = Field(sa_column=Column(Text, nullable=False))
    actor: str

    @property
    def shown_strategy(self) -> str:
        return "all strategies" if self.strategy_name == ALL_STRATEGIES else self.strategy_name

    @property
    def ends_at(self) -> datetime | None:
        """When it ended or will end, or None."""
        return min((each for each in (self.valid_to, self.until) if each is not None), default=None)


# Evidence: rows are inserted and not changed. A trigger refuses updates and deletes


class ShadowDecisionLog(SQLModel, table=True):
    """Each version's decision on each candle. `timestamp` is the candle's open time."""

    __tablename__ = "shadow_decision_log"
    __table_args__ = (
        UniqueConstraint("strategy_name", "version", "symbol", "timestamp", name="uq_decision"),
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_decision_version",
        ),
        CheckConstraint(_one_of("decision", [*Action, ERROR]), name="ck_decision"),
        CheckConstraint("intent = 'open' OR (intent = 'close' AND decision = 'hold')", name="ck_intent"),
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
    intent: str = Field(default="open", sa_column=_intent())  # of `domain.strategy.Intent`
    confidence: float = 0.0
    features: dict[str, Any] = Field(sa_column=_json())
    reason: str = ""
    role: str
    window_hash: str
    duration_ms: float
    error_kind: str = ""
    error: str | None = Field(default=None, sa_column=Column(Text))
    logged_at: datetime = Field(sa_column=_time())


class SignalRow(SQLModel, table=True):
    """A buy, sell or close of a version that served users, for platforms that copy it. A copy from the decision log.

    Inserted with the decision, without a number. Numbers are given later, one transaction after the other, so that a
    reader that has seen a number has seen all lower ones. Nothing but the number is changed, and that once.
    """

    __tablename__ = "signal"
    __table_args__ = (
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_signal_version",
        ),
        UniqueConstraint("number", name="uq_signal_number"),
        CheckConstraint(
            "(decision IN ('buy', 'sell') AND intent = 'open') OR (decision = 'hold' AND intent = 'close')",
            name="ck_signal",
        ),
        Index(
            "ix_signal_unnumbered",
            "timestamp",
            sqlite_where=text("number IS NULL"),
            postgresql_where=text("number IS NULL"),
        ),
    )
    decision_id: UUID = Field(primary_key=True)
    number: int | None = Field(default=None, sa_column=Column(BigInteger, nullable=True))
    strategy_name: str
    version: str
    symbol: str
    timestamp: datetime = Field(sa_column=_time())
    decision: str
    intent: str = "open"
    confidence: float


class SignalHead(SQLModel, table=True):
    """One row, made with the first signal: its newest number, and the newest one that is not kept any more."""

    __tablename__ = "signal_head"
    __table_args__ = (CheckConstraint("id = 1 AND dropped <= number", name="ck_signal_head"),)
    id: int = Field(sa_column=Column(Integer, primary_key=True, autoincrement=False))
    number: int = Field(sa_column=Column(BigInteger, nullable=False))
    dropped: int = Field(sa_column=Column(BigInteger, nullable=False))


class FailedRun(SQLModel, table=True):
    """The newest shadow run in which a version could not be run. One row per version, replaced by each such run."""

    __tablename__ = "failed_run"
    __table_args__ = (
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_failed_run_version",
        ),
    )
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    at: datetime = Field(sa_column=_time())
    hit: bool  # a time limit was missed, or the worker could not be isolated: the host may be at fault
    host_fault: str = Field(sa_column=Column(Text, nullable=False))  # why the host is at fault, or empty
    reason: str = Field(sa_column=Column(Text, nullable=False))


class Outcome(SQLModel, table=True):
    """The result of a decision's simulated trade, booked once the trade has closed."""

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
    """The change of a version's marked-to-market R over one candle, open trades included."""

    __tablename__ = "equity_mark"
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    timestamp: datetime = Field(sa_column=_time(primary_key=True))
    r: float


# Replays: what versions decide on past candles. Apart from the log, so that no tick, gate or metric reads them


class ReplayDecision(SQLModel, table=True):
    """A version's decision on a past candle, made by a replay. `timestamp` is the candle's open time.

    Rows are inserted and not changed. A replay that is asked to decide anew deletes them first.
    """

    __tablename__ = "replay_decision"
    __table_args__ = (
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_replay_version",
        ),
        CheckConstraint(_one_of("decision", list(Action)), name="ck_replay_decision"),
        CheckConstraint("intent = 'open' OR (intent = 'close' AND decision = 'hold')", name="ck_replay_intent"),
        CheckConstraint("confidence BETWEEN 0 AND 1", name="ck_replay_confidence"),
        CheckConstraint("timestamp < replayed_at", name="ck_replay_past"),
    )
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    timestamp: datetime = Field(sa_column=_time(primary_key=True))
    decision: str
    intent: str = Field(default="open", sa_column=_intent())
    confidence: float
    reason: str
    window_hash: str
    replayed_at: datetime = Field(sa_column=_time())


_REPLAYED = ["strategy_name", "version", "symbol", "timestamp"]


class ReplayOutcome(SQLModel, table=True):
    """The result of a replayed decision's simulated trade. Columns as in `Outcome`. Goes with its decision."""

    __tablename__ = "replay_outcome"
    __table_args__ = (
        ForeignKeyConstraint(
            _REPLAYED,
            [f"replay_decision.{column}" for column in _REPLAYED],
            name="fk_replay_outcome",
            ondelete="CASCADE",
        ),
    )
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    timestamp: datetime = Field(sa_column=_time(primary_key=True))
    opened_at: datetime = Field(sa_column=_time())
    closed_at: datetime = Field(sa_column=_time())
    entry_price: float
    exit_price: float
    exit_reason: str
    risk: float
    pnl: float
    return_fraction: float
    r_multiple: float


class ReplayMark(SQLModel, table=True):
    """The change of marked-to-market R over one candle, from all replayed trades of a version on a symbol.

    Replaced when a replay adds a trade that was open on that candle.
    """

    __tablename__ = "replay_mark"
    __table_args__ = (
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_replay_mark_version",
        ),
    )
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    timestamp: datetime = Field(sa_column=_time(primary_key=True))
    r: float


class EvidenceTables(NamedTuple):
    """Tables with the same columns, for queries on the log of live decisions or on replays."""

    log: Any
    outcome: Any
    mark: Any


LIVE = EvidenceTables(ShadowDecisionLog, Outcome, EquityMark)
REPLAYED = EvidenceTables(ReplayDecision, ReplayOutcome, ReplayMark)


class ComparisonReport(SQLModel, table=True):
    """The report of one nightly comparison."""

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
    symbol: str = ""  # "" means all symbols, because NULLs would not be unique
    period_start: datetime = Field(sa_column=_time())
    period_end: datetime = Field(sa_column=_time())
    report: dict[str, Any] = Field(sa_column=_json())
    created_at: datetime = Field(sa_column=_time())


class OwnerReport(SQLModel, table=True):
    """A report that was written for owners, as the facts from which its page is rendered. Insert-only.

    Attributes:
        kind: a `domain.owner_reports.Kind`.
        subject: what it is about, once per kind: the day of a morning note, a week, a rollout, a version.
        html_sha256: of the page, so that a reader can check that it is the one that was sent.
    """

    __tablename__ = "report"
    __table_args__ = (  # without a foreign key: its check would wait for the lock of a change of the strategy
        UniqueConstraint("strategy_name", "kind", "subject", name="uq_owner_report"),
        Index("ix_owner_report", "strategy_name", "created_at"),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    kind: str
    strategy_name: str
    subject: str
    period_start: datetime = Field(sa_column=_time())
    period_end: datetime = Field(sa_column=_time())
    sentence: str = Field(sa_column=Column(Text, nullable=False))
    facts: dict[str, Any] = Field(sa_column=_json())
    html_sha256: str
    created_at: datetime = Field(sa_column=_time(index=True))


# Rollouts and what their gates read


_OPEN = "NOT " + _one_of("state", sorted(ENDED))


class Rollout(SQLModel, table=True):
    """One canary's rollout under a frozen plan.

    `state` is a `domain.ramp.State`. The tick moves it on, and an owner does by approve, pause, resume or rollback,
    each through `store.rollouts.change_rollout`. A state in `domain.ramp.ENDED` is final and sets `ended_at`. A
    strategy has at most one open rollout. Rollouts and their verdicts are kept when they have ended.
    """

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
        CheckConstraint("risk_scale BETWEEN 0.5 AND 1", name="ck_risk_scale"),
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
    control_version: str  # the active version it is measured against, and the one to reinstate after promotion
    state: str
    stage_index: int = 0
    generation: int = 1  # raised by one with each change, except the bookkeeping of a tick
    plan: dict[str, Any] = Field(sa_column=_json())
    started_at: datetime = Field(sa_column=_time())
    stage_entered_at: datetime = Field(sa_column=_time())
    stage_extended_at: datetime = Field(sa_column=_time())  # the time limit of the stage counts from here
    approved_stage: int | None = None
    blind_since: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    promoted_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    ended_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    last_tick_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    risk_scale: float = Field(default=1.0, sa_column=Column(Float, nullable=False, server_default="1"))
    risk: dict[str, Any] | None = Field(default=None, sa_column=Column(JsonColumn, nullable=True))  # a `risk.Risk`


class GateVerdict(SQLModel, table=True):
    """A gate's verdict and its reason, written when either changes. Insert-only."""

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
    """The input of a rollout's paired gates: the pair's shadow history and running totals of its booked slots.

    The totals are a cache. Recomputed from `history` and the rows of `booked_slot` they are exactly equal.
    """

    __tablename__ = "rollout_book"
    rollout_id: UUID = Field(primary_key=True, foreign_key="rollout.id")
    history: dict[str, Any] = Field(sa_column=_json())  # measured when the rollout started, then frozen
    slots: int = 0
    totals: dict[str, Any] = Field(sa_column=_json())


class BookedSlot(SQLModel, table=True):
    """A closed slot, in the order in which a rollout booked it. Insert-only."""

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
    """One sample of an external metric, or the reason why it could not be read. Insert-only."""

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


# When rollouts may start and advance


class FreezeRow(SQLModel, table=True):
    """A time in which no stage of a strategy, or of all strategies (`*`), is entered. Only its lifting is set later."""

    __tablename__ = "release_freeze"
    __table_args__ = (
        CheckConstraint("starts_at < ends_at", name="ck_freeze_span"),
        CheckConstraint("(lifted_at IS NULL) = (lifted_by = '')", name="ck_freeze_lifted"),
        Index("ix_release_freeze", "strategy_name", "ends_at"),
    )
    id: int | None = Field(default=None, primary_key=True)
    strategy_name: str
    starts_at: datetime = Field(sa_column=_time())
    ends_at: datetime = Field(sa_column=_time())
    reason: str = Field(sa_column=Column(Text, nullable=False))
    set_at: datetime = Field(sa_column=_time())
    set_by: str
    lifted_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    lifted_by: str = ""
    lifted_because: str = Field(default="", sa_column=Column(Text, nullable=False))

    @property
    def covers_all(self) -> bool:
        """Whether it concerns every strategy."""
        return self.strategy_name == ALL_STRATEGIES

    @property
    def shown_strategy(self) -> str:
        return "all strategies" if self.covers_all else self.strategy_name

    @property
    def span(self) -> str:
        return f"{self.starts_at:%Y-%m-%d %H:%M} to {self.until:%Y-%m-%d %H:%M} UTC"

    @property
    def until(self) -> datetime:
        """When it ends, or ended because it was lifted."""
        return self.ends_at if self.lifted_at is None else max(self.starts_at, min(self.ends_at, self.lifted_at))


class ScheduledStart(SQLModel, table=True):
    """A start of a rollout at a later time. Its version stays in shadow until then. Only its end is set later.

    A tick starts it once its time has come, or refuses it if a check of the start fails. An owner cancels it, and so
    does a rollback. A strategy has at most one that is pending.
    """

    __tablename__ = "scheduled_start"
    __table_args__ = (
        CheckConstraint("outcome IN ('', 'started', 'refused', 'cancelled')", name="ck_start_outcome"),
        CheckConstraint("(ended_at IS NULL) = (outcome = '')", name="ck_start_ended"),
        CheckConstraint("(outcome = 'started') = (rollout_id IS NOT NULL)", name="ck_start_rollout"),
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_start_version",
        ),
        Index(
            "one_scheduled_start_per_strategy",
            "strategy_name",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    strategy_name: str
    version: str
    plan: dict[str, Any] = Field(sa_column=_json())
    start_at: datetime = Field(sa_column=_time())
    asked_at: datetime = Field(sa_column=_time())
    actor: str  # who scheduled it. The rollout counts as started by this owner
    role: str
    source: str
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    override_reason: str = Field(default="", sa_column=Column(Text, nullable=False))
    ended_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    outcome: str = ""  # started, refused or cancelled
    ended_because: str = Field(default="", sa_column=Column(Text, nullable=False))
    rollout_id: UUID | None = Field(default=None, foreign_key="rollout.id")


# Audit trail and alerts


class AuditEvent(SQLModel, table=True):
    """One change of a strategy: who, when, why, and the state before and after. Insert-only.

    The events of a strategy are a hash chain: `position` counts from 1, and `hash` covers every other column but `id`.
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
    evidence: list[str] = Field(default_factory=list, sa_column=_json())  # ids of the rows that the change is based on
    request_id: str = ""
    idempotency_key: str | None = None
    position: int
    previous_hash: str
    hash: str


class AlertOutbox(SQLModel, table=True):
    """An alert, written in the transaction of the change it reports. Only the acknowledgement is set later."""

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
    """The delivery of one alert on one channel. `channel` is the channel's address without secrets.

    The state is in the times. `enlist` in `store.alerts` creates the row as due. A delivery pass claims it until
    `claimed_until`, sends it, and sets `sent_at`, or `failed_at` with the next try. A claim that expires makes it due
    again. It ends when `next_try_at` is empty: sent and not to be repeated, or given up. A critical alert is tried on
    after `given_up_at`. An acknowledgement of the alert ends it too. The row is kept as the record of what was sent.
    """

    __tablename__ = "alert_delivery"
    __table_args__ = (Index("ix_delivery_due", "channel", "next_try_at"),)
    alert_id: int = Field(primary_key=True, foreign_key="alert_outbox.id")
    channel: str = Field(primary_key=True)
    number: int = 1  # 1 for the first message, higher for the repetitions of a critical alert
    due_at: datetime = Field(sa_column=_time())  # when this message first became due
    next_try_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # empty: done
    claimed_until: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    claimed_by: str = ""  # the delivery pass that holds the claim
    attempts: int = 0  # in total, counted when they begin
    failures: int = 0  # since the channel last accepted it
    sent_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    failed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    given_up_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    last_error: str = Field(default="", sa_column=Column(Text, nullable=False))


class Incident(SQLModel, table=True):
    """A fault that lasts: one alert when it begins, one if it becomes more severe, one when it is over.

    At most one per cause is open.

    Who looks for the fault opens it, notes each time when it is seen, and ends it once it has been gone for
    `domain.alerts.QUIET`. Ended incidents are kept.
    """

    __table_args__ = (
        Index(
            "one_open_incident",
            "cause",
            unique=True,
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
        CheckConstraint("alerts >= 1", name="ck_incident_alerts"),
    )
    id: int | None = Field(default=None, primary_key=True)
    cause: str  # its topic, and a name if there may be several: `feed`, `channel slack-1f2e3d4c`
    kind: str  # of its first alert of the highest severity
    started_at: datetime = Field(sa_column=_time())
    seen_at: datetime = Field(sa_column=_time())  # when the fault was last seen
    ended_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    affected: dict[str, Any] = Field(sa_column=_json())  # names of all strategies and symbols so far
    alerted: dict[str, Any] = Field(sa_column=_json())  # strategies, number of symbols and highest severity
    alerted_at: datetime = Field(sa_column=_time())
    alerts: int = 1  # raised while it is open


# What the platform reports


class PlatformUser(SQLModel, table=True):
    """A user of the platform, as last loaded from its user directory."""

    __tablename__ = "platform_user"
    __table_args__ = (CheckConstraint("capital >= 0", name="ck_capital"), Index("ix_user_capital", "capital"))
    user_id: str = Field(primary_key=True)
    capital: float | None = None  # in the platform's own unit of account
    loaded_at: datetime = Field(sa_column=_time())


class Segment(SQLModel, table=True):
    """A named group of users, for rules of toggles. *loaded_at* is its last change."""

    __tablename__ = "segment"
    name: str = Field(primary_key=True)
    users: int
    loaded_at: datetime = Field(sa_column=_time())


class UserSegment(SQLModel, table=True):
    """The membership of a user in a segment. Users need not be in the user list."""

    __tablename__ = "user_segment"
    __table_args__ = (Index("ix_user_segment_user", "user_id"),)
    segment_name: str = Field(primary_key=True, foreign_key="segment.name")
    user_id: str = Field(primary_key=True)


class ToggleRule(SQLModel, table=True):
    """A rule of a toggle from *valid_from* until *valid_to*. Only *valid_to* is set later, once.

    The rules of a toggle are in the order of *position*, from 1.
    """

    __tablename__ = "toggle_rule"
    __table_args__ = (
        CheckConstraint("position > 0", name="ck_rule_position"),
        CheckConstraint("valid_to >= valid_from", name="ck_rule_span"),
        Index(
            "one_rule_per_position",
            "strategy_name",
            "toggle",
            "position",
            unique=True,
            sqlite_where=text("valid_to IS NULL"),
            postgresql_where=text("valid_to IS NULL"),
        ),
        Index("ix_toggle_rule", "strategy_name", "toggle", "valid_from"),
    )
    id: int | None = Field(default=None, primary_key=True)
    strategy_name: str = Field(foreign_key="strategy.name")
    toggle: str
    position: int
    conditions: dict[str, Any] = Field(sa_column=_json())  # of `domain.toggles.When`
    value: Any = Field(sa_column=_json())
    valid_from: datetime = Field(sa_column=_time())
    valid_to: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    set_by: str


class ToggleRevision(SQLModel, table=True):
    """One row. Each change of what resolves toggles gives it another *revision*, by which routers notice the change."""

    __tablename__ = "toggle_revision"
    __table_args__ = (CheckConstraint("id = 1", name="ck_one_revision"),)
    id: int = Field(default=1, primary_key=True)
    revision: str


class LiveTrade(SQLModel, table=True):
    """The broker's report on one user's trade, under the platform's trade id. Insert-only.

    `state` comes from the report. A trade has a row `open` and later a row `closed`. A failed order has one row
    `failed`. All rows are kept.
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
        CheckConstraint("entry_price > 0", name="ck_live_entry"),
        CheckConstraint("side IN ('buy', 'sell')", name="ck_live_side"),
        CheckConstraint("size > 0", name="ck_live_size"),
        Index("ix_live_trade", "strategy_name", "opened_at"),
        Index(
            "ix_live_misrouted",
            "strategy_name",
            "opened_at",
            sqlite_where=text("misrouted = 1"),
            postgresql_where=text("misrouted"),
        ),
        Index(
            "ix_live_closed_by_user",
            "strategy_name",
            "user_id",
            "closed_at",
            sqlite_where=text("state = 'closed'"),
            postgresql_where=text("state = 'closed'"),
        ),
    )
    id: int | None = Field(default=None, primary_key=True)  # in the order of arrival
    trade_id: str
    state: str
    user_id: str
    strategy_name: str
    version: str
    symbol: str
    side: str | None = None  # buy or sell, if the platform reports it
    size: float | None = None  # in the platform's own unit
    opened_at: datetime = Field(sa_column=_time())  # of a failed order: when it was placed
    candle_s: int = Field(sa_type=BigInteger)  # its open time in Unix seconds, or the hour for longer candles
    closed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    pnl: float | None = None  # in price units as in `outcome`. R = pnl / risk is right in any unit
    risk: float | None = None  # distance from entry to stop, in the same unit
    error: str = Field(default="", sa_column=Column(Text, nullable=False))
    latency_ms: float | None = None  # from the signal to the fill
    entry_price: float | None = None  # of the feed's symbol, if the platform reports it
    canary_bp: int  # share of users like this one that routing gave the canary then: 0 if kept, 10,000 if always
    misrouted: bool  # the version is not the one that routing gave this user then
    ingested_at: datetime = Field(sa_column=_time())


# Positions


_OPEN_POSITION = text("closed_at IS NULL")


class Position(SQLModel, table=True):
    """One user's trade from its opening to its close, and the version that decides when to leave it.

    Kept in the transaction that stores the platform's report. Routing gives a user's entries another version, and a
    position stays with its manager: the version on the order, until an owner hands it over. Rows are not deleted.
    """

    __table_args__ = (
        ForeignKeyConstraint(
            ["strategy_name", "opened_by"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_position_opener",
        ),
        ForeignKeyConstraint(
            ["strategy_name", "manager"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_position_manager",
        ),
        CheckConstraint("side IN ('buy', 'sell')", name="ck_position_side"),
        CheckConstraint("size >= 0", name="ck_position_size"),
        CheckConstraint(
            "manager IS NOT NULL OR flatten_at IS NOT NULL OR closed_at IS NOT NULL", name="ck_position_managed"
        ),
        Index(
            "ix_position_open",
            "strategy_name",
            "manager",
            sqlite_where=_OPEN_POSITION,
            postgresql_where=_OPEN_POSITION,
        ),
        Index("ix_position_opened", "strategy_name", "opened_at"),
    )
    trade_id: str = Field(primary_key=True)
    user_id: str
    strategy_name: str
    symbol: str
    side: str | None = None  # buy or sell. Empty: the platform does not report it
    size: float | None = None  # what is left of it, in the platform's own unit
    opened_by: str  # the version on the order
    manager: str | None = None  # empty: its manager was retired and it is to be closed, so no version decides on it
    managed_since: datetime = Field(sa_column=_time())  # decisions on candles that closed before do not count
    opened_at: datetime = Field(sa_column=_time())
    closed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    flatten_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # to be closed from then on
    missing_since: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # not in the last snapshot
    recorded_at: datetime = Field(sa_column=_time())


class PositionChange(SQLModel, table=True):
    """What changed on a position, beside its opening and its close, and who changed it. Insert-only."""

    __tablename__ = "position_change"
    __table_args__ = (
        CheckConstraint("kind IN ('hand_over', 'flatten', 'size', 'missing', 'found')", name="ck_position_change"),
        Index("ix_position_change", "trade_id"),
    )
    id: int | None = Field(default=None, primary_key=True)
    trade_id: str = Field(foreign_key="position.trade_id")
    strategy_name: str
    at: datetime = Field(sa_column=_time())
    kind: str
    before: str = ""  # manager, time of the flatten or size
    after: str = ""
    actor: str
    reason: str = Field(default="", sa_column=Column(Text, nullable=False))


class PositionExit(SQLModel, table=True):
    """An exit, announced to the platform: leave this position, and why. Insert-only.

    A position has one at most, and one more because of a flatten, which the platform hears if it missed the first.

    Ids are given in the order of the commits, so that a reader who has seen one has seen all before it.
    """

    __tablename__ = "position_exit"
    __table_args__ = (
        UniqueConstraint("trade_id", "flattens", name="uq_position_exit"),
        CheckConstraint("why IN ('close', 'stop', 'target', 'horizon', 'flatten')", name="ck_position_exit"),
        CheckConstraint("flattens = (why = 'flatten')", name="ck_position_exit_flattens"),
        Index("ix_position_exit", "strategy_name", "id"),
    )
    id: int | None = Field(default=None, primary_key=True)
    trade_id: str = Field(foreign_key="position.trade_id")
    strategy_name: str
    symbol: str
    manager: str | None = None
    why: str  # of `domain.positions.Why`
    flattens: bool
    candle: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # open time. Empty: an owner's act
    announced_at: datetime = Field(sa_column=_time())


class PositionSnapshot(SQLModel, table=True):
    """When the newest snapshot of a strategy's positions was taken on the platform. An older one is refused."""

    __tablename__ = "position_snapshot"
    strategy_name: str = Field(primary_key=True, foreign_key="strategy.name")
    taken_at: datetime = Field(sa_column=_time())


# Time


class StoredClock(SQLModel, table=True):
    """The clock of the replay that fills this database. One row, or none: then the real time counts.

    `rollout up` writes it when it starts, and lets it stand still when it stops. `rollout db clock --remove` deletes
    it.
    """

    __tablename__ = "replay_clock"
    __table_args__ = (
        CheckConstraint("id = 1", name="ck_one_clock"),
        CheckConstraint("speed > 0 AND speed <= 1000000", name="ck_clock_speed"),
    )
    id: int = Field(default=1, sa_column=Column(Integer, primary_key=True, autoincrement=False))
    replay_from: datetime = Field(sa_column=_time())
    started_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # empty: the clock stands still
    speed: float


# Requests: what owners ask for in forms, and the API's idempotency


class OwnerRequest(SQLModel, table=True):
    """What an owner asked for in a form. It is written down before it is done, and done once.

    `services.owner_requests` moves it on: a process claims it until `taken_until` and ends it with one line. After that
    time another process may claim it, because the first one has ended or hangs. Ended requests are kept.
    """

    __tablename__ = "owner_request"
    __table_args__ = (
        CheckConstraint("ended_at IS NOT NULL OR (NOT failed AND line = '')", name="ck_request_ended"),
        Index(
            "ix_request_open",
            "taken_until",
            sqlite_where=text("ended_at IS NULL"),
            postgresql_where=text("ended_at IS NULL"),
        ),
    )
    id: UUID = Field(primary_key=True)  # of the flow run
    action: str  # name of the flow
    parameters: dict[str, Any] = Field(sa_column=_json())
    signed_in: str = ""  # the owner's name if a proxy has verified it
    asked_at: datetime = Field(sa_column=_time())  # real time, as the other times here, also in a replay
    taken_by: str = ""
    taken_until: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    ended_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    failed: bool = False
    line: str = Field(default="", sa_column=Column(Text, nullable=False))


_RACE_OPEN = "closed_at IS NULL"


class Race(SQLModel, table=True):
    """Many candidates of a strategy against its active version. A strategy has at most one open race.

    The sums of all pairs are those of the days before `next_day`. They follow from the decision log and its outcomes.
    """

    __table_args__ = (
        CheckConstraint("(closed_at IS NULL) = (closed_by = '')", name="ck_race_closed"),
        Index(
            "one_open_race_per_strategy",
            "strategy_name",
            unique=True,
            sqlite_where=text(_RACE_OPEN),
            postgresql_where=text(_RACE_OPEN),
        ),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    strategy_name: str = Field(foreign_key="strategy.name")
    plan: dict[str, Any] = Field(sa_column=_json())  # of the rollouts that it starts
    starts: bool  # whether it starts the rollout of a nominee itself, or asks for it by an alert
    began: int  # entries at its start, with the active version
    tried: int  # versions that were ever set against the active one
    started_at: datetime = Field(sa_column=_time())
    started_by: str
    first_day: datetime = Field(sa_column=_time())
    next_day: datetime = Field(sa_column=_time())
    generation: int = 1  # raised by each change of the sums or the entries
    pairs: dict[str, Any] = Field(sa_column=_json())  # `domain.race.Pairs`
    ruling: dict[str, Any] = Field(default_factory=dict, sa_column=_json())  # the newest `domain.race.Ruling`
    rollout_id: UUID | None = Field(default=None, foreign_key="rollout.id")  # the newest that it started
    withdrew_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # a rollout, the last time
    closed_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    closed_by: str = ""
    closed_because: str = Field(default="", sa_column=Column(Text, nullable=False))


class RaceEntry(SQLModel, table=True):
    """A version in a race. Once it is out, it stays out."""

    __tablename__ = "race_entry"
    __table_args__ = (
        UniqueConstraint("race_id", "version", name="uq_race_entry"),
        ForeignKeyConstraint(
            ["strategy_name", "version"],
            ["strategy_version.strategy_name", "strategy_version.version"],
            name="fk_race_version",
        ),
    )
    race_id: UUID = Field(primary_key=True, foreign_key="race.id")
    position: int = Field(primary_key=True)  # row and column of the race's pairs
    strategy_name: str
    version: str
    entered_at: datetime = Field(sa_column=_time())
    candles: int = 0
    errors: int = 0
    eliminated_by: str = ""
    withdrawn: str = Field(default="", sa_column=Column(Text, nullable=False))  # why
    refused: str = Field(default="", sa_column=Column(Text, nullable=False))  # why no rollout of it can start


class RaceStanding(SQLModel, table=True):
    """How the versions of a race stood after one UTC day. Insert-only."""

    __tablename__ = "race_standing"
    race_id: UUID = Field(primary_key=True, foreign_key="race.id")
    day: datetime = Field(sa_column=_time(primary_key=True))
    active: str
    rows: list[dict[str, Any]] = Field(sa_column=_json())  # `domain.race.Standing`, infinite bounds as null


class Proposal(SQLModel, table=True):
    """A change that an assistant proposes. It is done once a person approves it, and at most once.

    `services.proposals` moves it on: a person decides it, and what became of an approved one is stored in `line`.
    Decided proposals are kept.
    """

    __table_args__ = (
        CheckConstraint("(decided_at IS NULL) = (decision = '')", name="ck_proposal_decided"),
        CheckConstraint("decision IN ('', 'approved', 'rejected')", name="ck_proposal_decision"),
        Index("ix_proposal_strategy", "strategy_name", "proposed_at"),
    )
    id: UUID = Field(default_factory=uuid4, primary_key=True)
    strategy_name: str = Field(foreign_key="strategy.name")
    action: str
    parameters: dict[str, Any] = Field(sa_column=_json())
    reason: str = Field(sa_column=Column(Text, nullable=False))
    generation: int  # of the strategy when it was proposed. With another one it is refused
    proposed_by: str
    proposed_at: datetime = Field(sa_column=_time())
    decision: str = ""
    decided_by: str = ""
    decided_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))
    failed: bool = False
    line: str = Field(default="", sa_column=Column(Text, nullable=False))


class AgentCall(SQLModel, table=True):
    """One call of an assistant, also one that only reads or was refused. Insert-only, deleted after 90 days.

    Apart from the audit events: reading changes no strategy, waits for none, and does not raise its generation.
    """

    __tablename__ = "agent_call"
    __table_args__ = (Index("ix_agent_call_strategy", "strategy_name", "id"),)
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_column=_time())
    actor: str
    tool: str
    strategy_name: str
    arguments: dict[str, Any] = Field(sa_column=_json())
    refused: str = Field(default="", sa_column=Column(Text, nullable=False))  # why. Empty: answered
    request_id: str = ""  # of the audit event, if the call changed something


class ApiAnswer(SQLModel, table=True):
    """The first response to a request with an idempotency key. A repeated request gets the same response."""

    __tablename__ = "api_answer"
    actor: str = Field(primary_key=True)
    idempotency_key: str = Field(primary_key=True)
    digest: str  # sha256 of the request. A different request under the same key is refused
    strategies: list[str] = Field(sa_column=_json())  # that the request concerns
    status: int
    headers: dict[str, Any] = Field(sa_column=_json())
    body: str = Field(sa_column=Column(Text, nullable=False))
    answered_at: datetime = Field(sa_column=_time(index=True))


# Tokens


class ServiceToken(SQLModel, table=True):
    """A long-lived token of a program, as it was issued, without its signature. Only its revocation is set later."""

    __tablename__ = "service_token"
    __table_args__ = (CheckConstraint("(revoked_at IS NULL) = (revoked_by = '')", name="ck_token_revoked"),)
    id: str = Field(primary_key=True)  # its `jti`
    name: str
    role: str
    strategies: list[str] = Field(sa_column=_json())  # that it is limited to. Empty: all
    read_only: bool
    issued_at: datetime = Field(sa_column=_time())  # real time as in the token, also in a replay
    expires_at: datetime = Field(sa_column=_time())
    issued_by: str
    revoked_at: datetime | None = Field(default=None, sa_column=_time(nullable=True))  # real time too
    revoked_by: str = ""
    revoked_because: str = Field(default="", sa_column=Column(Text, nullable=False))


# Running counts for metrics


class DecisionTally(SQLModel, table=True):
    """All decisions of one version on one symbol, counted, and the newest candle it was asked about."""

    __tablename__ = "decision_tally"
    strategy_name: str = Field(primary_key=True)
    version: str = Field(primary_key=True)
    symbol: str = Field(primary_key=True)
    buy: int = Field(sa_type=BigInteger)
    sell: int = Field(sa_type=BigInteger)
    hold: int = Field(sa_type=BigInteger)
    error: int = Field(sa_type=BigInteger)
    newest_candle_s: int = Field(sa_type=BigInteger)  # open time in Unix seconds


class Counted(StrEnum):
    """What a row of `tally` counts. The comments give the meaning of `name` and `detail`."""

    ACTIVATION = "activation"  # version
    ERROR = "error"  # version, kind of error
    ROLLBACK = "rollback"  # cause
    VERDICT = "verdict"  # gate, verdict


class Tally(SQLModel, table=True):
    """How often something has happened to a strategy in total.

    A row belongs to one strategy, so that a change of one strategy does not wait for a change of another.
    """

    strategy_name: str = Field(primary_key=True)
    what: str = Field(primary_key=True)
    name: str = Field(primary_key=True)
    detail: str = Field(primary_key=True)
    total: int = Field(sa_type=BigInteger)


class DirectoryTally(SQLModel, table=True):
    """How many users of the directory, and how much capital, lie below each bucket under a salt.

    Empty until a directory is loaded.
    """

    __tablename__ = "directory_tally"
    salt: str = Field(primary_key=True)
    users: int
    below: bytes  # 10,001 big-endian uint32: users below bucket 0, 1, … 10,000
    unknown_below: bytes = b""  # the same of users whose capital is unknown
    capital_below: bytes = b""  # 10,001 big-endian float64: known capital below bucket 0, 1, … 10,000
