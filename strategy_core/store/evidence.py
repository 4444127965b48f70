"""What the decision log and the outcomes say of one rollout, read as the domain's evidence; never judged here."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import func
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.evidence import Record, Slots, slots
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action
from strategy_core.store.outcomes import marks_by_candle
from strategy_core.store.tables import ERROR, SIGNALS, Outcome, ShadowDecisionLog

LOG = ShadowDecisionLog
_SIDES = {Action.BUY.value: 1, Action.SELL.value: -1, Action.HOLD.value: 0}
_RECENT_ROWS = 20  # a symbol: enough to see errors in a row, which are at the newest end
_SPOKE = (col(LOG.decision) != ERROR, col(LOG.reason) != INSUFFICIENT_HISTORY)  # an error is no decision
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Pending:
    """A signal whose outcome is not booked yet."""

    version: str
    symbol: str
    timestamp: datetime


def oldest_overdue(session: Session, strategy_name: str, pending: Sequence[Pending], candles: int) -> Pending | None:
    """Return a signal that its version has decided more than *candles* candles after, and that is still pending."""
    oldest: dict[tuple[str, str], Pending] = {}
    for one in sorted(pending, key=lambda one: one.timestamp):
        oldest.setdefault((one.version, one.symbol), one)
    for one in oldest.values():
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


def read_slots(
    session: Session, strategy_name: str, canary: str, active: str, *, start: datetime, end: datetime | None = None
) -> tuple[Slots, list[Pending]]:
    """Return the closed slots on candles in [start, end) in booking order, and the signals that are still pending.

    A candle on which one of the two has an error, too little history or no row at all is no slot: unpaired evidence
    would count one arm's trades against nothing.
    """
    one, other = aliased(LOG), aliased(LOG)
    ours, theirs = aliased(Outcome), aliased(Outcome)
    query = (
        select(  # type: ignore[call-overload]
            one.timestamp,
            one.symbol,
            one.decision,
            other.decision,
            ours.r_multiple,
            ours.closed_at,
            theirs.r_multiple,
            theirs.closed_at,
        )
        .join(
            other,
            (other.strategy_name == one.strategy_name)
            & (other.version == active)
            & (other.symbol == one.symbol)
            & (other.timestamp == one.timestamp),
        )
        .outerjoin(ours, ours.decision_id == one.id)
        .outerjoin(theirs, theirs.decision_id == other.id)
        .where(
            one.strategy_name == strategy_name,
            one.version == canary,
            one.timestamp >= start,
            col(one.decision).in_(SIGNALS) | col(other.decision).in_(SIGNALS),
            one.decision != ERROR,
            other.decision != ERROR,
            one.reason != INSUFFICIENT_HISTORY,
            other.reason != INSUFFICIENT_HISTORY,
        )
    )
    if end is not None:
        query = query.where(one.timestamp < end)
    rows = session.exec(query).all()
    booked: list[tuple[Any, ...]] = []
    pending: list[Pending] = []
    for timestamp, symbol, canary_said, active_said, canary_r, canary_closed, active_r, active_closed in rows:
        unbooked = [
            Pending(version, symbol, timestamp)
            for version, said, closed in ((canary, canary_said, canary_closed), (active, active_said, active_closed))
            if said in SIGNALS and closed is None
        ]
        if unbooked:
            pending += unbooked
            continue
        closed_at = max(moment for moment in (canary_closed, active_closed) if moment is not None)
        day = (timestamp - _EPOCH).days
        slot = (day, canary_r or 0.0, active_r or 0.0, _SIDES[canary_said], _SIDES[active_said])
        booked.append((closed_at, timestamp, symbol, slot))
    booked.sort(key=lambda slot: slot[:3])
    return slots([slot[3] for slot in booked]), pending


def read_record(
    session: Session, strategy_name: str, version: str, other: str, *, symbols: Sequence[str], since: datetime
) -> Record:
    """Return what the log says of *version* since then; its silence on *symbols* is measured against *other*."""
    mine = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.timestamp) >= since)
    counted = session.exec(
        select(LOG.decision, LOG.error_kind, func.count())
        .where(*mine, LOG.reason != INSUFFICIENT_HISTORY)
        .group_by(LOG.decision, LOG.error_kind)
    ).all()
    errors = {kind: count for decision, kind, count in counted if decision == ERROR}
    newest = session.exec(
        select(LOG.symbol, LOG.decision)
        .where(*mine, LOG.reason != INSUFFICIENT_HISTORY)
        .order_by(col(LOG.timestamp).desc())
        .limit(_RECENT_ROWS * max(1, len(symbols)))
    ).all()
    last_error = session.exec(
        select(LOG.error).where(*mine, LOG.decision == ERROR).order_by(col(LOG.timestamp).desc(), LOG.symbol).limit(1)
    ).first()
    return Record(
        decided=sum(count for *_, count in counted),
        errors=sum(errors.values()),
        errors_in_a_row=_in_a_row(newest),
        invalid=errors.get("invalid", 0),
        breaches=errors.get("breach", 0),
        silent_candles=_silence(session, strategy_name, version, other, symbols, since),
        last_error=last_error or "",
    )


def read_marks(
    session: Session, strategy_name: str, canary: str, active: str, *, since: datetime
) -> tuple[FloatArray, FloatArray]:
    """Return both arms' changes of marked-to-market R since then, aligned by candle; each of shape (candles,)."""
    ours = marks_by_candle(session, strategy_name, canary, start=since)
    theirs = marks_by_candle(session, strategy_name, active, start=since)
    candles = sorted(ours.keys() | theirs.keys())
    return (
        np.array([ours.get(candle, 0.0) for candle in candles], np.float64),
        np.array([theirs.get(candle, 0.0) for candle in candles], np.float64),
    )


