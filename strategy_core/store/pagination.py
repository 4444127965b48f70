"""Keyset pagination of versions, rollouts, alerts and decisions, and queries for the recent rows of versions."""

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Select, Text, and_, bindparam, exists, func, inspect, not_, or_, select, type_coerce, union
from sqlalchemy import select as select_columns
from sqlalchemy.dialects.postgresql import JSONB, array
from sqlalchemy.orm import aliased
from sqlmodel import Session, col

from strategy_core.domain.alerts import Severity
from strategy_core.domain.errors import UnknownRollout, UnknownVersion
from strategy_core.domain.lifecycle import Status
from strategy_core.store.tables import (
    AlertOutbox,
    AuditEvent,
    CanaryConfig,
    Rollout,
    ShadowDecisionLog,
    StrategyRow,
    StrategyVersion,
)

LOG = ShadowDecisionLog


def page_versions(
    session: Session,
    *,
    strategies: Collection[str] | None,
    status: Status | None,
    after: tuple[str, datetime, str] | None,
    limit: int,
) -> list[StrategyVersion]:
    """Return versions by strategy, oldest first. *after* is (strategy, created_at, version) of the last one seen."""
    keys = (col(StrategyVersion.strategy_name), col(StrategyVersion.created_at), col(StrategyVersion.version))
    query = _page(select_columns(StrategyVersion), keys, after, limit).where(
        *_of(col(StrategyVersion.strategy_name), strategies)
    )
    if status is not None:
        query = query.where(col(StrategyVersion.status) == status)
    return list(session.execute(query).scalars())


def page_rollouts(
    session: Session, *, strategies: Collection[str] | None, after: tuple[datetime, UUID] | None, limit: int
) -> list[Rollout]:
    """Return rollouts, newest first. *after* is (started_at, id) of the last one seen."""
    keys = (col(Rollout.started_at), col(Rollout.id))
    query = _page(select_columns(Rollout), keys, after, limit, descending=True)
    return list(session.execute(query.where(*_of(col(Rollout.strategy_name), strategies))).scalars())


def page_alerts(
    session: Session,
    *,
    strategies: Collection[str] | None,
    severity: Severity | None,
    unacknowledged: bool,
    only: Literal["open", "past"] | None = None,
    before_id: int | None,
    limit: int,
) -> list[AlertOutbox]:
    """Return alerts, newest first. *before_id* is the id of the last one seen.

    Args:
        strategies: alerts about one of these, or about several of which it is one. None: all alerts.
        only: `open` are warnings and critical alerts without an acknowledgement, `past` are all others.
    """
    after = None if before_id is None else (before_id,)
    query = _page(select_columns(AlertOutbox), (col(AlertOutbox.id),), after, limit, descending=True)
    if strategies is not None:
        of_several = and_(col(AlertOutbox.strategy_name) == "", _affects(session, strategies))
        query = query.where(
            col(AlertOutbox.strategy_name).in_(["", *sorted(strategies)]),  # so that its index is used
            or_(col(AlertOutbox.strategy_name) != "", of_several),
        )
    if severity is not None:
        query = query.where(col(AlertOutbox.severity) == severity.value)
    if unacknowledged:
        query = query.where(col(AlertOutbox.acknowledged_at).is_(None))
    if only == "open":
        query = query.where(*is_open_alert())
    if only == "past":
        query = query.where(not_(and_(*is_open_alert())))
    return list(session.execute(query).scalars())


def is_open_alert() -> tuple[Any, ...]:
    """Return the conditions for an alert that waits for an owner."""
    waits = [Severity.WARNING.value, Severity.CRITICAL.value]
    return col(AlertOutbox.severity).in_(waits), col(AlertOutbox.acknowledged_at).is_(None)


def _affects(session: Session, strategies: Collection[str]) -> Any:
    """Whether an alert about several strategies affects one of these."""
    if session.get_bind().dialect.name == "postgresql":
        return type_coerce(AlertOutbox.facts, JSONB)["strategies"].has_any(array(sorted(strategies), type_=Text))
    affected = func.json_each(col(AlertOutbox.facts), "$.strategies").table_valued("value")
    return exists().where(affected.c.value.in_(sorted(strategies)))


def page_decisions(
    session: Session,
    *,
    strategy_name: str,
    version: str | None,
    symbol: str | None,
    start: datetime | None,
    end: datetime | None,
    after: tuple[str, str, datetime] | None,
    limit: int,
) -> list[ShadowDecisionLog]:
    """Return decisions by version, symbol and time. *after* is (version, symbol, time) of the last one seen."""
    keys = (col(LOG.version), col(LOG.symbol), col(LOG.timestamp))
    query = _page(select_columns(LOG), keys, after, limit).where(col(LOG.strategy_name) == strategy_name)
    if version is not None:
        query = query.where(col(LOG.version) == version)
    if symbol is not None:
        query = query.where(col(LOG.symbol) == symbol)
    if start is not None:
        query = query.where(col(LOG.timestamp) >= start)
    if end is not None:
        query = query.where(col(LOG.timestamp) < end)
    return list(session.execute(query).scalars())


