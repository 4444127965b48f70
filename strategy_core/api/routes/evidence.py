"""What versions said and what it was worth: decisions, comparisons, and the platform's own trades."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, KEYED, Requested
from strategy_core.api.pagination import moment, next_cursor, read_cursor, text
from strategy_core.api.routes import guarded
from strategy_core.api.schemas import (
    Cursor,
    Limit,
    Page,
    RequestModel,
    ResponseModel,
    StrategyName,
    Symbol,
    Time,
    VersionName,
)
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.live_trades import TradeReport
from strategy_core.services import queries
from strategy_core.services.compare import chosen_period, compare_versions
from strategy_core.services.live_trades import ingest_reports

MOST_TRADES = 10_000


class Comparing(RequestModel):
    """Two versions over the same candles: of the last *days*, or of [start, end)."""

    strategy_name: StrategyName
    shadow_version: VersionName
    active_version: VersionName | None = Field(default=None, description="The active one, unless given.")
    symbol: Symbol | None = Field(default=None, description="All that both decide on, unless given.")
    days: float | None = Field(default=None, gt=0, le=36_500, description="30, unless given; not with `start`.")
    start: Time | None = None
    end: Time | None = Field(default=None, description="Excluded; now, unless given.")
    by_regime: bool = Field(default=False, description="Tell the candles apart by volatility and trend as well.")


class DecisionResponse(ResponseModel):
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


class Outcomes(RequestModel):
    """What the broker reports of users' trades; the same report may come any number of times."""

    trades: list[TradeReport] = Field(min_length=1, max_length=MOST_TRADES)


class IngestedResponse(ResponseModel):
    new: int
    known: int = Field(description="Reports that had been taken in before.")
    misrouted: int = Field(description="Trades of users whom routing gave another version.")


router = guarded("evidence")


@router.get("/decisions")
def list_decisions(
    ask: Requested,
    strategy_name: Annotated[StrategyName, Query()],
    version: Annotated[VersionName | None, Query()] = None,
    symbol: Annotated[Symbol | None, Query()] = None,
    start: Annotated[Time | None, Query()] = None,
    end: Annotated[Time | None, Query(description="Excluded.")] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 100,
) -> Page[DecisionResponse]:
    """List what versions said on candles of [start, end): by version and symbol, oldest first."""
    found = queries.list_decisions(
        ask.engine,
        strategy_name=ask.reads(strategy_name),
        version=version,
        symbol=symbol,
        start=start,
        end=end,
        after=read_cursor(cursor, text, text, moment),
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda row: (row.version, row.symbol, row.timestamp))
    return Page[DecisionResponse](items=[DecisionResponse.model_validate(row) for row in items], next_cursor=following)


@router.post("/shadow-comparison", dependencies=[KEYED, HEAVY])
def compare(ask: Requested, wish: Comparing) -> Comparison:
    """Set a version against the active one over the same candles: what they said, and what it was worth."""
    ask.reads(wish.strategy_name)
    return compare_versions(
        ask.engine,
        strategy_name=wish.strategy_name,
        shadow_version=wish.shadow_version,
        active_version=wish.active_version,
        symbol=wish.symbol,
        over=chosen_period(wish.days, wish.start, wish.end, ask.now),
        source=ask.backend.candles(ask.now) if wish.by_regime else None,
    )


@router.post("/outcomes", dependencies=[KEYED, HEAVY])
def report_outcomes(ask: Requested, wish: Outcomes) -> IngestedResponse:
    """Take in what users' trades came to, whole or not at all; the same report twice is one."""
    ask.changes(*{trade.strategy_name for trade in wish.trades})
    return IngestedResponse.model_validate(ingest_reports(ask.engine, wish.trades, now=ask.now))
