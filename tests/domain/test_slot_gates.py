"""The gates on slots: harm, non-inferiority, divergence, and hard limits."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.gates.base import Finding, Gate, Margins, Verdict
from strategy_core.domain.gates.on_slots import Divergence, ExcessDrawdown, Harm, LosingStreak, NotWorse
from strategy_core.domain.live_trades import Fidelity
from strategy_core.domain.pair_noise import History
from strategy_core.domain.slot_ledger import Totals, add_slots, open_ledger
from strategy_core.domain.slots import Slots, slots
from tests.builders import HOUR, MONDAY
from tests.domain.facts import MARGINS, NOTHING

KNOWN = History(design_effect=1.0, design_effect_bound=1.0, provisional=False, win_noise=0.05, lost_share=0.02)


def judged(gate: Gate, pairs: Slots | None = None, margins: Margins = MARGINS, **facts: Any) -> Finding:
    evidence = replace(NOTHING, **{"history": KNOWN} | facts)
    if pairs is not None:
        after, _ = add_slots(open_ledger(evidence.history), pairs, evidence.history)
        evidence = replace(evidence, totals=after.totals)
    return gate.judge(evidence, margins)


def paired(canary_r: list[float], active_r: list[float], *, a_day: int = 10) -> Slots:
    rows = zip(canary_r, active_r, strict=True)
    return slots([(i // a_day, c, a, int(np.sign(c)), int(np.sign(a))) for i, (c, a) in enumerate(rows)])


@pytest.mark.parametrize("gate", [Harm(), NotWorse(), Divergence(), LosingStreak(), ExcessDrawdown()])
def test_nothing_at_all_passes_no_gate(gate: Gate) -> None:
    """Missing evidence does not advance a rollout."""
    assert judged(gate).verdict is Verdict.INSUFFICIENT


@pytest.mark.parametrize("field", ["relative", "sigmas"])
def test_a_limit_without_end_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        ExcessDrawdown(**{field: float("inf")})


class TestHarm:
    def test_a_canary_that_loses_what_the_active_wins_fails(self) -> None:
        finding = judged(Harm(), paired([-1.0] * 12, [1.0] * 12))

        assert finding.verdict is Verdict.FAIL
        assert finding.reason.startswith("the canary does harm: E reached ")
        assert finding.limit == pytest.approx(math.log10(125))

    def test_once_proven_it_stays_proven(self) -> None:
        """Ville's bound is of the highest that E ever was: a tick that came later judges no milder."""
        finding = judged(Harm(), paired([-1.0] * 12 + [1.0] * 100, [1.0] * 12 + [-1.0] * 100))

        assert finding.verdict is Verdict.FAIL

    def test_likely_harm_freezes_the_stage(self) -> None:
        finding = judged(Harm(), paired([-1.0] * 7, [1.0] * 7))

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.reason.startswith("harm is likely, the stage is frozen: E = ")

    def test_an_identical_version_passes_at_an_e_of_one(self) -> None:
        result = [1.0, -1.0, 0.5, -1.0] * 20
        finding = judged(Harm(), paired(result, result))

        assert finding.verdict is Verdict.PASS
        assert finding.value is not None
        assert finding.value < 0.2

    def test_it_says_when_its_design_effect_is_a_guess(self) -> None:
        assert "its design effect is provisional" in judged(Harm(), paired([1.0], [1.0]), history=History()).reason

    def test_an_outcome_that_is_no_number_is_blindness(self) -> None:
        with pytest.raises(EvidenceUnavailable, match="not a number"):
            judged(Harm(), totals=Totals(slots=1, log_e=math.nan, log_peak=math.nan))

    def test_overwhelming_harm_is_told_by_its_power(self) -> None:
        assert "E reached 10^" in judged(Harm(), paired([-1.0] * 200, [1.0] * 200)).reason


