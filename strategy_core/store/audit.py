"""The audit trail, the stored responses of idempotent requests, and service tokens."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, TypedDict, Unpack
from uuid import UUID

from sqlalchemy import Row, Select, delete, func, or_
from sqlalchemy import select as select_columns
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from strategy_core.domain.audit import BEFORE_THE_FIRST, Actor, Link, event_hash
from strategy_core.domain.errors import AlreadyDone, UnknownStrategy, UnknownToken
from strategy_core.domain.live_trades import Serving
from strategy_core.domain.routing import basis_points
from strategy_core.store import counters
from strategy_core.store.engine import insert_if_new, set_commit_check
from strategy_core.store.tables import (
    ApiAnswer,
    AuditEvent,
    CanaryConfig,
    Counted,
    GateVerdict,
    Rollout,
    ServiceToken,
    StrategyRow,
    StrategyVersion,
)

_HASHED = tuple(name for name in AuditEvent.model_fields if name not in ("id", "previous_hash", "hash"))
_COLUMNS = tuple(col(getattr(AuditEvent, name)) for name in AuditEvent.model_fields)
_TABLE = AuditEvent.__table__.columns  # type: ignore[attr-defined]
_BATCH = 1_000  # rows held in memory while streaming
OF_USERS = ("exclude_users", "end_exclusions")  # actions that change no version, percent or rollout. There may be many
_VERSION = tuple(
    col(getattr(StrategyVersion, name)) for name in StrategyVersion.model_fields if name != "registration_report"
)
_ROLLOUT = tuple(col(getattr(Rollout, name)) for name in Rollout.model_fields)


class EventFilter(TypedDict, total=False):
    """Conditions on audit events, combined with "and". A missing key is no condition.

    Attributes:
        since, until: the event's time is in [since, until).
        after_id, before_id: only events later, or earlier, in the trail than this one.
        strategies: only events of one of these strategies.
    """

    strategy_name: str | None
    rollout_id: UUID | None
    actor: str | None
    action: str | None
    since: datetime | None
    until: datetime | None
    after_id: int | None
    before_id: int | None
    strategies: Collection[str] | None


def record(
    session: Session,
    actor: Actor,
    action: str,
    *,
    strategy_name: str,
    version: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    reason: str,
    now: datetime,
    rollout_id: UUID | None = None,
    evidence: Sequence[str] = (),
    cause: str = "",
) -> None:
    """Append an event to the strategy's trail and raise its generation. The caller has locked the strategy's row.

    Args:
        cause: of a rollback, for the count of rollbacks by cause.

    Raises:
        AlreadyDone: the actor has already made a change under this idempotency key.
    """
    strategy = session.get(StrategyRow, strategy_name)
    if strategy is None:
        raise UnknownStrategy(strategy_name)
    event = AuditEvent(
        at=now,
        actor=actor.name,
        role=actor.role,
        source=actor.source,
        action=action,
        strategy_name=strategy_name,
        version=version,
        rollout_id=rollout_id,
        before=dict(before),
        after=dict(after),
        reason=reason,
        evidence=list(evidence),
        request_id=actor.request_id,
        idempotency_key=actor.idempotency_key,
        position=strategy.generation + 1,
        previous_hash=strategy.audit_head or BEFORE_THE_FIRST,
        hash="",
    )
    event.hash = event_hash(event.previous_hash, link_of(event).facts)
    session.add(event)
    try:
        session.flush()  # before the strategy's row, because a trigger checks that the two agree
    except IntegrityError as error:
        if actor.idempotency_key is not None and "idempotency" in str(error.orig):
            raise AlreadyDone(actor.name, actor.idempotency_key) from None
        raise
    set_commit_check(
        session, partial(_was_committed, strategy_name=strategy_name, position=event.position, digest=event.hash)
    )
    strategy.generation, strategy.audit_head = event.position, event.hash
    session.add(strategy)
    session.flush()
    if (active := after.get("active")) not in (None, before.get("active")):
        counters.count(session, strategy_name, Counted.ACTIVATION, [(active, "")])
    if cause:
        counters.count(session, strategy_name, Counted.ROLLBACK, [(cause, "")])


def _was_committed(session: Session, *, strategy_name: str, position: int, digest: str) -> bool:
    locked = select(StrategyRow.name).where(StrategyRow.name == strategy_name).with_for_update()
    session.exec(locked).first()  # waits until the transaction that wrote the event has ended
    mine = (AuditEvent.strategy_name == strategy_name, AuditEvent.position == position, AuditEvent.hash == digest)
    return session.exec(select(AuditEvent.id).where(*mine)).first() is not None


def link_of(event: Any) -> Link:
    """Return an event, or a row with all its columns, as a link of its strategy's hash chain."""
    facts = {name: getattr(event, name) for name in _HASHED}
    return Link(event.position, event.previous_hash, event.hash, facts)


