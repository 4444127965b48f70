"""Slots: read from the decision log and its outcomes, and booked by a rollout once they have closed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, bindparam, cast, extract, func, text
from sqlalchemy import select as select_columns
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from strategy_core.domain.daily import DaySums
from strategy_core.domain.slots import Slots, slots
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action
from strategy_core.store.engine import insert_if_new
from strategy_core.store.outcomes import is_of
from strategy_core.store.rollout_tables import BookedSlot, RolloutBook
from strategy_core.store.seek import by_database
from strategy_core.store.tables import ERROR, SIGNALS, Outcome, ShadowDecisionLog

LOG = ShadowDecisionLog
_SIDES = {Action.BUY.value: 1, Action.SELL.value: -1, Action.HOLD.value: 0}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_S = 86_400
_ONE, _OTHER = aliased(LOG), aliased(LOG)
_OURS, _THEIRS = aliased(Outcome), aliased(Outcome)


def _since(rows: Any) -> Any:
    """Return the bound, told to each of the four: a month left out of one is not left out of the others by itself."""
    return rows.timestamp >= bindparam("start")


_SLOTS = by_database(  # built once: a tick of many rollouts would spend most of its time on building it
    select(  # type: ignore[call-overload]
        _ONE.timestamp,
        _ONE.symbol,
        _ONE.decision,
        _OTHER.decision,
        _OURS.r_multiple,
        _OURS.closed_at,
        _THEIRS.r_multiple,
        _THEIRS.closed_at,
    )
    .join(
        _OTHER,
        (_OTHER.strategy_name == _ONE.strategy_name)
        & (_OTHER.version == bindparam("active"))
        & (_OTHER.symbol == _ONE.symbol)
        & (_OTHER.timestamp == _ONE.timestamp)
        & _since(_OTHER),
    )
    .outerjoin(_OURS, is_of(_OURS, _ONE) & _since(_OURS))
    .outerjoin(_THEIRS, is_of(_THEIRS, _OTHER) & _since(_THEIRS))
    .where(
        _ONE.strategy_name == bindparam("strategy_name"),
        _ONE.version == bindparam("canary"),
        _since(_ONE),
        col(_ONE.decision).in_(SIGNALS) | col(_OTHER.decision).in_(SIGNALS),
        _ONE.decision != ERROR,
        _OTHER.decision != ERROR,
        _ONE.reason != INSUFFICIENT_HISTORY,
        _OTHER.reason != INSUFFICIENT_HISTORY,
    ),
    _ONE,
    "canary",
)


@dataclass(frozen=True, slots=True)
class Pending:
    """A signal whose outcome is not booked yet."""

    version: str
    symbol: str
    timestamp: datetime


@dataclass(frozen=True, slots=True, order=True)
class Closed:
    """A slot whose trades have closed; slots are booked in this order."""

    closed_at: datetime
    timestamp: datetime
    symbol: str
    canary_r: float
    active_r: float
    canary_side: int
    active_side: int


def as_slots(closed: Sequence[Closed | BookedSlot]) -> Slots:
    return slots(
        [
            ((one.closed_at - _EPOCH).days, one.canary_r, one.active_r, one.canary_side, one.active_side)
            for one in closed
        ]
    )


def read_slots(
    session: Session, strategy_name: str, canary: str, active: str, *, start: datetime, end: datetime | None = None
) -> tuple[list[Closed], list[Pending]]:
    """Return the closed slots on candles in [start, end) in booking order, and the signals that are still pending.

    A candle on which one of the two has an error, too little history or no row at all is no slot: unpaired evidence
    would count one arm's trades against nothing.
    """
    query = _SLOTS[session.get_bind().dialect.name]
    if end is not None:
        query = query.where(_ONE.timestamp < end)
    names = {"strategy_name": strategy_name, "canary": canary, "active": active, "start": start}
    closed: list[Closed] = []
    pending: list[Pending] = []
    for timestamp, symbol, canary_said, active_said, canary_r, canary_closed, active_r, active_closed in session.exec(
        query, params=names
    ).all():
        unbooked = [
            Pending(version, symbol, timestamp)
            for version, said, closed_at in ((canary, canary_said, canary_closed), (active, active_said, active_closed))
            if said in SIGNALS and closed_at is None
        ]
        if unbooked:
            pending += unbooked
            continue
        last = max(moment for moment in (canary_closed, active_closed) if moment is not None)
        sides = (_SIDES[canary_said], _SIDES[active_said])
        closed.append(Closed(last, timestamp, symbol, canary_r or 0.0, active_r or 0.0, *sides))
    return sorted(closed), pending


def oldest_overdue(
    session: Session,
    strategy_name: str,
    pending: Sequence[Pending],
    candles: int,
    *,
    timeframe: timedelta,
    spoken: Mapping[str, Mapping[str, datetime]],
) -> Pending | None:
    """Return a signal that its version has decided more than *candles* candles after, and that is still pending.

    Args:
        spoken: by version and symbol, the newest candle decided: a signal too young to be overdue is not looked at.
    """
    oldest: dict[tuple[str, str], Pending] = {}
    for one in sorted(pending, key=lambda one: one.timestamp):
        oldest.setdefault((one.version, one.symbol), one)
    for one in oldest.values():
        newest = spoken[one.version].get(one.symbol, one.timestamp)
        if newest - one.timestamp <= candles * timeframe:
            continue
        since = session.exec(
            select(func.count()).where(
                LOG.strategy_name == strategy_name,
                LOG.version == one.version,
                LOG.symbol == one.symbol,
                col(LOG.timestamp) > one.timestamp,
            )
        ).one()
        if since > candles:
            return one
    return None


def get_book(session: Session, rollout_id: UUID) -> RolloutBook:
    return session.get_one(RolloutBook, rollout_id)


def booked(session: Session, rollout_id: UUID, *, first: int | None = None) -> Sequence[BookedSlot]:
    """Return the slots that a rollout has booked, in that order; with *first* only so many."""
    query = select(BookedSlot).where(BookedSlot.rollout_id == rollout_id).order_by(col(BookedSlot.position))
    return session.exec(query if first is None else query.limit(first)).all()


def newest_booked(session: Session, rollout_id: UUID, limit: int) -> Sequence[BookedSlot]:
    """Return the slots that a rollout booked last, the newest first."""
    query = select(BookedSlot).where(BookedSlot.rollout_id == rollout_id)
    return session.exec(query.order_by(col(BookedSlot.position).desc()).limit(limit)).all()


def booked_r(session: Session, rollout_id: UUID) -> tuple[int, float, float]:
    """Return how many slots a rollout has booked, and Σ R of the canary and of its control."""
    found = session.execute(
        select_columns(
            func.count(),
            func.coalesce(func.sum(col(BookedSlot.canary_r)), 0.0),
            func.coalesce(func.sum(col(BookedSlot.active_r)), 0.0),
        ).where(col(BookedSlot.rollout_id) == rollout_id)
    ).one()
    return found[0], found[1], found[2]


def booked_by_day(session: Session, rollout_id: UUID) -> list[DaySums]:
    """Return what a rollout has booked by the UTC day of the candle, as comparisons count, not of the day it closed."""
    day = cast(extract("epoch", col(BookedSlot.timestamp)), BigInteger) // _DAY_S
    unlike = func.count().filter(col(BookedSlot.canary_side) != BookedSlot.active_side)
    sums = (func.sum(col(BookedSlot.canary_r)), func.sum(col(BookedSlot.active_r)))
    query = select_columns(day, func.count(), unlike, *sums).where(col(BookedSlot.rollout_id) == rollout_id)
    return [DaySums(*row) for row in session.execute(query.group_by(text("1")))]


def not_booked(session: Session, rollout_id: UUID, closed: Collection[Closed]) -> list[Closed]:
    """Return those of *closed* that the rollout has not booked yet, in the order to book them in."""
    if not closed:
        return []
    known = set(
        session.exec(
            select(BookedSlot.symbol, BookedSlot.timestamp).where(
                BookedSlot.rollout_id == rollout_id,
                col(BookedSlot.timestamp) >= min(one.timestamp for one in closed),
            )
        ).all()
    )
    return sorted(one for one in closed if (one.symbol, one.timestamp) not in known)


def book_slots(session: Session, rollout_id: UUID, closed: Sequence[Closed], *, first: int, now: datetime) -> None:
    """Book *closed* at the positions from *first* on."""
    insert_if_new(
        session,
        BookedSlot,
        [
            {
                "rollout_id": rollout_id,
                "position": position,
                "symbol": one.symbol,
                "timestamp": one.timestamp,
                "closed_at": one.closed_at,
                "booked_at": now,
                "canary_r": one.canary_r,
                "active_r": one.active_r,
                "canary_side": one.canary_side,
                "active_side": one.active_side,
            }
            for position, one in enumerate(closed, start=first)
        ],
    )
