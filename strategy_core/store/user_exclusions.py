"""Exclusions of users: set and end them, and read those that count now or counted at the time of a trade."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, or_, select

from strategy_core.domain.audit import UNSTORABLE
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.release_times import ALL_STRATEGIES
from strategy_core.domain.routing import Routing
from strategy_core.domain.user_exclusions import ExclusionKind, UserExclusion, UserSets
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import CanaryConfig, StrategyVersion, UserExclusionRow

_PER_QUERY = 5_000  # users, below the limit of parameters in one statement on both databases
_OPEN = col(UserExclusionRow.valid_to).is_(None)
_SET = (col(UserExclusionRow.strategy_name), col(UserExclusionRow.kind))
_TABLE = UserExclusionRow.__table__  # type: ignore[attr-defined]


def exclude(
    session: Session,
    strategy_name: str,
    kind: ExclusionKind,
    user_ids: Sequence[str],
    *,
    now: datetime,
    reason: str,
    actor: str,
    until: datetime | None = None,
) -> list[str]:
    """Give the users an exclusion, and return those whose exclusion is new or has another end than before."""
    known = {
        row.user_id: row for row in _open_rows(session, strategy_name, [kind], user_ids) if _counts(row.until, now)
    }
    wanted = [user for user in user_ids if user not in known or known[user].until != until]
    end(session, strategy_name, [kind], wanted, now=now)
    rows = [
        {
            "strategy_name": strategy_name,
            "user_id": user,
            "kind": kind.value,
            "valid_from": now,
            "until": until,
            "reason": reason,
            "actor": actor,
        }
        for user in wanted
    ]
    insert_if_new(session, UserExclusionRow, rows)
    return wanted


def end(
    session: Session, strategy_name: str, kinds: Collection[ExclusionKind], user_ids: Sequence[str], *, now: datetime
) -> list[str]:
    """End the users' exclusions of these kinds, and return the users that had one that still counted."""
    rows = list(_open_rows(session, strategy_name, kinds, user_ids))
    ends = [{"row": row.id, "at": max(now, row.valid_from)} for row in rows]
    if ends:
        statement = sa.update(_TABLE).where(_TABLE.c.id == sa.bindparam("row")).values(valid_to=sa.bindparam("at"))
        session.connection().execute(statement, ends)
    return sorted({row.user_id for row in rows if _counts(row.until, now)})


def users_with(session: Session, strategy_name: str, kind: ExclusionKind) -> list[str]:
    """Return the users that have an exclusion of this kind for this strategy, and that was not ended."""
    query = sa.select(col(UserExclusionRow.user_id)).where(
        col(UserExclusionRow.strategy_name) == strategy_name, col(UserExclusionRow.kind) == kind.value, _OPEN
    )
    return sorted(session.connection().execute(query).scalars())


def strategies_with_idle(session: Session, kind: ExclusionKind) -> Sequence[str]:
    """Return the strategies that had a canary, have none now, and have an exclusion of this kind that was not ended."""
    name = col(CanaryConfig.strategy_name)
    kept = sa.exists().where(
        col(UserExclusionRow.strategy_name) == name, col(UserExclusionRow.kind) == kind.value, _OPEN
    )
    serving = sa.exists().where(
        col(StrategyVersion.strategy_name) == name, col(StrategyVersion.status) == Status.CANARY.value
    )
    return session.connection().execute(sa.select(name).where(kept, ~serving).order_by(name)).scalars().all()


def with_users(session: Session, routing: Mapping[str, Routing | None], now: datetime) -> dict[str, Routing | None]:
    """Return the routing with the users whose exclusion counts at *now*. Read *routing* first, in the same session."""
    serving = [name for name, one in routing.items() if one is not None and one.serves_canary]
    sets = current_sets(session, serving, now)[0]
    return {name: one and with_sets(name, one, sets) for name, one in routing.items()}


def with_sets(name: str, routing: Routing, sets: Mapping[str, UserSets]) -> Routing:
    """Return the routing of a strategy with the users from `current_sets`."""
    found = sets.get(name) or sets.get(ALL_STRATEGIES)
    if found is None:
        return routing
    if routing.serves_canary:
        return replace(routing, kept=found.kept, always=found.always, exit_only=found.exit_only)
    return replace(routing, exit_only=found.exit_only)


def current_sets(
    session: Session, serving: Collection[str], now: datetime
) -> tuple[dict[str, UserSets], datetime | None]:
    """Return the users whose exclusion counts at *now*, and when the first of these exclusions runs out.

    Args:
        serving: strategies whose canary serves users. Of all others only users that may open no position are read.

    Returns:
        By strategy. A strategy without exclusions of its own is left out, and has those of `*`.
    """
    everywhere = col(UserExclusionRow.kind) == ExclusionKind.GUARD
    wanted = (
        _OPEN,
        or_(col(UserExclusionRow.strategy_name).in_([*serving, ALL_STRATEGIES]), everywhere) if serving else everywhere,
    )
    run, until = session.connection().execute, col(UserExclusionRow.until)
    users: dict[str, dict[str, list[str]]] = {}
    for name, kind, ids in run(sa.select(*_SET, _all_users(session)).where(*wanted, until.is_(None)).group_by(*_SET)):
        users.setdefault(name, {})[kind] = ids
    limited = sa.select(*_SET, col(UserExclusionRow.user_id), until).where(*wanted, until > now)
    first: datetime | None = None
    for name, kind, user, ends_at in run(limited):
        first = ends_at if first is None else min(first, ends_at)
        users.setdefault(name, {}).setdefault(kind, []).append(user)
    shared = _sets(users.pop(ALL_STRATEGIES, {}), UserSets())
    found = {name: _sets(by_kind, shared) for name, by_kind in users.items()}
    return (found if shared == UserSets() else {**found, ALL_STRATEGIES: shared}), first


