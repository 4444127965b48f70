"""The alert outbox and the delivery of each alert on each channel."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import ColumnElement, case, exists, func, or_, update
from sqlmodel import Session, col, select

from strategy_core.domain.alerts import CHANNEL_FAILED, Severity
from strategy_core.domain.errors import UnknownAlert
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import AlertDelivery, AlertOutbox

_WORST_FIRST = case({severity.value: -rank for rank, severity in enumerate(Severity)}, value=col(AlertOutbox.severity))


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
    """Put an alert into the outbox, once per *dedupe_key*."""
    if session.exec(select(AlertOutbox.id).where(AlertOutbox.dedupe_key == dedupe_key)).first() is not None:
        return  # on PostgreSQL an insert that is skipped uses up an id
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


def find_alerts(
    session: Session,
    strategy_name: str | None = None,
    *,
    rollout_id: UUID | None = None,
    after_id: int = 0,
    limit: int | None = None,
) -> Sequence[AlertOutbox]:
    """Return alerts, oldest first. *limit* keeps the newest ones."""
    query = select(AlertOutbox).where(col(AlertOutbox.id) > after_id).order_by(col(AlertOutbox.id).desc()).limit(limit)
    if strategy_name is not None:
        query = query.where(AlertOutbox.strategy_name == strategy_name)
    if rollout_id is not None:
        query = query.where(AlertOutbox.rollout_id == rollout_id)
    return list(reversed(session.exec(query).all()))


@dataclass(frozen=True, slots=True)
class ChannelState:
    """The newest delivery times of a channel, and the number of alerts that wait for it."""

    channel: str
    sent_at: datetime | None = None
    failed_at: datetime | None = None
    given_up_at: datetime | None = None
    waiting: int = 0

    @property
    def failing(self) -> bool:
        return self.failed_at is not None and (self.sent_at is None or self.sent_at < self.failed_at)

    @property
    def given_up(self) -> bool:
        return self.given_up_at is not None and (self.sent_at is None or self.sent_at < self.given_up_at)


def unlisted(
    session: Session, channel: str, severities: Collection[Severity], *, since: datetime
) -> Sequence[AlertOutbox]:
    """Return open alerts without a delivery on the channel: raised since then, or critical.

    An alert about the failure of this channel is left out.
    """
    given = exists().where(col(AlertDelivery.alert_id) == col(AlertOutbox.id), col(AlertDelivery.channel) == channel)
    open_ones = col(AlertOutbox.acknowledged_at).is_(None)
    critical = select(AlertOutbox.id).where(open_ones, col(AlertOutbox.severity) == Severity.CRITICAL.value)
    wanted = (
        select(AlertOutbox.id).where(col(AlertOutbox.at) >= since).union(critical)
    )  # a union, so that each half uses its index
    found = session.exec(
        select(AlertOutbox)
        .where(~given, open_ones, col(AlertOutbox.severity).in_(list(severities)), col(AlertOutbox.id).in_(wanted))
        .order_by(col(AlertOutbox.id))
    ).all()
    return [alert for alert in found if alert.kind != CHANNEL_FAILED or alert.facts.get("channel") != channel]


def enlist(session: Session, channel: str, alerts: Sequence[AlertOutbox], *, now: datetime) -> int:
    """Add a delivery on the channel for each alert, due now. Return how many were new."""
    rows = [
        AlertDelivery(alert_id=alert.id or 0, channel=channel, due_at=now, next_try_at=now).model_dump()
        for alert in alerts
    ]
    return insert_if_new(session, AlertDelivery, rows)


def any_due(session: Session, channel: str, *, now: datetime, longest: timedelta) -> bool:
    return session.exec(_due(channel, now, longest).limit(1)).first() is not None


def claim(
    session: Session, channel: str, *, now: datetime, lease: timedelta, longest: timedelta, claimant: str
) -> tuple[AlertOutbox, AlertDelivery] | None:
    """Claim the worst, then oldest, alert that is due on the channel. Return None if no alert is due.

    Concurrent claims get different alerts: on PostgreSQL the second skips the locked row, on SQLite it waits.

    Args:
        lease: how long the claim holds.
        longest: the longest possible lease or wait. A later end was set by a clock that has been set back since, and
            is treated as over.
    """
    found = session.exec(
        _due(channel, now, longest)
        .order_by(_WORST_FIRST, col(AlertOutbox.at), col(AlertOutbox.id))
        .limit(1)
        .with_for_update(of=AlertDelivery, skip_locked=True)
    ).first()
    if found is None:
        return None
    alert, delivery = found
    session.execute(
        update(AlertDelivery)
        .where(*_has_key(delivery))
        .values(claimed_until=now + lease, claimed_by=claimant, attempts=delivery.attempts + 1)
    )
    session.refresh(delivery)
    return alert, delivery


def mark(session: Session, delivery: AlertDelivery, changes: Mapping[str, Any]) -> bool:
    """Record the result of a try and end the claim. Return False if another pass has claimed it meanwhile."""
    done = session.execute(
        update(AlertDelivery)
        .where(*_has_key(delivery), col(AlertDelivery.claimed_by) == delivery.claimed_by)
        .values(claimed_until=None, claimed_by="", **changes)
    )
    return bool(done.rowcount == 1)  # type: ignore[attr-defined]


def channel_states(session: Session, channels: Collection[str]) -> dict[str, ChannelState]:
    """Return the state of each of *channels* and of every other channel with deliveries."""
    waits = case((col(AlertDelivery.next_try_at).is_not(None) & col(AlertOutbox.acknowledged_at).is_(None), 1), else_=0)
    rows = session.execute(
        sa.select(
            col(AlertDelivery.channel),
            func.max(col(AlertDelivery.sent_at)),
            func.max(col(AlertDelivery.failed_at)),
            func.max(col(AlertDelivery.given_up_at)),
            func.sum(waits),
        )
        .join(AlertOutbox, col(AlertOutbox.id) == col(AlertDelivery.alert_id))
        .group_by(col(AlertDelivery.channel))
        .order_by(col(AlertDelivery.channel))
    ).all()
    found = {row[0]: ChannelState(*row) for row in rows}
    return {name: ChannelState(name) for name in channels} | found


def acknowledge(session: Session, alert_id: int, *, by: str, because: str, now: datetime) -> AlertOutbox:
    """Acknowledge an alert. The first acknowledgement is kept."""
    session.execute(
        update(AlertOutbox)
        .where(col(AlertOutbox.id) == alert_id, col(AlertOutbox.acknowledged_at).is_(None))
        .values(acknowledged_at=now, acknowledged_by=by, acknowledged_because=because)
    )
    return get_alert(session, alert_id)


def get_alert(session: Session, alert_id: int) -> AlertOutbox:
    """Return an alert, read again from the database, or raise UnknownAlert."""
    found = session.get(AlertOutbox, alert_id, populate_existing=True)
    if found is None:
        raise UnknownAlert(alert_id)
    return found


def of_alerts(session: Session, alert_ids: Collection[int]) -> Sequence[AlertDelivery]:
    return session.exec(
        select(AlertDelivery)
        .where(col(AlertDelivery.alert_id).in_(alert_ids))
        .order_by(col(AlertDelivery.alert_id), col(AlertDelivery.channel))
    ).all()


def _due(channel: str, now: datetime, longest: timedelta) -> Any:
    free = or_(col(AlertDelivery.claimed_until).is_(None), _is_over(col(AlertDelivery.claimed_until), now, longest))
    return (
        select(AlertOutbox, AlertDelivery)
        .join(AlertDelivery, col(AlertDelivery.alert_id) == col(AlertOutbox.id))
        .where(
            col(AlertDelivery.channel) == channel,
            _is_over(col(AlertDelivery.next_try_at), now, longest),
            free,
            col(AlertOutbox.acknowledged_at).is_(None),
        )
    )


def _is_over(end: Any, now: datetime, longest: timedelta) -> ColumnElement[bool]:
    return or_(end <= now, end > now + longest)


def _has_key(delivery: AlertDelivery) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (col(AlertDelivery.alert_id) == delivery.alert_id, col(AlertDelivery.channel) == delivery.channel)
