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
from strategy_core.isolation.pool import WorkerPool
from strategy_core.services import queries
from strategy_core.services.compare import chosen_period, compare_versions
from strategy_core.services.live_trades import ingest_reports
from strategy_core.services.replay import replay_version

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


class ReplayRequest(RequestModel):
    """Let a version decide on past candles, from *start* to *end*."""

    strategy_name: StrategyName
    version: VersionName
    start: Time | None = Field(default=None, description="First candle. Default: 180 days before `end`.")
    end: Time | None = Field(default=None, description="Only candles before this time. Default: the newest candle.")
    again: bool = Field(
        default=False,
        description="Delete what was replayed in this period, and decide again. Use it after candles were revised.",
    )


class ReplayedResponse(ResponseModel):
    """What one version has replayed in the period."""

    version: str = Field(description="Name of the version.")
    first: datetime | None = Field(description="Open time of the first candle.")
    newest: datetime | None = Field(description="Open time of the newest candle.")
    candles: int = Field(description="Number of candles that the version can decide on.")
    decided: int = Field(description="Number of new decisions.")
    signals: int = Field(description="Number of buys and sells.")
    closed: int = Field(description="Number of trades that have closed.")
    pending: int = Field(description="Number of trades that are still open.")
    errors: int = Field(description="Number of candles on which the version failed. They are tried again next time.")
    last_error: str = Field(description="The newest error, or empty.")
    revised: int = Field(description="Number of earlier decisions on candles that the feed has revised since.")
    notes: list[str] = Field(description="What an owner should know, a line each.")


class ReplayResponse(ResponseModel):
    """The version, and the active version on the same candles."""

    versions: list[ReplayedResponse] = Field(description="The asked version first.")


class DecisionResponse(ResponseModel):
    """A version's decision on one candle."""

    id: UUID = Field(description="Id of the decision.")
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="Name of the version.")
    symbol: str = Field(description="Symbol of the feed.")
    timestamp: datetime = Field(description="Open time of the candle.")
    decision: str = Field(description="buy, sell, hold, or error if the version failed.")
    intent: str = Field(description="close if open positions are to be left, else open.")
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


@router.post("/replays", dependencies=[KEYED, HEAVY], summary="Replay a version on past candles")
def replay(context: Requested, body: ReplayRequest) -> ReplayResponse:
    """Let a version and the active one decide on past candles, and store the decisions apart from the live ones.

    Comparisons and previews of plans use them where there is too little live evidence. No gate counts them. A repeated
    request adds nothing. The answer comes when all candles are decided: replay years with the command or the flow.
    """
    context.changes(body.strategy_name)
    settings = context.backend.settings
    source = context.backend.candles(context.now)
    with WorkerPool(deadline_s=settings.decision_deadline_s, at_once=settings.shadow_workers) as workers:
        found = replay_version(
            context.engine,
            source,
            workers,
            strategy_name=body.strategy_name,
            version=body.version,
            now=context.now,
            start=body.start,
            end=body.end,
            again=body.again,
        )
    return ReplayResponse(versions=[ReplayedResponse.model_validate(each) for each in found])


@router.post("/outcomes", dependencies=[KEYED, HEAVY], summary="Report users' trades")
def report_outcomes(context: Requested, body: TradeReports) -> IngestedResponse:
    """Store results of users' trades, all or none of them. A repeated report counts once."""
    context.changes(*{trade.strategy_name for trade in body.trades})
    return IngestedResponse.model_validate(ingest_reports(context.engine, body.trades, now=context.now))
