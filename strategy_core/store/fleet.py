"""Queries for the overview of all strategies. None grows with a log, and their number is constant."""

from datetime import datetime

from sqlalchemy import Text, and_, cast, exists, func, select
from sqlmodel import Session, col

from strategy_core.domain.alerts import Severity
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import State
from strategy_core.store.metrics import Rows, Strategies, in_strategies, is_open
from strategy_core.store.pagination import is_open_alert
from strategy_core.store.tables import (
    AlertDelivery,
    AlertOutbox,
    AuditEvent,
    CanaryConfig,
    DecisionTally,
    Position,
    Rollout,
    RolloutBook,
    StrategyRow,
    StrategyVersion,
)


def read_strategies(session: Session, strategies: Strategies) -> Rows:
    """Return (name, excluded symbols) by name. Symbols are NULL without a canary."""
    query = (
        select(col(StrategyRow.name), col(CanaryConfig.excluded_symbols))
        .outerjoin(CanaryConfig, col(CanaryConfig.strategy_name) == col(StrategyRow.name))
        .order_by(col(StrategyRow.name))
    )
    return session.connection().execute(in_strategies(query, col(StrategyRow.name), strategies)).all()


def read_versions(session: Session, strategies: Strategies) -> Rows:
    """Return (strategy, version, status, timeframe, open positions) of versions that are not retired, oldest first.

    Open positions are those that the version manages.
    """
    managed = (
        select(
            col(Position.strategy_name).label("strategy_name"),
            col(Position.manager).label("manager"),
            func.count().label("number"),
        )
        .where(col(Position.closed_at).is_(None))
        .group_by(col(Position.strategy_name), col(Position.manager))
        .subquery()
    )
    query = (
        select(
            col(StrategyVersion.strategy_name),
            col(StrategyVersion.version),
            col(StrategyVersion.status),
            col(StrategyVersion.timeframe),
            func.coalesce(managed.c.number, 0),
        )
        .outerjoin(
            managed,
            and_(
                managed.c.strategy_name == col(StrategyVersion.strategy_name),
                managed.c.manager == col(StrategyVersion.version),
            ),
        )
        .where(col(StrategyVersion.status) != Status.RETIRED.value)
        .order_by(col(StrategyVersion.created_at), col(StrategyVersion.version))
    )
    return session.connection().execute(in_strategies(query, col(StrategyVersion.strategy_name), strategies)).all()


def read_newest_candles(session: Session, strategies: Strategies) -> Rows:
    """Return (strategy, symbol, open time in Unix s) of the newest candle that a version in use has decided on."""
    query = (
        select(
            col(DecisionTally.strategy_name),
            col(DecisionTally.symbol),
            func.max(col(DecisionTally.newest_candle_s)),
        )
        .join(
            StrategyVersion,
            and_(
                col(StrategyVersion.strategy_name) == col(DecisionTally.strategy_name),
                col(StrategyVersion.version) == col(DecisionTally.version),
            ),
        )
        .where(col(StrategyVersion.status) != Status.RETIRED.value)
        .group_by(col(DecisionTally.strategy_name), col(DecisionTally.symbol))
    )
    return session.connection().execute(in_strategies(query, col(DecisionTally.strategy_name), strategies)).all()


def read_rollouts(session: Session, strategies: Strategies) -> Rows:
    """Return the open rollouts with plan and history as JSON, the slots booked, and who paused it, if it is paused."""
    rollout = Rollout.__table__.c  # type: ignore[attr-defined]
    paused = (
        select(func.max(col(AuditEvent.id)))
        .where(
            col(Rollout.state) == State.PAUSED.value,
            col(AuditEvent.rollout_id) == col(Rollout.id),
            col(AuditEvent.action) == "pause",
        )
        .correlate(Rollout)
        .scalar_subquery()
    )
    query = (
        select(
            *(column for column in rollout if column.name != "plan"),
            cast(col(Rollout.plan), Text).label("plan"),
            cast(col(RolloutBook.history), Text).label("history"),
            func.coalesce(col(RolloutBook.slots), 0).label("slots"),
            col(AuditEvent.actor).label("paused_by"),
            col(AuditEvent.reason).label("paused_because"),
        )
        .outerjoin(RolloutBook, col(RolloutBook.rollout_id) == col(Rollout.id))
        .outerjoin(AuditEvent, col(AuditEvent.id) == paused)
        .where(is_open())
    )
    return session.connection().execute(in_strategies(query, col(Rollout.strategy_name), strategies)).all()


def read_open_alerts(session: Session, strategies: Strategies) -> Rows:
    """Return (strategy, kind, severity, number) of the warnings and critical alerts that are not acknowledged."""
    query = (
        select(col(AlertOutbox.strategy_name), col(AlertOutbox.kind), col(AlertOutbox.severity), func.count())
        .where(*is_open_alert())
        .group_by(col(AlertOutbox.strategy_name), col(AlertOutbox.kind), col(AlertOutbox.severity))
        .order_by(col(AlertOutbox.severity), col(AlertOutbox.kind))
    )
    return session.connection().execute(in_strategies(query, col(AlertOutbox.strategy_name), strategies)).all()


def oldest_without_channel(session: Session, by: datetime) -> datetime | None:
    """Return the time of the oldest open critical alert up to *by* without a delivery, if others have had one."""
    given = exists().where(col(AlertDelivery.alert_id) == col(AlertOutbox.id))
    query = select(func.min(col(AlertOutbox.at))).where(
        col(AlertOutbox.severity) == Severity.CRITICAL.value,
        col(AlertOutbox.acknowledged_at).is_(None),
        col(AlertOutbox.at) <= by,
        ~given,
        exists(select(col(AlertDelivery.alert_id))),
    )
    return session.connection().execute(query).scalar()
