"""Numbers of what stands in the database, by the names of what they are about; never what they mean."""

from collections.abc import Collection
from typing import Any, TypeAlias

from sqlalchemy import func, or_
from sqlalchemy import select as select_columns
from sqlmodel import Session, col

from strategy_core.domain.ramp import ENDED
from strategy_core.domain.routing import as_percent
from strategy_core.store.rollout_tables import AuditEvent, Rollout
from strategy_core.store.tables import CanaryConfig, Strategy

Numbers: TypeAlias = list[tuple[list[str], float]]


def canary_traffic(session: Session, strategies: Collection[str] | None) -> Numbers:
    """Return by (strategy, version) the percent of users on the newest canary: 0 once it was rolled back."""
    rows = _of(
        select_columns(col(CanaryConfig.strategy_name), col(CanaryConfig.version), col(CanaryConfig.rollout_bp)),
        col(CanaryConfig.strategy_name),
        strategies,
    )
    return [([name, version], as_percent(percent_bp)) for name, version, percent_bp in session.execute(rows)]


def activations(session: Session, strategies: Collection[str] | None) -> Numbers:
    """Return by (strategy, version) how many changes of the audit trail have made it the active one."""
    name = col(AuditEvent.strategy_name)
    before = col(AuditEvent.before)["active"].as_string()
    after = col(AuditEvent.after)["active"].as_string()
    made = _of(select_columns(name, after.label("made")), name, strategies)
    each = made.where(after.is_not(None), or_(before.is_(None), before != after)).subquery()
    rows = select_columns(each.c.strategy_name, each.c.made, func.count()).group_by(each.c.strategy_name, each.c.made)
    ordered = rows.order_by(each.c.strategy_name, each.c.made)
    return [([strategy, version], count) for strategy, version, count in session.execute(ordered)]


def generations(session: Session, strategies: Collection[str] | None) -> Numbers:
    rows = _of(select_columns(col(Strategy.name), col(Strategy.generation)), col(Strategy.name), strategies)
    return [([name], generation) for name, generation in session.execute(rows.order_by(col(Strategy.name)))]


def open_rollouts(session: Session, strategies: Collection[str] | None) -> Numbers:
    """Return 1 by (strategy, version, state, stage) of each rollout that has not ended."""
    rows = _of(select_columns(Rollout), col(Rollout.strategy_name), strategies)
    rows = rows.where(col(Rollout.state).not_in(sorted(ENDED))).order_by(col(Rollout.strategy_name))
    return [
        ([rollout.strategy_name, rollout.version, rollout.state, str(rollout.stage_index)], 1)
        for rollout in session.execute(rows).scalars()
    ]


def _of(query: Any, column: Any, strategies: Collection[str] | None) -> Any:
    return query if strategies is None else query.where(column.in_(sorted(strategies)))
