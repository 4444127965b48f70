"""Races, their entries and standings, and what the versions of a race decided day by day."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, update
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.domain.errors import NoRace, UnknownRace
from strategy_core.domain.race_days import Decided
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY
from strategy_core.store.engine import insert_if_new
from strategy_core.store.outcomes import is_of
from strategy_core.store.tables import (
    ERROR,
    LIVE,
    SIGNALS,
    EvidenceTables,
    Race,
    RaceEntry,
    RaceStanding,
    ShadowDecisionLog,
)

LOG = ShadowDecisionLog


def add_race(session: Session, race: Race, entries: Iterable[RaceEntry]) -> None:
    session.add(race)
    session.flush()
    session.add_all(entries)
    session.flush()


def add_entry(session: Session, entry: RaceEntry) -> None:
    session.add(entry)
    session.flush()


def get_race(session: Session, race_id: UUID) -> Race:
    """Return a race. Raise UnknownRace if there is none."""
    found = session.get(Race, race_id)
    if found is None:
        raise UnknownRace(str(race_id))
    return found


def find_open_race(session: Session, strategy_name: str) -> Race | None:
    return session.exec(select(Race).where(Race.strategy_name == strategy_name, col(Race.closed_at).is_(None))).first()


def lock_open_race(session: Session, strategy_name: str) -> Race:
    """Return the open race of a strategy, locked. Raise NoRace if there is none."""
    found = find_open_race(session, strategy_name)
    if found is None:
        raise NoRace(strategy_name)
    return lock_race(session, found.id)


def lock_race(session: Session, race_id: UUID) -> Race:
    """Return a race that nobody else changes until the transaction ends."""
    query = select(Race).where(Race.id == race_id).with_for_update().execution_options(populate_existing=True)
    return session.exec(query).one()


def list_races(
    session: Session, strategies: Collection[str] | None = None, *, open_alone: bool = False, limit: int | None = None
) -> Sequence[Race]:
    """Return races, newest first. *strategies* None means all."""
    query = select(Race).order_by(col(Race.started_at).desc(), col(Race.id)).limit(limit)
    if strategies is not None:
        query = query.where(col(Race.strategy_name).in_(sorted(strategies)))
    if open_alone:
        query = query.where(col(Race.closed_at).is_(None))
    return session.exec(query).all()


def entries_of(session: Session, race_id: UUID) -> Sequence[RaceEntry]:
    """Return the entries of a race in the order of the rows of its pairs."""
    query = select(RaceEntry).where(RaceEntry.race_id == race_id).order_by(col(RaceEntry.position))
    return session.exec(query.execution_options(populate_existing=True)).all()


def standings_of(session: Session, race_id: UUID, *, newest: int | None = None) -> Sequence[RaceStanding]:
    """Return the standings of a race by day, the newest ones alone if *newest* says how many."""
    query = select(RaceStanding).where(RaceStanding.race_id == race_id).order_by(col(RaceStanding.day).desc())
    return session.exec(query.limit(newest)).all()[::-1]


def add_standings(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    insert_if_new(session, RaceStanding, rows)


def change_race(session: Session, race: Race, **columns: Any) -> bool:
    """Set columns of an open race and raise its generation, unless it has changed since it was read.

    Returns:
        Whether it was changed.
    """
    statement = (
        update(Race)
        .where(col(Race.id) == race.id, col(Race.generation) == race.generation, col(Race.closed_at).is_(None))
        .values(generation=race.generation + 1, **columns)
        .execution_options(preserve_rowcount=True, synchronize_session=False)
    )
    changed = bool(session.connection().execute(statement).rowcount)
    if race in session:
        session.refresh(race)
    return changed


def change_entry(session: Session, race_id: UUID, version: str, **columns: Any) -> None:
    statement = update(RaceEntry).where(col(RaceEntry.race_id) == race_id, col(RaceEntry.version) == version)
    session.connection().execute(statement.values(**columns).execution_options(synchronize_session=False))


def read_decided(
    session: Session,
    strategy_name: str,
    versions: Sequence[str],
    *,
    start: datetime,
    end: datetime,
    tables: EvidenceTables = LIVE,
) -> list[Decided]:
    """Return what *versions* decided on candles in [start, end), without errors and too short histories."""
    log, outcome = tables.log, tables.outcome
    query = (
        select_columns(log.symbol, log.timestamp, log.version, log.decision, outcome.r_multiple)
        .outerjoin(outcome, is_of(outcome, log) & (col(outcome.timestamp) >= start) & (col(outcome.timestamp) < end))
        .where(
            col(log.strategy_name) == strategy_name,
            col(log.version).in_(versions),
            col(log.timestamp) >= start,
            col(log.timestamp) < end,
            col(log.decision) != ERROR,
            col(log.reason) != INSUFFICIENT_HISTORY,
        )
    )
    return [
        Decided(symbol, candle, version, action in SIGNALS, r if action in SIGNALS else 0.0)
        for symbol, candle, version, action, r in session.execute(query)
    ]


def newest_decided(
    session: Session, strategy_name: str, versions: Sequence[str], *, start: datetime
) -> dict[tuple[str, str], datetime]:
    """Return by version and symbol the newest candle from *start* on that it decided, with an error or without."""
    query = (
        select_columns(col(LOG.version), col(LOG.symbol), func.max(col(LOG.timestamp)))
        .where(col(LOG.strategy_name) == strategy_name, col(LOG.version).in_(versions), col(LOG.timestamp) >= start)
        .group_by(col(LOG.version), col(LOG.symbol))
    )
    return {(version, symbol): newest for version, symbol, newest in session.execute(query)}


def count_errors(
    session: Session, strategy_name: str, versions: Sequence[str], *, start: datetime, end: datetime
) -> dict[str, tuple[int, int]]:
    """Return by version the candles in [start, end) that it was asked to decide, and those with an error."""
    failed = func.count().filter(col(LOG.decision) == ERROR, col(LOG.error_kind) != "overload")  # the host was too slow
    query = (
        select_columns(col(LOG.version), func.count(), failed)
        .where(
            col(LOG.strategy_name) == strategy_name,
            col(LOG.version).in_(versions),
            col(LOG.timestamp) >= start,
            col(LOG.timestamp) < end,
        )
        .group_by(col(LOG.version))
    )
    return {version: (candles, errors) for version, candles, errors in session.execute(query)}
