"""The alert outbox, the delivery of each alert on each channel, and incidents."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy import ColumnElement, case, exists, func, or_, update
from sqlmodel import Session, col, select

from strategy_core.domain.alerts import CHANNEL_FAILED, Fault, Severity
from strategy_core.domain.errors import UnknownAlert
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import AlertDelivery, AlertOutbox, Incident

SYSTEM = "system"  # who acknowledges an alert whose cause is over
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


def alerts_before(session: Session, strategy_name: str, moment: datetime, *, limit: int) -> Sequence[AlertOutbox]:
    """Return the newest alerts of a strategy and of several strategies that were raised by then, newest first."""
    found: list[AlertOutbox] = []
    for name in (strategy_name, ""):  # two queries, so that each uses the index
        query = select(AlertOutbox).where(AlertOutbox.strategy_name == name, col(AlertOutbox.at) <= moment)
        found += session.exec(query.order_by(col(AlertOutbox.id).desc()).limit(limit)).all()
    return sorted(found, key=lambda alert: alert.id or 0, reverse=True)


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


def resolve(session: Session, alert_ids: Collection[int], now: datetime) -> None:
    """Acknowledge alerts whose cause is over, so that they are not sent again."""
    _resolve(session, col(AlertOutbox.id).in_(alert_ids), now)


def resolve_key(session: Session, dedupe_key: str, now: datetime) -> None:
    """Acknowledge the alert with this key, as `resolve` does."""
    _resolve(session, col(AlertOutbox.dedupe_key) == dedupe_key, now)


def open_alerts(session: Session, kinds: Collection[str]) -> Sequence[AlertOutbox]:
    """Return the alerts of these kinds that are not acknowledged, oldest first."""
    mine = (col(AlertOutbox.kind).in_(list(kinds)), col(AlertOutbox.acknowledged_at).is_(None))
    return session.exec(select(AlertOutbox).where(*mine).order_by(col(AlertOutbox.id))).all()


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


# Incidents


def open_incidents(session: Session, *topics: str) -> list[Incident]:
    """Return the open incidents of these topics, by cause. Without *topics*, of all."""
    found = session.exec(select(Incident).where(col(Incident.ended_at).is_(None)).order_by(Incident.cause)).all()
    return [each for each in found if not topics or each.cause.partition(" ")[0] in topics]


def was_open(session: Session, topics: Collection[str], since: datetime) -> bool:
    """Return whether an incident of these topics is open, or was at some time since then."""
    found = session.exec(
        select(Incident.cause).where(col(Incident.ended_at).is_(None) | (col(Incident.ended_at) >= since))
    ).all()
    return any(cause.partition(" ")[0] in topics for cause in found)


def open_incident(session: Session, fault: Fault, now: datetime) -> None:
    """Open the incident of a fault and raise its alert, unless it is open already."""
    row = _new_incident(fault, now)
    if insert_if_new(session, Incident, [row.model_dump(exclude={"id"})]):
        _raise_fault(session, fault, row, now)


def keep_open(session: Session, fault: Fault, now: datetime) -> None:
    """Open the incident of a fault that has been alerted, or note that it is seen again."""
    found = session.execute(
        update(Incident).where(col(Incident.cause) == fault.cause, col(Incident.ended_at).is_(None)).values(seen_at=now)
    )
    if found.rowcount == 0:  # type: ignore[attr-defined]
        insert_if_new(session, Incident, [_new_incident(fault, now).model_dump(exclude={"id"})])


def _new_incident(fault: Fault, now: datetime) -> Incident:
    return Incident(
        cause=fault.cause,
        kind=fault.kind,
        started_at=now,
        seen_at=now,
        affected={"strategies": list(fault.strategies), "symbols": list(fault.symbols)},
        alerted=_alerted(fault),
        alerted_at=now,
    )


def note_fault(session: Session, incident: Incident, fault: Fault, now: datetime, *, repeat_after: timedelta) -> None:
    """Note that the fault of an open incident is seen again, and what it affects now.

    Alerts already sent are not changed. A fault that has become more severe is alerted again at once, and only once if
    it changes to and fro. One that has grown to twice what its newest alert says is alerted again *repeat_after* that
    alert. A small fault that lasts must not hide a large one.
    """
    session.refresh(incident, with_for_update=True)
    if incident.ended_at is not None:
        return
    incident.seen_at = now
    before = incident.affected
    incident.affected = {
        "strategies": _merged(before["strategies"], fault.strategies),
        "symbols": _merged(before["symbols"], fault.symbols),
    }
    grown = len(fault.symbols) >= 2 * max(1, incident.alerted["symbols"]) or len(fault.strategies) >= 2 * max(
        1, len(incident.alerted["strategies"])
    )
    told = Severity(incident.alerted["severity"])
    worse = fault.severity in told.and_worse[1:]
    if worse or (grown and now - incident.alerted_at >= repeat_after):
        incident.alerts += 1
        incident.alerted = (
            _alerted(fault, before=incident.alerted) if worse else _alerted(fault) | {"severity": told.value}
        )
        incident.alerted_at = now
        incident.kind = fault.kind if worse else incident.kind
        _raise_fault(session, fault, incident, now)
    session.add(incident)
    session.flush()


def end_incident(session: Session, incident: Incident, now: datetime) -> bool:
    """End an incident and acknowledge its alerts. Return False if another process has ended it."""
    done = session.execute(
        update(Incident).where(col(Incident.id) == incident.id, col(Incident.ended_at).is_(None)).values(ended_at=now)
    )
    if done.rowcount != 1:  # type: ignore[attr-defined]
        return False
    session.refresh(incident)
    keys = [_incident_key(incident, number + 1) for number in range(incident.alerts)]
    _resolve(session, col(AlertOutbox.dedupe_key).in_(keys), now)
    return True


def _resolve(session: Session, chosen: ColumnElement[bool], now: datetime) -> None:
    session.execute(
        update(AlertOutbox)
        .where(chosen, col(AlertOutbox.acknowledged_at).is_(None))
        .values(acknowledged_at=now, acknowledged_by=SYSTEM, acknowledged_because="its cause is over")
    )


def _raise_fault(session: Session, fault: Fault, incident: Incident, now: datetime) -> None:
    raise_alert(
        session,
        fault.kind,
        fault.text,
        severity=fault.severity.value,
        strategy_name=fault.strategies[0] if len(fault.strategies) == 1 else "",
        dedupe_key=_incident_key(incident, incident.alerts),
        facts=fault.all_facts,
        now=now,
        rollout_id=fault.rollout_id,
    )


def _alerted(fault: Fault, *, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return what the newest alert says, together with *before*: a part that became worse is not the whole fault."""
    known = before or {"strategies": [], "symbols": 0}
    return {
        "strategies": _merged(known["strategies"], fault.strategies),
        "symbols": max(known["symbols"], len(fault.symbols)),
        "severity": fault.severity.value,
    }


def _incident_key(incident: Incident, number: int) -> str:
    return f"{incident.cause} since {incident.started_at.isoformat()}, alert {number}"


def _merged(known: Sequence[str], more: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*known, *more]))


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
