"""The order of what matters: protection, blindness, the owner, time, evidence, approval."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.evidence import Evidence, Record
from strategy_core.domain.gates.base import Errors, Finding, Gate, Margins, Silence, Verdict
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import ENDED, Position, State, Step, decide, judge_all
from tests.domain.facts import NOTHING

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
DAY = timedelta(days=1)
PLAN = Plan()
OPEN = sorted(set(State) - ENDED)


def at(stage: int = 0, *, entered: datetime = NOON - 2 * DAY, **changes: Any) -> Position:
    place: dict[str, Any] = {"state": State.RUNNING, "stage_extended_at": entered, **changes}
    return Position(stage_index=stage, stage_entered_at=entered, **place)


def found(*verdicts: Verdict, armed: bool = True) -> list[Finding]:
    return [Finding(gate=f"gate_{i}", verdict=v, reason=f"because {v}", armed=armed) for i, v in enumerate(verdicts)]


def test_every_gate_passing_after_the_minimum_time_advances() -> None:
    ruling = decide(PLAN, at(), found(Verdict.PASS), NOON)

    assert ruling.step is Step.ADVANCE
    assert ruling.reason == "every gate passed at 5 %: because pass"


def test_a_pass_is_told_by_the_gate_that_measured_it() -> None:
    measured = Finding(gate="paired", verdict=Verdict.PASS, reason="difference +0.02 R", low=-0.01)

    assert decide(PLAN, at(), [*found(Verdict.PASS), measured], NOON).reason.endswith("at 5 %: difference +0.02 R")


def test_a_bleeding_canary_rolls_back_even_while_it_dwells() -> None:
    """Protection comes first: the minimum time does not delay a rollback."""
    ruling = decide(PLAN, at(entered=NOON), found(Verdict.PASS, Verdict.BREACH), NOON)

    assert ruling.step is Step.ROLL_BACK
    assert ruling.reason == "gate_1: because breach"


@pytest.mark.parametrize("stage", [0, 4])
def test_open_positions_hold_the_next_stage_and_the_promotion(stage: int) -> None:
    ruling = decide(PLAN, at(stage), found(Verdict.PASS), NOON, positions_problem="3 have no manager")

    assert (ruling.step, ruling.reason, ruling.held) == (Step.HOLD, "3 have no manager", True)


def test_open_positions_delay_no_rollback_and_leave_an_approval() -> None:
    broken, approved = found(Verdict.PASS, Verdict.FAIL), at(3, approved_stage=4)

    assert decide(PLAN, at(), broken, NOON, positions_problem="some").step is Step.ROLL_BACK
    assert decide(PLAN, approved, found(Verdict.PASS), NOON, positions_problem="some").step is Step.HOLD


@pytest.mark.parametrize("stage", [0, 4])
def test_an_unknown_cap_on_capital_holds_the_next_stage(stage: int) -> None:
    ruling = decide(PLAN, at(stage), found(Verdict.PASS), NOON, capital_problem="capital is unknown")

    assert ruling.step is (Step.PROMOTE if stage else Step.HOLD)  # a promotion adds no users


@pytest.mark.parametrize(("state", "verdict"), list(product(OPEN, [Verdict.BREACH, Verdict.FAIL])))
def test_protection_works_in_every_open_state(state: State, verdict: Verdict) -> None:
    place = at(4, state=state, blind_since=NOON, promoted_at=NOON)

    assert decide(PLAN, place, found(Verdict.BLIND, verdict), NOON).step is Step.ROLL_BACK


@given(
    verdicts=st.lists(st.sampled_from(Verdict), min_size=1, max_size=6),
    state=st.sampled_from(OPEN),
    stage=st.integers(0, 4),
    hours=st.integers(0, 24 * 200),
    approved=st.one_of(st.none(), st.integers(0, 5)),
)
def test_nothing_but_a_pass_of_every_gate_moves_users_to_the_canary(
    verdicts: list[Verdict], state: State, stage: int, hours: int, approved: int | None
) -> None:
    place = at(stage, entered=NOON - timedelta(hours=hours), state=state, approved_stage=approved)
    step = decide(PLAN, place, found(*verdicts), NOON).step

    if step in (Step.ADVANCE, Step.PROMOTE):
        assert set(verdicts) == {Verdict.PASS}
        assert state in (State.RUNNING, State.AWAITING_APPROVAL)
        assert hours >= 24
    if step is Step.ADVANCE and stage == 3:
        assert approved == 4


def test_the_minimum_time_holds() -> None:
    ruling = decide(PLAN, at(entered=NOON - DAY / 2), found(Verdict.PASS), NOON)

    assert ruling.step is Step.HOLD
    assert ruling.reason == "dwells at 5 %: 12 h of 24 h"


@pytest.mark.parametrize("verdict", [Verdict.INSUFFICIENT, Verdict.INCONCLUSIVE])
def test_without_an_answer_it_holds(verdict: Verdict) -> None:
    assert decide(PLAN, at(), found(Verdict.PASS, verdict), NOON).step is Step.HOLD


@pytest.mark.parametrize(("choice", "step"), [("hold", Step.AWAIT_DECISION), ("rollback", Step.ROLL_BACK)])
def test_the_maximum_stage_time_ends_the_wait(choice: Literal["hold", "rollback"], step: Step) -> None:
    ruling = decide(Plan(on_inconclusive=choice), at(entered=NOON - 60 * DAY), found(Verdict.INCONCLUSIVE), NOON)

    assert ruling.step is step
    assert ruling.reason.startswith("60 days at this stage without an answer")


def test_an_extension_starts_the_maximum_anew() -> None:
    place = at(entered=NOON - 90 * DAY, stage_extended_at=NOON - DAY)

    assert decide(PLAN, place, found(Verdict.INCONCLUSIVE), NOON).step is Step.HOLD


def test_the_full_ramp_waits_for_an_owner() -> None:
    assert decide(PLAN, at(3), found(Verdict.PASS), NOON).step is Step.AWAIT_APPROVAL
    assert decide(PLAN, at(3, approved_stage=4), found(Verdict.PASS), NOON).step is Step.ADVANCE


@pytest.mark.parametrize(
    ("verdict", "changes"),
    [
        (Verdict.INCONCLUSIVE, {}),
        (Verdict.INSUFFICIENT, {}),
        (Verdict.BLIND, {}),
        (Verdict.PASS, {"entered": NOON - DAY / 2}),
        (Verdict.PASS, {"state": State.PAUSED}),
    ],
)
def test_an_approval_that_cannot_be_taken_lapses(verdict: Verdict, changes: dict[str, Any]) -> None:
    """It was of the evidence it was given on: when that returns, the owner is asked again."""
    ruling = decide(PLAN, at(3, approved_stage=4, **changes), found(verdict), NOON)

    assert ruling.step is Step.LAPSE
    assert ruling.reason.startswith("the approval lapses: ")
    assert ruling.blind == (verdict is Verdict.BLIND)
    assert decide(PLAN, at(3, **changes), found(verdict), NOON).step is Step.HOLD


def test_an_approval_of_a_stage_that_was_entered_lapses_no_more() -> None:
    assert decide(PLAN, at(4, approved_stage=4), found(Verdict.INCONCLUSIVE), NOON).step is Step.HOLD


def test_the_last_stage_promotes() -> None:
    assert decide(PLAN, at(4), found(Verdict.PASS), NOON).step is Step.PROMOTE


@pytest.mark.parametrize(("gate", "verdict"), [("harm", Verdict.INCONCLUSIVE), ("freshness", Verdict.INSUFFICIENT)])
def test_a_bake_does_not_end_while_harm_is_likely_or_nothing_is_decided(gate: str, verdict: Verdict) -> None:
    """Its end retires the predecessor and disarms every gate: that needs evidence, as an advance does."""
    doubt = Finding(gate=gate, verdict=verdict, reason="E = 90 against 125")
    ruling = decide(PLAN, at(4, promoted_at=NOON - 8 * DAY), [doubt, *found(Verdict.PASS)], NOON)

    assert (ruling.step, ruling.reason) == (Step.HOLD, f"has baked 8 days, but {gate}: E = 90 against 125")


def test_a_promoted_version_bakes_and_then_completes() -> None:
    assert decide(PLAN, at(4, promoted_at=NOON - DAY), found(Verdict.PASS), NOON).reason == "bakes: 24 h of 7 days"
    assert decide(PLAN, at(4, promoted_at=NOON - 7 * DAY), found(Verdict.INCONCLUSIVE), NOON).step is Step.COMPLETE


@pytest.mark.parametrize(
    ("state", "reason"), [(State.PAUSED, "paused by an owner"), (State.AWAITING_DECISION, "waits for an owner's")]
)
def test_an_owner_holds_it(state: State, reason: str) -> None:
    ruling = decide(PLAN, at(state=state), found(Verdict.PASS), NOON)

    assert ruling.step is Step.HOLD
    assert ruling.reason.startswith(reason)


def test_blindness_holds_first_and_rolls_back_at_its_limit() -> None:
    findings = found(Verdict.PASS, Verdict.BLIND)

    assert decide(PLAN, at(), findings, NOON).step is Step.HOLD
    assert decide(PLAN, at(blind_since=NOON - DAY / 2), findings, NOON).step is Step.HOLD
    assert decide(PLAN, at(blind_since=NOON - DAY), findings, NOON).step is Step.ROLL_BACK
    assert decide(PLAN, at(blind_since=NOON - DAY), findings, NOON).blind


def test_a_dry_run_gate_moves_nothing() -> None:
    findings = [*found(Verdict.BREACH, armed=False), *found(Verdict.PASS)]

    assert decide(PLAN, at(), findings, NOON).step is Step.ADVANCE


def test_without_an_armed_gate_nothing_moves() -> None:
    assert decide(PLAN, at(), found(Verdict.PASS, armed=False), NOON).step is Step.HOLD


class Broken(Gate):
    kind: str = "broken"

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        raise ZeroDivisionError("n")


def test_a_broken_gate_is_blind_and_silences_no_other() -> None:
    """Its own fault may not keep a gate that would roll back from being heard."""
    evidence = replace(NOTHING, canary=Record(silent_candles=3), feed_problem="the feed is down")
    findings = judge_all((Broken(), Errors(), Silence()), evidence, Margins(pnl_r=0.1, win=0.1))

    assert {f.gate: f.verdict.value for f in findings} == {
        "freshness": "blind",
        "broken": "blind",
        "errors": "insufficient",
        "silence": "breach",
    }
    assert findings[0].reason == "the feed is down"
    assert findings[1].reason == "the gate itself failed: ZeroDivisionError: n"
    assert decide(PLAN, at(), findings, NOON).step is Step.ROLL_BACK
