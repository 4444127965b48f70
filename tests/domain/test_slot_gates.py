"""The gates on slots: harm, wins, non-inferiority, divergence, and hard limits."""

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import log_ndtr

from strategy_core.domain.calibration import CalibrationCase
from strategy_core.domain.eprocess import BY_SYMBOL
from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Record
from strategy_core.domain.gates.base import Finding, Gate, Margins, Verdict
from strategy_core.domain.gates.on_slots import (
    OWN_MARGINS,
    SLOTS_FACTOR,
    Divergence,
    ExcessDrawdown,
    Harm,
    LosingStreak,
    NotWorse,
    WinRate,
    judge_watch,
)
from strategy_core.domain.live_trades import Fidelity
from strategy_core.domain.pair_noise import CLIP_UNITS, History, measure
from strategy_core.domain.plan import Plan
from strategy_core.domain.simulation import SCENARIOS
from strategy_core.domain.slot_ledger import Totals, add_slots, open_ledger
from strategy_core.domain.slots import Slots, slots
from tests.builders import HOUR, MONDAY
from tests.domain.facts import MARGINS, NOTHING

KNOWN = History(
    design_effect=1.0,
    design_effect_bound=1.0,
    win_effect_bound=1.0,
    unlike_effect=1.0,
    provisional=False,
    win_noise=0.05,
    lost_share=0.02,
)


def judged(gate: Gate, pairs: Slots | None = None, margins: Margins = MARGINS, **facts: Any) -> Finding:
    evidence = replace(NOTHING, **{"history": KNOWN} | facts)
    if pairs is not None:
        after, _ = add_slots(open_ledger(evidence.history), pairs, evidence.history)
        evidence = replace(evidence, totals=after.totals)
    return gate.judge(evidence, margins)


