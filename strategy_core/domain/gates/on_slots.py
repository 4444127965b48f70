"""Gates on slots: proven harm, proven non-inferiority, divergence, losing streaks and drawdown."""

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence
from strategy_core.domain.gates.base import SEVERITY, Finding, Gate, Margins, Verdict

SURE = 1e-7  # false streaks per slot: one in a thousand rollouts of 10,000 slots


class Harm(Gate):
    """Fail when the e-process of harm has ever reached 1/alpha. Hold while it is at `freeze_at` or above.

    A version that is not worse is rolled back by this gate with a probability of at most *alpha*, over all stages and
    ticks. *alpha* is below the 1 % budget of a whole rollout, which leaves room for the hard limits and for the error
    of a design effect that is measured on two months of shadow. Values are log10 E.
    """

    warns: ClassVar[bool] = True

    kind: Literal["harm"] = "harm"
    alpha: float = Field(default=0.008, gt=0, lt=0.5)
    freeze_at: float = Field(default=10.0, gt=1)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        totals = evidence.totals
        now, peak = totals.log_e / math.log(10), totals.log_peak / math.log(10)
        limit = -math.log10(self.alpha)
        if totals.slots == 0:
            return self.nothing_yet("slot")
        if math.isnan(now) or math.isnan(peak):
            raise EvidenceUnavailable("the e-process is not a number, because of an invalid outcome")
        facts = {"value": now, "limit": limit, "n": totals.slots}
        measured = f"E = {_power(now)} against {1 / self.alpha:.0f}, {totals.slots} slots"
        provisional = "; its design effect is provisional" if evidence.history.provisional else ""
        if peak >= limit:
            reason = f"the canary does harm: E reached {_power(peak)} (limit {1 / self.alpha:.0f}){provisional}"
            return self.found(Verdict.FAIL, reason, **facts | {"value": peak})
        if now >= math.log10(self.freeze_at):
            reason = f"harm is likely, the stage is frozen: {measured} (frozen from {self.freeze_at:g}){provisional}"
            return self.found(Verdict.INCONCLUSIVE, reason, **facts)
        return self.found(Verdict.PASS, measured + provisional, **facts)


class NotWorse(Gate):
    """Pass when the canary is proven not worse, by the stage's margins, in R per slot and in slots won.

    The lower bounds come from a one-sided asymptotic confidence sequence, valid at all ticks together. With n slots,
    s² = δ·(mean(d²) - mean(d)²) and ρ² = (-2 ln 2a + ln(1 - 2 ln 2a)) / `tuned_for`, a = 1 - confidence:

        bound = mean - s·sqrt(2(nρ² + 1) / (nρ)² · ln(1 + sqrt(nρ² + 1) / (2a)))

    Each of the two bounds has the full error probability, because both must pass. Harm is judged by `Harm`. If live
    results show that shadow results are unreliable, the gate is inconclusive.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024), "Time-uniform central limit theory", theorem 2.2 and
    its one-sided form.
    """

    kind: Literal["not_worse"] = "not_worse"
    minimum_slots: int = Field(default=30, ge=2)
    minimum_days: int = Field(default=3, ge=2)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    tuned_for: int = Field(default=1250, ge=1, description="number of slots at which the bound is tightest")
    minimum_fidelity: float = Field(default=0.8, gt=0, lt=1, description="of shadow and live results (Lin)")
    fidelity_slots: int = Field(default=30, ge=2, description="slots with live trades before fidelity is judged")

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        finding = self._compare(evidence, margins)
        doubt = evidence.platform_problem
        if evidence.fidelity is not None:
            doubt = evidence.fidelity.doubt(self.minimum_fidelity, self.fidelity_slots)
        if finding.verdict is Verdict.PASS and doubt:
            doubted = {"verdict": Verdict.INCONCLUSIVE, "reason": f"{doubt}; {finding.reason}"}
            return finding.model_copy(update=doubted)
        return finding

    def _compare(self, evidence: Evidence, margins: Margins) -> Finding:
        totals, effect = evidence.totals, evidence.history.design_effect
        n = totals.slots
        if n < self.minimum_slots or totals.days < self.minimum_days:
            reason = f"{n} of {self.minimum_slots} slots on {totals.days} of {self.minimum_days} days"
            return self.found(Verdict.INSUFFICIENT, reason, value=n, limit=self.minimum_slots, n=n)
        pnl = margins.pnl(evidence.history.edge)
        judged = [
            self._measure(n, totals.d, totals.d_squares, effect, pnl, "R per slot"),
            self._measure(n, totals.w, totals.w_squares, effect, margins.win, "of slots won"),
        ]
        return min(judged, key=lambda finding: (SEVERITY[finding.verdict], _slack(finding)))

    def _measure(self, n: int, total: float, squares: float, effect: float, margin: float, unit: str) -> Finding:
        mean = total / n
        low = mean - self.reach(n, math.sqrt(max(0.0, effect * (squares / n - mean**2))))
        reason = f"difference {mean:+.3f} {unit}, lower bound {low:+.3f}, margin {-margin:+.3f}, {n} slots"
        verdict = Verdict.PASS if low > -margin else Verdict.INCONCLUSIVE
        return self.found(verdict, reason, value=mean, limit=-margin, low=low, n=n)

    def reach(self, n: int, deviation: float) -> float:
        """Return the distance of the bound below the mean of *n* slots, given the standard deviation of one slot."""
        a = 1 - self.confidence
        rho_squared = (-2 * math.log(2 * a) + math.log(1 - 2 * math.log(2 * a))) / self.tuned_for
        grown = n * rho_squared + 1
        return deviation * math.sqrt(2 * grown / (n**2 * rho_squared) * math.log(1 + math.sqrt(grown) / (2 * a)))


