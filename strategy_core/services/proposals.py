"""What assistants propose: recorded, approved or rejected by a person, and done once approved. And what they asked."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.alerts import PROPOSAL_WAITING, Severity, clipped
from strategy_core.domain.audit import Actor, Command, storable
from strategy_core.domain.errors import InvalidName, OwnProposal, ProposalDecided, RolloutError, TooManyProposals
from strategy_core.domain.parsing import same_owner
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.ramp import State
from strategy_core.services.database import failure
from strategy_core.services.rollouts import (
    Choice,
    approve,
    check_reason_for_all,
    decide_rollout,
    read_policy,
    start_rollout,
)
from strategy_core.services.versions import activate_version
from strategy_core.store import agents, alerts, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.rollouts import open_rollout
from strategy_core.store.tables import AgentCall, Proposal

LONGEST_REASON = 1_000  # characters
MOST_OPEN = 5  # proposals for one generation of a strategy: an assistant in a loop must not bury the one that matters
_SHOWN = 200  # characters of a reason in an alert


class Proposed(StrEnum):
    START = "start"  # a rollout of a version, with a plan of the policy or the standard one
    APPROVE = "approve"  # the next stage
    EXTEND = "extend"
    ADVANCE = "advance"
    ACTIVATE = "activate"  # a version


_OF_A_VERSION = (Proposed.START, Proposed.ACTIVATE)


@retry_transient()
def propose(
    engine: Engine,
    command: Command,
    *,
    strategy_name: str,
    action: Proposed,
    version: str | None = None,
    plan: str | None = None,
) -> Proposal:
    """Record a change that a person may approve, and alert. Nothing else changes.

    A change that is proposed again while it waits is not recorded again: the waiting proposal is returned.

    Args:
        version: to start or to activate.
        plan: name of a plan of the strategy's policy, to start with. Default: the standard plan.

    Raises:
        UnknownStrategy, UnknownVersion, UnknownPlan
        InvalidName: the action needs a version and has none, or the reason is too long.
        TooManyProposals: MOST_OPEN of them wait.
    """
    if len(command.reason) > LONGEST_REASON:
        raise InvalidName("reason", f"{command.reason[:40]}...", f"at most {LONGEST_REASON} characters")
    if (action in _OF_A_VERSION) != (version is not None):
        needed = "a version" if action in _OF_A_VERSION else "no version"
        raise InvalidName(f"version to {action}", version or "", needed)
    if plan is not None:
        read_policy(engine, strategy_name).named(strategy_name, plan)
    with transaction(engine) as session:
        strategy = versions.get_strategy(session, strategy_name)
        if version is not None:
            versions.get_version(session, strategy_name, version)
        parameters = {name: value for name, value in (("version", version), ("plan", plan)) if value is not None}
        waiting = agents.open_proposals(session, strategy_name, strategy.generation)
        for each in waiting:
            if (each.action, each.parameters) == (action.value, parameters):
                return each
        if len(waiting) >= MOST_OPEN:
            raise TooManyProposals(strategy_name, len(waiting))
        proposal = Proposal(
            strategy_name=strategy_name,
            action=action.value,
            parameters=parameters,
            reason=storable(command.reason),
            generation=strategy.generation,
            proposed_by=command.actor.name,
            proposed_at=command.now,
        )
        session.add(proposal)
        session.flush()
        _alert(session, proposal)
        return proposal


def _alert(session: Session, proposal: Proposal) -> None:
    what = " ".join([proposal.action, proposal.strategy_name, *proposal.parameters.values()])
    reason = clipped(proposal.reason)
    reason = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]} …"
    alerts.raise_alert(
        session,
        PROPOSAL_WAITING,
        f'an assistant, {proposal.proposed_by}, proposes to {what}, in its words: "{reason}"',
        severity=Severity.WARNING.value,
        strategy_name=proposal.strategy_name,
        dedupe_key=_alert_key(proposal.id),
        facts={"proposal": str(proposal.id), "version": proposal.parameters.get("version", "")},
        now=proposal.proposed_at,
    )


def _alert_key(proposal_id: UUID) -> str:
    return f"{PROPOSAL_WAITING} {proposal_id}"


def list_proposals(
    engine: Engine,
    strategy_name: str | None = None,
    *,
    strategies: Collection[str] | None = None,
    open_alone: bool = True,
    limit: int = 50,
) -> Sequence[Proposal]:
    """Return the newest proposals, newest first.

    Args:
        strategies: only of these. None means all.
        open_alone: only those that wait for a decision.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
            strategies = {strategy_name}
        return agents.list_proposals(session, strategies, open_alone=open_alone, limit=limit)


def outdated(engine: Engine, found: Sequence[Proposal]) -> set[UUID]:
    """Return those of the open proposals whose strategy has changed since, so that approving them is refused."""
    names = {each.strategy_name for each in found if not each.decision}
    with reading(engine) as session:
        now = {name: versions.get_strategy(session, name).generation for name in names}
    return {each.id for each in found if not each.decision and each.generation != now[each.strategy_name]}


