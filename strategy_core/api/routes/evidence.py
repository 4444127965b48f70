"""What versions said and what it was worth: decisions, comparisons, and the platform's own trades."""

from typing import Annotated

from fastapi import Query

from strategy_core.api.deps import HEAVY, KEYED, Asking
from strategy_core.api.pages import moment, next_cursor, read_cursor, text
from strategy_core.api.routes import guarded
from strategy_core.api.schemas.evidence import Comparing, Decision, Ingested, Outcomes
from strategy_core.api.schemas.shared import Cursor, Limit, Page, StrategyName, Symbol, Time, VersionName
from strategy_core.domain.comparison import Comparison
from strategy_core.services import browse
from strategy_core.services.compare import chosen_period, compare_versions
from strategy_core.services.live import ingest_reports

router = guarded("evidence")


@router.get("/decisions")
def list_decisions(
    ask: Asking,
    strategy_name: Annotated[StrategyName, Query()],
    version: Annotated[VersionName | None, Query()] = None,
    symbol: Annotated[Symbol | None, Query()] = None,
    start: Annotated[Time | None, Query()] = None,
    end: Annotated[Time | None, Query(description="Excluded.")] = None,
    cursor: Annotated[Cursor, Query()] = None,
    limit: Annotated[Limit, Query()] = 100,
) -> Page[Decision]:
    """List what versions said on candles of [start, end): by version and symbol, oldest first."""
    found = browse.list_decisions(
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
    return Page[Decision](items=[Decision.model_validate(row) for row in items], next_cursor=following)


@router.post("/shadow-comparison", dependencies=[KEYED, HEAVY])
def compare(ask: Asking, wish: Comparing) -> Comparison:
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
def report_outcomes(ask: Asking, wish: Outcomes) -> Ingested:
    """Take in what users' trades came to, whole or not at all; the same report twice is one."""
    ask.changes(*{trade.strategy_name for trade in wish.trades})
    return Ingested.model_validate(ingest_reports(ask.engine, wish.trades, now=ask.now))
