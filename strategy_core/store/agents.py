"""Proposals and calls of assistants."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, update
from sqlmodel import Session, col, select

from strategy_core.domain.errors import UnknownProposal
from strategy_core.store.tables import AgentCall, Proposal

KEPT = timedelta(days=90)  # calls, counted from the newest. A trigger of the table knows it too


def add_call(session: Session, call: AgentCall) -> None:
    session.add(call)
    session.flush()


def newest_calls(session: Session, strategy_name: str | None, limit: int) -> Sequence[AgentCall]:
    """Return the newest calls, oldest first."""
    query = select(AgentCall).order_by(col(AgentCall.id).desc()).limit(limit)
    if strategy_name is not None:
        query = query.where(AgentCall.strategy_name == strategy_name)
    return session.exec(query).all()[::-1]


def expired_calls(session: Session, now: datetime, limit: int) -> Sequence[int]:
    """Return the ids of at most *limit* calls that are older than `KEPT` before the newest one, and before *now*."""
    newest = session.exec(select(AgentCall.at).order_by(col(AgentCall.id).desc()).limit(1)).first()
    if newest is None:
        return []
    before = min(newest, now) - KEPT
    oldest_first = select(AgentCall.id, AgentCall.at).order_by(col(AgentCall.id)).limit(limit)
    return [number for number, at in session.exec(oldest_first).all() if number is not None and at < before]


def delete_calls(session: Session, call_ids: Collection[int]) -> None:
    session.connection().execute(delete(AgentCall).where(col(AgentCall.id).in_(call_ids)))


def get_proposal(session: Session, proposal_id: UUID) -> Proposal:
    found = session.get(Proposal, proposal_id, populate_existing=True)
    if found is None:
        raise UnknownProposal(str(proposal_id))
    return found


def list_proposals(
    session: Session, strategies: Collection[str] | None, *, open_alone: bool, limit: int
) -> Sequence[Proposal]:
    """Return the newest proposals, newest first.

    Args:
        strategies: only of these. None means all.
        open_alone: only those that wait for a decision.
    """
    query = select(Proposal).order_by(col(Proposal.proposed_at).desc(), col(Proposal.id)).limit(limit)
    if strategies is not None:
        query = query.where(col(Proposal.strategy_name).in_(sorted(strategies)))
    if open_alone:
        query = query.where(Proposal.decision == "")
    return session.exec(query).all()


def open_proposals(session: Session, strategy_name: str, generation: int) -> Sequence[Proposal]:
    """Return the undecided proposals for this generation of a strategy, oldest first."""
    return session.exec(
        select(Proposal)
        .where(Proposal.strategy_name == strategy_name, Proposal.generation == generation, Proposal.decision == "")
        .order_by(col(Proposal.proposed_at), col(Proposal.id))
    ).all()


def decide_proposal(session: Session, proposal_id: UUID, *, decision: str, by: str, now: datetime) -> bool:
    """Decide a proposal that is open, and return whether it was."""
    changed = session.connection().execute(
        update(Proposal)
        .where(col(Proposal.id) == proposal_id, col(Proposal.decision) == "")
        .values(decision=decision, decided_by=by, decided_at=now)
    )
    return bool(changed.rowcount)


def end_proposal(session: Session, proposal_id: UUID, line: str, *, failed: bool) -> None:
    """Store what became of an approved proposal."""
    session.connection().execute(
        update(Proposal).where(col(Proposal.id) == proposal_id).values(failed=failed, line=line)
    )
