"""Positions: users' open trades with their managers, the exits to act on, hand-overs and flattening."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from fastapi import Query
from pydantic import Field, StringConstraints

from strategy_core.api.dependencies import HEAVY, KEYED, IfMatch, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import (
    PRINTED,
    Cursor,
    Limit,
    Page,
    Reason,
    RequestModel,
    RequiredReason,
    ResponseModel,
    StrategyName,
    Symbol,
    Time,
    UserId,
    VersionName,
    moment,
    next_cursor,
    read_cursor,
    text,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.positions import Why
from strategy_core.services import positions

MOST_TRADES = 100_000  # of one snapshot
_LONGEST_S = 366 * 86_400
Symbols = Annotated[
    list[Symbol] | None,
    Field(default=None, min_length=1, max_length=500, description="Only positions on these symbols. Default: all."),
]
TradeId = Annotated[
    str,
    StringConstraints(pattern=PRINTED, min_length=1, max_length=200),
    Field(description="The platform's id of the trade.", examples=["t-4711"]),
]
ExitId = Annotated[int, Query(ge=0, le=2**31 - 1, description="`next_since` of the answer before. 0: from the first.")]


class HandOverRequest(RequiredReason):
    """Give the open positions of a version to another one."""

    strategy_name: StrategyName
    version: VersionName
    to_version: VersionName
    symbols: Symbols


class FlattenRequest(RequiredReason):
    """Close the open positions of a version."""

    strategy_name: StrategyName
    version: VersionName
    symbols: Symbols
    after: int = Field(
        default=0, ge=0, le=_LONGEST_S, description="Seconds from now after which those still open are to be closed."
    )


class OpenTradeRequest(RequestModel):
    """A trade that the platform has open."""

    trade_id: TradeId
    size: float | None = Field(default=None, ge=0, description="What is left of it. Default: it is not reported.")


class SnapshotRequest(RequestModel):
    """All trades of a strategy that the platform has open."""

    strategy_name: StrategyName
    taken_at: Time = Field(description="When the platform read them. Positions that were opened later are left alone.")
    trades: list[OpenTradeRequest] = Field(max_length=MOST_TRADES, description="All of them, none left out.")
    reason: Reason = ""


class PositionResponse(ResponseModel):
    """One user's trade, and the version that decides when to leave it."""

    trade_id: str = Field(description="The platform's id of the trade.")
    user_id: str = Field(description="The platform's id of the user.")
    strategy_name: str = Field(description="Name of the strategy.")
    symbol: str = Field(description="Symbol of the feed.")
    side: Literal["buy", "sell"] | None = Field(description="Its side. Null if the platform does not report it.")
    size: float | None = Field(description="What is left of it. Null if the platform does not report it.")
    opened_by: str = Field(description="The version on the order.")
    manager: str | None = Field(
        description="The version that decides when to leave it. Null if none does, because it is to be closed."
    )
    opened_at: datetime = Field(description="When it was opened.")
    closed_at: datetime | None = Field(description="When it was closed. Null while it is open.")
    flatten_at: datetime | None = Field(description="When it is to be closed in any case, or null.")
    missing_since: datetime | None = Field(description="Since which snapshot the platform does not have it, or null.")


class DrainingResponse(ResponseModel):
    """A version that serves no users, and its positions."""

    version: str = Field(description="Name of the version.")
    since: datetime = Field(description="When it last stopped serving users.")
    at_first: int = Field(description="Number of its positions that were open then.")
    left: int = Field(description="Number of its positions that are open now.")


class HeldResponse(ResponseModel):
    """The open positions of a strategy, counted."""

    total: int = Field(description="Number of open positions.")
    by_manager: dict[str, int] = Field(
        description="By version that manages them. An empty name: no version does, and they are to be closed."
    )
    draining: list[DrainingResponse] = Field(description="Versions in shadow that manage positions, or did this week.")
    missing: int = Field(description="Number of positions that the platform's last snapshot did not have.")
    suppressed: dict[str, int] = Field(
        description="By version that serves users: entries of the last week that users could not take, because a "
        "position of another version was open."
    )


class ExitResponse(ResponseModel):
    """A position to leave. It is announced once, and once more if an owner flattens it later."""

    id: int = Field(description="Its place in the feed.")
    trade_id: str = Field(description="The platform's id of the trade.")
    strategy_name: str = Field(description="Name of the strategy.")
    symbol: str = Field(description="Symbol of the feed.")
    manager: str | None = Field(description="The version that managed it. Null if none did.")
    why: Why = Field(description="Why it is to be left.")
    candle: datetime | None = Field(description="Open time of the candle that gave the reason. Null with flatten.")
    announced_at: datetime = Field(description="When it was announced.")


class ExitsResponse(ResponseModel):
    """Exits, in the order in which they were announced."""

    items: list[ExitResponse] = Field(description="The exits after `since`.")
    next_since: int = Field(description="Send it as `since` to get those that follow.")


