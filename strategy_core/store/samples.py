"""Samples of external metrics: written once, read by gate, those written last first; never judged here."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import func, true
from sqlmodel import Session, col, select

from strategy_core.domain.evidence import Sample
from strategy_core.store.engine import insert_if_new
from strategy_core.store.rollout_tables import MetricSample


def add_samples(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the samples that are new and return how many were."""
    return insert_if_new(session, MetricSample, rows)


def newest_samples(session: Session, rollout_ids: Sequence[UUID]) -> dict[tuple[UUID, str], datetime]:
    """Return when each gate of these rollouts was sampled last."""
    newest = (
        select(func.max(MetricSample.id))
        .where(col(MetricSample.rollout_id).in_(rollout_ids))
        .group_by(col(MetricSample.rollout_id), col(MetricSample.gate))
    )
    rows = session.exec(
        select(MetricSample.rollout_id, MetricSample.gate, MetricSample.taken_at).where(
            col(MetricSample.id).in_(newest)
        )
    ).all()
    return {(rollout_id, gate): at for rollout_id, gate, at in rows}


def read_samples(
    session: Session, rollout_id: UUID, wanted: Mapping[str, int], *, until: datetime | None = None
) -> dict[str, list[Sample]]:
    """Return by gate, oldest first, as many of the newest samples with a value as *wanted* says, and the newest of all.

    Args:
        until: the newest moment that counts; any unless given, for a clock that has run back hides nothing from a tick.
    """
    return {gate: _newest(session, rollout_id, gate, count, until) for gate, count in wanted.items()}


def _newest(session: Session, rollout_id: UUID, gate: str, count: int, until: datetime | None) -> list[Sample]:
    query = (
        select(MetricSample)
        .where(MetricSample.rollout_id == rollout_id, MetricSample.gate == gate)
        .where(true() if until is None else col(MetricSample.taken_at) <= until)
        .order_by(col(MetricSample.id).desc())  # a clock that ran ahead hides no later sample behind its own
    )
    newest = session.exec(query.limit(1)).all()
    valued = session.exec(query.where(col(MetricSample.value).is_not(None)).limit(count)).all()
    rows = [*(row for row in newest if row.value is None), *valued]
    return [Sample(row.taken_at, row.value, row.problem) for row in reversed(rows)]
