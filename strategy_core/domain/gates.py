"""Gates: each turns evidence into a verdict with its reason, value and limit; none knows of users, time or storage.

A gate is data (it is frozen with the plan) and one pure function. A new one is a class here or beside, and a name in
the plan's `AnyGate`.
"""

from enum import StrEnum
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.comparison import day_cluster_interval
from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence
from strategy_core.domain.performance import max_drawdown


class Verdict(StrEnum):
    """Declared from worst to best: the worst verdict of the armed gates decides."""

    BREACH = "breach"  # a hard limit is broken: roll back at once
    FAIL = "fail"  # harm is proven: roll back
    BLIND = "blind"  # the facts are absent, stale, or could not be had: hold, alert
    INCONCLUSIVE = "inconclusive"  # enough facts, no answer: hold; at the maximum ask the owner
    INSUFFICIENT = "insufficient"  # too few facts yet: hold
    PASS = "pass"  # noqa: S105  the word of the contract, not a password


SEVERITY = {verdict: rank for rank, verdict in enumerate(Verdict)}


class Margins(BaseModel):
    """How much worse than the active version may still be called not worse, at one stage."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    pnl_r: float = Field(gt=0, le=1, description="R per slot")
    win: float = Field(gt=0, le=0.5, description="share of slots won")


class Finding(BaseModel):
    """What one gate found. `limit` is the value at which the verdict would change; `low`, `high` an interval."""

    model_config = ConfigDict(frozen=True)

    gate: str
    verdict: Verdict
    reason: str
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    armed: bool = True


class Gate(BaseModel):
    """What every gate is: settings, and `judge`. With `dry_run` it is recorded but has no vote."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    dry_run: bool = False

    @property
    def name(self) -> str:
        """What findings call it; a kind that may stand in a plan more than once gives its gates names of their own."""
        return self.kind

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        """Return the finding; raises EvidenceUnavailable when its facts cannot be had."""
        raise NotImplementedError

    def nothing_yet(self, what: str) -> Finding:
        """Return the finding on no evidence at all, which may never pass."""
        return self.found(Verdict.INSUFFICIENT, f"no {what} yet", value=0, n=0)

    def found(self, verdict: Verdict, reason: str, **facts: float | None) -> Finding:
        return Finding.model_validate(
            {"gate": self.name, "verdict": verdict, "reason": reason, "armed": not self.dry_run, **facts}
        )


class Freshness(Gate):
    """Blind when a candle that is due has not been decided, or a trade that must have closed has no outcome.

    Insufficient until something has been decided at this stage: evidence of before says nothing of it. It stands in
    every rollout, whatever the plan: how late a candle or an outcome may be is the plan's `late_candles`.
    """

    kind: Literal["freshness"] = "freshness"

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        if evidence.feed_problem or evidence.overdue:
            raise EvidenceUnavailable(evidence.feed_problem or evidence.overdue)
        due, newest = evidence.due_candle, evidence.newest_candle
        seen = "none has been decided" if newest is None else f"the newest decided is {newest:%Y-%m-%d %H:%M}"
        if due is not None and due >= evidence.started_at and (newest is None or newest < due):
            return self.found(Verdict.BLIND, f"candle {due:%Y-%m-%d %H:%M} UTC is due, but {seen}")
        if newest is None or newest < evidence.stage_entered_at:
            return self.found(Verdict.INSUFFICIENT, f"no candle has been decided at this stage yet: {seen}")
        return self.found(Verdict.PASS, f"decided up to candle {newest:%Y-%m-%d %H:%M} UTC")


class Errors(Gate):
    """Breach on errors in a row, or on their share once there are enough decisions to speak of one."""

    kind: Literal["errors"] = "errors"
    in_a_row: int = Field(default=3, ge=1)
    share: float = Field(default=0.05, gt=0, le=1)
    minimum_decisions: int = Field(default=50, ge=1)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        record = evidence.canary
        n = record.decided
        if record.errors_in_a_row >= self.in_a_row:
            reason = f"{record.errors_in_a_row} errors in a row (limit {self.in_a_row}): {record.last_error}"
            return self.found(Verdict.BREACH, reason, value=record.errors_in_a_row, limit=self.in_a_row, n=n)
        if n == 0:
            return self.nothing_yet("decision")
        share = record.errors / n
        if n >= self.minimum_decisions and share >= self.share:
            reason = f"{record.errors} of {n} decisions are errors (limit {self.share:.0%}): {record.last_error}"
            return self.found(Verdict.BREACH, reason, value=share, limit=self.share, n=n)
        return self.found(Verdict.PASS, f"{record.errors} errors in {n} decisions", value=share, limit=self.share, n=n)


class InvalidDecisions(Gate):
    """Breach on any answer that is no decision, and on any try to touch the outside."""

    kind: Literal["invalid_decisions"] = "invalid_decisions"

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        record = evidence.canary
        count = record.invalid + record.breaches
        if count:
            reason = f"{record.invalid} invalid decisions, {record.breaches} isolation breaches: {record.last_error}"
            return self.found(Verdict.BREACH, reason, value=count, limit=1, n=record.decided)
        if record.decided == 0:
            return self.nothing_yet("decision")
        return self.found(Verdict.PASS, "all decisions are valid", value=0, limit=1, n=record.decided)