class TestNotWorse:
    def test_too_few_slots_are_insufficient(self) -> None:
        finding = judged(NotWorse(), paired([1.0] * 29, [1.0] * 29, a_day=5))

        assert finding.verdict is Verdict.INSUFFICIENT
        assert finding.reason == "29 of 30 slots on 6 of 3 days"

    def test_too_few_days_are_insufficient(self) -> None:
        assert judged(NotWorse(), paired([1.0] * 40, [1.0] * 40, a_day=20)).verdict is Verdict.INSUFFICIENT

    def test_an_identical_version_passes(self) -> None:
        result = [1.0, -1.0, 0.5, -1.0] * 20

        assert judged(NotWorse(), paired(result, result)).verdict is Verdict.PASS

    def test_a_version_that_may_be_better_or_worse_is_inconclusive(self) -> None:
        rng = np.random.default_rng(7)
        finding = judged(NotWorse(), paired(list(rng.normal(0, 2, 40)), list(rng.normal(0, 2, 40))))

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.low is not None
        assert finding.low < -0.15

    def test_of_two_that_pass_the_nearer_to_its_margin_is_told(self) -> None:
        result = [1.0, -1.0] * 500
        slightly_less = [0.9, -1.0] * 500
        finding = judged(NotWorse(), paired(slightly_less, result))

        assert finding.verdict is Verdict.PASS
        assert "R per slot" in finding.reason

    def test_its_bound_is_the_published_one(self) -> None:
        """s·sqrt(2(nρ²+1)/(nρ)²·ln(1 + sqrt(nρ²+1)/(2a))), ρ² = (-2 ln 2a + ln(1 - 2 ln 2a))/1250, by hand."""
        rho_squared = (4.605170 + 1.723690) / 1250
        by_hand = math.sqrt(2 * 11.12617 / (2000**2 * rho_squared) * math.log(1 + math.sqrt(11.12617) / 0.1))

        assert NotWorse().reach(2000, 1.0) == pytest.approx(by_hand, rel=1e-5)

    def test_days_that_move_together_widen_it(self) -> None:
        rng = np.random.default_rng(7)
        pairs = paired(list(rng.normal(0, 1, 400)), list(rng.normal(0, 1, 400)))
        low = judged(NotWorse(), pairs).low
        wider = judged(NotWorse(), pairs, history=KNOWN.model_copy(update={"design_effect": 3.0})).low

        assert low is not None
        assert wider is not None
        assert wider < low

    def test_a_profitable_active_version_gives_a_wider_margin(self) -> None:
        margins = Margins(pnl_r=0.02, win=0.06, pnl_of_edge=0.5)
        result = [1.0, -1.0] * 500
        slightly_less = [0.9, -1.0] * 500
        rich = KNOWN.model_copy(update={"edge": 0.4})

        assert judged(NotWorse(), paired(slightly_less, result), margins).verdict is Verdict.INCONCLUSIVE
        assert judged(NotWorse(), paired(slightly_less, result), margins, history=rich).verdict is Verdict.PASS

    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({"fidelity": Fidelity(concordance=0.4, n=30, live_r=-0.2, shadow_r=0.1)}, "concordance 0.40 on 30 slots"),
            ({"platform_problem": "the database refuses to work"}, "the database refuses to work; difference"),
        ],
    )
    def test_where_the_shadow_cannot_be_believed_nothing_is_proven(self, facts: dict[str, Any], said: str) -> None:
        result = [1.0, -1.0, 0.5, -1.0] * 20
        finding = judged(NotWorse(), paired(result, result), **facts)

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert said in finding.reason

    def test_live_results_that_agree_cast_no_doubt(self) -> None:
        result = [1.0, -1.0, 0.5, -1.0] * 20
        agree = Fidelity(concordance=0.9, n=30, live_r=0.1, shadow_r=0.1)

        assert judged(NotWorse(), paired(result, result), fidelity=agree).verdict is Verdict.PASS

    def test_doubt_never_weakens_what_has_not_passed(self) -> None:
        few = judged(NotWorse(), paired([1.0], [1.0]), platform_problem="down")

        assert few.verdict is Verdict.INSUFFICIENT


