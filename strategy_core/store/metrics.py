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
from strategy_core.store.tables import (
    AlertDelivery,
    AlertOutbox,
    CanaryConfig,
    ComparisonReport,
    Counted,
    DecisionTally,
    DirectoryTally,
    GateVerdict,
    Rollout,
    RolloutBook,
    StrategyRow,
    StrategyVersion,
    Tally,
)

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
            col(StrategyRow.name),
            col(StrategyRow.generation),
            col(CanaryConfig.version),
            col(CanaryConfig.rollout_bp),
            col(DirectoryTally.users),
            func.substr(col(DirectoryTally.below), 4 * bucket + 1, 4),
        )
        .outerjoin(CanaryConfig, col(CanaryConfig.strategy_name) == col(StrategyRow.name))
        .outerjoin(DirectoryTally, col(DirectoryTally.salt) == col(StrategyRow.salt))
        .order_by(col(StrategyRow.name))
    )
    return session.connection().execute(of(query, col(StrategyRow.name), strategies)).all()


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
    return session.connection().execute(of(ordered, col(StrategyVersion.strategy_name), strategies)).all()


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
    return session.connection().execute(of(query, col(DecisionTally.strategy_name), strategies)).all()


def read_tallies(session: Session, strategies: Strategies, *, at_most: int) -> Rows:
    """Return (strategy, what is counted, name, detail, total): *at_most*, and one if there are more."""
    query = select(*Tally.__table__.c)  # type: ignore[attr-defined]
    ordered = query.order_by(col(Tally.strategy_name), col(Tally.what), col(Tally.name), col(Tally.detail))
    return session.connection().execute(of(ordered.limit(at_most + 1), col(Tally.strategy_name), strategies)).all()


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
    return session.connection().execute(of(query, col(Rollout.strategy_name), strategies)).all()


def read_gates(session: Session, strategies: Strategies) -> dict[UUID, list[Any]]:
    """Return (gate, JSON of [verdict, value, limit]) of each open rollout's gates, by rollout: of each the newest row.

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
        .subquery()
    )
    newest = (
        select(_packed(session, col(GateVerdict.verdict), col(GateVerdict.value), col(GateVerdict.limit)))
        .where(col(GateVerdict.rollout_id) == spoke.c.rollout_id, col(GateVerdict.gate) == spoke.c.gate)
        .order_by(col(GateVerdict.ticked_at).desc())
        .limit(1)
        .correlate(spoke)
        .scalar_subquery()
    )
    rows = session.connection().execute(select(spoke.c.rollout_id, spoke.c.gate, newest).order_by(spoke.c.gate))
    found: dict[UUID, list[Any]] = {}
    for rollout_id, gate, said in rows:
        if said is not None:  # else the gate spoke in another of the strategy's rollouts
            found.setdefault(rollout_id, []).append((gate, said))
    return found


def read_comparisons(session: Session, strategies: Strategies) -> Rows:
    """Return (strategy, version, JSON of [divergence, low, mean, high]) of each shadow's and canary's newest report."""
    report = col(ComparisonReport.report)
    bounds = [report[("difference", bound)] for bound in ("low", "mean", "high")]
    newest = (
        select(_packed(session, report["divergence_rate"], *bounds))
        .where(
            col(ComparisonReport.strategy_name) == col(StrategyVersion.strategy_name),
            col(ComparisonReport.shadow_version) == col(StrategyVersion.version),
            col(ComparisonReport.symbol) == "",
        )
        .order_by(col(ComparisonReport.created_at).desc())
        .limit(1)
        .correlate(StrategyVersion)
        .scalar_subquery()
    )
    query = (
        select(col(StrategyVersion.strategy_name), col(StrategyVersion.version), newest)
        .where(col(StrategyVersion.status).in_([Status.SHADOW.value, Status.CANARY.value]))
        .order_by(col(StrategyVersion.strategy_name), col(StrategyVersion.version))
    )
    return session.connection().execute(of(query, col(StrategyVersion.strategy_name), strategies)).all()


def _packed(session: Session, *columns: Any) -> Any:
    """Return the columns as one text of JSON: a join for several may be planned as a scan of all rows."""
    if session.get_bind().dialect.name == "postgresql":
        return cast(func.jsonb_build_array(*columns), Text)
    return func.json_array(*columns)


def _told_of(retired_since: datetime) -> Any:
    return or_(col(StrategyVersion.status) != Status.RETIRED.value, col(StrategyVersion.retired_at) >= retired_since)


def _is_open() -> Any:
    return col(Rollout.state).not_in(sorted(ENDED))


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
