"""The verdict on a rollout in one sentence, and gates as owners read them."""

from typing import Any

import pytest

from strategy_core.domain.forecast import RolloutSubject
from strategy_core.domain.gates.base import Errors, Finding, Freshness, InvalidDecisions, Silence, Verdict
from strategy_core.domain.gates.on_live_orders import OrderErrors, RoutingAudit, SampleRatio
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import Divergence, ExcessDrawdown, Harm, LosingStreak, NotWorse
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import State
from strategy_core.domain.readings import gate_words, read_finding
from strategy_core.domain.rollout_verdict import (
    RolloutVerdict,
    VerdictKind,
    rollout_verdict,
)
from tests.domain.test_ramp import DAY, NOON, at

# 196 slots prove a margin of 0.15 R with a deviation of 0.68 R
HISTORY = History(slots=400, days=40, slots_per_day=10, design_effect=1, clipped=0, clipped_squares=400 * 0.68**2)


def verdict_of(*findings: Finding, doubt: str = "", **facts: Any) -> RolloutVerdict:
    return rollout_verdict(subject_with(**facts), findings, NOON, doubt=doubt)


def subject_with(**facts: Any) -> RolloutSubject:
    subject: dict[str, Any] = {
        "plan": Plan(),
        "at": at(),
        "version": "2.0.0",
        "control": "1.0.0",
        "started_at": NOON - 7 * DAY,
        "ended_at": None,
        "reason": "",
        "paused_by": "",
        "history": HISTORY,
        "slots": 69,
    }
    return RolloutSubject(**subject | facts)


def finding(gate: str, verdict: Verdict, reason: str = "because", **facts: Any) -> Finding:
    return Finding(gate=gate, verdict=verdict, reason=reason, **facts)


OPEN_ANSWER = finding("not_worse", Verdict.INCONCLUSIVE, "bound -0.2", value=0.1, low=-0.2, limit=-0.15, n=69)
PASSES = finding("not_worse", Verdict.PASS, "bound -0.1", value=0.1, low=-0.1, limit=-0.15, n=200)
FRESH = finding("freshness", Verdict.PASS)
LIKELY = finding("harm", Verdict.INCONCLUSIVE, "harm is likely, the stage is held: E = 12 against 100", n=69)
APPROVAL = Plan(approve_before=(10.0, 100.0))