def events(
    session: Session, strategy_name: str | None = None, *, after_id: int = 0, limit: int | None = None
) -> Sequence[AuditEvent]:
    """Return events, oldest first. *limit* keeps the newest ones."""
    query = select(AuditEvent).where(col(AuditEvent.id) > after_id).order_by(col(AuditEvent.id).desc()).limit(limit)
    if strategy_name is not None:
        query = query.where(AuditEvent.strategy_name == strategy_name)
    return list(reversed(session.exec(query).all()))


def starter(session: Session, rollout_id: UUID) -> str | None:
    """Return the actor that started the rollout, or None if there is no such event."""
    query = select(AuditEvent.actor).where(AuditEvent.rollout_id == rollout_id, AuditEvent.action == "start_rollout")
    return session.exec(query).first()


def serving_history(session: Session, strategy_name: str) -> list[Serving]:
    """Return which versions served the strategy's users and since when, oldest first (see `serving_at`).

    The order is the trail's and not that of its times: changes of one strategy queue, but a clock may be set back.
    """
    rows = session.exec(
        select(AuditEvent.at, AuditEvent.after)
        .where(AuditEvent.strategy_name == strategy_name, col(AuditEvent.action).not_in(OF_USERS))
        .order_by(col(AuditEvent.id))
    ).all()
    history: list[Serving] = []
    for at, after in rows:
        since = max(at, history[-1].since) if history else at
        excluded = frozenset(after.get("excluded", ()))
        history.append(Serving(since, after["active"], after["canary"], basis_points(after["percent"]), excluded))
    return history


def find_events(
    session: Session, *, limit: int | None, newest: bool, **wanted: Unpack[EventFilter]
) -> Sequence[AuditEvent]:
    """Return matching events, oldest first. *limit* keeps the oldest ones, or the newest ones if *newest*."""
    order = col(AuditEvent.id).desc() if newest else col(AuditEvent.id)
    found = session.exec(select(AuditEvent).where(*_conditions(wanted)).order_by(order).limit(limit)).all()
    return found[::-1] if newest else found


def stream_events(session: Session, **wanted: Unpack[EventFilter]) -> Iterator[Row[Any]]:
    """Yield matching events as rows of all columns, oldest first, in constant memory."""
    query: Select[Any] = select_columns(*_COLUMNS).where(*_conditions(wanted)).order_by(col(AuditEvent.id))
    yield from session.execute(query.execution_options(yield_per=_BATCH))


def stream_versions(session: Session, strategy_name: str) -> Iterator[Row[Any]]:
    """Yield the rows of the strategy's versions in constant memory, without their registration reports."""
    query: Select[Any] = select_columns(*_VERSION).where(col(StrategyVersion.strategy_name) == strategy_name)
    yield from session.execute(query.order_by(col(StrategyVersion.version)).execution_options(yield_per=_BATCH))


