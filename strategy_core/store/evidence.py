"""What the decision log and the outcomes say of one rollout, read as the domain's evidence; never judged here."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

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
_RECENT_ROWS = 200  # enough to see errors in a row; older rows cannot be at the newest end
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_slots(
    session: Session, strategy_name: str, canary: str, active: str, *, start: datetime, end: datetime | None = None
) -> tuple[Slots, int]:
    """Return the closed slots on candles in [start, end) in booking order, and how many are still pending.

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
    booked, pending = [], 0
    for timestamp, symbol, canary_said, active_said, canary_r, canary_closed, active_r, active_closed in rows:
        if (canary_said in SIGNALS and canary_closed is None) or (active_said in SIGNALS and active_closed is None):
            pending += 1
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
        select(LOG.decision, LOG.error)
        .where(*mine, LOG.reason != INSUFFICIENT_HISTORY)
        .order_by(col(LOG.timestamp).desc(), LOG.symbol)
        .limit(_RECENT_ROWS)
    ).all()
    in_a_row = next((i for i, (decision, _) in enumerate(newest) if decision != ERROR), len(newest))
    last_error = session.exec(
        select(LOG.error).where(*mine, LOG.decision == ERROR).order_by(col(LOG.timestamp).desc(), LOG.symbol).limit(1)
    ).first()
    return Record(
        decided=sum(count for *_, count in counted),
        errors=sum(errors.values()),
        errors_in_a_row=in_a_row,
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
    """Return, by symbol, the open time of the newest candle since then on which BOTH versions have a row."""
    rows = session.exec(
        select(LOG.version, LOG.symbol, func.max(LOG.timestamp))
        .where(LOG.strategy_name == strategy_name, col(LOG.version).in_(versions), col(LOG.timestamp) >= since)
        .group_by(LOG.version, LOG.symbol)
    ).all()
    newest: dict[str, list[datetime]] = {}
    for _, symbol, moment in rows:
        newest.setdefault(symbol, []).append(moment)
    return {symbol: min(moments) for symbol, moments in newest.items() if len(moments) == len(versions)}


def _silence(
    session: Session, strategy_name: str, version: str, other: str, symbols: Sequence[str], since: datetime
) -> int:
    spoke = (
        select(LOG.symbol, func.max(LOG.timestamp).label("last"))
        .where(LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.timestamp) >= since)
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
            LOG.decision != ERROR,
            col(LOG.timestamp) >= since,
            col(LOG.timestamp) > func.coalesce(spoke.c.last, since - timedelta(microseconds=1)),
        )
        .group_by(LOG.symbol)
    ).all()
    return max(missed, default=0)
