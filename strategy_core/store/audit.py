"""The audit trail and the alert outbox: written in the transaction of the change they tell of."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from strategy_core.domain.audit import Actor
from strategy_core.domain.chain import BEFORE_THE_FIRST, Link, event_hash
from strategy_core.domain.errors import AlreadyDone, UnknownStrategy
from strategy_core.domain.live import Serving
from strategy_core.domain.routing import basis_points
from strategy_core.store import tallies
from strategy_core.store.engine import ask_whether_kept, insert_if_new
from strategy_core.store.rollout_tables import AlertOutbox, AuditEvent
from strategy_core.store.tables import Strategy
from strategy_core.store.tally_tables import Counted

_HASHED = tuple(name for name in AuditEvent.model_fields if name not in ("id", "previous_hash", "hash"))


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
    """Append to the strategy's trail, whose row the caller has locked, and so raise its generation by one.

    Args:
        cause: of a rollback, by which it is counted.

    Raises:
        AlreadyDone: the actor has made a change under this idempotency key before.
    """
    strategy = session.get(Strategy, strategy_name)
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
        session.flush()  # before the strategy's row: a trigger holds the two together
    except IntegrityError as error:
        if actor.idempotency_key is not None and "idempotency" in str(error.orig):
            raise AlreadyDone(actor.name, actor.idempotency_key) from None
        raise
    ask_whether_kept(session, partial(_stands, strategy_name=strategy_name, position=event.position, digest=event.hash))
    strategy.generation, strategy.audit_head = event.position, event.hash
    session.add(strategy)
    session.flush()
    if (active := after.get("active")) not in (None, before.get("active")):
        tallies.count(session, strategy_name, Counted.ACTIVATION, [(active, "")])
    if cause:
        tallies.count(session, strategy_name, Counted.ROLLBACK, [(cause, "")])


def _stands(session: Session, *, strategy_name: str, position: int, digest: str) -> bool:
    """Return whether the event was committed; while its transaction is not over, that holds the row waited for here."""
    held = select(Strategy.name).where(Strategy.name == strategy_name).with_for_update()
    session.exec(held).first()
    mine = (AuditEvent.strategy_name == strategy_name, AuditEvent.position == position, AuditEvent.hash == digest)
    return session.exec(select(AuditEvent.id).where(*mine)).first() is not None


def link_of(event: Any) -> Link:
    """Return an event, or a row of all its columns, as a link of its strategy's chain."""
    facts = {name: getattr(event, name) for name in _HASHED}
    return Link(event.position, event.previous_hash, event.hash, facts)


def events(
    session: Session, strategy_name: str | None = None, *, after_id: int = 0, limit: int | None = None
) -> Sequence[AuditEvent]:
    """Return what was changed, oldest first; with *limit* the newest so many of it."""
    query = select(AuditEvent).where(col(AuditEvent.id) > after_id).order_by(col(AuditEvent.id).desc()).limit(limit)
    if strategy_name is not None:
        query = query.where(AuditEvent.strategy_name == strategy_name)
    return list(reversed(session.exec(query).all()))


def starter(session: Session, rollout_id: UUID) -> str | None:
    """Return who started the rollout; None when no trail says so."""
    query = select(AuditEvent.actor).where(AuditEvent.rollout_id == rollout_id, AuditEvent.action == "start_rollout")
    return session.exec(query).first()


def serving_history(session: Session, strategy_name: str) -> list[Serving]:
    """Return who served the strategy's users and since when, oldest first; `serving_at` says who did at a moment.

    Changes of one strategy queue, so the trail's own order is the true one: a clock that ran back moves none of them.
    """
    rows = session.exec(
        select(AuditEvent.at, AuditEvent.after)
        .where(AuditEvent.strategy_name == strategy_name)
        .order_by(col(AuditEvent.id))
    ).all()
    history: list[Serving] = []
    for at, after in rows:
        since = max(at, history[-1].since) if history else at
        history.append(Serving(since, after["active"], after["canary"], basis_points(after["percent"])))
    return history


def raise_alert(
    session: Session,
    kind: str,
    text: str,
    *,
    severity: str,
    strategy_name: str,
    dedupe_key: str,
    facts: Mapping[str, Any],
    now: datetime,
    rollout_id: UUID | None = None,
) -> None:
    """Put an alert into the outbox, once for each *dedupe_key*."""
    if session.exec(select(AlertOutbox.id).where(AlertOutbox.dedupe_key == dedupe_key)).first() is not None:
        return  # PostgreSQL would use up an id for each that is passed over
    alert = AlertOutbox(
        at=now,
        severity=severity,
        kind=kind,
        strategy_name=strategy_name,
        rollout_id=rollout_id,
        text=text,
        facts=dict(facts),
        dedupe_key=dedupe_key,
    )
    insert_if_new(session, AlertOutbox, [alert.model_dump(exclude={"id"})])


def alerts(
    session: Session,
    strategy_name: str | None = None,
    *,
    rollout_id: UUID | None = None,
    after_id: int = 0,
    limit: int | None = None,
) -> Sequence[AlertOutbox]:
    """Return what was raised, oldest first; with *limit* the newest so many of it."""
    query = select(AlertOutbox).where(col(AlertOutbox.id) > after_id).order_by(col(AlertOutbox.id).desc()).limit(limit)
    if strategy_name is not None:
        query = query.where(AlertOutbox.strategy_name == strategy_name)
    if rollout_id is not None:
        query = query.where(AlertOutbox.rollout_id == rollout_id)
    return list(reversed(session.exec(query).all()))
