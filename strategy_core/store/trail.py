"""The audit trail read back: found by what is asked for, or passed by row after row; it writes nothing."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from typing import Any, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import Row, Select
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.store.rollout_tables import AuditEvent

_BATCH = 1_000  # rows that are held at a time
_COLUMNS = tuple(col(getattr(AuditEvent, name)) for name in AuditEvent.model_fields)

_JSON = AuditEvent.__table__.columns  # type: ignore[attr-defined]


class Wanted(TypedDict, total=False):
    """Which events: all of them, less what each key leaves out.

    Attributes:
        since, until: of the events' own times; the first is in, the second is out.
        after_id: later in the trail than this event.
        strategies: of one of these.
    """

    strategy_name: str | None
    rollout_id: UUID | None
    actor: str | None
    action: str | None
    since: datetime | None
    until: datetime | None
    after_id: int | None
    strategies: Collection[str] | None


def find(session: Session, *, limit: int | None, newest: bool, **wanted: Unpack[Wanted]) -> Sequence[AuditEvent]:
    """Return the events that are wanted, oldest first: with *limit* the first so many, or the last if *newest*."""
    order = col(AuditEvent.id).desc() if newest else col(AuditEvent.id)
    found = session.exec(select(AuditEvent).where(*_conditions(wanted)).order_by(order).limit(limit)).all()
    return found[::-1] if newest else found


def stream(session: Session, **wanted: Unpack[Wanted]) -> Iterator[Row[Any]]:
    """Yield the events that are wanted as rows of all columns, oldest first, holding a batch of them at a time."""
    query: Select[Any] = select_columns(*_COLUMNS).where(*_conditions(wanted)).order_by(col(AuditEvent.id))
    yield from session.execute(query.execution_options(yield_per=_BATCH))


def newest_at(session: Session, strategy_name: str, at: datetime) -> AuditEvent | None:
    """Return the strategy's newest event at a moment: the last one before the first that is later.

    The trail's own order is the true one: a clock that ran back moves no event behind a later one.
    """
    mine = col(AuditEvent.strategy_name) == strategy_name
    later = select(AuditEvent.id).where(mine, col(AuditEvent.at) > at).order_by(col(AuditEvent.id)).limit(1)
    first_later = session.exec(later).first()
    query = select(AuditEvent).where(mine).order_by(col(AuditEvent.id).desc()).limit(1)
    if first_later is not None:
        query = query.where(col(AuditEvent.id) < first_later)
    return session.exec(query).first()


def newest_change(session: Session, event: AuditEvent, fact: str) -> AuditEvent | None:
    """Return the newest event, from *event* back, that left *fact* otherwise than it found it."""
    before, after = (column[fact] for column in (_JSON["before"], _JSON["after"]))
    query = (
        select(AuditEvent)
        .where(AuditEvent.strategy_name == event.strategy_name, col(AuditEvent.id) <= event.id)
        .where(before.is_distinct_from(after))
        .order_by(col(AuditEvent.id).desc())
        .limit(1)
    )
    return session.exec(query).first()


def made_by_request(session: Session, strategy_name: str, request_id: str) -> AuditEvent | None:
    """Return the strategy's newest event if this request, or flow run, has made it."""
    query = select(AuditEvent).where(AuditEvent.strategy_name == strategy_name).order_by(col(AuditEvent.id).desc())
    newest = session.exec(query.limit(1)).first()
    return newest if newest is not None and newest.request_id == request_id else None


def told_of(session: Session) -> Sequence[str]:
    """Return the names of all strategies that the trail tells of, known or not."""
    return session.exec(select(AuditEvent.strategy_name).distinct().order_by(AuditEvent.strategy_name)).all()


def _conditions(wanted: Wanted) -> list[Any]:
    equal = [
        getattr(AuditEvent, name) == wanted[name]
        for name in ("strategy_name", "rollout_id", "actor", "action")
        if wanted.get(name) is not None
    ]
    since, until, after_id = wanted.get("since"), wanted.get("until"), wanted.get("after_id")
    strategies = wanted.get("strategies")
    bounds = [
        None if since is None else col(AuditEvent.at) >= since,
        None if until is None else col(AuditEvent.at) < until,
        None if after_id is None else col(AuditEvent.id) > after_id,
        None if strategies is None else col(AuditEvent.strategy_name).in_(sorted(strategies)),
    ]
    return equal + [bound for bound in bounds if bound is not None]
