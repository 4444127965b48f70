"""Open, upgrade, check, dump and restore the database, and the clock that it stores."""

from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.errors import RolloutError
from strategy_core.market.source import ReplayClock
from strategy_core.store.backup import dump, restore
from strategy_core.store.engine import (
    address,
    as_locked,
    check_schema,
    failure,
    open_database,
    reading,
    transaction,
    upgrade,
)
from strategy_core.store.tables import StoredClock

__all__ = [
    "address",
    "as_locked",
    "check_schema",
    "current_time",
    "dump",
    "failure",
    "open_database",
    "read_clock",
    "remove_clock",
    "restore",
    "start_clock",
    "stop_clock",
    "upgrade",
]
_NO_SUCH_TABLE = "42P01"  # SQLSTATE


def read_clock(engine: Engine) -> ReplayClock | None:
    """Return the clock of the replay that fills the database, or None for real time. Creates no SQLite file.

    A database of an earlier release stores no clock.
    """
    if engine.dialect.name == "sqlite" and not Path(engine.url.database or "").exists():
        return None
    try:
        with reading(engine) as session:
            stored = _stored(session)
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _NO_SUCH_TABLE or "no such table" in str(error.orig):
            return None
        raise
    return None if stored is None else ReplayClock(stored.started_at, stored.replay_from, stored.speed)


def current_time(engine: Engine) -> datetime:
    """Return the time of the stored clock, or the real time."""
    clock, real = read_clock(engine), datetime.now(UTC)
    try:
        return real if clock is None else clock.now(real)
    except RolloutError:  # it ran for so long that its time is out of range
        return real


def start_clock(engine: Engine, clock: ReplayClock) -> None:
    """Store the clock of a replay, in place of an earlier one."""
    with transaction(engine) as session:
        stored = _stored(session) or StoredClock(replay_from=clock.replay_from, speed=clock.speed)
        stored.replay_from, stored.started_at, stored.speed = clock.replay_from, clock.started_at, clock.speed
        session.add(stored)


def stop_clock(engine: Engine, clock: ReplayClock, *, real_now: datetime) -> bool:
    """Let the clock of a replay stand still at the time it shows now. Return False if another one is stored by now."""
    with transaction(engine) as session:
        stored = _stored(session)
        if stored is None or (stored.started_at, stored.replay_from) != (clock.started_at, clock.replay_from):
            return False
        stored.replay_from, stored.started_at = clock.now(real_now), None
        session.add(stored)
    return True


def remove_clock(engine: Engine) -> bool:
    """Delete the stored clock, so that real time counts. Return whether there was one."""
    with transaction(engine) as session:
        stored = _stored(session)
        if stored is not None:
            session.delete(stored)
    return stored is not None


def _stored(session: Session) -> StoredClock | None:
    return session.get(StoredClock, 1)