def version_at(session: Session, version_id: UUID) -> tuple[StrategyVersion, int]:
    """Return a version and the generation of its strategy in one query, or raise UnknownVersion."""
    found = session.execute(_with_generation(StrategyVersion).where(col(StrategyVersion.id) == version_id)).first()
    if found is None:
        raise UnknownVersion("any strategy", str(version_id))
    return found[0], found[1]


def rollout_at(session: Session, rollout_id: UUID) -> tuple[Rollout, int]:
    """Return a rollout and the generation of its strategy in one query, or raise UnknownRollout."""
    found = session.execute(_with_generation(Rollout).where(col(Rollout.id) == rollout_id)).first()
    if found is None:
        raise UnknownRollout(str(rollout_id))
    return found[0], found[1]


def canaries(session: Session, strategies: Collection[str] | None) -> list[tuple[CanaryConfig, int]]:
    """Return the routing of every current canary, with the generation of its strategy."""
    query = (
        _with_generation(CanaryConfig)
        .join(
            StrategyVersion,
            and_(
                col(StrategyVersion.strategy_name) == col(CanaryConfig.strategy_name),
                col(StrategyVersion.version) == col(CanaryConfig.version),
                col(StrategyVersion.status) == Status.CANARY,
            ),
        )
        .where(*_of(col(CanaryConfig.strategy_name), strategies))
        .order_by(col(CanaryConfig.strategy_name))
    )
    return [(canary, generation) for canary, generation in session.execute(query)]


def generation_of(session: Session, strategy_name: str, actor: str, request_id: str) -> int | None:
    """Return the generation after the newest change that this request made, or None without a change."""
    return session.execute(
        select_columns(col(AuditEvent.position))
        .where(
            col(AuditEvent.strategy_name) == strategy_name,
            col(AuditEvent.actor) == actor,
            col(AuditEvent.request_id) == request_id,
        )
        .order_by(col(AuditEvent.id).desc())
        .limit(1)
    ).scalar_one_or_none()


def _with_generation(table: Any) -> Select[Any]:
    return select_columns(table, col(StrategyRow.generation)).join(
        StrategyRow, col(StrategyRow.name) == col(table.strategy_name)
    )


def _of(column: Any, strategies: Collection[str] | None) -> list[Any]:
    return [] if strategies is None else [column.in_(sorted(strategies))]


def _page(
    query: Select[Any], keys: tuple[Any, ...], after: tuple[Any, ...] | None, limit: int, *, descending: bool = False
) -> Select[Any]:
    """Order *query* by *keys* and start after *after*. A row comparison fails, because its times have no type."""
    if after is not None:
        steps = [
            and_(*(keys[i] == after[i] for i in range(step)), _beyond(keys[step], after[step], descending))
            for step in range(len(keys))
        ]
        query = query.where(or_(*steps))
    return query.order_by(*(key.desc() if descending else key for key in keys)).limit(limit)


def _beyond(key: Any, value: Any, descending: bool) -> Any:
    return key < value if descending else key > value


def per_dialect(query: Any, rows: Any, *versions: str) -> dict[str, Any]:
    """Return *query* for each dialect. It selects recent *rows* of a strategy's versions.

    In the index the symbol comes before the time. PostgreSQL skips whole partitions. SQLite gets an added condition on
    the symbols, because it would otherwise read the index from its start.

    Args:
        versions: the names of the query's parameters for versions. The one for the strategy is `strategy_name`.
    """
    symbols = union(*(_symbols(rows, version) for version in versions))
    return {"postgresql": query, "sqlite": query.where(rows.symbol.in_(symbols))}


def _symbols(rows: Any, version: str) -> Any:
    """Return the symbols of a version's rows by a loose index scan, one step per symbol."""
    first, after = (aliased(inspect(rows).mapper.class_) for _ in range(2))
    found = (
        select(func.min(first.symbol).label("symbol"))
        .where(first.strategy_name == bindparam("strategy_name"), first.version == bindparam(version))
        .cte(recursive=True)
    )
    following = select(func.min(after.symbol)).where(
        after.strategy_name == bindparam("strategy_name"),
        after.version == bindparam(version),
        after.symbol > found.c.symbol,
    )
    every = found.union_all(select(following.scalar_subquery()).where(found.c.symbol.is_not(None)))
    return select(every.c.symbol).where(every.c.symbol.is_not(None))
