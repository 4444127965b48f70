"""Signals: the decisions of serving versions, for platforms that copy them."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Annotated, Literal

from fastapi import Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from strategy_core.api.dependencies import Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import Limit, ResponseModel, StrategyName
from strategy_core.domain.signals import Role
from strategy_core.services.signals import newest_signal, read_signals

LONGEST_WAIT_S = 20.0
WAITING_AT_ONCE = 200  # in a process. One that waits has no thread and no database connection
_LOOK_EVERY_S = 0.25  # for all that wait together


class SignalResponse(ResponseModel):
    """A buy, sell or close of a version that serves users."""

    cursor: str = Field(
        description="Position after this signal. Send it as `since` to continue.", examples=["17-9f86d081"]
    )
    strategy_name: str = Field(description="Name of the strategy.")
    version: str = Field(description="Name of the version. Copy the signal to the users that get it from the Router.")
    symbol: str = Field(description="Symbol of the feed.")
    candle: datetime = Field(description="Open time of the candle that was decided on.")
    closed_at: datetime = Field(description="Close of that candle. Users may enter from then on.")
    valid_until: datetime = Field(
        description="Users must not enter from then on: the close of the next candle. `closed_at` if withdrawn."
    )
    action: Literal["buy", "sell", "hold"] = Field(description="buy or sell to open, hold to close.")
    intent: Literal["open", "close"] = Field(
        description="`open` enters a position, `close` leaves what is open on the symbol."
    )
    confidence: float = Field(description="The version's confidence, 0 to 1.")
    risk_scale: float = Field(
        description="Multiply the size of the position by it, 0.5 to 1. Below 1, the version was measured to risk more "
        "than the one that was active when its rollout started."
    )
    role: Role = Field(
        description="Role of the version now. `withdrawn`: it serves no users any more, as after a rollback. Do not "
        "enter on it."
    )


class SignalsResponse(ResponseModel):
    """Signals in order."""

    items: list[SignalResponse] = Field(description="The signals after `since`, oldest first. May be empty.")
    cursor: str = Field(description="Send it as `since` to get the next signals.")
    more: bool = Field(description="Whether there are more signals already.")


@dataclass
class SignalWatch:
    """The newest signal's number, read from the database at most every `_LOOK_EVERY_S` for all requests that wait.

    Used in the event loop only.

    Attributes:
        waiting: number of requests that wait.
        slots: how many may wait at once.
    """

    waiting: int = 0
    slots: int = WAITING_AT_ONCE
    number: int = 0
    looked_at: float = 0.0

    async def newest(self, read: Callable[[], int]) -> int:
        if monotonic() - self.looked_at >= _LOOK_EVERY_S:
            self.looked_at = monotonic()  # before the read, so that one of many requests reads
            self.number = await run_in_threadpool(read)
        return self.number


router = guarded_router("signals")


@router.get("/signals", summary="Read signals in order")
async def list_signals(
    context: Requested,
    request: Request,
    since: Annotated[
        str | None,
        Query(
            max_length=100,
            description="`cursor` of the last signal that you have handled, or of the last answer. Default: the oldest "
            "signal that is kept.",
        ),
    ] = None,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    limit: Limit = 100,
    wait: Annotated[
        float,
        Query(ge=0, le=LONGEST_WAIT_S, description="Without a signal, wait so many seconds for one. Default: 0."),
    ] = 0,
) -> SignalsResponse:
    """Return the signals after `since`, oldest first, each once. Numbers never come late: none is skipped.

    Enter for a user only while the Router gives the user this version, and before `valid_until`. If many requests wait
    already, the answer comes at once: ask again after a second.
    """
    scope = await run_in_threadpool(context.lists, strategy_name)
    read = partial(read_signals, context.engine, scope, limit=limit)
    page = await run_in_threadpool(read, since=since)
    watch: SignalWatch = request.app.state.signal_watch
    until = monotonic() + wait
    if page.items or watch.waiting >= watch.slots:
        return SignalsResponse.model_validate(page)
    watch.waiting += 1
    try:
        while not page.items and monotonic() < until and not await request.is_disconnected():
            await asyncio.sleep(min(_LOOK_EVERY_S, until - monotonic()))
            if await watch.newest(partial(newest_signal, context.engine)) > int(page.cursor.partition("-")[0]):
                page = await run_in_threadpool(read, since=page.cursor)
    finally:
        watch.waiting -= 1
    return SignalsResponse.model_validate(page)
