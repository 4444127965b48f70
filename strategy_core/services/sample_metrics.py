"""Sample external metrics: ask for what open rollouts' metric gates need, and write down what was answered.

It is a pass of its own, outside every tick: however slow a metric's endpoint is, no tick and no rollback waits for it.
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
from strategy_core.domain.plan import read_plan
from strategy_core.observe.prometheus import Prometheus
from strategy_core.store import evidence, rollouts
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import Rollout

SPACING = timedelta(seconds=30)  # half of the usual schedule
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What a metric gate got: a value, or a problem."""

    rollout_id: UUID
    strategy_name: str
    version: str
    gate: str
    value: float | None
    problem: str


def sample_metrics(engine: Engine, prometheus: Prometheus, *, now: datetime) -> list[Sampled]:
    """Take one sample for each metric gate of each open rollout; what has no value is a sample too, which says why.

    A gate that was sampled less than half a minute ago is passed over: two runs at once must not count one answer as
    two in a row; so is a rollout whose plan cannot be read: its ticks say so. Nothing is locked while the answers come.
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
        _keep(engine, rows)
    return sampled


@retry_transient()
def _keep(engine: Engine, rows: list[dict[str, Any]]) -> None:
    with transaction(engine) as session:
        evidence.add_samples(session, rows)


def _metric_gates(rollout: Rollout) -> list[MetricThreshold]:
    try:
        plan = read_plan(rollout.plan)
    except InvalidPlan:
        return []
    return [gate for gate in plan.gates if isinstance(gate, MetricThreshold)]


def _names(rollout: Rollout) -> Mapping[str, str]:
    return {"strategy": rollout.strategy_name, "canary": rollout.version, "active": rollout.control_version}
