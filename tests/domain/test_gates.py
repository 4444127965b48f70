"""The gates on the decision log, at their limits and on either side."""

from datetime import timedelta

import pytest

from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Record
from strategy_core.domain.gates.base import Errors, Freshness, Gate, InvalidDecisions, Silence, Verdict
from tests.domain.facts import MARGINS, NOON, NOTHING, judged


@pytest.mark.parametrize("gate", [Errors(), InvalidDecisions(), Silence()])
def test_nothing_at_all_passes_no_gate(gate: Gate) -> None:
    """Missing evidence does not advance a rollout."""
    assert judged(gate).verdict is Verdict.INSUFFICIENT


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


def test_a_dry_run_is_recorded_without_a_vote() -> None:
    assert not judged(Silence(dry_run=True), canary=Record(silent_candles=9)).armed


def test_verdicts_are_declared_from_worst_to_best() -> None:
    assert list(Verdict) == ["breach", "fail", "blind", "inconclusive", "insufficient", "pass"]


def test_a_gate_says_what_it_is_made_of() -> None:
    with pytest.raises(NotImplementedError):
        Gate(kind="abstract").judge(NOTHING, MARGINS)
