"""Freezes, and starts of rollouts that are scheduled for a later time."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlmodel import Session, col, or_, select
from sqlmodel.sql.expression import SelectOfScalar

from strategy_core.domain.errors import UnknownFreeze, UnknownStart
from strategy_core.domain.release_times import ALL_STRATEGIES, Freeze
from strategy_core.store.tables import FreezeRow, ScheduledStart


def add_freeze(session: Session, row: FreezeRow) -> FreezeRow:
    session.add(row)
    session.flush()
    return row


def get_freeze(session: Session, freeze_id: int) -> FreezeRow:
    found = session.get(FreezeRow, freeze_id)
    if found is None:
        raise UnknownFreeze(freeze_id)
    return found


def lift_freeze(session: Session, freeze_id: int, *, by: str, because: str, now: datetime) -> tuple[FreezeRow, bool]:
    """Lift a freeze, and return it and whether this was new. The first lifting is kept.

    Raises:
        UnknownFreeze
    """
    found = session.exec(select(FreezeRow).where(FreezeRow.id == freeze_id).with_for_update()).first()
    if found is None:
        raise UnknownFreeze(freeze_id)
    if found.lifted_at is not None:
        return found, False
    found.lifted_at, found.lifted_by, found.lifted_because = now, by, because
    session.add(found)
    session.flush()
    return found, True


def list_freezes(
    session: Session,
    strategies: Sequence[str] | None = None,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Sequence[FreezeRow]:
    """Return freezes in the order of their start, lifted ones included.

    Args:
        strategies: of these strategies, and of all strategies. None: every freeze.
        since, until: those that cover a moment in [since, until), if they were not lifted before.
    """
    query = select(FreezeRow).order_by(col(FreezeRow.starts_at), col(FreezeRow.id))
    if strategies is not None:
        query = query.where(col(FreezeRow.strategy_name).in_([*strategies, ALL_STRATEGIES]))
    if since is not None:
        lifted_at = col(FreezeRow.lifted_at)
        query = query.where(col(FreezeRow.ends_at) > since, or_(lifted_at.is_(None), lifted_at > since))
    if until is not None:
        query = query.where(col(FreezeRow.starts_at) < until)
    return session.exec(query).all()


def freezes_of(session: Session, strategy_name: str | None, since: datetime) -> list[Freeze]:
    """Return the freezes of a strategy, or of every one, that end after *since*, if they were not lifted before."""
    rows = list_freezes(session, None if strategy_name is None else [strategy_name], since=since)
    return [
        Freeze(row.starts_at, row.until, row.set_by, row.reason, row.strategy_name, row.starts_at == row.set_at)
        for row in rows
        if row.until > row.starts_at
    ]


def add_start(session: Session, start: ScheduledStart) -> ScheduledStart:
    session.add(start)
    session.flush()
    return start


def get_start(session: Session, start_id: UUID) -> ScheduledStart:
    found = session.get(ScheduledStart, start_id)
    if found is None:
        raise UnknownStart(str(start_id))
    return found


def pending_start(session: Session, strategy_name: str) -> ScheduledStart | None:
    """Return the strategy's scheduled start that has not ended. There is at most one."""
    return session.exec(_pending().where(ScheduledStart.strategy_name == strategy_name)).one_or_none()


def pending_starts(session: Session, *, due_by: datetime | None = None) -> Sequence[ScheduledStart]:
    """Return the scheduled starts that have not ended, the earliest first."""
    query = _pending().order_by(col(ScheduledStart.start_at), col(ScheduledStart.id))
    if due_by is not None:
        query = query.where(col(ScheduledStart.start_at) <= due_by)
    return session.exec(query).all()


def end_start(
    session: Session,
    start: ScheduledStart,
    outcome: str,
    *,
    because: str,
    now: datetime,
    rollout_id: UUID | None = None,
) -> None:
    start.ended_at, start.outcome, start.ended_because, start.rollout_id = now, outcome, because, rollout_id
    session.add(start)
    session.flush()


def _pending() -> SelectOfScalar[ScheduledStart]:
    return select(ScheduledStart).where(col(ScheduledStart.ended_at).is_(None))