@pytest.mark.parametrize(
    ("kind", "sentence", "findings", "facts"),
    [
        ("safe", "Safe so far: 69 of about 198 slots. Next stage in about 13 days.", [FRESH, OPEN_ANSWER], {}),
        ("safe", "Safe so far: 5 of about 198 slots. Next stage in about 19 days.", [OPEN_ANSWER], {"slots": 5}),
        (
            "safe",
            "Safe so far: 69 of about 198 slots. 10 %, after your approval, in about 13 days.",
            [OPEN_ANSWER],
            {"plan": APPROVAL},
        ),
        ("safe", "No sign of harm, and no proof yet: bound -0.2.", [OPEN_ANSWER], {"slots": 300}),
        (
            "safe",
            "Safe so far: 230 of about 507 slots. Next stage in about 8 days.",
            [PASSES.model_copy(update={"reason": "bound -0.1 R per slot"})],
            {"at": at(2), "slots": 230},
        ),
        ("safe", "Safe so far: every gate passes. Next stage in 18 h.", [PASSES], {"at": at(entered=NOON - DAY / 4)}),
        (
            "safe",
            "Safe so far: 69 slots.",
            [OPEN_ANSWER],
            {"history": HISTORY.model_copy(update={"alike_candles": 9, "slots_per_day": 1})},
        ),
        (
            "no_conclusion",
            "It earns less so far, which proves nothing yet: bound -0.2.",
            [OPEN_ANSWER.model_copy(update={"value": -0.4})],
            {},
        ),
        ("ready", "Every gate passes at 5 %. Next stage at the next tick.", [PASSES], {"slots": 300}),
        (
            "ready",
            "Every gate passes at 5 %. Next stage waits: frozen until 2026-03-04 00:00 UTC by anna: earnings.",
            [PASSES],
            {"slots": 300, "closed": "frozen until 2026-03-04 00:00 UTC by anna: earnings"},
        ),
        (
            "ready",
            "Every gate passes at 100 %. Promotion at the next tick.",
            [FRESH],
            {"at": at(4), "plan": Plan(gates=(Errors(),))},
        ),
        (
            "no_conclusion",
            "Nothing can be concluded yet: 5 of 30 slots, day 1 of at least 3. Next stage in about a day.",
            [finding("not_worse", Verdict.INSUFFICIENT, "5 of 30 slots, day 1 of at least 3", n=5)],
            {"slots": 5, "history": HISTORY.model_copy(update={"slots_per_day": 150})},
        ),
        (
            "no_conclusion",
            "Nothing can be concluded yet: silence has no data.",
            [finding("silence", Verdict.INSUFFICIENT, "no decision yet", value=0), PASSES],
            {},
        ),
        (
            "no_conclusion",
            "Nothing can be concluded yet: no candle yet.",
            [finding("freshness", Verdict.INSUFFICIENT, "no candle yet"), PASSES],
            {},
        ),
        ("not_judged", "Started at 5 %: no tick has judged it yet.", [], {}),
        (
            "held",
            "Held at 5 %, unlike in shadow: because. Look into it.",
            [finding("divergence", Verdict.INCONCLUSIVE, n=9), OPEN_ANSWER],
            {},
        ),
        (
            "held",
            "Held at 5 %: live results differ; bound -0.1. Look into it.",
            [PASSES.model_copy(update={"verdict": Verdict.INCONCLUSIVE, "reason": "live results differ; bound -0.1"})],
            {},
        ),
        (
            "held",
            "It cannot be promoted: SILVER excluded. Roll back, and start a version that serves all symbols.",
            [PASSES],
            {"at": at(4, excluded=("SILVER",))},
        ),
        ("harm_likely", "Harm is likely: roll back. E = 12 against 100.", [LIKELY], {"at": at(state=State.PAUSED)}),
        (
            "harm_proven",
            "The next tick rolls it back: losing streak: 8 in a row.",
            [finding("losing_streak", Verdict.BREACH, "8 in a row"), LIKELY],
            {},
        ),
        (
            "blind",
            "Blind since 2026-03-02 08:00 UTC: no candle. It is rolled back 2026-03-03 08:00 UTC unless this ends.",
            [finding("freshness", Verdict.BLIND, "no candle")],
            {"at": at(blind_since=NOON - DAY / 6)},
        ),
        (
            "paused",
            "Paused by anna: the broker is down. Resume it, or roll back.",
            [OPEN_ANSWER],
            {"at": at(state=State.PAUSED), "paused_by": "anna: the broker is down"},
        ),
        (
            "awaiting_decision",
            "No clear answer in the maximum time at 5 %: decide to extend, advance or roll back.",
            [OPEN_ANSWER],
            {"at": at(state=State.AWAITING_DECISION)},
        ),
        (
            "awaiting_approval",
            "Waits for your approval of 100 %: every gate passes, 69 slots.",
            [PASSES],
            {"at": at(3, state=State.AWAITING_APPROVAL)},
        ),
        (
            "baking",
            "2.0.0 is not worse than 1.0.0 within 0.07 R a slot. "
            "Promoted on 2026-02-28; bakes until 2026-03-07 12:00 UTC.",
            [OPEN_ANSWER],
            {"at": at(4, promoted_at=NOON - 2 * DAY)},
        ),
        (
            "baking",
            "2.0.0 passed every gate. Promoted on 2026-02-20; the next tick ends the bake.",
            [FRESH],
            {"at": at(4, promoted_at=NOON - 10 * DAY), "plan": Plan(gates=(Errors(),))},
        ),
        (
            "baking",
            "Promoted on 2026-02-20; the bake cannot end: up to date: no candle.",
            [finding("freshness", Verdict.INSUFFICIENT, "no candle")],
            {"at": at(4, promoted_at=NOON - 10 * DAY)},
        ),
    ],
)
def test_an_open_rollout_has_one_sentence(
    kind: str, sentence: str, findings: list[Finding], facts: dict[str, Any]
) -> None:
    found = verdict_of(*findings, **facts)

    assert (found.kind, found.sentence) == (kind, sentence)


