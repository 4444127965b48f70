"""What a demo run came to, as data: what `rollout demo --json` prints, and what the summary tables show."""

from datetime import datetime

from pydantic import BaseModel


class Event(BaseModel):
    """One change, as the audit trail has it."""

    at: datetime
    actor: str
    action: str
    version: str
    percent: float
    reason: str


class StageResult(BaseModel):
    """One stage of a rollout: when it was entered and left, the worst verdict it was left with, and why."""

    percent: float
    entered_at: datetime
    left_at: datetime | None
    verdict: str
    reason: str


class RolloutResult(BaseModel):
    version: str
    control_version: str
    state: str
    started_at: datetime
    ended_at: datetime | None
    slots: int
    reason: str
    stages: list[StageResult]


class ComparisonResult(BaseModel):
    """A shadow version against the active one, before its rollout."""

    shadow_version: str
    active_version: str
    days: float
    shadow_signal_count: int
    active_signal_count: int
    divergence_rate: float | None
    shadow_win_rate: float | None
    active_win_rate: float | None
    difference: float | None
    low: float | None
    high: float | None
    slots: int


class PlanResult(BaseModel):
    """What the plan said before the rollout, from the shadow history."""

    version: str
    slots_per_day: float
    underpowered: bool
    verdict: str


class VersionResult(BaseModel):
    version: str
    entry_point: str
    config: dict[str, object]
    status: str
    quarantined: bool
    decisions: int
    signals: int
    errors: int


class DemoResult(BaseModel):
    feed: str
    symbols: list[str]
    started_at: datetime
    ended_at: datetime
    candles: int
    versions: list[VersionResult]
    comparisons: list[ComparisonResult]
    plans: list[PlanResult]
    rollouts: list[RolloutResult]
    timeline: list[Event]
    ending: str
