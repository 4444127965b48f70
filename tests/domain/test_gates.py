"""What each gate says, at its limit and on either side of it."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence, Record, slots
from strategy_core.domain.gates import (
    Errors,
    ExcessDrawdown,
    Finding,
    Freshness,
    Gate,
    InvalidDecisions,
    LosingStreak,
    Margins,
    PairedDifference,
    Silence,
    Verdict,
)

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
MARGINS = Margins(pnl_r=0.15, win=0.06)
NOTHING = Evidence(
    now=NOON,
    started_at=NOON - timedelta(days=5),
    stage_entered_at=NOON - timedelta(days=1),
    slots=slots([]),
    pending_slots=0,
    canary=Record(),
    active=Record(),
    canary_marks=np.array([]),
    active_marks=np.array([]),
    risk_fraction=0.01,
    newest_candle=None,
    due_candle=None,
)


def judged(gate: Gate, **facts: Any) -> Finding:
    return gate.judge(replace(NOTHING, **facts), MARGINS)


def pairs(canary_r: list[float], active_r: list[float], *, a_day: int = 10) -> Any:
    rows = zip(canary_r, active_r, strict=True)
    return slots([(i // a_day, c, a, int(np.sign(c)), int(np.sign(a))) for i, (c, a) in enumerate(rows)])


@pytest.mark.parametrize("gate", [Errors(), InvalidDecisions(), Silence(), LosingStreak(), ExcessDrawdown()])
def test_nothing_at_all_passes_no_gate(gate: Gate) -> None:
    """Absence of evidence never advances a rollout."""
    assert judged(gate).verdict is Verdict.INSUFFICIENT


@pytest.mark.parametrize("field", ["relative", "sigmas"])
def test_a_limit_without_end_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="finite"):
        ExcessDrawdown(**{field: float("inf")})


class TestFreshness:
    def test_a_stage_on_which_nothing_was_decided_yet_passes_nothing(self) -> None:
        """A weekend's stage has no evidence of its own, however good the week before was."""
        for newest in (None, NOTHING.stage_entered_at - timedelta(hours=1)):
            assert judged(Freshness(), newest_candle=newest).verdict is Verdict.INSUFFICIENT

    def test_a_trade_that_must_have_closed_and_has_no_outcome_is_blindness(self) -> None:
        with pytest.raises(EvidenceUnavailable, match="no outcome"):
            judged(Freshness(), due_candle=NOON, newest_candle=NOON, overdue="2 has no outcome of GOLD")

    def test_passes_when_what_is_due_is_decided(self) -> None:
        assert judged(Freshness(), due_candle=NOON, newest_candle=NOON).verdict is Verdict.PASS

    def test_is_blind_when_the_log_lags_behind(self) -> None:
        finding = judged(Freshness(), due_candle=NOON, newest_candle=NOON - timedelta(hours=1))

        assert finding.verdict is Verdict.BLIND
        assert finding.reason == "candle 2026-03-02 12:00 UTC is due, but the newest decided is 2026-03-02 11:00"

    def test_is_blind_when_nothing_was_ever_decided(self) -> None:
        assert "none has been decided" in judged(Freshness(), due_candle=NOON).reason

    def test_cannot_answer_when_the_feed_fails(self) -> None:
        with pytest.raises(EvidenceUnavailable, match="feed is down"):
            judged(Freshness(), feed_problem="feed is down")


class TestErrors:
    def test_errors_in_a_row_are_a_breach(self) -> None:
        finding = judged(
            Errors(), canary=Record(decided=3, errors=3, errors_in_a_row=3, last_error="ZeroDivisionError")
        )

        assert finding.verdict is Verdict.BREACH
        assert finding.reason == "3 errors in a row (limit 3): ZeroDivisionError"

    def test_one_less_is_none(self) -> None:
        assert judged(Errors(), canary=Record(decided=40, errors=2, errors_in_a_row=2)).verdict is Verdict.PASS

    @pytest.mark.parametrize(
        ("decided", "errors", "verdict"), [(49, 48, "pass"), (50, 2, "pass"), (60, 3, "breach"), (1_000, 49, "pass")]
    )
    def test_a_share_counts_once_there_are_decisions_enough(self, decided: int, errors: int, verdict: str) -> None:
        assert judged(Errors(), canary=Record(decided=decided, errors=errors)).verdict == verdict


class TestInvalidDecisions:
    @pytest.mark.parametrize("record", [Record(decided=900, invalid=1), Record(decided=900, breaches=1)])
    def test_a_single_one_is_a_breach(self, record: Record) -> None:
        assert judged(InvalidDecisions(), canary=record).verdict is Verdict.BREACH

    def test_the_active_versions_own_do_not_count(self) -> None:
        finding = judged(InvalidDecisions(), active=Record(decided=900, invalid=9), canary=Record(decided=900))

        assert finding.verdict is Verdict.PASS


