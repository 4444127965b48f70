"""Signals for platforms: number what was logged, and hand it out in order."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import SignalCursorLost
from strategy_core.domain.risk import FULL_SIZE
from strategy_core.domain.signals import START, Signal, SignalCursor, entry_ends_at, role_of
from strategy_core.services.queries import Scope
from strategy_core.store import rollouts, signals, versions
from strategy_core.store.engine import reading, retry_transient, snapshot, transaction
from strategy_core.store.tables import SignalRow

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SignalPage:
    """Signals in order.

    Attributes:
        cursor: where the next page begins. Without signals it has still moved on past those of other strategies.
        more: whether the next page has signals already.
    """

    items: list[Signal]
    cursor: str
    more: bool


def publish_signals(engine: Engine) -> None:
    """Number the signals that are committed, so that they are handed out. Call it after decisions were logged.

    A failure is logged and not raised: the decisions stand, and the next call numbers their signals too.
    """
    try:
        _number(engine)
    except DBAPIError as error:
        log.warning("signals.not_numbered", error=type(error.orig).__name__)


@retry_transient()
def _number(engine: Engine) -> None:
    with reading(engine) as session:
        if not signals.is_unnumbered(session):  # as after most candles: take no lock
            return
    with transaction(engine) as session:
        signals.number_new(session)


def newest_signal(engine: Engine) -> int:
    """Return the number of the newest signal, or 0. Ask this often: it reads one row."""
    with reading(engine) as session:
        return signals.head(session)[0]


def read_signals(engine: Engine, scope: Scope = Scope(), *, since: str | None = None, limit: int = 100) -> SignalPage:  # noqa: B008  frozen
    """Return the signals after the cursor *since*, oldest first. Without a cursor, from the oldest that is kept.

    A version's role is that of the moment of reading, so that no signal of a canary that was rolled back is handed out
    as one of a canary. Its risk scale is what its newest rollout has frozen, also after the promotion.

    Raises:
        UnknownStrategy
        InvalidName: *since* is not a cursor.
        SignalCursorLost: signals after *since* are not kept any more, or the feed has another history.
    """
    cursor = None if since is None else SignalCursor.read(since)
    with snapshot(engine) as session:  # retention must not drop what follows the cursor while it is read
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        newest, dropped = signals.head(session)
        after = dropped if cursor is None else _checked(session, cursor, dropped)
        rows = signals.page(session, after=after, until=newest, strategies=scope.names, limit=limit + 1)
        scales = rollouts.risk_scales(session, {(row.strategy_name, row.version) for row, *_ in rows[:limit]})
        items = [_signal(*row, scales) for row in rows[:limit]]
        more = len(rows) > limit
        end = items[-1].cursor if more else str(_cursor_at(session, newest))
        return SignalPage(items, end, more)


def _checked(session: Session, cursor: SignalCursor, dropped: int) -> int:
    """Return the number of *cursor*, or raise SignalCursorLost if the feed cannot continue from there."""
    if cursor == START and dropped == 0:
        return 0
    if cursor.number <= dropped:
        raise SignalCursorLost(str(cursor), "the signals after it are not kept any more")
    found = signals.decision_of(session, cursor.number)
    if found is None or SignalCursor.of(cursor.number, found) != cursor:
        raise SignalCursorLost(str(cursor), "this database has another history, as after a restored backup")
    return cursor.number


def _cursor_at(session: Session, number: int) -> SignalCursor:
    found: UUID | None = signals.decision_of(session, number)
    return START if found is None else SignalCursor.of(number, found)


def _signal(row: SignalRow, status: str, timeframe: str, scales: Mapping[tuple[str, str], float]) -> Signal:
    delta, role = timeframe_delta(timeframe), role_of(status)
    closed_at = row.timestamp + delta
    return Signal(
        cursor=str(SignalCursor.of(row.number or 0, row.decision_id)),
        strategy_name=row.strategy_name,
        version=row.version,
        symbol=row.symbol,
        candle=row.timestamp,
        closed_at=closed_at,
        valid_until=entry_ends_at(closed_at, delta, role),
        action=row.decision,  # type: ignore[arg-type]  # a constraint of the table
        intent=row.intent,  # type: ignore[arg-type]
        confidence=row.confidence,
        role=role,
        risk_scale=scales.get((row.strategy_name, row.version), FULL_SIZE),
    )


def drop_signals(engine: Engine, before: datetime) -> int:
    """Delete the oldest signals, on candles before then. Return how many there were."""
    with transaction(engine) as session:  # short, since numbering waits for it
        until = signals.let_go(session, before)
    with transaction(engine) as session:
        return signals.drop(session, until)