def stream_rollouts(session: Session, strategy_name: str) -> Iterator[Row[Any]]:
    """Yield the rows of the strategy's rollouts in constant memory."""
    query: Select[Any] = select_columns(*_ROLLOUT).where(col(Rollout.strategy_name) == strategy_name)
    yield from session.execute(
        query.order_by(col(Rollout.started_at), col(Rollout.id)).execution_options(yield_per=_BATCH)
    )


def known_verdicts(session: Session, ids: Iterable[str]) -> set[str]:
    """Return the ids that are ids of gate verdicts."""
    wanted = []
    for each in ids:
        with suppress(ValueError):  # not an id at all
            wanted.append(UUID(each))
    return {str(found) for found in session.exec(select(GateVerdict.id).where(col(GateVerdict.id).in_(wanted)))}


def canary_rows(session: Session, strategy_name: str) -> Sequence[CanaryConfig]:
    """Return the strategy's routing entries: at most one, unless the unique index was dropped."""
    return session.exec(select(CanaryConfig).where(CanaryConfig.strategy_name == strategy_name)).all()


def newest_at(session: Session, strategy_name: str, at: datetime) -> AuditEvent | None:
    """Return the strategy's newest event at a moment: the last one before the first event with a later time.

    This follows the trail's order, which holds even when a clock was set back.
    """
    mine = col(AuditEvent.strategy_name) == strategy_name
    later = select(AuditEvent.id).where(mine, col(AuditEvent.at) > at).order_by(col(AuditEvent.id)).limit(1)
    first_later = session.exec(later).first()
    query = select(AuditEvent).where(mine).order_by(col(AuditEvent.id).desc()).limit(1)
    if first_later is not None:
        query = query.where(col(AuditEvent.id) < first_later)
    return session.exec(query).first()


def newest_change(session: Session, event: AuditEvent, fact: str) -> AuditEvent | None:
    """Return the newest event, up to and including *event*, that changed *fact*."""
    before, after = (column[fact] for column in (_TABLE["before"], _TABLE["after"]))
    query = (
        select(AuditEvent)
        .where(AuditEvent.strategy_name == event.strategy_name, col(AuditEvent.id) <= event.id)
        .where(before.is_distinct_from(after))
        .order_by(col(AuditEvent.id).desc())
        .limit(1)
    )
    return session.exec(query).first()


def newest_event(
    session: Session, strategy_name: str, rollout_id: UUID | None = None, *, of_users: bool = True
) -> AuditEvent | None:
    """Return the newest event of a strategy, or of one of its rollouts.

    Args:
        of_users: events of users' exclusions count too.
    """
    query = select(AuditEvent).where(AuditEvent.strategy_name == strategy_name).order_by(col(AuditEvent.id).desc())
    if not of_users:
        query = query.where(col(AuditEvent.action).not_in(OF_USERS))
    if rollout_id is not None:
        query = query.where(AuditEvent.rollout_id == rollout_id)
    return session.exec(query.limit(1)).first()


def concerning_others(session: Session, facts: Mapping[str, str], key: str, *, among: int) -> Sequence[AuditEvent]:
    """Return those of the newest events whose fact has *key*, oldest first.

    Args:
        facts: by action, the fact of an event that may have it.
        among: search this many events.
    """
    newest = select(func.max(col(AuditEvent.id))).scalar_subquery()
    has_key = [_TABLE["after"][fact, key].as_string().is_not(None) for fact in sorted(set(facts.values()))]
    query = select(AuditEvent).where(col(AuditEvent.id) > newest - among, col(AuditEvent.action).in_(facts))
    return session.exec(query.where(or_(*has_key)).order_by(col(AuditEvent.id))).all()


def keys_since(session: Session, event_id: int | None, actions: Iterable[str]) -> Sequence[Row[Any]]:
    """Return what tells changes apart, of the events after this one with one of these actions."""
    columns = [col(getattr(AuditEvent, name)) for name in ("strategy_name", "action", "at", "actor", "request_id")]
    query = select_columns(*columns).where(col(AuditEvent.id) > event_id, col(AuditEvent.action).in_(list(actions)))
    return session.execute(query).all()


