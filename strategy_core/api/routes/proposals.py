"""Proposals of assistants: list, approve and reject them."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query
from pydantic import Field

from strategy_core.api.dependencies import KEYED, Requested
from strategy_core.api.routes import guarded_router
from strategy_core.api.schemas import Limit, OptionalReason, ResponseModel, StrategyName
from strategy_core.domain.audit import Command
from strategy_core.services import proposals
from strategy_core.services.proposals import Proposed

ProposalId = Annotated[UUID, Path(description="Id of the proposal.")]


class ProposalResponse(ResponseModel):
    """A change that an assistant proposes, and what became of it."""

    id: UUID = Field(description="Id of the proposal.")
    strategy_name: str = Field(description="Name of the strategy.")
    action: Proposed = Field(description="What it asks for.")
    parameters: dict[str, Any] = Field(description="The version and the name of the plan, where the action has them.")
    reason: str = Field(description="Why the assistant proposes it.")
    generation: int = Field(description="Generation of the strategy when it was proposed. With another one it fails.")
    proposed_by: str = Field(description="Name of the assistant's token.")
    proposed_at: datetime = Field(description="When it was proposed.")
    decision: str = Field(description="Approved or rejected. Empty while it is open.")
    decided_by: str = Field(description="Who decided it, or empty.")
    decided_at: datetime | None = Field(description="When it was decided.")
    failed: bool = Field(description="Whether the approved change was refused.")
    line: str = Field(description="What became of it, or empty.")


router = guarded_router("proposals")


@router.get("/proposals", summary="List proposals")
def list_proposals(
    context: Requested,
    strategy_name: Annotated[StrategyName | None, Query(description="Only this strategy.")] = None,
    decided: Annotated[bool, Query(description="Also proposals that are decided.")] = False,
    limit: Limit = 50,
) -> list[ProposalResponse]:
    """List the newest proposals of assistants, newest first."""
    names = context.lists(strategy_name).names
    found = proposals.list_proposals(
        context.engine, strategy_name, strategies=names, open_alone=not decided, limit=limit
    )
    return [ProposalResponse.model_validate(row) for row in found]


@router.post("/proposals/{proposal_id}/approve", dependencies=[KEYED], summary="Approve a proposal")
def approve_proposal(context: Requested, proposal_id: ProposalId, body: OptionalReason) -> ProposalResponse:
    """Make the proposed change now, in your name.

    It is refused if the strategy has changed since the proposal, or if you proposed it. There is no `If-Match`, because
    the proposal has the generation that it is for.
    """
    strategy_name = proposals.find_proposal(context.engine, proposal_id).strategy_name
    settings = context.backend.settings
    command = Command(context.changes(strategy_name), context.now, body.reason, four_eyes=settings.four_eyes)
    done = proposals.approve_proposal(context.engine, command, proposal_id, in_replay=settings.in_replay)
    return ProposalResponse.model_validate(done)


@router.post("/proposals/{proposal_id}/reject", summary="Reject a proposal")
def reject_proposal(context: Requested, proposal_id: ProposalId, body: OptionalReason) -> ProposalResponse:
    """Reject an open proposal. Nothing else changes."""
    strategy_name = proposals.find_proposal(context.engine, proposal_id).strategy_name
    command = Command(context.acknowledges(strategy_name), context.now, body.reason)
    return ProposalResponse.model_validate(proposals.reject_proposal(context.engine, command, proposal_id))
