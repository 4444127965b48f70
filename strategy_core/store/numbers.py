"""Numbers of strategies, versions and rollouts, read for a scrape; never what they mean.

No query here grows with a log: what would have to be counted is read from the counts that are kept as rows are written,
and what is newest is found by an index. Columns that an owner's mistake could make unreadable are read as text, so that
one bad row takes nobody else's numbers away.
"""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Text, and_, cast, func, or_, select
from sqlmodel import Session, col

from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import ENDED
from strategy_core.store.rollout_tables import GateVerdict, Rollout, RolloutBook
from strategy_core.store.tables import CanaryConfig, ComparisonReport, Strategy, StrategyVersion
from strategy_core.store.tally_tables import Counted, DecisionTally, DirectoryTally, Tally

Strategies: TypeAlias = Collection[str] | None  # None: all
Rows: TypeAlias = Sequence[Any]


def of(query: Any, column: Any, strategies: Strategies) -> Any:
    return query if strategies is None else query.where(column.in_(sorted(strategies)))


def read_strategies(session: Session, strategies: Strategies) -> Rows:
    """Return (name, generation, canary's version, its basis points, directory's users, users below them).

    Of the canary None without one, of the directory where none is loaded; the last as four bytes, big-endian.
    """
    bucket = func.coalesce(col(CanaryConfig.rollout_bp), 0)
    query = (
        select(
            col(Strategy.name),
            col(Strategy.generation),
            col(CanaryConfig.version),
            col(CanaryConfig.rollout_bp),
            col(DirectoryTally.users),
            func.substr(col(DirectoryTally.below), 4 * bucket + 1, 4),
        )
        .outerjoin(CanaryConfig, col(CanaryConfig.strategy_name) == col(Strategy.name))
        .outerjoin(DirectoryTally, col(DirectoryTally.salt) == col(Strategy.salt))
        .order_by(col(Strategy.name))
    )
    return session.execute(of(query, col(Strategy.name), strategies)).all()


def read_versions(session: Session, strategies: Strategies, *, retired_since: datetime) -> Rows:
    """Return (strategy, version, status, symbols as JSON, timeframe, when it was registered) of those told of."""
    query = select(
        col(StrategyVersion.strategy_name),
        col(StrategyVersion.version),
        col(StrategyVersion.status),
        cast(col(StrategyVersion.symbols), Text),
        col(StrategyVersion.timeframe),
        col(StrategyVersion.created_at),
    ).where(_told_of(retired_since))
    ordered = query.order_by(col(StrategyVersion.strategy_name), col(StrategyVersion.version))
    return session.execute(of(ordered, col(StrategyVersion.strategy_name), strategies)).all()


def read_decisions(session: Session, strategies: Strategies, *, retired_since: datetime, at_most: int) -> Rows:
    """Return a row of `decision_tally` for each version told of and symbol: *at_most*, and one if there are more."""
    query = (
        select(*DecisionTally.__table__.c)  # type: ignore[attr-defined]
        .join(
            StrategyVersion,
            and_(
                col(StrategyVersion.strategy_name) == col(DecisionTally.strategy_name),
                col(StrategyVersion.version) == col(DecisionTally.version),
            ),
        )
        .where(_told_of(retired_since))
        .order_by(col(DecisionTally.strategy_name), col(DecisionTally.version), col(DecisionTally.symbol))
        .limit(at_most + 1)
    )
    return session.execute(of(query, col(DecisionTally.strategy_name), strategies)).all()


def read_tallies(session: Session, strategies: Strategies, *, at_most: int) -> Rows:
    """Return (strategy, what is counted, name, detail, total): *at_most*, and one if there are more."""
    query = select(*Tally.__table__.c)  # type: ignore[attr-defined]
    ordered = query.order_by(col(Tally.strategy_name), col(Tally.what), col(Tally.name), col(Tally.detail))
    return session.execute(of(ordered.limit(at_most + 1), col(Tally.strategy_name), strategies)).all()