class TestDivergence:
    def test_a_canary_that_no_longer_says_what_it_said_freezes_the_stage(self) -> None:
        """One candle late: hardly a loss, and hardly one decision as it was."""
        late = slots([(i // 5, 0.0 if i % 2 else 1.0, 1.0 if i % 2 else 0.0, int(not i % 2), i % 2) for i in range(6)])
        finding = judged(Divergence(), late, history=KNOWN.model_copy(update={"unlike_share": 0.02}))

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.reason.endswith("unlike the active version on 100% of 6 slots, in shadow on 2%")
        assert finding.limit == pytest.approx(0.03)

    def test_one_that_differs_as_in_shadow_passes(self) -> None:
        often = slots([(i // 5, 1.0, 1.0, 1, 1 if i % 3 else -1) for i in range(300)])

        assert judged(Divergence(), often, history=KNOWN.model_copy(update={"unlike_share": 0.33})).verdict == "pass"

    def test_a_pair_without_a_history_is_given_the_benefit_of_the_doubt(self) -> None:
        always = slots([(i // 5, 1.0, 1.0, 1, -1) for i in range(20)])

        assert judged(Divergence(), always, history=History()).verdict is Verdict.PASS

    @pytest.mark.parametrize("share", [0.6, 0.7, 0.98])
    def test_a_pair_that_was_seldom_alike_cannot_diverge(self, share: float) -> None:
        always = slots([(i // 5, 1.0, 1.0, 1, -1) for i in range(400)])
        finding = judged(Divergence(), always, history=KNOWN.model_copy(update={"unlike_share": share}))

        assert (finding.verdict, finding.limit) == ("inconclusive" if share < 2 / 3 else "pass", 1.5 * share)

    @pytest.mark.full
    def test_twins_by_chance_are_hardly_ever_held(self) -> None:
        """At each of 400 looks: its error is bounded however often one looks."""
        rng = np.random.default_rng(11)
        history = KNOWN.model_copy(update={"unlike_share": 0.2})
        held = 0
        for _ in range(200):
            unlike = np.cumsum(rng.random(400) < 0.3)  # at what is just tolerated
            held += any(
                judged(Divergence(), totals=Totals(slots=n, unlike=int(unlike[n - 1])), history=history).verdict
                is Verdict.INCONCLUSIVE
                for n in range(1, 401, 4)
            )

        assert held <= 2


class TestLosingStreak:
    def test_eight_slots_won_by_the_active_and_lost_by_the_canary(self) -> None:
        finding = judged(LosingStreak(), paired([-1.0] * 8, [1.0] * 8))

        assert finding.verdict is Verdict.BREACH
        assert finding.limit == 8
        assert finding.reason.endswith("lost by the canary (limit 8)")

    def test_slots_that_close_together_may_pass_it_by_more_than_one(self) -> None:
        finding = judged(LosingStreak(), paired([-1.0] * 10, [1.0] * 10))

        assert finding.reason.endswith("(limit 8, passed by 2 that closed since the tick before)")

    def test_a_slot_that_both_lose_breaks_the_streak(self) -> None:
        finding = judged(LosingStreak(), paired([-1.0] * 15, [1.0] * 7 + [-1.0] + [1.0] * 7))

        assert finding.verdict is Verdict.PASS
        assert finding.value == 7

    def test_two_versions_that_often_differ_are_given_a_longer_one(self) -> None:
        """Independent ones: one loses what the other wins a quarter of the time, and ln(1e-7) / ln(1/4) = 11.6."""
        apart = KNOWN.model_copy(update={"lost_share": 0.25})

        assert judged(LosingStreak(), paired([-1.0] * 11, [1.0] * 11), history=apart).verdict is Verdict.PASS
        assert judged(LosingStreak(), paired([-1.0] * 12, [1.0] * 12), history=apart).verdict is Verdict.BREACH


class TestExcessDrawdown:
    def test_a_deep_drawdown_of_the_canary_alone_is_a_breach(self) -> None:
        finding = judged(ExcessDrawdown(), canary_drawdown=0.25, active_drawdown=0.0)

        assert finding.verdict is Verdict.BREACH
        assert finding.reason == "drawdown 25.00%, the active version's 0.00%, limit 20.00%"

    def test_it_says_at_which_candle_the_limit_was_passed_and_by_how_much(self) -> None:
        falls = [(MONDAY, 0.05), (MONDAY + HOUR, 0.189), (MONDAY + 2 * HOUR, 0.213)]
        passed = (
            "passed by 1.30 points at the candle that closed 2026-03-02 02:00 UTC, which fell from 18.90% to 21.30%"
        )

        finding = judged(ExcessDrawdown(), canary_drawdown=0.213, canary_falls=falls)
        late = judged(ExcessDrawdown(), canary_drawdown=0.34, canary_falls=[*falls, (MONDAY + 3 * HOUR, 0.34)])

        assert finding.reason == f"drawdown 21.30%, the active version's 0.00%, limit 20.00%; {passed}"
        assert late.reason.endswith(f"; {passed}, and deeper before this tick")

    def test_a_shock_to_both_is_none(self) -> None:
        assert judged(ExcessDrawdown(), canary_drawdown=0.4, active_drawdown=0.4).verdict is Verdict.PASS

    def test_an_active_version_without_trades_lost_nothing(self) -> None:
        assert judged(ExcessDrawdown(), canary_drawdown=0.25).verdict is Verdict.BREACH

    def test_noise_of_the_active_arm_widens_the_limit(self) -> None:
        wild = paired([6.0, -6.0] * 10, [6.0, -6.0] * 10)
        finding = judged(ExcessDrawdown(), wild, canary_drawdown=0.25, active_drawdown=0.0)

        assert finding.verdict is Verdict.PASS
        assert finding.limit == pytest.approx(4 * 0.01 * (20 * 36) ** 0.5)