@pytest.mark.parametrize(
    ("kind", "sentence", "place", "reason"),
    [
        ("rolled_back", "Rolled back at 5 %: harm: E reached 120.", at(state=State.ROLLED_BACK), "harm: E reached 120"),
        ("rolled_back", "Rolled back at 5 %: by anna: odd.", at(state=State.ROLLED_BACK), "by anna: odd"),
        (
            "rolled_back",
            "Rolled back after its promotion: no reason given.",
            at(4, state=State.ROLLED_BACK, promoted_at=NOON),
            "",
        ),
        ("aborted", "Ended at 5 %: 3 activated by anna.", at(state=State.ABORTED), "3 activated by anna"),
        (
            "promoted",
            "Promoted without its last gates: 2.0.0 activated by anna.",
            at(state=State.COMPLETED),
            "2.0.0 activated by anna",
        ),
        (
            "promoted",
            "2.0.0 is not worse than 1.0.0 within 0.07 R a slot. Promoted on 2026-03-02, and has baked.",
            at(4, state=State.COMPLETED, promoted_at=NOON),
            "baked",
        ),
    ],
)
def test_an_ended_rollout_says_how_it_ended(kind: str, sentence: str, place: Any, reason: str) -> None:
    found = verdict_of(at=place, ended_at=NOON, reason=reason)

    assert (found.kind, found.sentence, found.days_left) == (kind, sentence, None)
    assert not found.needs_owner


def test_no_days_are_given_where_the_clocks_disagree() -> None:
    found = verdict_of(OPEN_ANSWER, doubt="the clock is an hour behind")

    assert (found.kind, found.days_left) == (VerdictKind.UNCLEAR, None)
    assert found.sentence == "No time can be given: the clock is an hour behind."
    assert found.needs_owner


def test_the_minimum_time_counts_where_slots_are_enough() -> None:
    assert verdict_of(OPEN_ANSWER, slots=300, at=at(entered=NOON - DAY / 2)).days_left == pytest.approx(0.5)
    assert verdict_of(OPEN_ANSWER, slots=5, history=History()).days_left is None
    hours = verdict_of(OPEN_ANSWER, slots=190, started_at=NOON - 7 * DAY)
    assert hours.sentence.endswith("Next stage in about 8 h.")


METRIC = MetricThreshold(metric="slippage", query="slippage", maximum=3)
E_LIMIT = {"value": 0.5, "limit": 2.0, "n": 9}


@pytest.mark.parametrize(
    ("gate", "verdict", "reason", "facts", "shown"),
    [
        (Freshness(), "pass", "decided up to now", {}, ("pass", "—", "—", "—")),
        (Errors(), "insufficient", "no decision yet", {"value": 0}, ("no data", "—", "—", "—")),
        (
            Errors(),
            "pass",
            "1 errors",
            {"value": 0.2, "limit": 0.05, "n": 5},
            ("pass", "20.0%", "5.0% from 50 decisions", "5 decisions"),
        ),
        (
            Errors(),
            "breach",
            "3 errors in a row",
            {"value": 3, "limit": 3, "n": 60},
            ("breach", "3 in a row", "3 in a row", "60 decisions"),
        ),
        (InvalidDecisions(), "pass", "valid", {"value": 0, "limit": 1, "n": 9}, ("pass", "0", "1", "9 decisions")),
        (
            Silence(),
            "pass",
            "silent",
            {"value": 1, "limit": 3, "n": 9},
            ("pass", "1 candles", "3 candles", "9 decisions"),
        ),
        (
            LosingStreak(),
            "pass",
            "",
            {"value": 2, "limit": 12, "n": 9},
            ("pass", "2 in a row", "12 in a row", "9 slots"),
        ),
        (ExcessDrawdown(), "pass", "", {"value": 0.04, "limit": 0.2, "n": 0}, ("pass", "4.0%", "20.0%", "—")),
        (Harm(), "pass", "", E_LIMIT, ("pass", "E 3.16", "E 100", "9 slots")),
        (Harm(), "fail", "", E_LIMIT | {"value": 7.0}, ("fail", "E 10^7.0", "E 100", "9 slots")),
        (Divergence(), "pass", "unlike, E = 3.16 against 100", E_LIMIT, ("pass", "E 3.16", "E 100", "9 slots")),
        (Divergence(), "pass", "unlike on 40%", {"value": 0.4, "limit": 0.02, "n": 9}, ("pass", "—", "—", "9 slots")),
        (
            NotWorse(),
            "insufficient",
            "5 of 30 slots, day 4 of at least 3",
            {"value": 5, "limit": 30, "n": 5},
            ("insufficient", "—", "—", "5 of 30 slots, day 4 of at least 3"),
        ),
        (
            NotWorse(),
            "pass",
            "R per slot",
            {"value": 0.1, "limit": -0.15, "low": -0.1, "n": 50},
            ("pass", "at least -0.100 R a slot", "above -0.150", "50 slots"),
        ),
        (
            NotWorse(),
            "inconclusive",
            "of slots won",
            {"value": 0.1, "limit": -0.1, "low": -0.2, "n": 50},
            ("inconclusive", "at least -0.200 of slots", "above -0.100", "50 slots"),
        ),
        (
            NotWorse(),
            "inconclusive",
            "its own",
            {"value": -0.3, "limit": -0.2, "n": 50},
            ("inconclusive", "-0.300 R a slot", "above -0.200", "50 slots"),
        ),
        (
            NotWorse(),
            "pass",
            "both did the same",
            {"value": 0, "limit": 0, "low": 0, "n": 0},
            ("pass", "both did the same", "—", "—"),
        ),
        (OrderErrors(), "pass", "no live orders", {}, ("no data", "—", "—", "—")),
        (OrderErrors(), "pass", "of an earlier release", {"value": 1, "limit": 1000}, ("no data", "—", "—", "—")),
        (OrderErrors(), "pass", "", {"value": 1.2, "limit": 1000, "n": 40}, ("pass", "E 1.2", "E 1,000", "40 orders")),
        (SampleRatio(), "pass", "", {"value": 1.2, "limit": 1000, "n": 40}, ("pass", "E 1.2", "E 1,000", "40 users")),
        (RoutingAudit(), "pass", "", {"value": 0, "limit": 1, "n": 40}, ("pass", "0", "1", "40 orders")),
        (METRIC, "pass", "", {"value": 2.5, "limit": 3, "n": 40}, ("pass", "2.5", "at most 3", "40 samples")),
        (
            METRIC,
            "insufficient",
            "",
            {"value": 2.5, "limit": 3, "n": 2},
            ("insufficient", "2.5", "at most 3", "2 of 5 samples"),
        ),
    ],
)
def test_a_gate_is_shown_beside_the_value_at_which_its_verdict_changes(
    gate: Any, verdict: str, reason: str, facts: dict[str, float], shown: tuple[str, ...]
) -> None:
    found = read_finding(gate, finding(gate.name, Verdict(verdict), reason, **facts))

    assert (found.verdict, found.value, found.limit, found.count) == shown
    assert found.holds == (verdict != "pass")