def read_rollouts(session: Session, strategies: Strategies) -> Rows:
    """Return the open rollouts, each with its plan as JSON, and the concordance that the last tick found."""
    query = (
        select(
            col(Rollout.id),
            col(Rollout.strategy_name),
            col(Rollout.version),
            col(Rollout.control_version),
            col(Rollout.state),
            col(Rollout.stage_index),
            col(Rollout.started_at),
            col(Rollout.stage_entered_at),
            col(Rollout.blind_since),
            col(Rollout.last_tick_at),
            cast(col(Rollout.plan), Text).label("plan"),
            col(RolloutBook.totals)["concordance"].as_float().label("concordance"),
        )
        .outerjoin(RolloutBook, col(RolloutBook.rollout_id) == col(Rollout.id))
        .where(_is_open())
        .order_by(col(Rollout.strategy_name))
    )
    return session.execute(of(query, col(Rollout.strategy_name), strategies)).all()


def read_gates(session: Session, strategies: Strategies) -> dict[UUID, list[Any]]:
    """Return (gate, verdict, value, limit) of each open rollout's gates, by rollout: of each the newest row.

    Which gates have ever spoken is known from their counts; the newest row of each is then one look into an index.
    """
    spoke = (
        of(
            select(col(Rollout.id).label("rollout_id"), col(Tally.name).label("gate")),
            col(Rollout.strategy_name),
            strategies,
        )
        .join(
            Tally,
            and_(col(Tally.strategy_name) == col(Rollout.strategy_name), col(Tally.what) == Counted.VERDICT.value),
        )
        .where(_is_open())
        .distinct()
        .cte("spoke")
    )
    newest = (
        select(func.max(col(GateVerdict.ticked_at)))
        .where(col(GateVerdict.rollout_id) == spoke.c.rollout_id, col(GateVerdict.gate) == spoke.c.gate)
        .correlate(spoke)
        .scalar_subquery()
    )
    rows = session.execute(
        select(
            col(GateVerdict.rollout_id),
            col(GateVerdict.gate),
            col(GateVerdict.verdict),
            col(GateVerdict.value),
            col(GateVerdict.limit),
        )
        .select_from(spoke)
        .join(
            GateVerdict,
            and_(
                col(GateVerdict.rollout_id) == spoke.c.rollout_id,
                col(GateVerdict.gate) == spoke.c.gate,
                col(GateVerdict.ticked_at) == newest,
            ),
        )
        .order_by(col(GateVerdict.gate))
    )
    found: dict[UUID, list[Any]] = {}
    for rollout_id, *said in rows:
        found.setdefault(rollout_id, []).append(said)
    return found


def read_comparisons(session: Session, strategies: Strategies) -> Rows:
    """Return (strategy, version, divergence, low, mean, high) of the newest report on each shadow and canary."""
    newest = (
        select(func.max(col(ComparisonReport.created_at)))
        .where(
            col(ComparisonReport.strategy_name) == col(StrategyVersion.strategy_name),
            col(ComparisonReport.shadow_version) == col(StrategyVersion.version),
            col(ComparisonReport.symbol) == "",
        )
        .correlate(StrategyVersion)
        .scalar_subquery()
    )
    report = col(ComparisonReport.report)
    query = (
        select(
            col(StrategyVersion.strategy_name),
            col(StrategyVersion.version),
            report["divergence_rate"].as_float(),
            *(report[("difference", bound)].as_float() for bound in ("low", "mean", "high")),
        )
        .join(
            ComparisonReport,
            and_(
                col(ComparisonReport.strategy_name) == col(StrategyVersion.strategy_name),
                col(ComparisonReport.shadow_version) == col(StrategyVersion.version),
                col(ComparisonReport.symbol) == "",
                col(ComparisonReport.created_at) == newest,
            ),
        )
        .where(col(StrategyVersion.status).in_([Status.SHADOW.value, Status.CANARY.value]))
        .order_by(col(StrategyVersion.strategy_name), col(StrategyVersion.version))
    )
    return session.execute(of(query, col(StrategyVersion.strategy_name), strategies)).all()


def _told_of(retired_since: datetime) -> Any:
    return or_(col(StrategyVersion.status) != Status.RETIRED.value, col(StrategyVersion.retired_at) >= retired_since)


def _is_open() -> Any:
    return col(Rollout.state).not_in(sorted(ENDED))
