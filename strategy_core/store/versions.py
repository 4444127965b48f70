"""Strategies, their versions and their routing. Every change of a strategy locks its row first."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import and_, func
from sqlalchemy import select as select_columns
from sqlmodel import Session, col, select

from strategy_core.domain.errors import LostRace, NoActiveVersion, UnknownStrategy, UnknownVersion
from strategy_core.domain.exclusions import UNREADABLE, excluded_names
from strategy_core.domain.lifecycle import Status, check_move
from strategy_core.domain.routing import Routing
from strategy_core.store import toggles, user_exclusions
from strategy_core.store.engine import cancel_when_idle, insert_if_new
from strategy_core.store.tables import CanaryConfig, RecordedAnswers, StrategyPolicy, StrategyRow, StrategyVersion

_SERVES = and_(
    col(StrategyVersion.strategy_name) == StrategyRow.name,
    col(StrategyVersion.status).in_([Status.ACTIVE, Status.CANARY]),
)
_ROUTING = (
    select_columns(
        col(StrategyRow.name),
        col(StrategyRow.salt),
        col(StrategyRow.generation),
        col(StrategyRow.audit_head),
        col(StrategyVersion.status),
        col(StrategyVersion.version),
        col(CanaryConfig.rollout_bp),
        col(CanaryConfig.excluded_symbols),
    )
    .outerjoin(StrategyVersion, _SERVES)
    .outerjoin(CanaryConfig, col(CanaryConfig.strategy_name) == StrategyRow.name)
    .order_by(col(StrategyRow.name))
)


def create_strategy(session: Session, name: str, *, salt: str, scoring: dict[str, Any], now: datetime) -> None:
    """Create the strategy unless it exists. An existing one keeps its salt and scoring."""
    insert_if_new(session, StrategyRow, [{"name": name, "salt": salt, "scoring": scoring, "created_at": now}])


def lock_strategy(session: Session, name: str, if_generation: int | None = None) -> StrategyRow:
    """Lock the strategy until the transaction ends, and return it. Changes of one strategy are serialized this way.

    Args:
        if_generation: the generation on which the caller's decision is based, if it is to be checked.

    Raises:
        UnknownStrategy: there is no strategy of that name.
        LostRace: the strategy has another generation.
    """
    cancel_when_idle(session)
    latest = (
        select(StrategyRow).where(StrategyRow.name == name).with_for_update().execution_options(populate_existing=True)
    )
    found = session.exec(latest).first()
    if found is None:
        raise UnknownStrategy(name, strategy_names(session))
    if if_generation not in (None, found.generation):
        raise LostRace(f"strategy {name!r}", if_generation, found.generation)
    return found


def get_strategy(session: Session, name: str) -> StrategyRow:
    found = session.get(StrategyRow, name)
    if found is None:
        raise UnknownStrategy(name, strategy_names(session))
    return found


def strategy_names(session: Session) -> Sequence[str]:
    return session.exec(select(StrategyRow.name).order_by(StrategyRow.name)).all()


def find_policy(session: Session, strategy_name: str) -> StrategyPolicy | None:
    return session.get(StrategyPolicy, strategy_name, populate_existing=True)


def put_policy(session: Session, strategy_name: str, policy: dict[str, Any]) -> None:
    """Replace the policy of a strategy. The caller has locked the strategy's row."""
    row = find_policy(session, strategy_name) or StrategyPolicy(strategy_name=strategy_name, policy={})
    row.policy = policy
    session.add(row)
    session.flush()


def salts(session: Session) -> Sequence[str]:
    """Return every salt in use for user bucketing."""
    return session.exec(select(StrategyRow.salt).distinct().order_by(StrategyRow.salt)).all()


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
    """Return versions by strategy, oldest first."""
    query = select(StrategyVersion).order_by(
        StrategyVersion.strategy_name, col(StrategyVersion.created_at), StrategyVersion.version
    )
    if strategy_name is not None:
        query = query.where(StrategyVersion.strategy_name == strategy_name)
    if status is not None:
        query = query.where(StrategyVersion.status == status)
    return session.exec(query).all()


def with_status(session: Session, strategy_name: str, status: Status) -> StrategyVersion | None:
    """Return the strategy's active or canary version. There is at most one of each."""
    return session.exec(
        select(StrategyVersion).where(StrategyVersion.strategy_name == strategy_name, StrategyVersion.status == status)
    ).one_or_none()


