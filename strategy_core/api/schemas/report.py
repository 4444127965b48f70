"""A rollout's report, as answers have it."""

from datetime import datetime
from uuid import UUID

from pydantic import Field

from strategy_core.api.schemas.audit import Event
from strategy_core.api.schemas.evidence import Decision
from strategy_core.api.schemas.rollouts import RolloutDetail, Verdict
from strategy_core.api.schemas.shared import Told
from strategy_core.domain.comparison import Comparison


class Served(Told):
    """The version's share of users over one span of time."""

    since: datetime
    until: datetime
    percent: float
    users: int | None = Field(description="Of the directory; null where none is loaded.")


class HarmPath(Told):
    """The e-process of harm over time, as log10 E; each value stands until the next."""

    at: list[datetime]
    log_e: list[float]
    limit: float = Field(description="It is rolled back from there on.")
    freeze_at: float = Field(description="Its stage is held from there on.")


class Cost(Told):
    slots: int
    canary_r: float = Field(description="R of a user who copied every signal of the canary, over these slots.")
    control_r: float = Field(description="R of one who copied its control.")


class Equity(Told):
    """Cumulative R of both versions at the same candles, marked to market; some of a long rollout's."""

    at: list[datetime]
    canary: list[float]
    control: list[float]


class Day(Told):
    day: datetime = Field(description="Its midnight, UTC; days without a closed slot are left out.")
    slots: int
    unlike: int = Field(description="Slots on which the two said different things.")
    canary_r: float
    control_r: float
    mean: float = Field(description="Canary's R - control's R per slot, over all days to the end of this one.")
    low: float | None = Field(description="Of its 95 % interval; null on the first day.")
    high: float | None


class Slot(Told):
    position: int = Field(description="In the order in which the rollout booked them, from 0.")
    symbol: str
    timestamp: datetime = Field(description="The candle's open time.")
    closed_at: datetime
    booked_at: datetime
    canary_r: float
    active_r: float
    canary_side: int = Field(description="1 buy, -1 sell, 0 hold.")
    active_side: int


class RolledBack(Told):
    """Why users were taken off, on which rows that rests, and whom it had reached."""

    event: Event
    gate: Verdict | None = Field(description="The verdict that decided; null when a person did.")
    verdicts: list[Verdict] = Field(description="What every gate said, the worst first.")
    slots: list[Slot] = Field(description="Booked last, newest first.")
    decisions: list[Decision] = Field(description="Of the version before that moment, newest first.")
    served: list[Served]
    directory: int | None = Field(description="Users in the directory; null where none is loaded.")
    now_active: str | None = Field(description="Who serves users since.")
    cost: Cost | None


class NightlyComparison(Told):
    shadow_version: str
    active_version: str
    period_start: datetime
    period_end: datetime
    created_at: datetime
    comparison: Comparison
    equity: Equity
    days: list[Day]


class RolloutReport(Told):
    id: UUID
    at: datetime = Field(description="The moment of the report; of its end, if the rollout has ended.")
    rollout: RolloutDetail
    started_by: str | None
    percent: float = Field(description="Of users who get its version at that moment.")
    users: int | None = Field(description="So many of the directory; null where none is loaded.")
    directory: int | None
    served: list[Served] = Field(description="Whom it has served, by share and time.")
    harm: HarmPath | None
    cost: Cost
    equity: Equity
    days: list[Day]
    usual_unlike: float | None = Field(description="Share of slots on which the two differed in shadow.")
    comparison: NightlyComparison | None = Field(description="The newest nightly one of the two.")
    changes: list[Event] = Field(description="The newest of its audit events, oldest first.")
    rolled_back: RolledBack | None
