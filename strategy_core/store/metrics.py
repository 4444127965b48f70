"""Queries for the metrics of strategies, versions, rollouts and alerts.

No query here grows with a log: totals come from running counts, and newest rows from an index. JSON columns are read as
text, so that one unreadable row does not affect the metrics of others.
"""

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Text, and_, cast, func, or_, select
from sqlmodel import Session, col

from strategy_core.domain.alerts import Severity
from strategy_core.domain.forecast import RolloutSubject
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.ramp import ENDED
from strategy_core.store.rollouts import position
from strategy_core.store.tables import (
    AlertDelivery,
    AlertOutbox,
    AuditEvent,
    CanaryConfig,
    ComparisonReport,
    Counted,
    DecisionTally,
    DirectoryTally,
    GateVerdict,
    Position,
    PositionExit,
    Rollout,
    RolloutBook,
    ServiceToken,
    StrategyRow,
    StrategyVersion,
    Tally,
)

_OF_FINDING = ("verdict", "armed", "reason", "value", "limit", "low", "high", "n")

VERDICTS_READ = 1_000  # of a gate, back to its last change: at a verdict a tick, two thirds of a day

Strategies: TypeAlias = Collection[str] | None  # names, or all
Rows: TypeAlias = Sequence[Any]


def in_strategies(query: Any, column: Any, strategies: Strategies) -> Any:
    return query if strategies is None else query.where(column.in_(sorted(strategies)))


def read_strategies(session: Session, strategies: Strategies) -> Rows:
    """Return (name, generation, canary's version, users in the directory).

    The last two are NULL without a canary or without a loaded directory.
    """
    query = (
        select(
            col(StrategyRow.name),
            col(StrategyRow.generation),
            col(CanaryConfig.version),
            col(DirectoryTally.users),
        )
        .outerjoin(CanaryConfig, col(CanaryConfig.strategy_name) == col(StrategyRow.name))
        .outerjoin(DirectoryTally, col(DirectoryTally.salt) == col(StrategyRow.salt))
        .order_by(col(StrategyRow.name))
    )
    return session.connection().execute(in_strategies(query, col(StrategyRow.name), strategies)).all()


def read_versions(session: Session, strategies: Strategies, *, retired_since: datetime) -> Rows:
    """Return (strategy, version, status, symbols as JSON, timeframe, time of registration) of reported versions."""
    query = select(
        col(StrategyVersion.strategy_name),
        col(StrategyVersion.version),
        col(StrategyVersion.status),
        cast(col(StrategyVersion.symbols), Text),
        col(StrategyVersion.timeframe),
        col(StrategyVersion.created_at),
    ).where(_is_reported(retired_since))
    ordered = query.order_by(col(StrategyVersion.strategy_name), col(StrategyVersion.version))
    return session.connection().execute(in_strategies(ordered, col(StrategyVersion.strategy_name), strategies)).all()


def read_decisions(session: Session, strategies: Strategies, *, retired_since: datetime, at_most: int) -> Rows:
    """Return the rows of `decision_tally` of reported versions: *at_most*, and one more if there are more."""
    query = (
        select(*DecisionTally.__table__.c)  # type: ignore[attr-defined]
        .join(
            StrategyVersion,
            and_(
                col(StrategyVersion.strategy_name) == col(DecisionTally.strategy_name),
                col(StrategyVersion.version) == col(DecisionTally.version),
            ),
        )
        .where(_is_reported(retired_since))
        .order_by(col(DecisionTally.strategy_name), col(DecisionTally.version), col(DecisionTally.symbol))
        .limit(at_most + 1)
    )
    return session.connection().execute(in_strategies(query, col(DecisionTally.strategy_name), strategies)).all()


def read_positions(session: Session, strategies: Strategies) -> Rows:
    """Return (strategy, manager, open positions, those of them whose exit was announced)."""
    query = (
        select(
            col(Position.strategy_name),
            col(Position.manager),
            func.count(col(Position.trade_id).distinct()),
            func.count(col(PositionExit.trade_id).distinct()),
        )
        .outerjoin(PositionExit, col(PositionExit.trade_id) == col(Position.trade_id))
        .where(col(Position.closed_at).is_(None))
        .group_by(col(Position.strategy_name), col(Position.manager))
        .order_by(col(Position.strategy_name), col(Position.manager))
    )
    return session.connection().execute(in_strategies(query, col(Position.strategy_name), strategies)).all()