class ReconciledResponse(ResponseModel):
    """What the snapshot and the open positions differ in."""

    matched: int = Field(description="Number of positions that both have open.")
    missing: list[str] = Field(description="Trades that the platform does not have: report their close.")
    unknown: list[str] = Field(description="Trades that were never reported: report their opening.")
    closed: list[str] = Field(description="Trades that were reported as closed, and that the platform has open.")
    resized: int = Field(description="Number of positions of which another size is left.")


class ChangedPositions(ResponseModel):
    """What was changed."""

    positions: int = Field(description="Number of open positions that were changed.")


router = guarded_router("positions")


@router.get("/positions", summary="List positions")
def list_positions(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    version: Annotated[VersionName | None, Query(description="Only those that this version manages.")] = None,
    user_id: Annotated[UserId | None, Query(description="Only this user's.")] = None,
    closed: Annotated[bool, Query(description="Also those that are closed.")] = False,
    cursor: Cursor = None,
    limit: Limit = 100,
) -> Page[PositionResponse]:
    """List open positions in the order in which they were opened."""
    found = positions.list_positions(
        context.engine,
        context.lists(strategy_name).names,
        strategy_name=strategy_name,
        version=version,
        user_id=user_id,
        open_only=not closed,
        after=read_cursor(cursor, moment, text),
        limit=limit + 1,
    )
    items, following = next_cursor(found, limit, lambda row: (row.opened_at, row.trade_id))
    return Page[PositionResponse](items=[PositionResponse.model_validate(row) for row in items], next_cursor=following)


@router.get("/positions/held", dependencies=[HEAVY], summary="Count positions")
def count_positions(
    context: Requested, strategy_name: Annotated[StrategyName, Query(description="Name of the strategy.")]
) -> HeldResponse:
    """Count the open positions of a strategy by the version that manages them, and how far versions have drained."""
    name = context.reads(strategy_name)
    held = positions.held_positions(context.engine, name, now=context.now)
    draining = positions.list_draining(context.engine, name, now=context.now)
    return HeldResponse(
        total=held.total,
        by_manager=held.by_manager,
        draining=[DrainingResponse.model_validate(each) for each in draining],
        missing=held.missing,
        suppressed=dict(held.suppressed),
    )


@router.get("/positions/exits", summary="List exits")
def list_exits(
    context: Requested,
    since: ExitId = 0,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    limit: Limit = 500,
) -> ExitsResponse:
    """List the positions to leave, in order, each of them once: its manager decided so, or the scoring rule did.

    One that is flattened later is listed once more: pass over it if you have closed it.

    Keep `next_since` with what you have done. After a restart, go on from there. If the database was restored from a
    backup, begin at 0. A `since` above the newest exit is refused, since it would skip exits.
    """
    names = context.lists(strategy_name).names
    rows = positions.list_exits(context.engine, names, strategy_name=strategy_name, since=since, limit=limit)
    found = [ExitResponse.model_validate(row) for row in rows]
    return ExitsResponse(items=found, next_since=found[-1].id if found else since)


@router.post("/positions/hand-over", dependencies=[KEYED], summary="Hand positions over")
def hand_over(context: Requested, body: HandOverRequest, if_match: IfMatch) -> ChangedPositions:
    """Give the open positions of a version to another one, whose exits count for them from now on.

    The other version must decide on their symbols and timeframe, and must not be retired or rolled back.
    """
    done = positions.hand_over(
        context.engine,
        Command(context.changes(body.strategy_name), context.now, body.reason, if_generation=if_match),
        strategy_name=body.strategy_name,
        version=body.version,
        to_version=body.to_version,
        symbols=body.symbols,
    )
    return ChangedPositions(positions=done)


@router.post("/positions/flatten", dependencies=[KEYED], summary="Flatten positions")
def flatten(context: Requested, body: FlattenRequest, if_match: IfMatch) -> ChangedPositions:
    """Ask the platform to close the open positions of a version. The next drain puts them into the feed of exits."""
    done = positions.flatten(
        context.engine,
        Command(context.changes(body.strategy_name), context.now, body.reason, if_generation=if_match),
        strategy_name=body.strategy_name,
        version=body.version,
        symbols=body.symbols,
        after=timedelta(seconds=body.after),
    )
    return ChangedPositions(positions=done)


@router.post("/positions/snapshot", dependencies=[KEYED, HEAVY], summary="Compare with the platform's open trades")
def reconcile(context: Requested, body: SnapshotRequest) -> ReconciledResponse:
    """Mark positions that the platform does not have, take over what is left of the others, and list what differs.

    One that was taken before the last is refused. One that was interrupted may be sent again.

    A marked position stays open until its close is reported. Trades that are not known are only listed.
    """
    done = positions.reconcile(
        context.engine,
        Command(context.changes(body.strategy_name), context.now, body.reason),
        strategy_name=body.strategy_name,
        taken_at=body.taken_at,
        trades=[positions.OpenTrade(each.trade_id, each.size) for each in body.trades],
    )
    return ReconciledResponse.model_validate(done)
