"""Samples of external metrics for the metric gates of open rollouts.

Sampling is separate from ticks, so a slow metric endpoint delays no tick and no rollback.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from strategy_core.domain.errors import InvalidPlan
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.plan import load_plan
from strategy_core.observe.prometheus import Prometheus
from strategy_core.store import evidence, rollouts
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Rollout

SPACING = timedelta(seconds=30)  # half of the default schedule
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A metric gate's sample: a value, or a problem."""

    rollout_id: UUID
    strategy_name: str
    version: str
    gate: str
    value: float | None
    problem: str


def sample_metrics(engine: Engine, prometheus: Prometheus, *, now: datetime) -> list[Sampled]:
    """Take one sample for each metric gate of each open rollout. A sample without a value holds the problem.

    Gates that were sampled in the last SPACING are skipped: two concurrent runs must not count one answer twice.
    Rollouts with an unreadable plan are skipped, since their ticks report it. No lock is held during the queries.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        open_now = rollouts.open_rollouts(session)
        newest = evidence.newest_samples(session, [rollout.id for rollout in open_now])
    asked = [
        (rollout, gate, gate.filled(_names(rollout)))
        for rollout in open_now
        for gate in _metric_gates(rollout)
        if abs(now - newest.get((rollout.id, gate.name), LONG_AGO)) >= SPACING
    ]
    answers = prometheus.query(query for *_, query in asked)
    sampled = [
        Sampled(rollout.id, rollout.strategy_name, rollout.version, gate.name, answer.value, answer.problem)
        for rollout, gate, query in asked
        for answer in (answers[query],)
    ]
    rows = [
        {
            "rollout_id": each.rollout_id,
            "gate": each.gate,
            "taken_at": now,
            "value": each.value,
            "problem": each.problem,
        }
        for each in sampled
    ]
    if rows:
        _store_samples(engine, rows)
    return sampled


@retry_transient()
def _store_samples(engine: Engine, rows: list[dict[str, Any]]) -> None:
    with transaction(engine) as session:
        evidence.add_samples(session, rows)


def _metric_gates(rollout: Rollout) -> list[MetricThreshold]:
    try:
        plan = load_plan(rollout.plan)
    except InvalidPlan:
        return []
    return [gate for gate in plan.gates if isinstance(gate, MetricThreshold)]


def _names(rollout: Rollout) -> Mapping[str, str]:
    return {"strategy": rollout.strategy_name, "canary": rollout.version, "active": rollout.control_version}