def read_tallies(session: Session, strategies: Strategies, *, at_most: int) -> Rows:
    """Return (strategy, what is counted, name, detail, total): *at_most* rows, and one more if there are more."""
    query = select(*Tally.__table__.c)  # type: ignore[attr-defined]
    ordered = query.order_by(col(Tally.strategy_name), col(Tally.what), col(Tally.name), col(Tally.detail))
    return (
        session.connection()
        .execute(in_strategies(ordered.limit(at_most + 1), col(Tally.strategy_name), strategies))
        .all()
    )


def read_rollouts(session: Session, strategies: Strategies) -> Rows:
    """Return the open rollouts, each with its plan and its pair's history as JSON, and figures of the last tick."""
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
            col(Rollout.stage_extended_at),
            col(Rollout.approved_stage),
            col(Rollout.promoted_at),
            col(Rollout.blind_since),
            col(Rollout.last_tick_at),
            col(Rollout.reason),
            _last_change().label("changed_at"),
            cast(col(Rollout.plan), Text).label("plan"),
            col(RolloutBook.totals)["concordance"].as_float().label("concordance"),
            func.coalesce(col(RolloutBook.slots), 0).label("slots"),
            cast(col(RolloutBook.history), Text).label("history"),
        )
        .outerjoin(RolloutBook, col(RolloutBook.rollout_id) == col(Rollout.id))
        .where(is_open())
        .order_by(col(Rollout.strategy_name))
    )
    return session.connection().execute(in_strategies(query, col(Rollout.strategy_name), strategies)).all()


def _last_change() -> Any:
    """Return the subquery for the time of a rollout's newest audit event: each change of its state is one."""
    newest = select(func.max(col(AuditEvent.at))).where(col(AuditEvent.rollout_id) == col(Rollout.id))
    return newest.correlate(Rollout).scalar_subquery()


def read_verdict_since(session: Session, rollout_id: UUID, gate: str, verdict: str) -> datetime | None:
    """Return since when a gate has had its newest verdict, as far as its newest `VERDICTS_READ` rows show."""
    at = col(GateVerdict.ticked_at)
    newest = (
        select(at, col(GateVerdict.verdict))
        .where(col(GateVerdict.rollout_id) == rollout_id, col(GateVerdict.gate) == gate)
        .order_by(at.desc())
        .limit(VERDICTS_READ)
        .subquery()
    )
    other = session.connection().execute(select(func.max(newest.c.ticked_at)).where(newest.c.verdict != verdict))
    before, began = other.scalar(), select(func.min(newest.c.ticked_at))
    if before is not None:
        began = began.where(newest.c.ticked_at > before)
    return session.connection().execute(began).scalar()


def read_gates(session: Session, strategies: Strategies) -> dict[UUID, list[Any]]:
    """Return, by open rollout, (gate, packed finding) of each gate's newest verdict (see `unpack_finding`).

    The names of the gates come from their counts, so that the newest verdict of each is one index lookup.
    """
    counted = (
        in_strategies(
            select(col(Rollout.id).label("rollout_id"), col(Tally.name).label("gate")),
            col(Rollout.strategy_name),
            strategies,
        )
        .join(
            Tally,
            and_(col(Tally.strategy_name) == col(Rollout.strategy_name), col(Tally.what) == Counted.VERDICT.value),
        )
        .where(is_open())
        .distinct()
        .subquery()
    )
    newest = (
        select(packed(session, *(col(getattr(GateVerdict, name)) for name in _OF_FINDING)))
        .where(col(GateVerdict.rollout_id) == counted.c.rollout_id, col(GateVerdict.gate) == counted.c.gate)
        .order_by(col(GateVerdict.ticked_at).desc())
        .limit(1)
        .correlate(counted)
        .scalar_subquery()
    )
    rows = session.connection().execute(select(counted.c.rollout_id, counted.c.gate, newest).order_by(counted.c.gate))
    found: dict[UUID, list[Any]] = {}
    for rollout_id, gate, verdict in rows:
        if verdict is not None:  # NULL: the count is from another rollout of the strategy
            found.setdefault(rollout_id, []).append((gate, verdict))
    return found


def unpack_finding(gate: str, text: str) -> Finding:
    """Return a finding as `read_gates` packs it. Not validated, as it was when it was stored.

    Raises:
        ValueError: it is of a release with other verdicts.
    """
    facts = dict(zip(_OF_FINDING, json.loads(text), strict=True))
    return Finding.model_construct(
        gate=gate, **facts | {"verdict": Verdict(facts["verdict"]), "armed": bool(facts["armed"])}
    )


