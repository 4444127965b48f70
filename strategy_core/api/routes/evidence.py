"""Evidence: decisions of versions, comparisons of two versions, and reported user trades."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import Field

from strategy_core.api.dependencies import HEAVY, KEYED, Requested
from strategy_core.api.routes import guarded_router
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
    moment,
    next_cursor,
    read_cursor,
    text,
)
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.live_trades import TradeReport
from strategy_core.services import queries
from strategy_core.services.compare import chosen_period, compare_versions
from strategy_core.services.live_trades import ingest_reports

MOST_TRADES = 10_000


class ComparisonRequest(RequestModel):
    """Compare two versions over the last *days*, or from *start* to *end*."""

    strategy_name: StrategyName
    shadow_version: VersionName
    active_version: VersionName | None = Field(
        default=None, description="Version to compare with. Default: the active version."
    )
    symbol: Symbol | None = Field(default=None, description="Only this symbol. Default: all symbols of both versions.")
    days: float | None = Field(
        default=None, gt=0, le=36_500, description="Period in days until now. Default: 30. Not together with `start`."
    )
    start: Time | None = Field(default=None, description="Start of the period, inclusive.")
    end: Time | None = Field(default=None, description="End of the period, exclusive. Default: now.")
    by_regime: bool = Field(default=False, description="Also compare by volatility and trend regime.")


class DecisionResponse(ResponseModel):
    """A version's decision on one candle."""

    id: UUID = Field(description="Id of the decision.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="Name of the version.")
    symbol: str = Field(description="Symbol of the feed.")
    timestamp: datetime = Field(description="Open time of the candle.")
    decision: str = Field(description="buy, sell, hold, or error if the version failed.")
    confidence: float = Field(description="The version's confidence, 0 to 1.")
    features: dict[str, Any] = Field(description="The indicator values behind the decision.")
    reason: str = Field(description="The version's explanation.")
    role: str = Field(description="The version's status at that time.")
    window_hash: str = Field(description="Hash of the candles that the version saw.")
    duration_ms: float = Field(description="How long the decision took, in milliseconds.")
    error_kind: str = Field(description="Kind of failure, or empty.")
    error: str | None = Field(description="Message of the failure.")
    logged_at: datetime = Field(description="When the decision was stored.")


class TradeReports(RequestModel):
    """Users' trades as the broker reports them. Sending a report again does no harm."""

    trades: list[TradeReport] = Field(min_length=1, max_length=MOST_TRADES, description="One report per trade.")


class IngestedResponse(ResponseModel):
    """What was stored."""

    new: int = Field(description="Number of new reports.")
    known: int = Field(description="Number of reports that were stored before.")
    misrouted: int = Field(description="Number of trades with another version than routing gave the user.")


router = guarded_router("evidence")


@router.get("/decisions", summary="List decisions")
def list_decisions(
    context: Requested,
    strategy_name: Annotated[StrategyName, Query(description="Name of the strategy.")],
    version: Annotated[VersionName | None, Query(description="Only this version.")] = None,
    symbol: Annotated[Symbol | None, Query(description="Only this symbol.")] = None,
    start: Annotated[Time | None, Query(description="Candles from this open time, inclusive.")] = None,
    end: Annotated[Time | None, Query(description="Candles until this open time, exclusive.")] = None,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[DecisionResponse]:
    """List decisions by version and symbol, oldest first."""
    found = queries.list_decisions(
        context.engine,
        strategy_name=context.reads(strategy_name),
        version=version,
        symbol=symbol,
        start=start,
        end=end,
        after=read_cursor(cursor, text, text, moment),
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda row: (row.version, row.symbol, row.timestamp))
    return Page[DecisionResponse](items=[DecisionResponse.model_validate(row) for row in items], next_cursor=following)


@router.post("/shadow-comparison", dependencies=[KEYED, HEAVY], summary="Compare a version with the active one")
def compare(context: Requested, body: ComparisonRequest) -> Comparison:
    """Compare decisions and results of two versions over the same candles. Changes nothing."""
    context.reads(body.strategy_name)
    return compare_versions(
        context.engine,
        strategy_name=body.strategy_name,
        shadow_version=body.shadow_version,
        active_version=body.active_version,
        symbol=body.symbol,
        over=chosen_period(body.days, body.start, body.end, context.now),
        source=context.backend.candles(context.now) if body.by_regime else None,
    )


@router.post("/outcomes", dependencies=[KEYED, HEAVY], summary="Report users' trades")
def report_outcomes(context: Requested, body: TradeReports) -> IngestedResponse:
    """Store results of users' trades, all or none of them. A repeated report counts once."""
    context.changes(*{trade.strategy_name for trade in body.trades})
    return IngestedResponse.model_validate(ingest_reports(context.engine, body.trades, now=context.now))