def exclusions_of(
    session: Session, strategies: Collection[str], user_ids: Iterable[str], *, since: datetime, until: datetime
) -> dict[str, list[UserExclusion]]:
    """Return by user the exclusions for these strategies, or for all, that counted at a moment in [since, until]."""
    found: dict[str, list[UserExclusion]] = {}
    wanted = sorted(set(user_ids))
    ends = (col(UserExclusionRow.valid_to), col(UserExclusionRow.until))
    for start in range(0, len(wanted), _PER_QUERY):
        query = select(UserExclusionRow).where(
            col(UserExclusionRow.user_id).in_(wanted[start : start + _PER_QUERY]),
            col(UserExclusionRow.strategy_name).in_([*strategies, ALL_STRATEGIES]),
            col(UserExclusionRow.valid_from) <= until,
            *(or_(each.is_(None), each > since) for each in ends),
        )
        for row in session.exec(query):
            one = UserExclusion(row.strategy_name, row.user_id, ExclusionKind(row.kind), row.valid_from, row.ends_at)
            found.setdefault(row.user_id, []).append(one)
    return found


def guards_of(session: Session, strategy_name: str, user_ids: Sequence[str]) -> dict[str, datetime | None]:
    """Return by user when the newest loss limit that was hit ended, or None while it counts."""
    found: dict[str, datetime | None] = {}
    for start in range(0, len(user_ids), _PER_QUERY):
        query = (
            select(UserExclusionRow.user_id, UserExclusionRow.valid_to)
            .where(
                UserExclusionRow.strategy_name == strategy_name,
                UserExclusionRow.kind == ExclusionKind.GUARD,
                col(UserExclusionRow.user_id).in_(user_ids[start : start + _PER_QUERY]),
            )
            .order_by(col(UserExclusionRow.id))
        )
        found |= dict(session.exec(query).all())
    return found


def list_exclusions(
    session: Session,
    strategies: Sequence[str] | None,
    *,
    user_id: str | None = None,
    counting_at: datetime | None = None,
    after_id: int = 0,
    limit: int | None = None,
    newest: bool = False,
) -> Sequence[UserExclusionRow]:
    """Return exclusions in the order in which they were set.

    Args:
        limit, newest: at most this many: the first ones, or with *newest* the last ones.
        strategies: of these strategies, and of all strategies. None: every exclusion.
        counting_at: only those that count at this moment. None: also those that have ended.
    """
    if user_id is not None and UNSTORABLE.search(user_id):
        return []
    place = col(UserExclusionRow.id)
    query = select(UserExclusionRow).where(place > after_id).order_by(place.desc() if newest else place)
    if strategies is not None:
        query = query.where(col(UserExclusionRow.strategy_name).in_([*strategies, ALL_STRATEGIES]))
    if user_id is not None:
        query = query.where(UserExclusionRow.user_id == user_id)
    if counting_at is not None:
        until = col(UserExclusionRow.until)
        query = query.where(_OPEN, or_(until.is_(None), until > counting_at))
    found = session.exec(query.limit(limit)).all()
    return found[::-1] if newest else found


def stream_of(session: Session, strategy_name: str) -> Iterator[sa.Row[Any]]:
    """Yield all exclusions of this strategy, or those of all strategies (`*`), in constant memory."""
    query = sa.select(*_TABLE.c).where(col(UserExclusionRow.strategy_name) == strategy_name).order_by(_TABLE.c.id)
    yield from session.execute(query.execution_options(yield_per=1_000))


def _open_rows(
    session: Session, strategy_name: str, kinds: Collection[ExclusionKind], user_ids: Sequence[str]
) -> Iterator[UserExclusionRow]:
    for start in range(0, len(user_ids), _PER_QUERY):
        query = select(UserExclusionRow).where(
            UserExclusionRow.strategy_name == strategy_name,
            col(UserExclusionRow.kind).in_([kind.value for kind in kinds]),
            col(UserExclusionRow.user_id).in_(user_ids[start : start + _PER_QUERY]),
            _OPEN,
        )
        yield from session.exec(query)


def _all_users(session: Session) -> Any:
    """Return the column of a group's users as one list: 100,000 rows take three times as long."""
    on_postgresql = session.get_bind().dialect.name == "postgresql"
    joined = sa.func.json_agg if on_postgresql else sa.func.json_group_array
    return joined(col(UserExclusionRow.user_id), type_=sa.JSON)


def _counts(until: datetime | None, now: datetime) -> bool:
    return until is None or until > now


def _sets(by_kind: Mapping[str, Sequence[str]], shared: UserSets) -> UserSets:
    """Return the users by what the kinds do, and those of all strategies. Equal sets are the same object."""
    kept = [user for kind, users in by_kind.items() if kind != ExclusionKind.ALWAYS for user in users]
    return UserSets(
        _joined(shared.kept, kept),
        _joined(shared.always, by_kind.get(ExclusionKind.ALWAYS, ())),
        _joined(shared.exit_only, by_kind.get(ExclusionKind.GUARD, ())),
    )


def _joined(shared: frozenset[str], own: Sequence[str]) -> frozenset[str]:
    return shared.union(own) if own else shared  # one set for all strategies that have no exclusions of their own
