"""The audit trail and the alert outbox: written in the transaction of the change they tell of."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlmodel import Session, col, select

from strategy_core.domain.audit import Actor
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


def events(session: Session, strategy_name: str | None = None) -> Sequence[AuditEvent]:
    """Return what was changed, oldest first."""
    query = select(AuditEvent).order_by(col(AuditEvent.id))
    if strategy_name is not None:
        query = query.where(AuditEvent.strategy_name == strategy_name)
    return session.exec(query).all()


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


def alerts(session: Session, strategy_name: str | None = None) -> Sequence[AlertOutbox]:
    """Return what was raised, oldest first."""
    query = select(AlertOutbox).order_by(col(AlertOutbox.id))
    if strategy_name is not None:
        query = query.where(AlertOutbox.strategy_name == strategy_name)
    return session.exec(query).all()
