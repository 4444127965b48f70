"""Toggles: what versions declare, the rules in force, and segments of users.

All that resolves toggles has a revision. A change of it calls `touch` last in the transaction.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlmodel import Session, col, select

from strategy_core.domain.audit import UNSTORABLE
from strategy_core.domain.toggles import AllToggles, Rule, Toggle, read_rule, stored_toggles
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import (
    PlatformUser,
    Segment,
    StrategyVersion,
    ToggleRevision,
    ToggleRule,
    UserSegment,
)

_DECLARED = col(StrategyVersion.fingerprint_parts)["toggles"].as_string()


def touch(session: Session) -> None:
    """Give what resolves toggles another revision. It is random, so that a restored backup is noticed too."""
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    given = insert(ToggleRevision).values(id=1, revision=uuid4().hex)
    put = given.on_conflict_do_update(index_elements=["id"], set_={"revision": given.excluded.revision})
    session.connection().execute(put)


def revision(session: Session) -> str:
    """Return the present revision, empty before the first change."""
    return session.connection().execute(sa.select(col(ToggleRevision.revision))).scalar() or ""


def rows_in_force(
    session: Session, strategy_name: str | None = None, toggle: str | None = None
) -> Sequence[ToggleRule]:
    """Return the rules in force, by strategy and toggle, in their order."""
    order = (col(ToggleRule.strategy_name), col(ToggleRule.toggle), col(ToggleRule.position))
    query = select(ToggleRule).where(col(ToggleRule.valid_to).is_(None)).order_by(*order)
    if strategy_name is not None:
        query = query.where(ToggleRule.strategy_name == strategy_name)
    if toggle is not None:
        query = query.where(ToggleRule.toggle == toggle)
    return session.exec(query).all()


def rules_of(rows: Iterable[ToggleRule]) -> dict[str, list[Rule]]:
    """Return the rules of one strategy by toggle."""
    found: dict[str, list[Rule]] = defaultdict(list)
    for row in rows:
        found[row.toggle].append(read_rule(row.conditions, row.value, row.toggle, row.position))
    return dict(found)


def replace_rules(
    session: Session, strategy_name: str, toggle: str, rules: Sequence[Rule], *, by: str, now: datetime
) -> None:
    """End the rules in force that differ from *rules* at their position, and add the others. Then `touch`."""
    wanted = {number: (rule.stored(), rule.value) for number, rule in enumerate(rules, 1)}
    for row in rows_in_force(session, strategy_name, toggle):
        if wanted.get(row.position) == (row.conditions, row.value) and type(row.value) is type(wanted[row.position][1]):
            del wanted[row.position]
        else:
            row.valid_to = max(now, row.valid_from)
            session.add(row)
    session.flush()  # an ended rule leaves its position before another takes it
    for number, (conditions, value) in wanted.items():
        session.add(
            ToggleRule(
                strategy_name=strategy_name,
                toggle=toggle,
                position=number,
                conditions=conditions,
                value=value,
                valid_from=now,
                set_by=by,
            )
        )
    session.flush()
    touch(session)


def declared_by(
    session: Session, strategies: Iterable[str] | None = None, *, statuses: Sequence[str] | None = None
) -> dict[str, dict[str, dict[str, Toggle]]]:
    """Return strategy -> version -> toggles, of versions that declare any, oldest version first.

    Args:
        strategies: only these.
        statuses: only versions with one of these.
    """
    query = (
        sa.select(col(StrategyVersion.strategy_name), col(StrategyVersion.version), _DECLARED)
        .where(_DECLARED.is_not(None))
        .order_by(col(StrategyVersion.strategy_name), col(StrategyVersion.created_at), col(StrategyVersion.version))
    )
    if strategies is not None:
        query = query.where(col(StrategyVersion.strategy_name).in_(sorted(strategies)))
    if statuses is not None:
        query = query.where(col(StrategyVersion.status).in_(statuses))
    found: dict[str, dict[str, dict[str, Toggle]]] = defaultdict(dict)
    for strategy_name, version, text in session.connection().execute(query):
        found[strategy_name][version] = stored_toggles(text)
    return dict(found)


def all_toggles(session: Session, strategies: Iterable[str] | None = None) -> AllToggles:
    """Return all that resolves the toggles of all strategies, or of these, in memory.

    Retired versions are included, since a rollback may reinstate one. Segments and capital are read only if a rule
    asks for them.
    """
    names = None if strategies is None else frozenset(strategies)
    by_strategy: dict[str, list[ToggleRule]] = defaultdict(list)
    for row in rows_in_force(session):
        if names is None or row.strategy_name in names:
            by_strategy[row.strategy_name].append(row)
    rules = {name: rules_of(rows) for name, rows in by_strategy.items()}
    every = [rule.when for of in rules.values() for each in of.values() for rule in each]
    segments = {when.segment for when in every if when.segment is not None}
    asks_capital = any(when.capital_at_least is not None or when.capital_at_most is not None for when in every)
    return AllToggles(
        declared=declared_by(session, names),
        rules=rules,
        segments=_members_by_user(session, segments),
        capital=_known_capital(session) if asks_capital else {},
    )


def user_facts(session: Session, user_id: str) -> tuple[frozenset[str], float | None]:
    """Return the segments of a user, and the capital in the user list, if it is known."""
    if UNSTORABLE.search(user_id):
        return frozenset(), None
    query = select(UserSegment.segment_name).where(UserSegment.user_id == user_id)
    user = session.get(PlatformUser, user_id)
    return frozenset(session.exec(query)), None if user is None else user.capital


def list_segments(session: Session) -> Sequence[Segment]:
    return session.exec(select(Segment).order_by(col(Segment.name))).all()


def members(session: Session) -> dict[str, set[str]]:
    """Return the users of each segment by its name."""
    found: dict[str, set[str]] = {segment.name: set() for segment in list_segments(session)}
    query = sa.select(col(UserSegment.segment_name), col(UserSegment.user_id))
    for segment, user_id in session.connection().execute(query):
        found[segment].add(user_id)
    return found


def hold_segments(session: Session) -> None:
    """Block other loads of segments until the transaction ends. Reads continue."""
    if session.get_bind().dialect.name == "postgresql":
        session.connection().execute(sa.text("LOCK TABLE segment IN SHARE ROW EXCLUSIVE MODE"))


def put_segment(session: Session, name: str, *, added: Iterable[str], users: int, now: datetime) -> None:
    """Create or update a segment, and add users to it."""
    session.merge(Segment(name=name, users=users, loaded_at=now))
    session.flush()
    insert_if_new(session, UserSegment, [{"segment_name": name, "user_id": user_id} for user_id in sorted(added)])


def remove_members(session: Session, name: str, user_ids: Iterable[str]) -> None:
    gone: list[Mapping[str, Any]] = [{"gone": user_id} for user_id in user_ids]
    if gone:
        leaves = sa.delete(UserSegment).where(
            col(UserSegment.segment_name) == name, col(UserSegment.user_id) == sa.bindparam("gone")
        )
        session.connection().execute(leaves, gone)


def remove_segment(session: Session, name: str) -> None:
    session.connection().execute(sa.delete(UserSegment).where(col(UserSegment.segment_name) == name))
    session.connection().execute(sa.delete(Segment).where(col(Segment.name) == name))


def _members_by_user(session: Session, segments: Iterable[str]) -> dict[str, frozenset[str]]:
    wanted = sorted(segments)
    if not wanted:
        return {}
    query = sa.select(col(UserSegment.user_id), col(UserSegment.segment_name))
    found: dict[str, set[str]] = defaultdict(set)
    for user_id, segment in session.connection().execute(query.where(col(UserSegment.segment_name).in_(wanted))):
        found[user_id].add(segment)
    same: dict[frozenset[str], frozenset[str]] = {}  # most users are in the same few combinations
    frozen = ((user_id, frozenset(names)) for user_id, names in found.items())
    return {user_id: same.setdefault(names, names) for user_id, names in frozen}


def _known_capital(session: Session) -> dict[str, float]:
    query = sa.select(col(PlatformUser.user_id), col(PlatformUser.capital))
    rows = session.connection().execute(query.where(col(PlatformUser.capital).is_not(None))).tuples()
    return {user_id: capital for user_id, capital in rows if capital is not None}
