"""Stored reports for owners, and stored nightly comparisons."""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import exists
from sqlalchemy.orm import defer
from sqlmodel import Session, col, select

from strategy_core.domain.errors import UnknownReport
from strategy_core.domain.ramp import ENDED
from strategy_core.store.engine import insert_if_new
from strategy_core.store.tables import ComparisonReport, OwnerReport, Rollout


def keep_owner_report(session: Session, report: OwnerReport) -> bool:
    """Store the report unless one of its kind about the same subject is stored, and return whether it was new."""
    return insert_if_new(session, OwnerReport, [report.model_dump()]) == 1


def get_owner_report(session: Session, report_id: UUID) -> OwnerReport:
    found = session.get(OwnerReport, report_id)
    if found is None:
        raise UnknownReport(str(report_id))
    return found


def newest_owner_report(session: Session, strategy_name: str, kind: str) -> OwnerReport | None:
    mine = (OwnerReport.strategy_name == strategy_name, OwnerReport.kind == kind)
    return session.exec(
        select(OwnerReport).where(*mine).order_by(col(OwnerReport.created_at).desc(), col(OwnerReport.id)).limit(1)
    ).first()


def is_kept(session: Session, strategy_name: str, kind: str, subject: str) -> bool:
    mine = (OwnerReport.strategy_name == strategy_name, OwnerReport.kind == kind, OwnerReport.subject == subject)
    return session.exec(select(OwnerReport.id).where(*mine)).first() is not None


def page_owner_reports(
    session: Session, *, strategies: Collection[str] | None, before: tuple[datetime, UUID] | None, limit: int
) -> Sequence[OwnerReport]:
    """Return reports without their facts, newest first. *before* is (created_at, id) of the last one seen."""
    query = select(OwnerReport).options(defer(OwnerReport.facts, raiseload=True))  # type: ignore[arg-type]
    if strategies is not None:
        query = query.where(col(OwnerReport.strategy_name).in_(sorted(strategies)))
    if before is not None:
        at, last = col(OwnerReport.created_at), before[0]
        query = query.where((at < last) | ((at == last) & (col(OwnerReport.id) < before[1])))
    return session.exec(
        query.order_by(col(OwnerReport.created_at).desc(), col(OwnerReport.id).desc()).limit(limit)
    ).all()


def ended_without_report(
    session: Session, kind: str, since: datetime, *, limit: int | None = None
) -> Sequence[Rollout]:
    """Return the rollouts that have ended since then and have no report of that kind, oldest first."""
    reported = exists().where(
        col(OwnerReport.strategy_name) == col(Rollout.strategy_name),
        col(OwnerReport.kind) == kind,
        col(OwnerReport.period_start) == col(Rollout.started_at),
        col(OwnerReport.period_end) == col(Rollout.ended_at),
    )
    return session.exec(
        select(Rollout)
        .where(col(Rollout.state).in_(sorted(ENDED)), col(Rollout.ended_at) >= since, ~reported)
        .order_by(col(Rollout.ended_at))
        .limit(limit)
    ).all()


def page_comparisons(
    session: Session,
    *,
    strategies: Collection[str] | None,
    version: str | None,
    since: datetime | None,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> Sequence[ComparisonReport]:
    """Return nightly comparisons, newest first. *before* is (created_at, id) of the last one seen."""
    query = select(ComparisonReport)
    if strategies is not None:
        query = query.where(col(ComparisonReport.strategy_name).in_(sorted(strategies)))
    if version is not None:
        query = query.where(ComparisonReport.shadow_version == version)
    if since is not None:
        query = query.where(col(ComparisonReport.created_at) >= since)
    if before is not None:
        at, last = col(ComparisonReport.created_at), before[0]
        query = query.where((at < last) | ((at == last) & (col(ComparisonReport.id) < before[1])))
    return session.exec(
        query.order_by(col(ComparisonReport.created_at).desc(), col(ComparisonReport.id).desc()).limit(limit)
    ).all()


def get_comparison(session: Session, comparison_id: UUID) -> ComparisonReport:
    found = session.get(ComparisonReport, comparison_id)
    if found is None:
        raise UnknownReport(str(comparison_id))
    return found