def active_version(session: Session, strategy_name: str) -> StrategyVersion:
    found = with_status(session, strategy_name, Status.ACTIVE)
    if found is None:
        get_strategy(session, strategy_name)
        raise NoActiveVersion(strategy_name)
    return found


def routing(session: Session, strategy_name: str, now: datetime) -> Routing:
    """Return the strategy's routing at *now*, as `all_routing`.

    Raises:
        UnknownStrategy, NoActiveVersion
    """
    found = _routings(session.execute(_ROUTING.where(col(StrategyRow.name) == strategy_name)).all()).get(strategy_name)
    if found is None:
        get_strategy(session, strategy_name)
        raise NoActiveVersion(strategy_name)
    return user_exclusions.with_users(session, {strategy_name: found}, now)[strategy_name] or found


def all_routing(session: Session, now: datetime) -> dict[str, Routing | None]:
    """Return the routing of all strategies by name (None: no active version).

    Args:
        now: exclusions of users whose `until` has come no longer count.
    """
    return user_exclusions.with_users(session, serving_routing(session)[0], now)


def serving_routing(session: Session) -> tuple[dict[str, Routing | None], dict[str, str]]:
    """Return `all_routing` without users' exclusions, and the hash of each strategy's newest audit event.

    Both are read in one query and therefore consistent.
    """
    rows = session.execute(_ROUTING).all()
    return _routings(rows), {row.name: row.audit_head for row in rows}


def _routings(rows: Sequence[Any]) -> dict[str, Routing | None]:
    found: dict[str, Routing | None] = {}
    for name, same in groupby(rows, key=lambda row: row.name):
        serving = list(same)
        by_status = {row.status: row.version for row in serving}
        salt, generation, rollout_bp = serving[0].salt, serving[0].generation, serving[0].rollout_bp or 0
        active, canary = by_status.get(Status.ACTIVE), by_status.get(Status.CANARY)
        found[name] = None
        if active is not None:
            excluded = excluded_names(serving[0].excluded_symbols) if canary else []
            if UNREADABLE in excluded:
                canary, excluded = None, []  # which symbols it may serve is unknown, so it serves none
            found[name] = Routing(active, canary, rollout_bp if canary else 0, salt, generation, frozenset(excluded))
    return found


def previously_active(session: Session, strategy_name: str) -> StrategyVersion | None:
    """Return the previously active version: the one with the latest activation, retired or in shadow.

    Quarantined versions are left out. A predecessor is in shadow while its successor bakes, and while it is watched.
    """
    return session.exec(
        select(StrategyVersion)
        .where(
            StrategyVersion.strategy_name == strategy_name,
            col(StrategyVersion.status).in_([Status.RETIRED, Status.SHADOW]),
            col(StrategyVersion.activated_at).is_not(None),
            col(StrategyVersion.quarantined_at).is_(None),
        )
        .order_by(col(StrategyVersion.activated_at).desc())
    ).first()


def add_version(session: Session, version: StrategyVersion) -> None:
    session.add(version)
    session.flush()
    if "toggles" in version.fingerprint_parts:
        toggles.touch(session)


def add_answers(session: Session, version: StrategyVersion, content: bytes) -> None:
    session.add(RecordedAnswers(strategy_name=version.strategy_name, version=version.version, content=content))
    session.flush()


def recorded_answers(session: Session, version: StrategyVersion) -> bytes | None:
    """Return the windows and answers of the version's registration, or None if there are none."""
    found = session.get(RecordedAnswers, (version.strategy_name, version.version))
    return None if found is None else found.content


def move(session: Session, version: StrategyVersion, target: Status, now: datetime) -> None:
    """Set the status of *version* and its time, and flush, because the one-active index is checked per statement.

    Raises:
        IllegalTransition: *target* is not allowed after the current status.
    """
    check_move(Status(version.status), target)
    activated_at = _after_all_others(session, version.strategy_name, now) if target is Status.ACTIVE else None
    version.status = target.value
    if activated_at is not None:
        version.activated_at = activated_at
    if target is Status.RETIRED:
        version.retired_at = now
    session.add(version)
    session.flush()


def _after_all_others(session: Session, strategy_name: str, now: datetime) -> datetime:
    """Return *now*, or a microsecond after the newest activation if the clock was set back since."""
    newest = session.exec(
        select(func.max(StrategyVersion.activated_at)).where(StrategyVersion.strategy_name == strategy_name)
    ).one()
    return now if newest is None else max(now, newest + timedelta(microseconds=1))
