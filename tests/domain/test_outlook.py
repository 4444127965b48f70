"""The outlook of a rollout, compared with the ruling of the next tick."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.gates.base import Errors, Finding, Silence, Verdict
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import ENDED, Position, State, Step, decide, outlook
from tests.domain.test_ramp import DAY, NOON, at

HOUR = timedelta(hours=1)
PLAN = Plan(gates=(Errors(), Silence(dry_run=True)))
OPEN = sorted(set(State) - ENDED)


def said(verdict: Verdict, gate: str = "errors", *, armed: bool = True) -> Finding:
    return Finding(gate=gate, verdict=verdict, reason=f"because {verdict}", armed=armed)


def needs(place: Position, *findings: Finding) -> list[str]:
    return list(outlook(PLAN, place, findings, NOON).needs)


def test_time_verdicts_and_approval_are_told_in_that_order() -> None:
    place = at(3, entered=NOON - 6 * HOUR)

    assert needs(place, said(Verdict.INSUFFICIENT), said(Verdict.INCONCLUSIVE, "freshness")) == [
        "the stage's minimum time lasts another 18 h, until 2026-03-03 06:00 UTC",
        '"up to date" must pass, it is inconclusive: because inconclusive',
        '"errors" must pass, it is insufficient: because insufficient',
        "an owner must then approve 100 %",
    ]


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (at(0), "nothing: the next tick advances it to 10 %"),
        (at(4), "nothing: the next tick promotes it"),
        (at(3, approved_stage=4), "nothing: the next tick advances it to 100 %"),
        (at(4, promoted_at=NOON - 7 * DAY), "nothing: the next tick completes it"),
        (at(3, state=State.AWAITING_APPROVAL), "an owner must now approve 100 %"),
        (at(4, promoted_at=NOON - 6 * DAY), "the bake lasts another 24 h, until 2026-03-03 12:00 UTC"),
        (at(0, state=State.AWAITING_DECISION), "an owner must decide: extend, advance or roll back"),
        (
            at(0, entered=NOON, state=State.PAUSED),
            "an owner must resume it; the stage's minimum time then restarts",
        ),
    ],
)
def test_one_thing_is_missing(place: Position, line: str) -> None:
    assert needs(place, said(Verdict.PASS)) == [line]


def test_a_bake_that_cannot_end_says_why() -> None:
    place = at(4, promoted_at=NOON - 8 * DAY)

    missing = needs(place, said(Verdict.INSUFFICIENT, "freshness"))

    assert missing == ['"up to date" must pass, it is insufficient: because insufficient']


def test_a_gate_that_no_tick_has_asked_is_named() -> None:
    assert needs(at(0)) == ['"errors" must pass: no tick has judged it yet']


@pytest.mark.parametrize(("since", "line"), [(None, "in 24 h"), (NOON - 20 * HOUR, "in 4 h, at 2026-03-02 16:00")])
def test_the_blind_are_told_when_it_ends(since: Any, line: str) -> None:
    first, second, *_ = needs(at(0, blind_since=since), said(Verdict.PASS), said(Verdict.BLIND, "freshness"))

    assert first == '"up to date" needs evidence again: because blind'
    assert second.startswith(f"otherwise it is rolled back {line}")


def test_the_blind_limit_over_is_the_next_ticks() -> None:
    place = at(0, state=State.AWAITING_DECISION, blind_since=NOON - 2 * DAY)

    assert needs(place, said(Verdict.BLIND)) == [
        '"errors" needs evidence again: because blind',
        "otherwise it is rolled back at the next tick",
        "an owner must decide: extend, advance or roll back",
    ]


@pytest.mark.parametrize("verdict", [Verdict.BREACH, Verdict.FAIL])
def test_harm_is_all_that_is_said(verdict: Verdict) -> None:
    place = at(0, entered=NOON, state=State.PAUSED)

    assert needs(place, said(Verdict.BLIND), said(verdict, "silence")) == [
        f"the next tick rolls it back: silence: because {verdict}"
    ]


def test_a_gate_without_a_vote_is_waited_for_by_nobody() -> None:
    findings = [said(Verdict.PASS), said(Verdict.BREACH, "silence", armed=False)]

    assert needs(at(0), *findings) == ["nothing: the next tick advances it to 10 %"]


@pytest.mark.parametrize(
    ("place", "minimum", "maximum"),
    [
        (at(0, entered=NOON - 6 * HOUR), 18 * HOUR, 60 * DAY - 6 * HOUR),
        (at(0, entered=NOON - 70 * DAY), 0 * HOUR, 0 * HOUR),
        (at(0, entered=NOON - 70 * DAY, stage_extended_at=NOON - DAY), 0 * HOUR, 59 * DAY),
        (at(0, entered=NOON - 70 * DAY, state=State.AWAITING_DECISION), 0 * HOUR, None),
        (at(4, promoted_at=NOON - DAY), 6 * DAY, None),
    ],
)
def test_the_time_left_counts_from_stored_times(place: Position, minimum: Any, maximum: Any) -> None:
    found = outlook(PLAN, place, [said(Verdict.PASS)], NOON)

    assert (found.minimum_left, found.maximum_left) == (minimum, maximum)


@pytest.mark.parametrize("state", sorted(ENDED))
def test_what_has_ended_waits_for_nothing(state: State) -> None:
    found = outlook(PLAN, at(0, state=state), [said(Verdict.BREACH)], NOON)

    assert (found.minimum_left, found.maximum_left, found.needs) == (None, None, ())


@given(
    verdict=st.sampled_from(Verdict),
    other=st.sampled_from(Verdict),
    state=st.sampled_from(OPEN),
    stage=st.integers(0, 4),
    hours=st.integers(0, 24 * 59),
    approved=st.one_of(st.none(), st.integers(0, 5)),
    blind_hours=st.one_of(st.none(), st.integers(0, 48)),
    promoted=st.booleans(),
)
def test_it_says_nothing_is_missing_exactly_when_the_ruling_goes_on(
    verdict: Verdict,
    other: Verdict,
    state: State,
    stage: int,
    hours: int,
    approved: int | None,
    blind_hours: int | None,
    promoted: bool,
) -> None:
    """Outlook and ruling are separate code, and this test keeps them consistent."""
    entered = NOON - timedelta(hours=hours)
    blind_since = None if blind_hours is None else NOON - timedelta(hours=blind_hours)
    place = at(
        4 if promoted else stage,
        entered=entered,
        state=state,
        approved_stage=approved,
        blind_since=blind_since,
        promoted_at=entered if promoted else None,
    )
    findings = [said(verdict), said(other, "freshness")]

    lines = outlook(PLAN, place, findings, NOON).needs
    step = decide(PLAN, place, findings, NOON).step

    assert lines[0].startswith("nothing: ") == (step in (Step.ADVANCE, Step.PROMOTE, Step.COMPLETE))
    if step is Step.AWAIT_APPROVAL:
        assert [line.replace("now", "then") for line in lines] == ["an owner must then approve 100 %"]
    if step is Step.ROLL_BACK:
        assert "rolls it back" in lines[0] or "otherwise it is rolled back at the next tick" in lines
