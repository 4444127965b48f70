"""Proposals of assistants: those that wait for a person and those that are decided, and forms to decide one."""

from dataclasses import dataclass
from typing import Annotated
from uuid import UUID

from fastapi import Query
from starlette.responses import Response

from strategy_core.api.console.page import OwnerAct, Visited, console_router
from strategy_core.api.console.session import HOME, SentForm
from strategy_core.domain.audit import Command
from strategy_core.domain.parsing import same_owner
from strategy_core.services import proposals
from strategy_core.services.proposals import Proposed
from strategy_core.store.tables import Proposal

PROPOSALS = f"{HOME}/proposals"
PER_PAGE = 50
_WHAT = {
    Proposed.START: "start a rollout of {strategy} {version}, with the {plan}",
    Proposed.APPROVE: "approve the next stage of {strategy}",
    Proposed.EXTEND: "restart the time limit of the present stage of {strategy}",
    Proposed.ADVANCE: "enter the next stage of {strategy}",
    Proposed.ACTIVATE: "activate {strategy} {version} for all users",
}
_OUTDATED = "the strategy has changed since it was proposed, so that approving it is refused"

router = console_router()


@dataclass(frozen=True, slots=True)
class ShownProposal:
    """One row of the list. *what* is the change in words."""

    proposal: Proposal
    what: str
    outdated: bool
    is_own: bool


@router.get("/proposals")
def show_proposals(
    visit: Visited,
    strategy: Annotated[str, Query(max_length=64)] = "",
    decided: Annotated[bool, Query()] = False,
) -> Response:
    """List proposals, newest first."""
    name = strategy.strip() or None
    scope = visit.lists(name).names
    found = proposals.list_proposals(visit.engine, name, strategies=scope, open_alone=not decided, limit=PER_PAGE)
    outdated = proposals.outdated(visit.engine, found)
    items = [
        ShownProposal(each, what_of(each), each.id in outdated, same_owner(each.proposed_by, visit.principal.name))
        for each in found
    ]
    return visit.render("proposals.html", items=items, strategy=name or "", decided=decided, href=PROPOSALS)


@router.get("/proposals/{proposal_id}/approve")
@router.post("/proposals/{proposal_id}/approve")
def approve(visit: Visited, proposal_id: UUID) -> Response:
    """Approve a proposal, which makes its change."""

    def describe() -> OwnerAct:
        found = proposals.find_proposal(visit.engine, proposal_id)
        visit.reads(found.strategy_name)
        notes = _notes(found)
        if same_owner(found.proposed_by, visit.principal.name):
            notes.append("you have the name under which it was proposed, so another person must approve it")
        if not found.decision and proposals.outdated(visit.engine, [found]):
            notes.append(_OUTDATED)
        return OwnerAct(
            f"Approve: {what_of(found)}",
            [
                f"this is done now, in your name: {what_of(found)}",
                "its checks are those of every owner, four eyes and the plans of the policy too",
            ],
            "Approve",
            reason="required",
            notes=notes,
            about=_about(found),
        )

    def perform(_form: SentForm) -> str:
        name = proposals.find_proposal(visit.engine, proposal_id).strategy_name
        settings = visit.backend.settings
        actor = visit.changes(name)
        command = Command(actor, visit.now, visit.reason(required=True), four_eyes=settings.four_eyes)
        done = proposals.approve_proposal(visit.engine, command, proposal_id, in_replay=settings.in_replay)
        return f"done: {what_of(done)}"

    return visit.act(describe, perform, back=PROPOSALS)


@router.get("/proposals/{proposal_id}/reject")
@router.post("/proposals/{proposal_id}/reject")
def reject(visit: Visited, proposal_id: UUID) -> Response:
    """Reject a proposal."""

    def describe() -> OwnerAct:
        found = proposals.find_proposal(visit.engine, proposal_id)
        visit.reads(found.strategy_name)
        return OwnerAct(
            f"Reject: {what_of(found)}",
            ["the proposal ends, and nothing else changes"],
            "Reject",
            reason="required",
            notes=_notes(found),
            about=_about(found),
        )

    def perform(_form: SentForm) -> str:
        name = proposals.find_proposal(visit.engine, proposal_id).strategy_name
        command = Command(visit.acknowledges(name), visit.now, visit.reason(required=True))
        done = proposals.reject_proposal(visit.engine, command, proposal_id)
        return f"rejected: {what_of(done)}"

    return visit.act(describe, perform, back=PROPOSALS)


def what_of(proposal: Proposal) -> str:
    """Return the proposed change in words, such as `activate fib_rsi 2.0.0 for all users`."""
    plan = proposal.parameters.get("plan")
    return _WHAT[Proposed(proposal.action)].format(
        strategy=proposal.strategy_name,
        version=proposal.parameters.get("version", ""),
        plan=f"plan {plan}" if plan else "standard plan",
    )


def _about(proposal: Proposal) -> str:
    return f'the assistant {proposal.proposed_by} proposed it, in its words: "{proposal.reason}"'


def _notes(proposal: Proposal) -> list[str]:
    return [f"it was {proposal.decision} already, by {proposal.decided_by}"] if proposal.decision else []