def newest_common_candles(
    session: Session, strategy_name: str, versions: tuple[str, str], since: datetime
) -> dict[str, datetime]:
    """Return, by symbol, the open time of the newest candle since then that BOTH versions have decided."""
    rows = session.exec(
        select(LOG.version, LOG.symbol, func.max(LOG.timestamp))
        .where(LOG.strategy_name == strategy_name, col(LOG.version).in_(versions), col(LOG.timestamp) >= since, *_SPOKE)
        .group_by(LOG.version, LOG.symbol)
    ).all()
    newest: dict[str, list[datetime]] = {}
    for _, symbol, moment in rows:
        newest.setdefault(symbol, []).append(moment)
    return {symbol: min(moments) for symbol, moments in newest.items() if len(moments) == len(versions)}


def _in_a_row(newest: Sequence[tuple[str, str]]) -> int:
    """Return the most errors at the newest end of one symbol's rows: many symbols failing once are no streak."""
    streaks: dict[str, int] = {}
    broken: set[str] = set()
    for symbol, decision in newest:
        if decision == ERROR and symbol not in broken:
            streaks[symbol] = streaks.get(symbol, 0) + 1
        else:
            broken.add(symbol)
    return max(streaks.values(), default=0)


def _silence(
    session: Session, strategy_name: str, version: str, other: str, symbols: Sequence[str], since: datetime
) -> int:
    spoke = (
        select(LOG.symbol, func.max(LOG.timestamp).label("last"))
        .where(LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.timestamp) >= since, *_SPOKE)
        .group_by(LOG.symbol)
        .subquery()
    )
    missed = session.exec(
        select(func.count())
        .select_from(LOG)
        .outerjoin(spoke, spoke.c.symbol == LOG.symbol)
        .where(
            LOG.strategy_name == strategy_name,
            LOG.version == other,
            col(LOG.symbol).in_(symbols),
            *_SPOKE,
            col(LOG.timestamp) >= since,
            col(LOG.timestamp) > func.coalesce(spoke.c.last, since - timedelta(microseconds=1)),
        )
        .group_by(LOG.symbol)
    ).all()
    return max(missed, default=0)
