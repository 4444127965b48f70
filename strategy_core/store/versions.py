"""Strategies and their versions: found, locked, added, moved. Whoever changes a strategy locks its row first."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from strategy_core.domain.errors import NoActiveVersion, UnknownStrategy, UnknownVersion
from strategy_core.domain.lifecycle import Status, check_move
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import CanaryConfig, Strategy, StrategyVersion


def create_strategy(session: Session, name: str, *, salt: str, scoring: dict[str, Any], now: datetime) -> None:
    """Add the strategy unless it is there; what it was created with stays."""
    insert_if_new(session, Strategy, [{"name": name, "salt": salt, "scoring": scoring, "created_at": now}])


def lock_strategy(session: Session, name: str) -> Strategy:
    """Return the strategy, held until the transaction ends: changes of one strategy happen one after another.

    Raises:
        UnknownStrategy: there is none of that name.
    """
    found = session.exec(select(Strategy).where(Strategy.name == name).with_for_update()).first()
    if found is None:
        raise UnknownStrategy(name, strategy_names(session))
    return found


def get_strategy(session: Session, name: str) -> Strategy:
    found = session.get(Strategy, name)
    if found is None:
        raise UnknownStrategy(name, strategy_names(session))
    return found


def strategy_names(session: Session) -> Sequence[str]:
    return session.exec(select(Strategy.name).order_by(Strategy.name)).all()


def get_version(session: Session, strategy_name: str, version: str) -> StrategyVersion:
    found = session.exec(
        select(StrategyVersion).where(
            StrategyVersion.strategy_name == strategy_name, StrategyVersion.version == version
        )
    ).first()
    if found is not None:
        return found
    get_strategy(session, strategy_name)
    raise UnknownVersion(strategy_name, version, [v.version for v in list_versions(session, strategy_name)])


def list_versions(
    session: Session, strategy_name: str | None = None, status: Status | None = None
) -> Sequence[StrategyVersion]:
    """Return versions, oldest first, of one strategy or of all, in one status or in any."""
    query = select(StrategyVersion).order_by(
        StrategyVersion.strategy_name, col(StrategyVersion.created_at), StrategyVersion.version
    )
    if strategy_name is not None:
        query = query.where(StrategyVersion.strategy_name == strategy_name)
    if status is not None:
        query = query.where(StrategyVersion.status == status)
    return session.exec(query).all()


def with_status(session: Session, strategy_name: str, status: Status) -> StrategyVersion | None:
    """Return the strategy's active or canary version; there is at most one of each."""
    return session.exec(
        select(StrategyVersion).where(StrategyVersion.strategy_name == strategy_name, StrategyVersion.status == status)
    ).one_or_none()


def active_version(session: Session, strategy_name: str) -> StrategyVersion:
    found = with_status(session, strategy_name, Status.ACTIVE)
    if found is None:
        get_strategy(session, strategy_name)
        raise NoActiveVersion(strategy_name)
    return found


@dataclass(frozen=True, slots=True)
class Serving:
    """All that routing obeys, of one moment: read by one statement, so that no promotion falls in between."""

    active: str
    canary: str | None
    rollout_bp: int
    generation: int
    salt: str


def serving(session: Session, strategy_name: str) -> Serving:
    """Return who serves the strategy's users now.

    Raises:
        UnknownStrategy, NoActiveVersion
    """
    rows = session.exec(
        select(  # type: ignore[call-overload]
            StrategyVersion.status,
            StrategyVersion.version,
            Strategy.salt,
            CanaryConfig.rollout_bp,
            CanaryConfig.generation,
        )
        .join(Strategy, col(Strategy.name) == StrategyVersion.strategy_name)
        .outerjoin(CanaryConfig, col(CanaryConfig.strategy_name) == StrategyVersion.strategy_name)
        .where(
            StrategyVersion.strategy_name == strategy_name,
            col(StrategyVersion.status).in_([Status.ACTIVE, Status.CANARY]),
        )
    ).all()
    by_status = {status: version for status, version, *_ in rows}
    if Status.ACTIVE not in by_status:
        get_strategy(session, strategy_name)
        raise NoActiveVersion(strategy_name)
    *_, salt, rollout_bp, generation = rows[0]
    return Serving(by_status[Status.ACTIVE], by_status.get(Status.CANARY), rollout_bp or 0, generation or 0, salt)


def previously_active(session: Session, strategy_name: str) -> StrategyVersion | None:
    """Return the version that was active before the present one: the newest retired one that once was."""
    return session.exec(
        select(StrategyVersion)
        .where(
            StrategyVersion.strategy_name == strategy_name,
            StrategyVersion.status == Status.RETIRED,
            col(StrategyVersion.activated_at).is_not(None),
            col(StrategyVersion.quarantined_at).is_(None),
        )
        .order_by(col(StrategyVersion.activated_at).desc())
    ).first()


def add_version(session: Session, version: StrategyVersion) -> None:
    session.add(version)
    session.flush()


def move(session: Session, version: StrategyVersion, target: Status, now: datetime) -> None:
    """Give *version* the status *target* and stamp the time; flushed at once, since one-active is checked by statement.

    Raises:
        IllegalTransition: *target* may not follow its status.
    """
    check_move(Status(version.status), target)
    version.status = target.value
    if target is Status.ACTIVE:
        version.activated_at = now
    if target is Status.RETIRED:
        version.retired_at = now
    session.add(version)
    session.flush()