def made_by_request(session: Session, strategy_name: str, request_id: str) -> AuditEvent | None:
    """Return the newest event of the strategy that this request or flow run made."""
    query = (
        select(AuditEvent)
        .where(AuditEvent.strategy_name == strategy_name, AuditEvent.request_id == request_id)
        .order_by(col(AuditEvent.id).desc())
    )
    return session.exec(query.limit(1)).first()


def made_under_key(session: Session, actor: str, idempotency_key: str) -> AuditEvent | None:
    """Return the change that the actor has made under this idempotency key, if there is one."""
    mine = (AuditEvent.actor == actor, AuditEvent.idempotency_key == idempotency_key)
    return session.exec(select(AuditEvent).where(*mine)).first()


def strategies_with_events(session: Session) -> Sequence[str]:
    """Return the names of all strategies in the trail, also of those without a strategy row."""
    return session.exec(select(AuditEvent.strategy_name).distinct().order_by(AuditEvent.strategy_name)).all()


def strategies_with_versions(session: Session) -> Sequence[str]:
    """Return the names of all strategies that versions belong to, also of those without a strategy row."""
    return session.exec(select(StrategyVersion.strategy_name).distinct().order_by(StrategyVersion.strategy_name)).all()


def _conditions(wanted: EventFilter) -> list[Any]:
    equal = [
        getattr(AuditEvent, name) == wanted[name]
        for name in ("strategy_name", "rollout_id", "actor", "action")
        if wanted.get(name) is not None
    ]
    since, until = wanted.get("since"), wanted.get("until")
    after_id, before_id = wanted.get("after_id"), wanted.get("before_id")
    strategies = wanted.get("strategies")
    bounds = [
        None if since is None else col(AuditEvent.at) >= since,
        None if until is None else col(AuditEvent.at) < until,
        None if after_id is None else col(AuditEvent.id) > after_id,
        None if before_id is None else col(AuditEvent.id) < before_id,
        None if strategies is None else col(AuditEvent.strategy_name).in_(sorted(strategies)),
    ]
    return equal + [bound for bound in bounds if bound is not None]


# Stored responses


def find_answer(session: Session, actor: str, idempotency_key: str) -> ApiAnswer | None:
    return session.get(ApiAnswer, (actor, idempotency_key))


def keep_answer(session: Session, row: dict[str, Any]) -> None:
    """Store a response unless there is one under its key."""
    insert_if_new(session, ApiAnswer, [row])


def forget_answers(session: Session, before: datetime) -> None:
    session.execute(delete(ApiAnswer).where(col(ApiAnswer.answered_at) < before))


# Service tokens


def add_token(session: Session, token: ServiceToken) -> None:
    """Store a token unless there is one with its id, so that a retry stores it once."""
    insert_if_new(session, ServiceToken, [token.model_dump()])


def find_token(session: Session, token_id: str) -> ServiceToken | None:
    return session.get(ServiceToken, token_id)


def list_tokens(session: Session) -> Sequence[ServiceToken]:
    """Return all service tokens, revoked ones included, oldest first."""
    return session.exec(select(ServiceToken).order_by(col(ServiceToken.issued_at), ServiceToken.id)).all()


def revoke_token(session: Session, token_id: str, *, by: str, because: str, now: datetime) -> tuple[ServiceToken, bool]:
    """Revoke a token, and return it and whether this was new. The first revocation is kept.

    Raises:
        UnknownToken
    """
    found = session.exec(select(ServiceToken).where(ServiceToken.id == token_id).with_for_update()).first()
    if found is None:
        raise UnknownToken(token_id)
    if found.revoked_at is not None:
        return found, False
    found.revoked_at, found.revoked_by, found.revoked_because = now, by, because
    session.add(found)
    session.flush()
    return found, True