class Divergence(Gate):
    """Hold while the canary differs from the active version far more often than it did in shadow.

    The code and the candles are the same as in shadow. If the decisions differ more, the release has another problem,
    such as stale or late input, which results alone would show only after months. An owner decides whether it is harm.
    With k of n slots unlike, and t = `tolerated` times the shadow's share of unlike slots, each stake c of 0.1, 0.3 and
    0.9 has earned (1 - c)^(n - k) · (1 + c(1 - t)/t)^k. E is their mean to the power 1/design effect.
    """

    warns: ClassVar[bool] = True

    kind: Literal["divergence"] = "divergence"
    tolerated: float = Field(default=1.5, ge=1)
    alpha: float = Field(default=0.001, gt=0, lt=0.5)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        n, unlike, history = evidence.totals.slots, evidence.totals.unlike, evidence.history
        if n == 0:
            return self.nothing_yet("slot")
        limit = self.tolerated * history.unlike_share
        reason = f"unlike the active version on {unlike / n:.0%} of {n} slots, in shadow on {history.unlike_share:.0%}"
        facts = {"value": unlike / n, "limit": limit, "n": n}
        if limit >= 1:  # alike so rarely in shadow that more divergence cannot be measured
            return self.found(Verdict.PASS, reason, **facts)
        wealth = [
            (n - unlike) * math.log1p(-stake) + unlike * math.log1p(stake * (1 - limit) / limit)
            for stake in (0.1, 0.3, 0.9)
        ]
        log_e = float(np.logaddexp.reduce(wealth) - math.log(len(wealth))) / history.design_effect
        if log_e >= -math.log(self.alpha):
            reason = f"decisions differ from shadow, the stage is frozen: {reason}"
            return self.found(Verdict.INCONCLUSIVE, reason, **facts)
        return self.found(Verdict.PASS, reason, **facts)


class LosingStreak(Gate):
    """Breach on a streak of slots that the active version won and the canary lost.

    For two unrelated versions a quarter of the slots are like that. The limit is then longer than `slots`, so that
    chance alone makes such a streak in one of a thousand rollouts.
    """

    kind: Literal["losing_streak"] = "losing_streak"
    slots: int = Field(default=8, ge=2)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        n, streak = evidence.totals.slots, evidence.totals.longest_streak
        limit = max(self.slots, math.ceil(math.log(SURE) / math.log(evidence.history.lost_share)))
        facts = {"value": streak, "limit": limit, "n": n}
        if streak >= limit:
            reason = f"{streak} slots in a row were won by the active version and lost by the canary"
            return self.found(Verdict.BREACH, f"{reason} (limit {limit})", **facts)
        if n == 0:
            return self.nothing_yet("slot")
        return self.found(Verdict.PASS, f"longest streak {streak} slots", **facts)


class ExcessDrawdown(Gate):
    """Breach when the canary's drawdown is large AND much larger than the active version's.

    The second condition prevents a rollback for a market shock that hits both versions. Its noise is the realised
    variance of the active version, scaled by the ratio from the shadow history:
    sigma = risk · sqrt(design effect · Σ d² / Σ a² in the history · Σ a² in the rollout), a the active version's R.
    """

    kind: Literal["excess_drawdown"] = "excess_drawdown"
    drawdown: float = Field(default=0.20, gt=0, lt=1, description="limit, as a fraction of the canary's equity peak")
    excess: float = Field(default=0.15, gt=0, lt=1, description="limit beyond the active drawdown")
    relative: float = Field(default=0.5, ge=0, description="limit beyond the active drawdown, relative to it")
    sigmas: float = Field(default=4.0, ge=0)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        history, totals = evidence.history, evidence.totals
        canary, active = evidence.canary_drawdown, evidence.active_drawdown or 0.0
        if canary is None:
            return self.nothing_yet("trade")
        noise = history.design_effect * history.noise_ratio * totals.active_squares
        sigma = evidence.risk_fraction * math.sqrt(noise)
        limit = max(self.drawdown, active + max(self.excess, self.relative * active, self.sigmas * sigma))
        facts = {"value": canary, "limit": limit, "n": totals.slots}
        reason = f"drawdown {canary:.2%}, the active version's {active:.2%}, limit {limit:.2%}"
        return self.found(Verdict.BREACH if canary >= limit else Verdict.PASS, reason, **facts)


def _power(log10: float) -> str:
    return f"{10**log10:.3g}" if log10 < 6 else f"10^{log10:.1f}"


def _slack(finding: Finding) -> float:
    """Return the distance of the bound from its margin, in margins. Of two findings the nearer one is reported."""
    return ((finding.low or 0.0) - (finding.limit or 0.0)) / abs(finding.limit or 1.0)
