"""Proposals of assistants: done at most once, and no lock of a strategy for a call that only reads."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from strategy_core.domain.audit import AGENT, Actor, Command
from strategy_core.domain.errors import (
    InvalidName,
    ProposalDecided,
    RolloutError,
    TooManyProposals,
    UnknownProposal,
    UnknownStrategy,
)
from strategy_core.domain.ramp import State
from strategy_core.services import maintenance
from strategy_core.services.alerts import close_resolved
from strategy_core.services.audit import read_audit
from strategy_core.services.maintenance import check_database, maintain, summary_lines
from strategy_core.services.proposals import (
    Proposed,
    approve_proposal,
    list_proposals,
    newest_calls,
    outdated,
    propose,
    record_call,
    reject_proposal,
)
from strategy_core.services.rollouts import pause
from strategy_core.store import rollouts, versions
from strategy_core.store.engine import transaction
from tests.builders import DAY, MONDAY, OWNER, put_pair, put_version
from tests.services.outbox import outbox

ASSISTANT = Actor("assistant", role=AGENT, source="mcp")
ANA = Command(OWNER, MONDAY)


def proposed(engine: Engine, action: Proposed = Proposed.START) -> UUID:
    version = "2" if action in (Proposed.START, Proposed.ACTIVATE) else None
    command = Command(ASSISTANT, MONDAY, "better")
    return propose(engine, command, strategy_name="fib_rsi", action=action, version=version).id


def test_two_approvals_at_once_do_it_once(engine: Engine) -> None:
    put_pair(engine)
    proposal = proposed(engine)

    def approve(_: int) -> None:
        with suppress(ProposalDecided):
            approve_proposal(engine, ANA, proposal)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(approve, range(2)))

    assert [each.action for each in read_audit(engine)] == ["start_rollout"]
    (kept,) = list_proposals(engine, "fib_rsi", open_alone=False)
    assert (kept.decision, kept.decided_by, kept.failed, kept.line) == ("approved", "ana", False, "done")


def test_an_approved_extension_extends(ramped: Engine) -> None:
    with transaction(ramped) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=State.AWAITING_DECISION.value)

    approve_proposal(ramped, ANA, proposed(ramped, Proposed.EXTEND))

    assert read_audit(ramped)[-1].action == "extend"


def test_a_change_since_the_proposal_refuses_it(ramped: Engine) -> None:
    proposal = proposed(ramped, Proposed.APPROVE)
    pause(ramped, ANA, strategy_name="fib_rsi")

    with pytest.raises(Exception, match="changed meanwhile"):
        approve_proposal(ramped, ANA, proposal)
    with pytest.raises(ProposalDecided):
        reject_proposal(ramped, ANA, proposal)


def test_an_unknown_proposal_and_an_endless_reason_are_refused(engine: Engine) -> None:
    put_pair(engine)

    with pytest.raises(UnknownProposal):
        reject_proposal(engine, ANA, uuid4())
    with pytest.raises(InvalidName, match="at most 1000 characters"):
        propose(engine, Command(ASSISTANT, MONDAY, "x" * 1_001), strategy_name="fib_rsi", action=Proposed.APPROVE)
    assert list_proposals(engine) == []


def test_a_call_is_recorded_while_a_change_holds_the_strategys_lock(engine: Engine) -> None:
    put_pair(engine)
    if engine.dialect.name == "sqlite":  # one writer at a time: what counts there is that the record is one insert
        record(engine)
    else:
        with transaction(engine) as session:
            versions.lock_strategy(session, "fib_rsi")
            record(engine)

    (call,) = newest_calls(engine, "fib_rsi")
    assert (call.tool, call.arguments) == ("status", {"strategy": "\ufffd"})
    with pytest.raises(DBAPIError, match="only rows 90 days older than the newest"), engine.begin() as connection:
        connection.execute(text("DELETE FROM agent_call"))
    with pytest.raises(UnknownStrategy):
        newest_calls(engine, "nope")


def record(engine: Engine, now: datetime = MONDAY) -> None:
    facts = {"strategy_name": "fib_rsi", "arguments": {"strategy": "\x00"}, "refused": ""}
    record_call(engine, ASSISTANT, "status", **facts, now=now)  # type: ignore[arg-type]


def test_calls_are_deleted_90_days_before_the_newest(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "CALLS_AT_ONCE", 2)
    put_pair(engine)
    for days in (0, 1, 2, 2, 2, 92):
        record(engine, MONDAY + days * DAY)
    expected = maintain(engine, now=MONDAY + 92 * DAY, apply=False).calls

    early = maintain(engine, now=MONDAY + 90 * DAY)
    done = maintain(engine, now=MONDAY + 92 * DAY)

    assert (early.calls, expected, done.calls) == (0, 2, 2)
    assert "2 calls of assistants deleted" in summary_lines(done)
    assert [(each.at - MONDAY).days for each in newest_calls(engine)] == [2, 2, 2, 92]
    assert maintain(engine, now=MONDAY + 400 * DAY).calls == 0
    assert check_database(engine).missing == []


def test_a_proposal_alerts_with_the_command_that_approves_it_until_it_is_decided(engine: Engine) -> None:
    put_pair(engine)
    proposal = proposed(engine)
    (alert,) = outbox(engine)

    assert (alert.kind, alert.severity, alert.facts["proposal"]) == ("proposal.waiting", "warning", str(proposal))
    assert alert.text == 'an assistant, assistant, proposes to start fib_rsi 2, in its words: "better"'
    reject_proposal(engine, ANA, proposal)
    assert outbox(engine)[0].acknowledged_at == MONDAY


def test_an_alert_shows_a_reason_in_one_short_line(engine: Engine) -> None:
    put_pair(engine)

    propose(
        engine,
        Command(ASSISTANT, MONDAY, "\x1b[2J\nto approve: rm\u202e " + "x" * 900),
        strategy_name="fib_rsi",
        action=Proposed.APPROVE,
    )

    (alert,) = outbox(engine)
    assert alert.text.isprintable()
    assert len(alert.text) < 300


def test_the_alert_of_a_proposal_ends_when_the_strategy_changes(ramped: Engine) -> None:
    proposed(ramped, Proposed.APPROVE)
    close_resolved(ramped, now=MONDAY)
    waits = outbox(ramped)[-1].acknowledged_at
    pause(ramped, ANA, strategy_name="fib_rsi")

    close_resolved(ramped, now=MONDAY)

    assert (waits, outbox(ramped)[-1].acknowledged_by) == (None, "system")
    assert len(outdated(ramped, list_proposals(ramped))) == 1


def test_the_same_proposal_is_not_made_twice_and_few_wait(engine: Engine) -> None:
    put_pair(engine)
    first = proposed(engine)
    for name in ("3", "4", "5", "6"):
        put_version(engine, name)
        propose(engine, Command(ASSISTANT, MONDAY), strategy_name="fib_rsi", action=Proposed.START, version=name)

    assert proposed(engine) == first
    with pytest.raises(TooManyProposals, match="5 proposals for 'fib_rsi' wait for a person already"):
        proposed(engine, Proposed.APPROVE)
    assert len(outbox(engine)) == 5
    reject_proposal(engine, ANA, first)
    assert proposed(engine) != first


def test_of_two_proposals_approved_at_once_one_is_done(engine: Engine) -> None:
    put_pair(engine)
    put_version(engine, "3")
    start = {"strategy_name": "fib_rsi", "action": Proposed.START}
    ids = [propose(engine, Command(ASSISTANT, MONDAY), version=name, **start).id for name in ("2", "3")]  # type: ignore[arg-type]

    def approve(proposal: UUID) -> str:
        try:
            return approve_proposal(engine, ANA, proposal).line
        except RolloutError as error:
            return type(error).__name__

    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(approve, ids))

    assert sorted(found) == ["LostRace", "done"]
    assert [each.action for each in read_audit(engine)] == ["start_rollout"]
    assert sorted(each.failed for each in list_proposals(engine, open_alone=False)) == [False, True]
