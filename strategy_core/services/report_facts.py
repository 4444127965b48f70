"""The facts of the reports that are written for owners, as they are stored."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from strategy_core.domain.comparison import Comparison, Interval
from strategy_core.domain.owner_reports import Kind
from strategy_core.services.history import Day, Equity, ServedSpan
from strategy_core.services.reports import HarmPath, RollbackCost

ALPHA = 0.05  # of all intervals of a report together


class StoredFacts(BaseModel):
    """A part of a report's facts. Facts of later releases may have more fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class GateFacts(StoredFacts):
    """What a gate has found. The fields are those of `domain.readings.GateReading`."""

    title: str
    shown_verdict: str
    value: str
    limit: str
    count: str
    reason: str


class RolloutFacts(StoredFacts):
    """Where a rollout stands, or how it has ended. The fields are those of `reports.Progress` and `RolloutReport`."""

    id: UUID
    version: str
    control_version: str
    state: str
    stage_index: int
    stages: tuple[float, ...]
    percent: float
    users: int | None
    directory: int | None
    started_at: datetime
    started_by: str | None
    promoted_at: datetime | None
    ended_at: datetime | None
    reason: str
    verdict: str
    next_step: str
    needs: tuple[str, ...]
    gates: tuple[GateFacts, ...]
    cost: RollbackCost
    equity: Equity
    days: tuple[Day, ...]
    usual_unlike: float | None
    harm: HarmPath | None
    served: tuple[ServedSpan, ...]
    now_active: str | None


class VersionFacts(StoredFacts):
    """A version beside the active one.

    Attributes:
        difference: R per slot, version - active. The intervals of all versions hold together at 95 %.
        reading, text, next_step: what its shadow shows. Empty for a canary, whose rollout is judged by its gates.
        comparison, equity, days: of the newest nightly comparison, if there is one.
    """

    version: str
    status: str
    difference: Interval
    reading: str
    text: str
    next_step: str
    comparison: Comparison | None
    equity: Equity | None
    days: tuple[Day, ...]
    compared_from: datetime | None
    compared_to: datetime | None


class DroppedVersion(StoredFacts):
    """A version that was tried against the active one and is not tried any more."""

    version: str
    why: str
    at: datetime


class ReportFacts(StoredFacts):
    """All that a report's page shows.

    Attributes:
        subject: see `OwnerReport`.
        at: when it was written.
        news: what has changed since the last report of this kind, a line each.
        tried: versions that were compared with the active one, dropped ones included.
        confidence: of each interval, so that all of them hold together at 95 %.
        risk_fraction: share of equity that one R stands for.
        state: what the next report compares itself with.
    """

    kind: Kind
    subject: str
    strategy_name: str
    active: str | None
    at: datetime
    period_start: datetime
    period_end: datetime
    sentence: str
    news: tuple[str, ...] = ()
    versions: tuple[VersionFacts, ...] = ()
    dropped: tuple[DroppedVersion, ...] = ()
    tried: int = 0
    confidence: float = 1 - ALPHA
    rollout: RolloutFacts | None = None
    risk_fraction: float
    state: dict[str, Any] = {}
