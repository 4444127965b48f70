"""Numbers of the alert outbox, read for a scrape: how many were raised, and what is due on which channel.

Alerts are counted anew each time, from an index alone. A count kept beside them, as others are, would be one more row
that shadow runs, ticks and watches wait for, in no common order; and an alert is never deleted.
"""

from datetime import datetime

from sqlalchemy import func, select
from sqlmodel import Session, col

from strategy_core.store.numbers import Rows, Strategies, of
from strategy_core.store.rollout_tables import AlertDelivery, AlertOutbox


def read_alerts(session: Session, strategies: Strategies) -> Rows:
    """Return (kind, severity, how many were raised, how many of them are acknowledged)."""
    query = select(
        col(AlertOutbox.kind),
        col(AlertOutbox.severity),
        func.count(),
        func.count(col(AlertOutbox.acknowledged_at)),
    ).group_by(col(AlertOutbox.kind), col(AlertOutbox.severity))
    return session.connection().execute(of(query, col(AlertOutbox.strategy_name), strategies)).all()


def read_outbox(session: Session, strategies: Strategies, *, now: datetime) -> Rows:
    """Return (channel, alerts due, since when the oldest is) of every channel that alerts were ever given to."""
    found, channel = [], session.connection().execute(select(func.min(col(AlertDelivery.channel)))).scalar()
    while channel is not None:  # from one to the next by the index: all rows would be most of the outbox
        due = (
            select(func.count(), func.min(col(AlertDelivery.due_at)))
            .join(AlertOutbox, col(AlertOutbox.id) == col(AlertDelivery.alert_id))
            .where(
                col(AlertDelivery.channel) == channel,
                col(AlertDelivery.next_try_at) <= now,
                col(AlertOutbox.acknowledged_at).is_(None),
            )
        )
        found.append(
            (channel, *session.connection().execute(of(due, col(AlertOutbox.strategy_name), strategies)).one())
        )
        following = select(func.min(col(AlertDelivery.channel))).where(col(AlertDelivery.channel) > channel)
        channel = session.connection().execute(following).scalar()
    return found