def find_proposal(engine: Engine, proposal_id: UUID) -> Proposal:
    """Return a proposal. Raise UnknownProposal if there is none."""
    with reading(engine) as session:
        return agents.get_proposal(session, proposal_id)


def approve_proposal(
    engine: Engine, command: Command, proposal_id: UUID, *, in_replay: Callable[[Plan], Plan] | None = None
) -> Proposal:
    """Do what a proposal asks for, in the name of the person who approves it, and return it with what became of it.

    It is done at most once. The strategy must be as it was when the change was proposed: with any change since then,
    the use case refuses it. The audit event names the person, and in its reason the assistant.

    Raises:
        UnknownProposal
        OwnProposal: the actor is the one who proposed it.
        ProposalDecided: it was approved or rejected before.
        MissingReason: it is a rollout's last stage, and the command has no reason.
        RolloutError: of the use case, which refuses the change. The proposal is ended as failed.
    """
    proposal = find_proposal(engine, proposal_id)
    if same_owner(proposal.proposed_by, command.actor.name):
        raise OwnProposal(command.actor.name)
    if proposal.action == Proposed.APPROVE:
        _check_reason(engine, command, proposal.strategy_name)
    _decide(engine, command, proposal_id, "approved")
    reason = f"{proposal.reason} (proposed by {proposal.proposed_by}, an assistant)"
    reason = f"{command.reason}; {reason}" if command.reason else reason
    asked = replace(command, reason=reason, if_generation=proposal.generation)
    try:
        _do(engine, asked, proposal, in_replay)
    except RolloutError as error:
        _end(engine, proposal_id, str(error), failed=True)
        raise
    except DBAPIError as error:
        _end(engine, proposal_id, failure(error), failed=True)
        raise
    return _end(engine, proposal_id, "done", failed=False)


def reject_proposal(engine: Engine, command: Command, proposal_id: UUID) -> Proposal:
    """Reject a proposal that is open.

    Raises:
        UnknownProposal
        ProposalDecided: it was approved or rejected before.
    """
    _decide(engine, command, proposal_id, "rejected")
    return _end(engine, proposal_id, storable(command.reason), failed=False)


def _check_reason(engine: Engine, command: Command, strategy_name: str) -> None:
    """Raise MissingReason as `approve` does: the assistant's reason is not the person's."""
    with reading(engine) as session:
        rollout = open_rollout(session, strategy_name)
        if rollout is not None and rollout.state == State.AWAITING_APPROVAL:
            check_reason_for_all(rollout, command)


@retry_transient()
def _decide(engine: Engine, command: Command, proposal_id: UUID, decision: str) -> None:
    with transaction(engine) as session:
        decided = agents.decide_proposal(
            session, proposal_id, decision=decision, by=command.actor.name, now=command.now
        )
        if not decided:
            known = agents.get_proposal(session, proposal_id)
            raise ProposalDecided(str(proposal_id), known.decision, known.decided_by, known.decided_at or command.now)
        alerts.resolve_key(session, _alert_key(proposal_id), command.now)


@retry_transient()
def _end(engine: Engine, proposal_id: UUID, line: str, *, failed: bool) -> Proposal:
    """Store what became of a decided proposal, and return it."""
    with transaction(engine) as session:
        agents.end_proposal(session, proposal_id, line, failed=failed)
        return agents.get_proposal(session, proposal_id)


def _do(engine: Engine, command: Command, proposal: Proposal, in_replay: Callable[[Plan], Plan] | None) -> None:
    name = proposal.strategy_name
    version, plan = proposal.parameters.get("version", ""), proposal.parameters.get("plan")
    match Proposed(proposal.action):
        case Proposed.START:
            chosen = read_plan({}) if plan is None else read_policy(engine, name).named(name, plan)
            start_rollout(engine, command, strategy_name=name, version=version, plan=chosen, in_replay=in_replay)
        case Proposed.APPROVE:
            approve(engine, command, strategy_name=name)
        case Proposed.EXTEND | Proposed.ADVANCE as action:
            decide_rollout(engine, command, strategy_name=name, choice=Choice(action.value))
        case Proposed.ACTIVATE:
            activate_version(engine, command, strategy_name=name, version=version)


@retry_transient()
def record_call(
    engine: Engine,
    actor: Actor,
    tool: str,
    *,
    strategy_name: str,
    arguments: Mapping[str, Any],
    refused: str,
    now: datetime,
) -> None:
    """Record what an assistant asked. It takes no lock of a strategy, so no change and no rollback waits for it.

    Args:
        refused: why it was refused, or an empty text.
    """
    call = AgentCall(
        at=now,
        actor=actor.name,
        tool=tool,
        strategy_name=storable(strategy_name),
        arguments={name: storable(value) if isinstance(value, str) else value for name, value in arguments.items()},
        refused=storable(refused),
        request_id=actor.request_id,
    )
    with transaction(engine) as session:
        agents.add_call(session, call)


def newest_calls(engine: Engine, strategy_name: str | None = None, *, limit: int = 50) -> Sequence[AgentCall]:
    """Return the newest calls of assistants, oldest first.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
        return agents.newest_calls(session, strategy_name, limit)