def paired(canary_r: list[float], active_r: list[float], *, a_day: int = 10) -> Slots:
    rows = zip(canary_r, active_r, strict=True)
    return slots([(i // a_day, c, a, int(np.sign(c)), int(np.sign(a))) for i, (c, a) in enumerate(rows)])


def totals_of(**numbers: float) -> Totals:
    return replace(Totals(slots=50), **numbers)  # type: ignore[arg-type]  # all of them are float


@pytest.mark.parametrize("gate", [Harm(), WinRate(), NotWorse(), Divergence(), LosingStreak(), ExcessDrawdown()])
def test_nothing_at_all_passes_no_gate(gate: Gate) -> None:
    """Missing evidence does not advance a rollout."""
    assert judged(gate).verdict is Verdict.INSUFFICIENT


@pytest.mark.parametrize("field", ["relative", "sigmas"])
def test_a_limit_without_end_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        ExcessDrawdown(**{field: float("inf")})


class TestHarm:
    def test_a_canary_that_loses_what_the_active_wins_fails(self) -> None:
        finding = judged(Harm(), paired([-1.0] * 25, [1.0] * 25))

        assert finding.verdict is Verdict.FAIL
        assert finding.reason.startswith("the canary earns less: E reached ")
        assert "-50.0 R in 25 slots (-50.0% of equity)" in finding.reason
        assert finding.limit == pytest.approx(2.0)

    def test_once_proven_it_stays_proven(self) -> None:
        """Ville's bound is of the highest that E ever was: a tick that came later judges no milder."""
        finding = judged(Harm(), paired([-1.0] * 25 + [1.0] * 100, [1.0] * 25 + [-1.0] * 100))

        assert finding.verdict is Verdict.FAIL

    @pytest.mark.parametrize(("e", "verdict"), [(9.9, "pass"), (10.1, "inconclusive"), (99.0, "inconclusive")])
    def test_likely_harm_freezes_the_stage(self, e: float, verdict: str) -> None:
        finding = judged(Harm(), totals=totals_of(log_e=math.log(e), log_peak=math.log(e)))

        assert finding.verdict == verdict
        assert finding.reason.startswith("harm is likely, the stage is held: E = ") is (verdict == "inconclusive")

    def test_the_stage_thaws_when_harm_is_likely_no_more(self) -> None:
        assert judged(Harm(), totals=totals_of(log_e=0.0, log_peak=math.log(50))).verdict is Verdict.PASS

    @pytest.mark.parametrize(("e", "e_wins", "verdict"), [(10, 200, "fail"), (9, 200, "pass"), (10, 199, "pass")])
    def test_lost_wins_confirm_what_money_makes_likely(self, e: float, e_wins: float, verdict: str) -> None:
        """Both at their highest, whenever that was."""
        facts = {"log_peak": math.log(e) + 1e-9, "log_win_peak": math.log(e_wins) + 1e-9}
        finding = judged(Harm(), totals=totals_of(**facts))

        assert finding.verdict == verdict
        assert ("and E on wins 200" in finding.reason) is (verdict == "fail")

    def test_fewer_wins_alone_roll_nothing_back(self) -> None:
        """Every second win is lost, and the others are three times as large."""
        pairs = paired([3.5, -1.0] * 200, [1.0, 1.0] * 200)
        finding = judged(Harm(), pairs, history=measure(pairs, 40))

        assert finding.verdict is Verdict.PASS
        assert judged(WinRate(), pairs, history=measure(pairs, 40)).verdict is Verdict.FAIL

    def test_an_identical_version_passes_at_an_e_of_one(self) -> None:
        result = [1.0, -1.0, 0.5, -1.0] * 20
        finding = judged(Harm(), paired(result, result))

        assert finding.verdict is Verdict.PASS
        assert finding.value is not None
        assert finding.value < 0.2

    @pytest.mark.parametrize(("share", "named"), [(0.6, True), (0.4, False)])
    def test_a_symbol_with_half_of_the_evidence_is_named(self, share: float, named: bool) -> None:
        """*share* of E is the wealth of the bets on the second of three symbols."""
        three = KNOWN.model_copy(update={"symbols": ("GOLD", "OIL", "SILVER")})
        totals = replace(totals_of(log_e=2.0, log_symbol=2.0 + math.log(share * 3 / BY_SYMBOL)), symbol=1)

        assert judged(Harm(), totals=totals, history=three).reason.endswith("of equity), mostly on OIL") is named
        assert "mostly" not in judged(Harm(), totals=totals).reason  # a pair with one symbol

    def test_one_dead_symbol_of_ten_is_named_and_a_fault_of_all_is_not(self) -> None:
        for name, named in (("one_dead_symbol_of_ten", True), ("every_trade_loses", False)):
            history, ramp = CalibrationCase(Plan(), SCENARIOS[name], 20).draw(1, 1)
            finding = judged(Harm(), ramp.slots.take(slice(0, 1_500)), history=history)

            assert finding.verdict is Verdict.FAIL
            assert ("mostly on S0" in finding.reason) is named

    def test_it_says_when_its_design_effect_is_a_guess(self) -> None:
        assert "its design effect is provisional" in judged(Harm(), paired([1.0], [1.0]), history=History()).reason

    def test_an_outcome_that_is_no_number_is_blindness(self) -> None:
        with pytest.raises(EvidenceUnavailable, match="not a number"):
            judged(Harm(), totals=Totals(slots=1, log_e=math.nan, log_peak=math.nan))

    def test_overwhelming_harm_is_told_by_its_power(self) -> None:
        assert "E reached 10^" in judged(Harm(), paired([-1.0] * 200, [1.0] * 200)).reason


class TestWinRate:
    def test_lost_wins_fail_whatever_the_money(self) -> None:
        pairs = paired([5.0, -1.0] * 100, [1.0, 1.0] * 100)
        finding = judged(WinRate(), pairs)

        assert finding.verdict is Verdict.FAIL
        assert finding.reason.startswith(
            "the canary wins less often: win rate -50.0 points against the active version, E reached 10^"
        )
        assert finding.limit == pytest.approx(math.log10(200))
        assert finding.n == 200

    def test_once_proven_it_stays_proven(self) -> None:
        peak = math.log(1 / 0.005) + 1e-9

        assert judged(WinRate(), totals=totals_of(log_win_peak=peak)).verdict is Verdict.FAIL
        assert judged(WinRate(), totals=totals_of(log_win_peak=peak - 1e-6)).verdict is Verdict.PASS

    def test_large_losses_among_as_many_wins_pass(self) -> None:
        finding = judged(WinRate(), paired([1.0, -9.0] * 50, [1.0, -1.0] * 50))

        assert finding.verdict is Verdict.PASS
        assert finding.reason == "win rate +0.0 points against the active version, E = 1"

    def test_an_outcome_that_is_no_number_is_blindness(self) -> None:
        with pytest.raises(EvidenceUnavailable, match="not a number"):
            judged(WinRate(), totals=Totals(slots=1, log_win_peak=math.nan))

    def test_in_the_default_plan_it_has_no_vote(self) -> None:
        (gate,) = (gate for gate in Plan().gates if isinstance(gate, WinRate))
        finding = judged(gate, paired([-1.0] * 40, [1.0] * 40))

        assert (finding.verdict, finding.armed) == (Verdict.FAIL, False)


ALIKE = [1.0, -1.0, 0.5, -1.0]


class TestNotWorse:
    """On the slots of the rollout alone, as without slots in shadow."""

    def test_too_few_slots_are_insufficient(self) -> None:
        finding = judged(NotWorse(), paired([1.0] * 29, [1.0] * 29, a_day=5))

        assert finding.verdict is Verdict.INSUFFICIENT
        assert finding.reason == "29 of 30 slots, day 6 of at least 3"

    def test_too_few_days_are_insufficient(self) -> None:
        assert judged(NotWorse(), paired([1.0] * 40, [1.0] * 40, a_day=20)).verdict is Verdict.INSUFFICIENT

    def test_an_identical_version_passes(self) -> None:
        assert judged(NotWorse(), paired(ALIKE * 20, ALIKE * 20)).verdict is Verdict.PASS

    def test_a_version_that_may_be_better_or_worse_is_inconclusive(self) -> None:
        rng = np.random.default_rng(7)
        finding = judged(NotWorse(), paired(list(rng.normal(0, 2, 40)), list(rng.normal(0, 2, 40))))

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.low is not None
        assert finding.low < -0.15

    def test_days_that_move_together_widen_it(self) -> None:
        rng = np.random.default_rng(7)
        pairs = paired(list(rng.normal(0, 1, 400)), list(rng.normal(0, 1, 400)))
        low = judged(NotWorse(), pairs).low
        wider = judged(NotWorse(), pairs, history=KNOWN.model_copy(update={"design_effect": 3.0})).low

        assert low is not None
        assert wider is not None
        assert wider < low

    def test_few_large_trades_do_not_widen_the_bound(self) -> None:
        """Gains and losses of 40 R in turn: clipped at three units, they hardly count."""
        rng = np.random.default_rng(7)
        d = rng.normal(0, 0.2, 1_000)
        d[::100] = [40.0, -40.0] * 5
        finding = judged(NotWorse(), paired(list(1 + d), [1.0] * 1_000))

        assert finding.verdict is Verdict.PASS
        assert finding.low is not None
        assert finding.low > -0.1

    def test_large_losses_cannot_hide_behind_the_clip(self) -> None:
        """One trade of a hundred loses 40 R. Clipped, the mean would lie above the margin."""
        d = np.full(1_000, 0.15)
        d[::100] = -40.0
        finding = judged(NotWorse(), paired(list(1 + d), [1.0] * 1_000))
        clipped = np.clip(d, -CLIP_UNITS, CLIP_UNITS)

        assert clipped.mean() > 0.05
        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.value == pytest.approx(d.mean())
        assert finding.low is not None
        assert finding.low < d.mean() - 0.3  # nothing is clipped: the bound is as wide as these losses make it

    def test_large_gains_do_not_raise_the_mean(self) -> None:
        d = np.full(1_000, -0.2)
        d[::100] = 40.0
        finding = judged(NotWorse(), paired(list(1 + d), [1.0] * 1_000))

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.value == pytest.approx(np.clip(d, -CLIP_UNITS, CLIP_UNITS).mean())

    def test_large_losses_in_shadow_are_not_forgotten(self) -> None:
        """The rollout had large gains alone so far. After such a shadow they are not clipped, and widen the bound."""
        healthy = KNOWN.model_copy(update={"slots": 500, "slots_per_day": 100.0})
        lossy = healthy.model_copy(update={"d": -2_000.0, "cut_squares": 6_000.0})
        d = np.zeros(400)
        d[::20] = 10.0
        pairs = paired(list(1 + d), [1.0] * 400)
        clipped, whole = (judged(NotWorse(), pairs, Margins(pnl_r=0.15), history=each) for each in (healthy, lossy))

        assert clipped.low is not None
        assert whole.low is not None
        assert whole.value == clipped.value  # the mean is the lower one, with or without
        assert whole.low < clipped.low - 0.1

    def test_a_profitable_active_version_gives_a_wider_margin(self) -> None:
        margins = Margins(pnl_r=0.02, pnl_of_edge=0.5)
        slightly_less = paired([0.9, -1.0] * 500, [1.0, -1.0] * 500)
        rich = KNOWN.model_copy(update={"edge": 0.4})

        assert judged(NotWorse(), slightly_less, margins).verdict is Verdict.INCONCLUSIVE
        assert judged(NotWorse(), slightly_less, margins, history=rich).verdict is Verdict.PASS

    def test_wins_are_judged_only_if_the_plan_says_so(self) -> None:
        """It loses every fifth win, and the others are larger: as much money, fewer wins."""
        pairs = paired([1.5, 1.5, 1.5, 1.5, -1.0] * 400, [1.0] * 2_000)
        money_only, both = Margins(pnl_r=0.15), Margins(pnl_r=0.15, win=0.06)
        finding = judged(NotWorse(), pairs, both)

        assert judged(NotWorse(), pairs, money_only).verdict is Verdict.PASS
        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.reason.startswith("difference -0.200 of slots won, lower bound -0.2")

    def test_of_two_that_pass_the_nearer_to_its_margin_is_told(self) -> None:
        finding = judged(NotWorse(), paired([0.9, -1.0] * 500, [1.0, -1.0] * 500), Margins(pnl_r=0.15, win=0.06))

        assert finding.verdict is Verdict.PASS
        assert "R per slot" in finding.reason

    @pytest.mark.parametrize(
        ("facts", "said"),
        [
            ({"fidelity": Fidelity(concordance=0.4, n=30, live_r=-0.2, shadow_r=0.1)}, "concordance 0.40 on 30 slots"),
            ({"platform_problem": "the database refuses to work"}, "the database refuses to work; difference"),
        ],
    )
    def test_where_the_shadow_cannot_be_believed_nothing_is_proven(self, facts: dict[str, Any], said: str) -> None:
        finding = judged(NotWorse(), paired(ALIKE * 20, ALIKE * 20), **facts)

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert said in finding.reason

    def test_live_results_that_agree_cast_no_doubt(self) -> None:
        agree = Fidelity(concordance=0.9, n=30, live_r=0.1, shadow_r=0.1)

        assert judged(NotWorse(), paired(ALIKE * 20, ALIKE * 20), fidelity=agree).verdict is Verdict.PASS

    def test_doubt_never_weakens_what_has_not_passed(self) -> None:
        few = judged(NotWorse(), paired([1.0], [1.0]), platform_problem="down")

        assert few.verdict is Verdict.INSUFFICIENT


class TestReach:
    """The distance of the bound below the mean."""

    def test_it_is_the_published_one(self) -> None:
        """s·sqrt(2(nρ²+1)/(nρ)²·ln(1 + sqrt(nρ²+1)/(2a))), ρ² = (-2 ln 2a + ln(1 - 2 ln 2a))/1250, by hand."""
        rho_squared = (4.605170 + 1.723690) / 1250
        by_hand = math.sqrt(2 * 11.12617 / (2000**2 * rho_squared) * math.log(1 + math.sqrt(11.12617) / 0.1))

        assert NotWorse().reach(2000, 1.0, 1250) == pytest.approx(by_hand, rel=1e-5)
        assert NotWorse().reach(2000, 3.0, 1250) == pytest.approx(3 * by_hand, rel=1e-5)

    @pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
    @pytest.mark.parametrize("n", [10, 200, 5_000])
    def test_it_is_hardly_wider_than_the_exact_boundary_and_never_narrower(self, n: int, confidence: float) -> None:
        """The exact one-sided normal mixture of Robbins (1970), solved for the sum at which its wealth is 1/a.

        With V = n and weight 1/ρ² of the prior: 2·sqrt(p / (V + p))·exp(S² / (2(V + p)))·Φ(S / sqrt(V + p)) = 1/a.
        """
        tuned_for, a = 500, 1 - confidence
        rho_squared = (-2 * math.log(2 * a) + math.log(1 - 2 * math.log(2 * a))) / tuned_for
        prior = 1 / rho_squared

        def excess(total: float) -> float:
            z = total / math.sqrt(n + prior)
            log_wealth = math.log(2) + 0.5 * math.log(prior / (n + prior)) + z**2 / 2 + float(log_ndtr(z))
            return log_wealth + math.log(a)

        exact = float(brentq(excess, 0.0, 100 * math.sqrt(n + prior))) / n
        found = NotWorse(confidence=confidence).reach(n, 1.0, tuned_for)

        assert exact <= found <= 1.05 * exact

    def test_it_is_tightest_where_it_is_tuned(self) -> None:
        """Against the same bound that is tuned for fewer or more slots."""
        reach = [NotWorse().reach(800, 1.0, tuned_for) for tuned_for in (100, 800, 6_400)]

        assert reach[1] == min(reach)

    @pytest.mark.full
    @pytest.mark.parametrize("df", [2.2, 3.0, 1e9])
    def test_at_all_looks_together_it_misses_the_true_mean_in_at_most_one_of_twenty(self, df: float) -> None:
        """Two seconds, over two thousand paths of Student t and a look after each slot from the thirtieth on."""
        x = np.random.default_rng(13).standard_t(df, (2_000, 2_000))
        n = np.arange(1, x.shape[1] + 1)
        mean = np.cumsum(x, axis=1) / n
        deviation = np.sqrt(np.cumsum(x**2, axis=1) / n - mean**2)
        reach = np.array([NotWorse().reach(int(each), 1.0, 300) for each in n])
        missed = (mean - deviation * reach > 0)[:, 29:].any(axis=1)

        assert 0.01 < missed.mean() <= 0.05  # neither too narrow nor far too wide

    def test_a_plan_may_say_for_how_many_slots_it_is_tuned(self) -> None:
        pairs = paired(list(np.linspace(-1, 1, 500)), [0.0] * 500)
        lows = [judged(NotWorse(tuned_for=tuned), pairs).low for tuned in (10, 500)]

        assert lows[0] is not None
        assert lows[1] is not None
        assert lows[0] < lows[1]


SLOW = History(
    slots=160,
    days=80,
    slots_per_day=1.0,
    design_effect=1.0,
    design_effect_bound=1.0,
    provisional=False,
    d_squares=160 * 0.16,
    clipped_squares=160 * 0.16,
)  # one slot a day, with a deviation of 0.4 R
SLOW_MARGINS = Margins(pnl_r=0.12)


class TestNotWorseWithShadow:
    """Where the slots of the rollout alone would take longer than `patience`."""

    def slow(self, canary_r: list[float], **history: Any) -> Finding:
        pairs = paired([1 + each for each in canary_r], [1.0] * len(canary_r), a_day=1)
        return judged(NotWorse(), pairs, SLOW_MARGINS, history=SLOW.model_copy(update=history))

    def test_slots_in_shadow_count_where_signals_are_rare(self) -> None:
        finding = self.slow([0.1, -0.1] * 4)

        assert finding.verdict is Verdict.PASS
        assert finding.n == 168
        assert NotWorse().needs_shadow(SLOW, SLOW_MARGINS.pnl(SLOW))

    def test_where_signals_are_frequent_the_rollout_must_show_it_itself(self) -> None:
        finding = self.slow([0.1, -0.1] * 4, slots_per_day=50.0)

        assert finding.verdict is Verdict.INSUFFICIENT
        assert finding.reason == "8 of 30 slots, day 8 of at least 3"

    def test_patience_decides_which(self) -> None:
        needed = NotWorse().slots_needed(SLOW, 0.12)
        assert needed == pytest.approx((SLOTS_FACTOR * 0.4 / 0.12) ** 2)

        for days, counts in ((needed - 1, True), (needed + 1, False)):
            assert NotWorse(patience=timedelta(days=days)).needs_shadow(SLOW, 0.12) is counts

    def test_without_any_slot_nothing_passes(self) -> None:
        finding = judged(NotWorse(), margins=SLOW_MARGINS, history=SLOW)

        assert finding.verdict is Verdict.INSUFFICIENT
        assert finding.reason == "0 of 8 slots of its own; those in shadow count too"

    def test_too_few_slots_of_its_own_do_not_pass(self) -> None:
        """Shadow alone proves nothing about what serves users now."""
        assert self.slow([0.0] * 7).verdict is Verdict.INSUFFICIENT
        assert self.slow([0.0] * 8).verdict is Verdict.PASS

    def test_a_fault_that_came_with_the_release_does_not_pass(self) -> None:
        """Its own mean lies more than one and a half margins below 0, though with the shadow it is near 0."""
        finding = self.slow([-OWN_MARGINS * 0.12 - 0.01] * 8)

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.reason == "its own 8 slots: -0.190 R per slot, needs -0.180"
        assert self.slow([-OWN_MARGINS * 0.12 + 0.01] * 8, d=8.0, clipped=8.0).verdict is Verdict.PASS

    def test_a_shadow_that_was_worse_does_not_pass(self) -> None:
        assert self.slow([0.1, -0.1] * 4, d=-16.0, clipped=-16.0).verdict is Verdict.INCONCLUSIVE

    def test_a_shadow_of_too_few_slots_or_days_does_not_pass(self) -> None:
        """However alike they were: eight of its own and twenty-one in shadow are too few."""
        few = {"d_squares": 0.0, "clipped_squares": 0.0, "slots_per_day": 0.1}

        assert self.slow([0.0] * 8, slots=22, days=22, **few).verdict is Verdict.PASS
        assert self.slow([0.0] * 8, slots=21, days=21, **few).reason == "29 of 30 slots, day 29 of at least 3"
        in_a_day = paired([1.0] * 8, [1.0] * 8, a_day=8)
        one_day = SLOW.model_copy(update={"slots": 100, "days": 1, **few})
        assert judged(NotWorse(), in_a_day, SLOW_MARGINS, history=one_day).verdict is Verdict.INSUFFICIENT

    def test_large_losses_in_shadow_are_not_hidden_by_the_clip(self) -> None:
        """Three trades of 20 R lost in shadow. What the clip leaves of them is within the margin."""
        lost = {"d": -60.0 + 51.0, "d_squares": 1_226.0, "clipped": -9.0 + 51.0, "cut_squares": 3 * 17.0**2}
        finding = self.slow([0.1, -0.1] * 4, **lost)

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.low is not None
        assert finding.low < -0.12

    def test_a_pair_without_a_shadow_has_none_to_count(self) -> None:
        finding = judged(NotWorse(), paired([1.0] * 8, [1.0] * 8, a_day=2), history=History())

        assert not NotWorse().needs_shadow(History(), 0.1)
        assert finding.reason == "8 of 30 slots, day 4 of at least 3"


class TestNotWorseByAlikeCandles:
    """Where every decision was equal, signals need not be waited for."""

    TWINS = SLOW.model_copy(update={"slots": 10, "d_squares": 0.0, "clipped_squares": 0.0, "alike_candles": 976})

    def after(self, candles: int, pairs: Slots | None = None, *, active: int | None = None, **history: Any) -> Finding:
        decided = Record(decided=candles), Record(decided=candles if active is None else active)
        twins = self.TWINS.model_copy(update=history)
        return judged(NotWorse(), pairs, history=twins, canary=decided[0], active=decided[1])

    def test_a_thousand_candles_decided_alike_pass(self) -> None:
        finding = self.after(24)

        assert finding.verdict is Verdict.PASS
        assert finding.reason == "both did the same on 1,000 candles, 24 of them in the rollout, and on 10 slots"

    @pytest.mark.parametrize(
        ("candles", "history"),
        [
            (23, {"alike_candles": 5_000}),  # too few of the rollout itself
            (24, {"alike_candles": 975}),  # too few in all
            (24, {"slots": 9}),  # a version that is dead is alike on candles without a signal
            (5_000, {"slots": 0, "alike_candles": 5_000}),
            (24, {"slots_per_day": 2.0}),  # its thirty slots can be waited for
            (5_000, {"slots": 50, "alike_candles": 0}),  # its slots in shadow were not alike
        ],
    )
    def test_fewer_do_not(self, candles: int, history: dict[str, Any]) -> None:
        assert self.after(candles, **history).verdict is Verdict.INSUFFICIENT

    def test_candles_that_one_of_the_two_did_not_decide_do_not_count(self) -> None:
        assert self.after(24, active=23).verdict is Verdict.INSUFFICIENT
        assert self.after(23, active=24).verdict is Verdict.INSUFFICIENT

    def test_slots_of_the_rollout_count_too(self) -> None:
        alike = paired([1.0] * 10, [1.0] * 10, a_day=1)

        assert self.after(24, alike, slots=0).verdict is Verdict.PASS
        assert self.after(5_000, alike, slots=50, alike_candles=0).verdict is not Verdict.PASS  # not alike in shadow

    @pytest.mark.parametrize("row", [(0, 1.0, 1.0, -1, 1), (0, 0.9, 1.0, 1, 1), (0, 0.0, 1.0, 0, 1)])
    def test_one_slot_that_differs_ends_it(self, row: tuple[int, float, float, int, int]) -> None:
        """By its decision, by its result or by its silence."""
        assert self.after(24, slots([row])).verdict is not Verdict.PASS


class TestMargins:
    def test_a_margin_a_year_counts_where_signals_are_rare(self) -> None:
        """12 R a year at one slot a day are 0.033 R a slot, and at one a week 0.23."""
        margins = Margins(pnl_r=0.065, pnl_r_per_year=12)
        weekly, daily = (SLOW.model_copy(update={"slots_per_day": rate}) for rate in (1 / 7, 1.0))

        assert margins.pnl(weekly) == pytest.approx(12 * 7 / 365)
        assert margins.pnl(daily) == 0.065

    def test_it_is_at_most_one_r_a_slot(self) -> None:
        assert Margins(pnl_r=0.1, pnl_r_per_year=12).pnl(SLOW.model_copy(update={"slots_per_day": 0.001})) == 1.0

    def test_a_pair_without_a_rate_has_none(self) -> None:
        assert Margins(pnl_r=0.1, pnl_r_per_year=12).pnl(History()) == 0.1

    def test_the_widest_of_the_three_counts(self) -> None:
        margins = Margins(pnl_r=0.1, pnl_r_per_year=73, pnl_of_edge=0.5)

        assert margins.pnl(SLOW) == pytest.approx(0.2)
        assert margins.pnl(SLOW.model_copy(update={"edge": 0.6})) == pytest.approx(0.3)
        assert Margins(pnl_r=0.9, pnl_r_per_year=73).pnl(SLOW) == 0.9


class TestDivergence:
    def test_a_canary_that_no_longer_says_what_it_said_freezes_the_stage(self) -> None:
        """One candle late: hardly a loss, and hardly one decision as it was."""
        late = slots([(i // 5, 0.0 if i % 2 else 1.0, 1.0 if i % 2 else 0.0, int(not i % 2), i % 2) for i in range(6)])
        finding = judged(Divergence(), late, history=KNOWN.model_copy(update={"unlike_share": 0.02}))

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert "unlike the active version on 100% of 6 slots, in shadow on 2%, E = " in finding.reason
        assert finding.limit == pytest.approx(3)
        assert (finding.value or 0.0) > 3

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

        held = ("inconclusive", pytest.approx(3))
        assert (finding.verdict, finding.limit) == (held if share < 2 / 3 else ("pass", None))

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
        wild = paired([4.0, -4.0] * 5, [4.0, -4.0] * 5)
        finding = judged(ExcessDrawdown(), wild, canary_drawdown=0.25, active_drawdown=0.0)

        assert finding.verdict is Verdict.PASS
        assert finding.limit == pytest.approx(4 * 0.01 * (10 * 16) ** 0.5)

    @pytest.mark.parametrize(("drawdown", "verdict"), [(0.59, "pass"), (0.61, "breach")])
    def test_noise_never_excuses_more_than_three_limits(self, drawdown: float, verdict: str) -> None:
        wild = paired([6.0, -6.0] * 50, [6.0, -6.0] * 50)

        finding = judged(ExcessDrawdown(), wild, canary_drawdown=drawdown, active_drawdown=0.0)

        assert finding.verdict == verdict
        assert finding.limit == pytest.approx(0.6)

    def test_a_shock_to_both_excuses_more_than_noise(self) -> None:
        wild = paired([6.0, -6.0] * 50, [6.0, -6.0] * 50)

        assert judged(ExcessDrawdown(), wild, canary_drawdown=0.74, active_drawdown=0.5).limit == pytest.approx(0.75)


def test_a_watch_on_an_invalid_outcome_is_blind() -> None:
    finding = judge_watch(Totals(slots=1, log_e=math.nan, log_peak=math.nan), KNOWN, 0.01)

    assert (finding.verdict, finding.n) == (Verdict.BLIND, 1)


def test_the_slots_of_an_older_releases_shadow_are_no_evidence() -> None:
    older = History.model_validate({"slots": 50, "days": 40, "slots_per_day": 0.3, "trade_r": 1.4})

    finding = judged(NotWorse(), paired([0.1] * 10, [0.1] * 10, a_day=1), history=older)

    assert finding.verdict is Verdict.INSUFFICIENT
    assert finding.reason == "10 of 30 slots, day 10 of at least 3"
