"""Decisions, comparisons and live trades, as requests and answers have them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from strategy_core.api.schemas.shared import StrategyName, Symbol, Time, Told, VersionName, Wish
from strategy_core.domain.live import TradeReport

MOST_TRADES = 10_000


class Comparing(Wish):
    """Two versions over the same candles: of the last *days*, or of [start, end)."""

    strategy_name: StrategyName
    shadow_version: VersionName
    active_version: VersionName | None = Field(default=None, description="The active one, unless given.")
    symbol: Symbol | None = Field(default=None, description="All that both decide on, unless given.")
    days: float | None = Field(default=None, gt=0, le=36_500, description="30, unless given; not with `start`.")
    start: Time | None = None
    end: Time | None = Field(default=None, description="Excluded; now, unless given.")
    by_regime: bool = Field(default=False, description="Tell the candles apart by volatility and trend as well.")


class Decision(Told):
    id: UUID
    strategy_name: str
    version: str
    symbol: str
    timestamp: datetime = Field(description="The candle's open time.")
    decision: str = Field(description="buy, sell, hold; or error, when the version gave none.")
    confidence: float
    features: dict[str, Any]
    reason: str
    role: str = Field(description="The version's status at that time.")
    window_hash: str = Field(description="Of the candles that it saw.")
    duration_ms: float
    error_kind: str
    error: str | None
    logged_at: datetime


class Outcomes(Wish):
    """What the broker reports of users' trades; the same report may come any number of times."""

    trades: list[TradeReport] = Field(min_length=1, max_length=MOST_TRADES)


class Ingested(Told):
    new: int
    known: int = Field(description="Reports that had been taken in before.")
    misrouted: int = Field(description="Trades of users whom routing gave another version.")