class TestSilence:
    @pytest.mark.parametrize(("silent", "verdict"), [(0, "pass"), (2, "pass"), (3, "breach")])
    def test_three_candles_are_too_many(self, silent: int, verdict: str) -> None:
        assert judged(Silence(), canary=Record(silent_candles=silent), active=Record(decided=9)).verdict == verdict


class TestLosingStreak:
    def test_eight_slots_won_by_the_active_and_lost_by_the_canary(self) -> None:
        assert judged(LosingStreak(), slots=pairs([-1.0] * 8, [1.0] * 8)).verdict is Verdict.BREACH

    def test_a_slot_that_both_lose_breaks_the_streak(self) -> None:
        finding = judged(LosingStreak(), slots=pairs([-1.0] * 15, [1.0] * 7 + [-1.0] + [1.0] * 7))

        assert finding.verdict is Verdict.PASS
        assert finding.value == 7


class TestExcessDrawdown:
    def test_a_deep_drawdown_of_the_canary_alone_is_a_breach(self) -> None:
        finding = judged(ExcessDrawdown(), canary_marks=np.full(25, -1.0), active_marks=np.zeros(25))

        assert finding.verdict is Verdict.BREACH
        assert finding.reason == "drawdown 25.00%, the active version's 0.00%, limit 20.00%"

    def test_a_shock_to_both_is_none(self) -> None:
        shock = np.full(40, -1.0)

        assert judged(ExcessDrawdown(), canary_marks=shock, active_marks=shock).verdict is Verdict.PASS

    def test_open_trades_count(self) -> None:
        """Marks hold what is open: a version that never closes its losers is seen all the same."""
        assert judged(
            ExcessDrawdown(), canary_marks=np.array([-30.0]), active_marks=np.array([0.0])
        ).value == pytest.approx(0.30)

    def test_noise_of_the_active_arm_widens_the_limit(self) -> None:
        wild = pairs([6.0, -6.0] * 10, [6.0, -6.0] * 10)
        finding = judged(ExcessDrawdown(), slots=wild, canary_marks=np.array([-25.0]), active_marks=np.array([0.0]))

        assert finding.verdict is Verdict.PASS
        assert finding.limit == pytest.approx(4 * 0.01 * (20 * 36) ** 0.5)


class TestPairedDifference:
    def test_too_few_slots_are_insufficient(self) -> None:
        finding = judged(PairedDifference(), slots=pairs([1.0] * 29, [1.0] * 29, a_day=5))

        assert finding.verdict is Verdict.INSUFFICIENT
        assert finding.reason == "29 of 30 slots on 6 of 3 days"

    def test_too_few_days_are_insufficient(self) -> None:
        finding = judged(PairedDifference(), slots=pairs([1.0] * 40, [1.0] * 40, a_day=20))

        assert finding.verdict is Verdict.INSUFFICIENT

    def test_an_identical_version_passes(self) -> None:
        result = [1.0, -1.0, 0.5, -1.0] * 20

        assert judged(PairedDifference(), slots=pairs(result, result)).verdict is Verdict.PASS

    def test_a_version_that_may_be_better_or_worse_is_inconclusive(self) -> None:
        rng = np.random.default_rng(7)
        finding = judged(PairedDifference(), slots=pairs(list(rng.normal(0, 2, 40)), list(rng.normal(0, 2, 40))))

        assert finding.verdict is Verdict.INCONCLUSIVE
        assert finding.low is not None
        assert finding.low < -0.15 < finding.high  # type: ignore[operator]

    def test_a_version_that_loses_what_the_other_wins_fails(self) -> None:
        finding = judged(PairedDifference(), slots=pairs([-1.0, -1.0, 1.0] * 40, [1.0, 1.0, -0.9] * 40))

        assert finding.verdict is Verdict.FAIL
        assert finding.high is not None
        assert finding.high < 0

    def test_the_win_rate_alone_can_fail_it(self) -> None:
        """Many small losses beside a rare large gain: the mean is better, the followers see three losses in four."""
        finding = judged(PairedDifference(), slots=pairs([-0.01, -0.01, -0.01, 0.10] * 15, [0.01] * 60))

        assert finding.verdict is Verdict.FAIL
        assert "of slots won" in finding.reason


def test_a_dry_run_is_recorded_without_a_vote() -> None:
    assert not judged(Silence(dry_run=True), canary=Record(silent_candles=9)).armed


def test_verdicts_are_declared_from_worst_to_best() -> None:
    assert list(Verdict) == ["breach", "fail", "blind", "inconclusive", "insufficient", "pass"]


def test_a_gate_says_what_it_is_made_of() -> None:
    with pytest.raises(NotImplementedError):
        Gate(kind="abstract").judge(NOTHING, MARGINS)


def test_one_day_gives_no_interval() -> None:
    """A plan with too few days asked for would have nothing to divide by: that is blindness, not a pass."""
    with pytest.raises(EvidenceUnavailable, match="two days"):
        PairedDifference.model_construct(minimum_days=1, minimum_slots=2).judge(
            replace(NOTHING, slots=pairs([1.0] * 5, [1.0] * 5)), MARGINS
        )