class Silence(Gate):
    """Breach when the canary gives no decision on candles on which the active version did."""

    kind: Literal["silence"] = "silence"
    candles: int = Field(default=3, ge=1)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        silent = evidence.canary.silent_candles
        facts = {"value": silent, "limit": self.candles, "n": evidence.active.decided}
        if silent >= self.candles:
            reason = f"no decision on {silent} candles that the active version decided (limit {self.candles})"
            return self.found(Verdict.BREACH, reason, **facts)
        if evidence.active.decided == 0:
            return self.nothing_yet("decision of the active version")
        return self.found(Verdict.PASS, f"silent on {silent} candles", **facts)


class LosingStreak(Gate):
    """Breach when, slot after slot, the active version won what the canary lost."""

    kind: Literal["losing_streak"] = "losing_streak"
    slots: int = Field(default=8, ge=2)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        lost = (evidence.slots.canary_r < 0) & (evidence.slots.active_r > 0)
        streak = _longest_run(lost)
        facts = {"value": streak, "limit": self.slots, "n": len(evidence.slots)}
        if streak >= self.slots:
            reason = f"{streak} slots in a row were won by the active version and lost by the canary"
            return self.found(Verdict.BREACH, f"{reason} (limit {self.slots})", **facts)
        if len(evidence.slots) == 0:
            return self.nothing_yet("slot")
        return self.found(Verdict.PASS, f"longest streak {streak} slots", **facts)


class ExcessDrawdown(Gate):
    """Breach when the canary's drawdown is deep in itself AND much deeper than the active version's.

    The second condition keeps a market shock, which hits both, from rolling back a healthy canary. Its noise term is
    the active arm's own realised variance: sigma = risk * sqrt(sum of squared active R).
    """

    kind: Literal["excess_drawdown"] = "excess_drawdown"
    drawdown: float = Field(default=0.20, gt=0, lt=1, description="of the canary's equity peak")
    excess: float = Field(default=0.15, gt=0, lt=1, description="over the active version's drawdown")
    relative: float = Field(default=0.5, ge=0, description="of the active version's drawdown")
    sigmas: float = Field(default=4.0, ge=0)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        risk = evidence.risk_fraction
        canary = _deepest(evidence.canary_marks, risk)
        active = _deepest(evidence.active_marks, risk)
        sigma = risk * float(np.sqrt(np.sum(evidence.slots.active_r**2)))
        limit = max(self.drawdown, active + max(self.excess, self.relative * active, self.sigmas * sigma))
        facts = {"value": canary, "limit": limit, "n": len(evidence.slots)}
        reason = f"drawdown {canary:.2%}, the active version's {active:.2%}, limit {limit:.2%}"
        if canary >= limit:
            return self.found(Verdict.BREACH, reason, **facts)
        if len(evidence.canary_marks) == 0:
            return self.nothing_yet("trade")
        return self.found(Verdict.PASS, reason, **facts)


class PairedDifference(Gate):
    """Compare canary and active slot by slot: not worse by more than the stage's margins, or worse beyond doubt.

    Passes when the one-sided lower bounds of both mean differences (R per slot, and share won) lie above -margin;
    fails when the upper bound of either, at the much stricter `harm_confidence`, lies below 0. Bounds are day-cluster
    t bounds: outcomes of one day move together. They are of fixed size, so looking often costs some of their
    confidence; the strict harm bound keeps that cost small.
    """

    kind: Literal["paired_difference"] = "paired_difference"
    minimum_slots: int = Field(default=30, ge=2)
    minimum_days: int = Field(default=3, ge=2)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    harm_confidence: float = Field(default=0.9999, gt=0.5, lt=1)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        slots = evidence.slots
        n, days = len(slots), len(np.unique(slots.day))
        if n < self.minimum_slots or days < self.minimum_days:
            reason = f"{n} of {self.minimum_slots} slots on {days} of {self.minimum_days} days"
            return self.found(Verdict.INSUFFICIENT, reason, value=n, limit=self.minimum_slots, n=n)
        judged = [
            self._measure(slots.pnl_difference, slots.day, margins.pnl_r, "R per slot"),
            self._measure(slots.win_difference, slots.day, margins.win, "of slots won"),
        ]
        return min(judged, key=lambda finding: SEVERITY[finding.verdict])

    def _measure(self, differences: FloatArray, days: IntArray, margin: float, unit: str) -> Finding:
        interval = day_cluster_interval(differences, days, 2 * self.confidence - 1)
        strict = day_cluster_interval(differences, days, 2 * self.harm_confidence - 1)
        mean, low, high = _known(interval.mean), _known(interval.low), _known(strict.high)
        if high < 0:
            reason = f"worse by {-mean:.3f} {unit}, at {self.harm_confidence:.2%} confidence by at least {-high:.3f}"
            return self.found(Verdict.FAIL, reason, value=mean, limit=0.0, low=low, high=high, n=interval.n)
        reason = f"difference {mean:+.3f} {unit}, lower bound {low:+.3f}, margin {-margin:+.3f}, {interval.n} slots"
        verdict = Verdict.PASS if low > -margin else Verdict.INCONCLUSIVE
        return self.found(verdict, reason, value=mean, limit=-margin, low=low, high=high, n=interval.n)


def _deepest(marks: FloatArray, risk_fraction: float) -> float:
    return max_drawdown(marks, risk_fraction) or 0.0  # no candles yet: nothing is lost yet


def _known(bound: float | None) -> float:
    if bound is None:
        raise EvidenceUnavailable("an interval needs slots on two days at least")
    return bound


def _longest_run(flags: BoolArray) -> int:
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
