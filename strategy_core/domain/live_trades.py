"""Live trades: reports of users' trades, the version that routing gave a user, and how well shadow results agree."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.parsing import Moment, Name
from strategy_core.domain.routing import BUCKETS, Standing
from strategy_core.domain.user_exclusions import UserExclusion, standings

ROUTING_GRACE = timedelta(seconds=60)  # within which the platform's routers follow a change
CLOCK_SKEW = timedelta(seconds=5)  # a slow broker clock must not make a healthy canary look misrouted
LARGEST_R = 1e6  # rows stay for good: one absurd number would spoil every sum, or make PostgreSQL refuse it
LARGEST_PNL = 1e15
MINIMUM_SLOTS = 30  # with fewer, agreement cannot be judged
_SAME = 1e-12  # R²: smaller differences are rounding


class TradeReport(BaseModel):
    """One report of a user's trade: it was opened, it has closed, or its order failed.

    Attributes:
        trade_id: chosen by the platform. The same report may be sent repeatedly.
        opened_at: for a failed order, the time of the attempt.
        closed_at, pnl: required for a closed trade.
        pnl, risk: in the same unit, so that R = pnl / risk. In price units, the average PnL is comparable with the
            shadow's.
        error: why the order failed.
        latency_ms: from the signal to the fill.
        side: buy or sell. Without it a position's signal is found by its time alone.
        entry_price: the fill, on the feed's symbol. Loss limits count an open trade from it.
        size: in the platform's own unit. `POST /positions/snapshot` reports what is left after a partial close.
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
    side: Literal["buy", "sell"] | None = None
    size: float | None = Field(default=None, gt=0)
    entry_price: float | None = Field(default=None, gt=0)

    @property
    def state(self) -> Literal["open", "closed", "failed"]:
        if self.error:
            return "failed"
        return "open" if self.closed_at is None else "closed"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.error and (self.closed_at is not None or self.pnl is not None):
            raise ValueError("error: a failed order has neither closed_at nor pnl")
        if (self.closed_at is None) != (self.pnl is None):
            raise ValueError("closed_at, pnl: a closed trade has both, an open one neither")
        if self.closed_at is not None and self.risk is None:
            raise ValueError("risk: a closed trade needs it, since R = pnl / risk")
        if self.pnl is not None and self.risk is not None and abs(self.pnl) > LARGEST_R * self.risk:
            raise ValueError(f"pnl, risk: R = pnl / risk must not exceed {LARGEST_R:,.0f}")
        if self.pnl and self.risk is not None and self.pnl / self.risk == 0:
            raise ValueError("pnl, risk: R = pnl / risk is too small for a number; report a pnl of 0")
        if self.closed_at is not None and self.closed_at < self.opened_at:
            raise ValueError("closed_at: is before opened_at")
        return self


@dataclass(frozen=True, slots=True)
class Serving:
    """The versions that served a strategy's users from *since* until the next entry."""

    since: datetime
    active: str | None
    canary: str | None
    canary_bp: int
    excluded: frozenset[str] = frozenset()  # symbols that the canary does not serve

    def version_of(self, bucket: int, symbol: str, standing: Standing = Standing.BUCKET) -> str | None:
        if self.canary is None or self.canary_bp == 0 or symbol in self.excluded or standing is Standing.KEPT:
            return self.active
        return self.canary if bucket < self.canary_bp or standing is Standing.ALWAYS else self.active

    def share_of(self, standing: Standing) -> int:
        """Return the share of such users that get the canary, in basis points."""
        if standing is Standing.BUCKET or self.canary is None:
            return self.canary_bp
        return BUCKETS if standing is Standing.ALWAYS and self.canary_bp else 0


def serving_at(history: Sequence[Serving], moment: datetime) -> Serving | None:
    """Return the entry for *moment* in a history that is sorted by time, or None before its first entry."""
    place = bisect_right(history, moment, key=lambda serving: serving.since)
    return history[place - 1] if place else None


def is_misrouted(
    history: Sequence[Serving],
    bucket: int,
    symbol: str,
    version: str,
    opened_at: datetime,
    exclusions: Sequence[UserExclusion] = (),
) -> bool:
    """Return whether *version* is not one that routing gave the user on *symbol* around *opened_at*.

    Args:
        bucket: of the user.
        exclusions: of the user, for the strategy or for all.

    A trade is routed correctly if routing gave its version at any moment from ROUTING_GRACE before it was opened until
    CLOCK_SKEW after. Before the history begins, or while no version was active, the result is False.
    """
    start, end = opened_at - ROUTING_GRACE, opened_at + CLOCK_SKEW
    first = bisect_right(history, start, key=lambda serving: serving.since)
    last = bisect_right(history, end, key=lambda serving: serving.since)
    if first == 0:
        return False
    held = standings(exclusions, start, end)
    given = {serving.version_of(bucket, symbol, standing) for serving in history[first - 1 : last] for standing in held}
    return version not in given and None not in given


def candle_of(moment: datetime, timeframe: timedelta) -> int:
    """Return the open time of the candle that contains *moment*, in seconds since 1970.

    For candles longer than an hour, whose grid depends on the source, return the start of the hour.
    """
    seconds = int(min(timeframe, timedelta(hours=1)).total_seconds())
    return int(moment.timestamp()) // seconds * seconds


@dataclass(frozen=True, slots=True)
class Fidelity:
    """The agreement of shadow R and live R of one version, by slot.

    Attributes:
        concordance: Lin's coefficient: 1 if equal, 0 if unrelated. A shift or another scale lowers it.
        n: slots with both results.
        live_r, shadow_r: means over those slots.
    """

    concordance: float
    n: int
    live_r: float
    shadow_r: float

    def doubt(self, limit: float = 0.8, minimum: int = MINIMUM_SLOTS) -> str:
        """Return why comparisons of shadow outcomes cannot be trusted, or an empty text."""
        if self.n < minimum or self.concordance >= limit:
            return ""
        return (
            f"shadow outcomes do not agree with live trades: concordance {self.concordance:.2f} on "
            f"{self.n:,} slots, limit {limit:g} (mean {self.live_r:+.3f} R live, {self.shadow_r:+.3f} R in shadow)"
        )


def fidelity(live: FloatArray, shadow: FloatArray) -> Fidelity | None:
    """Return the agreement of paired R-multiples, both of shape (slots,), or None without slots.

    ρ = 2·s_xy / (s_x² + s_y² + (x̄ − ȳ)²), with moments over n. It is 1 if both are constant and equal.

    Source: Lin (1989), "A concordance correlation coefficient to evaluate reproducibility".
    """
    if len(live) == 0:
        return None
    x, y = live - live.mean(), shadow - shadow.mean()
    apart = float(np.mean(x**2) + np.mean(y**2) + (live.mean() - shadow.mean()) ** 2)
    concordance = 2 * float(np.mean(x * y)) / apart if apart > _SAME else 1.0
    return Fidelity(concordance, len(live), float(live.mean()), float(shadow.mean()))
