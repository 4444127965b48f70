"""The audit trail and the alert outbox: written in the transaction of the change they tell of."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel import Session, col, select

from strategy_core.domain.audit import Actor
from strategy_core.domain.live import Serving
from strategy_core.domain.routing import basis_points
from strategy_core.store.engine import insert_if_new
from strategy_core.store.rollout_tables import AlertOutbox, AuditEvent


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
) -> None:
    session.add(
        AuditEvent(
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
        )
    )
    session.flush()


def events(session: Session, strategy_name: str | None = None, *, limit: int | None = None) -> Sequence[AuditEvent]:
    """Return what was changed, oldest first; with *limit* the newest so many of it."""
    query = select(AuditEvent).order_by(col(AuditEvent.id).desc()).limit(limit)
    if strategy_name is not None:
        query = query.where(AuditEvent.strategy_name == strategy_name)
    return list(reversed(session.exec(query).all()))


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


def alerts(session: Session, strategy_name: str | None = None, *, limit: int | None = None) -> Sequence[AlertOutbox]:
    """Return what was raised, oldest first; with *limit* the newest so many of it."""
    query = select(AlertOutbox).order_by(col(AlertOutbox.id).desc()).limit(limit)
    if strategy_name is not None:
        query = query.where(AlertOutbox.strategy_name == strategy_name)
    return list(reversed(session.exec(query).all()))