def read_subject(row: Any, *, paused_by: str = "", excluded: Collection[str] = ()) -> RolloutSubject:
    """Return an open rollout of `read_rollouts`, here or of the overview, as verdicts need it.

    Raises:
        InvalidPlan, ValueError: plan or history cannot be read.
    """
    return RolloutSubject(
        plan=_read_plan(row.plan),
        at=position(row, excluded),
        version=row.version,
        control=row.control_version,
        started_at=row.started_at,
        ended_at=None,
        reason=row.reason,
        paused_by=paused_by,
        history=_read_history(row.history or "{}"),
        slots=row.slots,
    )


@lru_cache(maxsize=1_024)
def _read_plan(plan: str) -> Plan:
    """Return the plan. Cached: it is frozen when a rollout starts, and parsing it takes 1 ms."""
    return load_plan(json.loads(plan))


@lru_cache(maxsize=1_024)
def _read_history(history: str) -> History:
    """Return the history of the pair before the rollout. Cached: it is frozen too."""
    return History.model_validate_json(history)


def read_comparisons(session: Session, strategies: Strategies) -> Rows:
    """Return (strategy, version, JSON of [divergence, low, mean, high]) of each shadow's and canary's newest report."""
    report = col(ComparisonReport.report)
    bounds = [report[("difference", bound)] for bound in ("low", "mean", "high")]
    newest = (
        select(packed(session, report["divergence_rate"], *bounds))
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
    return session.connection().execute(in_strategies(query, col(StrategyVersion.strategy_name), strategies)).all()


def packed(session: Session, *columns: Any) -> Any:
    """Return the columns as one JSON text: a join for several columns may be planned as a full scan."""
    if session.get_bind().dialect.name == "postgresql":
        return cast(func.jsonb_build_array(*columns), Text)
    return func.json_array(*columns)


def _is_reported(retired_since: datetime) -> Any:
    """Return the condition for versions that are not retired, or were retired since then."""
    return or_(col(StrategyVersion.status) != Status.RETIRED.value, col(StrategyVersion.retired_at) >= retired_since)


def is_open() -> Any:
    return col(Rollout.state).not_in(sorted(ENDED))


def read_alerts(session: Session, strategies: Strategies) -> Rows:
    """Return (kind, severity, number raised, number of them acknowledged)."""
    query = select(
        col(AlertOutbox.kind),
        col(AlertOutbox.severity),
        func.count(),
        func.count(col(AlertOutbox.acknowledged_at)),
    ).group_by(col(AlertOutbox.kind), col(AlertOutbox.severity))
    return session.connection().execute(in_strategies(query, col(AlertOutbox.strategy_name), strategies)).all()


def read_unacknowledged(session: Session, strategies: Strategies) -> datetime | None:
    """Return the time of the oldest critical alert without an acknowledgement, if there is one."""
    query = (
        select(col(AlertOutbox.at))
        .where(col(AlertOutbox.severity) == Severity.CRITICAL.value, col(AlertOutbox.acknowledged_at).is_(None))
        .order_by(col(AlertOutbox.id))
        .limit(1)
    )
    return session.connection().execute(in_strategies(query, col(AlertOutbox.strategy_name), strategies)).scalar()


def read_outbox(session: Session, strategies: Strategies, *, now: datetime) -> Rows:
    """Return (channel, number of alerts due, time since the oldest is due) of every channel with deliveries."""
    found, channel = [], session.connection().execute(select(func.min(col(AlertDelivery.channel)))).scalar()
    while channel is not None:  # from one channel to the next by index, because a DISTINCT reads all deliveries
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
            (
                channel,
                *session.connection().execute(in_strategies(due, col(AlertOutbox.strategy_name), strategies)).one(),
            )
        )
        following = select(func.min(col(AlertDelivery.channel))).where(col(AlertDelivery.channel) > channel)
        channel = session.connection().execute(following).scalar()
    return found


def read_tokens(session: Session, *, at_most: int) -> Rows:
    """Return (name, id, its strategies as JSON, expiry) of tokens that are not revoked, the next to expire first.

    *at_most* rows, and one more if there are more.
    """
    query = select(
        col(ServiceToken.name),
        col(ServiceToken.id),
        cast(col(ServiceToken.strategies), Text),
        col(ServiceToken.expires_at),
    ).where(col(ServiceToken.revoked_at).is_(None))
    ordered = query.order_by(col(ServiceToken.expires_at), col(ServiceToken.id)).limit(at_most + 1)
    return session.connection().execute(ordered).all()
