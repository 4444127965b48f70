"""Rollouts, their plans and verdicts, and rollbacks, as requests and answers have them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from strategy_core.api.schemas.shared import (
    Explained,
    NeededReason,
    OverrideReason,
    Reason,
    StrategyName,
    Told,
    VersionName,
    Wish,
)
from strategy_core.domain.audience import Audience
from strategy_core.domain.performance import Performance
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import Preview
from strategy_core.domain.ramp import State
from strategy_core.services.approve import Choice


class Planned(Wish):
    strategy_name: StrategyName
    version: VersionName
    plan: Plan = Field(default_factory=Plan, description="Frozen at the start; the usual one, unless given.")


class Start(Planned):
    reason: Reason = ""
    override_reason: OverrideReason = ""


class Answer(Explained):
    choice: Choice = Field(description="The stage's maximum time anew, the next stage, or users off it now.")


class Rollback(Wish):
    """Take users off a version, now; it is never refused for being late, and so takes no `If-Match`."""

    strategy_name: StrategyName
    version: VersionName | None = Field(
        default=None,
        description="The version users shall be taken off: the rollout's or the canary, unless given. An activation is "
        "undone only when its version is named.",
    )
    reason: NeededReason


class RolledBack(Told):
    strategy_name: str
    version: str = Field(description="The version that no user gets any more.")


class Rollout(Told):
    id: UUID
    strategy_name: str
    version: str
    control_version: str = Field(description="The version that it is measured against.")
    state: State
    stage_index: int
    started_at: datetime
    stage_entered_at: datetime
    stage_extended_at: datetime
    approved_stage: int | None
    blind_since: datetime | None
    promoted_at: datetime | None
    ended_at: datetime | None
    last_tick_at: datetime | None
    reason: str


class Verdict(Told):
    id: UUID
    gate: str
    verdict: str
    armed: bool = Field(description="Whether it has a vote; else it is recorded only.")
    reason: str
    value: float | None
    limit: float | None
    low: float | None
    high: float | None
    n: int
    stage_index: int
    ticked_at: datetime


class StandingVerdict(Verdict):
    since: datetime = Field(description="When the gate began to say this verdict without a break.")


class Fidelity(Told):
    concordance: float = Field(description="1 when shadow and live agree, 0 when they are unrelated.")
    n: int
    live_r: float
    shadow_r: float


class LiveResult(Told):
    live: Performance
    shadow: Performance
    fidelity: Fidelity | None
    trades: int


class RolloutDetail(Rollout):
    plan: dict[str, Any] = Field(description="As it was frozen at the start.")
    stages: list[float] = Field(description="Percents of the plan.")
    verdicts: list[StandingVerdict] = Field(description="Each gate's newest, the worst first.")
    needs: list[str] = Field(description="What must happen before it goes on, the most urgent first.")
    minimum_left_s: float | None = Field(description="Of the stage's minimum time, or of the bake.")
    maximum_left_s: float | None = Field(description="Until a stage without an answer is put to the owner.")
    live: dict[str, LiveResult] = Field(description="By version: what users' trades came to, beside the shadow's.")


class PlanPreview(Told):
    preview: Preview
    underpowered: bool
    verdict: str = Field(description="Whether the plan can come to an answer, in a line.")
    audience: Audience
    estimated: bool = Field(description="Whether users are not counted, since no directory of them is loaded.")
