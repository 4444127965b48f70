"""What the platform's broker reports of users' trades: what a report must hold, and who routing says it should be.

It is never judged here: the gates on it stand in `execution`.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.parsing import Moment, Name

ROUTING_GRACE = timedelta(seconds=60)  # the platform's own limit for a router to follow a change
CLOCK_SKEW = timedelta(seconds=5)  # a broker's clock that is late may not make a healthy canary look misrouted
LARGEST_R = 1e6  # rows are never deleted: one absurd number would spoil, or on PostgreSQL stop, every sum it is in
LARGEST_PNL = 1e15


class TradeReport(BaseModel):
    """One report of one user's trade: that it was opened, that it has closed, or that its order failed.

    Attributes:
        trade_id: the platform's own; the same report under it may come any number of times.
        opened_at: of an order that failed: when it was tried.
        closed_at, pnl: of a closed trade, both.
        pnl, risk: in one unit, so that R = pnl / risk; as prices, and the average PnL is comparable with the shadow's.
        error: why the order failed.
        latency_ms: from the signal to the fill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    trade_id: Name
    user_id: Name
    strategy_name: Name
    version: Name
    symbol: Name
    opened_at: Moment
    closed_at: Moment | None = None
    pnl: float | None = Field(default=None, ge=-LARGEST_PNL, le=LARGEST_PNL)
    risk: float | None = Field(default=None, gt=0)
    error: str = Field(default="", pattern=r"^[^\x00]*$")
    latency_ms: float | None = Field(default=None, ge=0)

    @property
    def state(self) -> Literal["open", "closed", "failed"]:
        if self.error:
            return "failed"
        return "open" if self.closed_at is None else "closed"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.error and (self.closed_at is not None or self.pnl is not None):
            raise ValueError("error: an order that failed has neither closed_at nor pnl")
        if (self.closed_at is None) != (self.pnl is None):
            raise ValueError("closed_at, pnl: a closed trade has both, an open one neither")
        if self.closed_at is not None and self.risk is None:
            raise ValueError("risk: a closed trade needs it, since R = pnl / risk")
        if self.pnl is not None and self.risk is not None and abs(self.pnl) > LARGEST_R * self.risk:
            raise ValueError(f"pnl, risk: no trade makes R = pnl / risk beyond {LARGEST_R:,.0f}")
        if self.closed_at is not None and self.closed_at < self.opened_at:
            raise ValueError("closed_at: lies before opened_at")
        return self


@dataclass(frozen=True, slots=True)
class Serving:
    """Who served a strategy's users from one moment on, until the next one's *since*."""

    since: datetime
    active: str | None
    canary: str | None
    canary_bp: int

    def version_of(self, bucket: int) -> str | None:
        return self.canary if self.canary is not None and bucket < self.canary_bp else self.active


def serving_at(history: Sequence[Serving], moment: datetime) -> Serving | None:
    """Return who served at *moment*, by a history that is ordered by time; None before its beginning."""
    place = bisect_right(history, moment, key=lambda serving: serving.since)
    return history[place - 1] if place else None


def is_misrouted(history: Sequence[Serving], bucket: int, version: str, opened_at: datetime) -> bool:
    """Say whether routing gave the user's *bucket* another version than *version* all the while it could have acted.

    A trade is rightly routed if its version is what routing gave at any moment of the ROUTING_GRACE before it was
    opened, or of the CLOCK_SKEW after. Before the history begins, or while nothing was active, nobody was routed.
    """
    first = bisect_right(history, opened_at - ROUTING_GRACE, key=lambda serving: serving.since)
    last = bisect_right(history, opened_at + CLOCK_SKEW, key=lambda serving: serving.since)
    if first == 0:
        return False
    given = {serving.version_of(bucket) for serving in history[first - 1 : last]}
    return version not in given and None not in given


def candle_of(moment: datetime, timeframe: timedelta) -> int:
    """Return the open of the candle in which *moment* lies, in seconds since 1970.

    Of a candle longer than an hour, whose grid is its source's own, it is the open of the hour.
    """
    seconds = int(min(timeframe, timedelta(hours=1)).total_seconds())
    return int(moment.timestamp()) // seconds * seconds


MINIMUM_SLOTS = 30  # of agreement: fewer say nothing either way
_SAME = 1e-12  # R²: below it results differ by rounding alone


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How well the shadow's R agrees with live R, slot by slot, of one version.

    Attributes:
        concordance: Lin's coefficient: 1 when they are equal, 0 when unrelated; a shift or another scale lowers it.
        n: slots of which both are known.
        live_r, shadow_r: means over those slots.
    """

    concordance: float
    n: int
    live_r: float
    shadow_r: float

    def doubt(self, limit: float = 0.8, minimum: int = MINIMUM_SLOTS) -> str:
        """Return why comparisons of shadow outcomes cannot be trusted; "" when nothing says so."""
        if self.n < minimum or self.concordance >= limit:
            return ""
        return (
            f"the shadow's outcomes do not tell what trades are worth live: concordance {self.concordance:.2f} on "
            f"{self.n} slots, limit {limit:g} (mean {self.live_r:+.3f} R live, {self.shadow_r:+.3f} R in shadow)"
        )


def fidelity(live: FloatArray, shadow: FloatArray) -> Fidelity | None:
    """Return the agreement of paired R-multiples, both of shape (slots,); None without any.

    ρ = 2·s_xy / (s_x² + s_y² + (x̄ − ȳ)²), moments over n; 1 where neither varies and both are equal.

    Source: Lin (1989), "A concordance correlation coefficient to evaluate reproducibility".
    """
    if len(live) == 0:
        return None
    x, y = live - live.mean(), shadow - shadow.mean()
    apart = float(np.mean(x**2) + np.mean(y**2) + (live.mean() - shadow.mean()) ** 2)
    concordance = 2 * float(np.mean(x * y)) / apart if apart > _SAME else 1.0
    return Fidelity(concordance, len(live), float(live.mean()), float(shadow.mean()))