@pytest.mark.parametrize(
    ("slots", "needed", "progress"),
    [(9, 30, "9 of about 30 slots"), (1_050, 30, "1,050 slots, about 30 needed"), (9, None, "")],
)
def test_progress_beyond_the_need_is_no_share_of_it(slots: int, needed: int | None, progress: str) -> None:
    assert RolloutVerdict(VerdictKind.SAFE, "", slots, needed).progress == progress


@pytest.mark.parametrize("word", ["held", "frozen"])
def test_likely_harm_is_read_in_the_words_of_this_and_earlier_releases(word: str) -> None:
    reason = f"harm is likely, the stage is {word}: E = 12 against 100 ({word} from 10)"

    found = verdict_of(finding("harm", Verdict.INCONCLUSIVE, reason, n=69))

    assert found.sentence == "Harm is likely: roll back. E = 12 against 100."


def test_every_gate_has_a_plain_name_and_help() -> None:
    words = gate_words()

    assert {gate.kind for gate in Plan().gates} | {"freshness", "metric"} == set(words)
    assert all(title and line.endswith(".") for title, line in words.values())
    shown = read_finding(METRIC, finding("metric:slippage", Verdict.PASS, n=9, armed=False))
    assert (shown.title, shown.shown_verdict, shown.holds) == ("metric slippage", "pass (no vote)", False)


def test_a_rollout_that_an_owner_or_a_gate_holds_has_no_times_ahead() -> None:
    held = verdict_of(FRESH, LIKELY)
    paused = verdict_of(OPEN_ANSWER, at=at(state=State.PAUSED))
    climbs = verdict_of(OPEN_ANSWER)

    assert [(each.days_left, each.end_days, each.entries) for each in (held, paused)] == [(None, None, {})] * 2
    assert climbs.end_days == pytest.approx((climbs.entries[5] - NOON + Plan().bake) / DAY)


def test_where_every_gate_passes_the_stage_needs_no_more_slots() -> None:
    early = verdict_of(PASSES, at=at(entered=NOON - DAY / 4))
    waits = verdict_of(PASSES, plan=APPROVAL, at=at(state=State.AWAITING_APPROVAL))

    assert early.days_left == pytest.approx(0.75)
    assert waits.days_left == 0.0
