"""Gates on slots: proven harm, proven non-inferiority, divergence, losing streaks and drawdown."""

import math
import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from strategy_core.domain.eprocess import BY_SYMBOL
from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence
from strategy_core.domain.gates.base import (
    SEVERITY,
    Duration,
    Finding,
    Gate,
    Margins,
    Verdict,
    duration_field,
    format_evidence,
)
from strategy_core.domain.pair_noise import History
from strategy_core.domain.slot_ledger import Totals

SLOTS_FACTOR = 3.1  # standard deviations over the margin, for a version as good as the active to pass
ALIKE_SLOTS = 10  # on candles without a signal even a dead version is alike
SELDOM_DAYS = 15  # in which a pair that seldom signals has fewer than the minimum of slots
OWN_MARGINS = 1.5  # how far its own mean may lie below 0 where slots in shadow count
MOST_FOR_NOISE = 3.0  # drawdown limits, up to which noise raises the limit
LARGE_LOSSES = 1.0  # standard deviations by which losses beyond the clip outweigh the gains
LEAST_TUNED, MOST_TUNED = 300, 5_000  # tuned for fewer, it errs on skewed losses
WATCH = "watch"
WATCH_ALPHA = 0.0025  # of a standing watch, each quarter: 1 % a year
WATCH_QUARTER = timedelta(days=90)
WATCH_LIKELY = 10.0  # E from which harm is likely
LIKELY_HARM = "harm is likely, the stage is held: "  # how the reason of `harm` begins
_LIKELY_HARM_BEFORE = "harm is likely, the stage is frozen: "  # stored by earlier releases
SURE = 1e-7  # false streaks per slot: one in a thousand rollouts of 10,000 slots


class Harm(Gate):
    """Fail when the canary is proven to earn less. Hold while that is likely.

    Harm is money: the e-process is on the difference in R, see `domain.eprocess`. The gate fails when E has ever
    reached 1/alpha, or when E has reached `freeze_at` and the e-process on wins has reached `confirmed_at`. So the win
    rate may confirm what money makes likely, and never decides alone. It holds the stage while E is at `freeze_at` or
    above.

    A version that earns as much is rolled back by E alone with a probability of at most *alpha*, over all stages and
    looks (Ville 1939), and by both together with at most 1/`confirmed_at` more if it also wins as often. One that earns
    as much and wins less often is bounded by 1/`freeze_at`, and was measured at 2 to 5 %. Values are log10 E.
    """

    warns: ClassVar[bool] = True
    title: ClassVar[str] = "harm"
    help: ClassVar[str] = "Evidence that users of the new version earn less. At the limit it is proven."

    kind: Literal["harm"] = "harm"
    alpha: float = Field(default=0.01, gt=0, lt=0.5)
    freeze_at: float = Field(default=10.0, gt=1)
    confirmed_at: float = Field(default=200.0, gt=1, description="E on wins that confirms likely harm")

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        return self.weigh(evidence.totals, evidence.history, evidence.risk_fraction)

    def proven(self, totals: Totals) -> bool:
        """Return whether harm has been proven at any time so far."""
        confirmed = totals.log_peak >= math.log(self.freeze_at) and totals.log_win_peak >= math.log(self.confirmed_at)
        return confirmed or totals.log_peak >= -math.log(self.alpha)

    def weigh(self, totals: Totals, history: History, risk_fraction: float) -> Finding:
        """Return the finding on slots of a pair with that history. One R is *risk_fraction* of equity."""
        now, peak, wins = (value / math.log(10) for value in (totals.log_e, totals.log_peak, totals.log_win_peak))
        limit = -math.log10(self.alpha)
        if totals.slots == 0:
            return self.nothing_yet("slot")
        if math.isnan(now) or math.isnan(peak):
            raise EvidenceUnavailable("the e-process is not a number, because of an invalid outcome")
        facts = {"value": now, "limit": limit, "n": totals.slots}
        money = _money(totals, history, risk_fraction)
        if history.provisional:
            money += "; its design effect is provisional"
        if self.proven(totals):
            beyond = f"(limit {1 / self.alpha:,.0f})" if peak >= limit else f"and E on wins {format_evidence(wins)}"
            reason = f"the canary earns less: E reached {format_evidence(peak)} {beyond}, {money}"
            return self.found(Verdict.FAIL, reason, **facts | {"value": peak})
        measured = f"E = {format_evidence(now)} against {1 / self.alpha:,.0f}, {money}"
        if now >= math.log10(self.freeze_at):
            reason = f"{LIKELY_HARM}{measured} (held from {self.freeze_at:g})"
            return self.found(Verdict.INCONCLUSIVE, reason, **facts)
        return self.found(Verdict.PASS, measured, **facts)


class WinRate(Gate):
    """Fail when the canary is proven to win less often, whatever it earns.

    In the default plan it has no vote, because a version may win less often and earn more. Values are log10 E.
    """

    title: ClassVar[str] = "win rate"
    help: ClassVar[str] = "Evidence that the new version wins less often, whatever it earns."

    kind: Literal["win_rate"] = "win_rate"
    alpha: float = Field(default=0.005, gt=0, lt=0.5)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        totals = evidence.totals
        now, peak, limit = totals.log_win / math.log(10), totals.log_win_peak / math.log(10), -math.log10(self.alpha)
        if totals.slots == 0:
            return self.nothing_yet("slot")
        if math.isnan(peak):
            raise EvidenceUnavailable("the e-process is not a number, because of an invalid outcome")
        wins = f"win rate {100 * totals.w / totals.slots:+.1f} points against the active version"
        if peak >= limit:
            reason = (
                f"the canary wins less often: {wins}, E reached {format_evidence(peak)} (limit {1 / self.alpha:,.0f})"
            )
            return self.found(Verdict.FAIL, reason, value=peak, limit=limit, n=totals.slots)
        return self.found(Verdict.PASS, f"{wins}, E = {format_evidence(now)}", value=now, limit=limit, n=totals.slots)


class NotWorse(Gate):
    """Pass when the canary is proven to earn no less than the active version, by the margin of the stage.

    The lower bound comes from a one-sided asymptotic confidence sequence, valid at all ticks together. With n slots,
    s² = δ·(mean(c²) - mean(c)²) and ρ² = (-2 ln 2a + ln(1 - 2 ln 2a)) / t, a = 1 - confidence:

        bound = mean - s·sqrt(2(nρ² + 1) / (nρ)² · ln(1 + sqrt(nρ² + 1) / (2a)))

    c is d clipped at three units, so that few large trades do not widen the bound. If losses beyond the clip outweigh
    the gains there by more than chance, nothing is clipped: the clip must not hide them. t is half the
    slots that an equal version needs for the margin (or `tuned_for`): the bound is tightest there.

    Three ways lead to a pass:

    - the bound of the rollout's own slots lies above the margin;
    - if they would take longer than `patience`, the bound of shadow and rollout together lies above the margin, with
      `own_slots` of the rollout whose mean is at most 1.5 margins below 0. The same code had the same evidence in
      shadow, and the rollout's own slots show that what serves users is that code;
    - the pair seldom signals, and both versions did the same on `alike_candles` candles of each symbol and on ten slots
      in shadow and rollout, with `own_candles` of them in the rollout. So many equal decisions show that the rollout
      carries the same code, without the signals of months.

    With `margins.win` the share of slots won must pass its own bound too. If live results show that shadow results are
    unreliable, the gate is inconclusive.

    Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas (2024), "Time-uniform central limit theory", theorem 2.2 and
    its one-sided form.
    """

    title: ClassVar[str] = "not worse"
    help: ClassVar[str] = (
        "Proof that the new version earns no less than the active one, by more than the stage's margin."
    )

    kind: Literal["not_worse"] = "not_worse"
    minimum_slots: int = Field(default=30, ge=2)
    minimum_days: int = Field(default=3, ge=2)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    tuned_for: int | None = Field(default=None, ge=1, description="number of slots at which the bound is tightest")
    patience: Duration = duration_field(
        timedelta(days=60), "time in which its own slots must be able to suffice, or those in shadow count as well"
    )
    own_slots: int = Field(default=8, ge=2, description="slots of the rollout itself, where those in shadow count")
    alike_candles: int = Field(default=1_000, ge=100, description="of each symbol, that prove equal code")
    own_candles: int = Field(default=24, ge=1, description="of them in the rollout")
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

    def bound(self, totals: Totals, history: History, margins: Margins) -> Finding:
        """Return the finding on R per slot without the gate's other conditions. *totals* have a slot."""
        margin = margins.pnl(history)
        return self._money(totals, history, margin, with_shadow=self.needs_shadow(history, margin))

    def _compare(self, evidence: Evidence, margins: Margins) -> Finding:
        totals, history = evidence.totals, evidence.history
        if (alike := self._alike(evidence)) is not None:
            return alike
        margin, n = margins.pnl(history), totals.slots
        if self.needs_shadow(history, margin):
            if n < self.own_slots:
                reason = f"{n:,} of {self.own_slots:,} slots of its own; those in shadow count too"
                return self.found(Verdict.INSUFFICIENT, reason, value=n, limit=self.own_slots, n=n)
            if (few := self._too_few(n + history.slots, totals.days + history.days)) is not None:
                return few
            own, least = totals.d / n, -OWN_MARGINS * margin
            if own <= least:
                reason = f"its own {n:,} slots: {own:+.3f} R per slot, needs {least:+.3f}"
                return self.found(Verdict.INCONCLUSIVE, reason, value=own, limit=least, n=n)
            return self._money(totals, history, margin, with_shadow=True)
        if (few := self._too_few(n, totals.days)) is not None:
            return few
        judged = [self._money(totals, history, margin)]
        if margins.win is not None:
            won, tuned = totals.w / n, self._tuned(history, margin)
            spread = history.design_effect * (totals.w_squares / n - won**2)
            judged.append(self._measure(n, won, spread, margins.win, "of slots won", tuned))
        return min(judged, key=lambda finding: (SEVERITY[finding.verdict], _slack(finding)))

    def _too_few(self, n: int, days: int) -> Finding | None:
        if n >= self.minimum_slots and days >= self.minimum_days:
            return None
        reason = f"{n:,} of {self.minimum_slots:,} slots, day {days:,} of at least {self.minimum_days:,}"
        return self.found(Verdict.INSUFFICIENT, reason, value=n, limit=self.minimum_slots, n=n)

    def _money(self, totals: Totals, history: History, margin: float, *, with_shadow: bool = False) -> Finding:
        """Judge d over the rollout's slots, or over those in shadow as well."""
        parts: list[Totals | History] = [totals, history] if with_shadow else [totals]
        n, d, clipped = (sum(getattr(part, name) for part in parts) for name in ("slots", "d", "clipped"))
        mean = clipped / n
        variance = sum(part.clipped_squares for part in parts) / n - mean**2
        if _loses_largely([totals]) or _loses_largely([totals, history]):
            mean = min(d, clipped) / n
            variance = sum(part.d_squares for part in parts) / n - (d / n) ** 2
            if history.slots:  # where large losses are rare, the rollout may have had none yet
                variance = max(variance, history.d_squares / history.slots - (history.d / history.slots) ** 2)
        variance *= history.design_effect
        return self._measure(n, mean, variance, margin, "R per slot", self._tuned(history, margin))

    def _alike(self, evidence: Evidence) -> Finding | None:
        """Return a pass if both versions seldom signal, and did the same on enough candles of each symbol."""
        history, totals = evidence.history, evidence.totals
        own = min(evidence.canary.decided, evidence.active.decided) // max(1, len(history.symbols))
        candles, slots = own + history.alike_candles, history.slots + totals.slots
        if totals.unequal or not self.seldom_signals(history) or slots < ALIKE_SLOTS:
            return None
        if own < self.own_candles or candles < self.alike_candles or evidence.pending_slots:
            return None  # an open trade may be one that only one version has
        reason = f"both did the same on {candles:,} candles, {own:,} of them in the rollout, and on {slots:,} slots"
        return self.found(Verdict.PASS, reason, value=0.0, limit=0.0, low=0.0, n=totals.slots)

    def seldom_signals(self, history: History) -> bool:
        """Return whether the pair takes longer than 15 days for the minimum of slots, and was alike in shadow."""
        return history.alike_candles > 0 and history.slots_per_day * SELDOM_DAYS < self.minimum_slots

    def needs_shadow(self, history: History, margin: float) -> bool:
        """Return whether the rollout's own slots would take longer than `patience` to suffice.

        Without slots in shadow there are none to count as well.
        """
        days = self.patience.total_seconds() / 86_400
        return 0 < history.slots_per_day * days < self.slots_needed(history, margin)

    def slots_needed(self, history: History, margin: float) -> float:
        """Return how many slots a version as good as the active one needs to pass: (3.1·s / margin)²."""
        return max(self.minimum_slots, (SLOTS_FACTOR * deviation_of(history) / margin) ** 2)

    def own_slots_needed(self, history: History, margin: float, needed: float | None = None) -> int:
        """Return how many of these must be of the rollout itself. None if both did the same in shadow.

        Args:
            needed: in all, if more is known about the pair than its *history* holds.
        """
        needed = self.slots_needed(history, margin) if needed is None else needed
        if self.seldom_signals(history) and history.slots >= ALIKE_SLOTS:
            return 0
        if self.needs_shadow(history, margin):
            return max(self.own_slots, math.ceil(needed - history.slots))
        return math.ceil(needed)

    def _tuned(self, history: History, margin: float) -> float:
        return self.tuned_for or min(MOST_TUNED, max(LEAST_TUNED, self.slots_needed(history, margin) / 2))

    def _measure(self, n: int, mean: float, variance: float, margin: float, unit: str, tuned_for: float) -> Finding:
        low = mean - self.reach(n, math.sqrt(max(0.0, variance)), tuned_for)
        reason = f"difference {mean:+.3f} {unit}, lower bound {low:+.3f}, margin {-margin:+.3f}, {n:,} slots"
        verdict = Verdict.PASS if low > -margin else Verdict.INCONCLUSIVE
        return self.found(verdict, reason, value=mean, limit=-margin, low=low, n=n)

    def reach(self, n: int, deviation: float, tuned_for: float) -> float:
        """Return the distance of the bound below the mean of *n* slots, given the standard deviation of one slot."""
        a = 1 - self.confidence
        rho_squared = (-2 * math.log(2 * a) + math.log(1 - 2 * math.log(2 * a))) / tuned_for
        grown = n * rho_squared + 1
        return deviation * math.sqrt(2 * grown / (n**2 * rho_squared) * math.log(1 + math.sqrt(grown) / (2 * a)))


class Divergence(Gate):
    """Hold while the canary differs from the active version far more often than it did in shadow.

    The code and the candles are the same as in shadow. If the decisions differ more, the release has another problem,
    such as stale or late input, which results alone would show only after months. An owner decides whether it is harm.
    With k of n slots unlike, and t = `tolerated` times the shadow's share of unlike slots, each stake c of 0.1, 0.3 and
    0.9 has earned (1 - c)^(n - k) · (1 + c(1 - t)/t)^k. E is their mean to the power 1/design effect.
    Values are log10 E.
    """

    warns: ClassVar[bool] = True
    title: ClassVar[str] = "unlike in shadow"
    help: ClassVar[str] = "Evidence that the two versions now decide differently more often than they did in shadow."

    kind: Literal["divergence"] = "divergence"
    tolerated: float = Field(default=1.5, ge=1)
    alpha: float = Field(default=0.001, gt=0, lt=0.5)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        n, unlike, history = evidence.totals.slots, evidence.totals.unlike, evidence.history
        if n == 0:
            return self.nothing_yet("slot")
        tolerated = self.tolerated * history.unlike_share
        reason = (
            f"unlike the active version on {unlike / n:.0%} of {n:,} slots, in shadow on {history.unlike_share:.0%}"
        )
        if tolerated >= 1:  # alike so rarely in shadow that more divergence cannot be measured
            return self.found(Verdict.PASS, f"{reason}: too often to measure more", n=n)
        wealth = [
            (n - unlike) * math.log1p(-stake) + unlike * math.log1p(stake * (1 - tolerated) / tolerated)
            for stake in (0.1, 0.3, 0.9)
        ]
        log_e = float(np.logaddexp.reduce(wealth) - math.log(len(wealth))) / history.unlike_effect
        facts = {"value": log_e / math.log(10), "limit": -math.log10(self.alpha), "n": n}
        reason = f"{reason}, E = {format_evidence(log_e / math.log(10))} against {1 / self.alpha:,.0f}"
        if log_e >= -math.log(self.alpha):
            reason = f"decisions differ from shadow, the stage is held: {reason}"
            return self.found(Verdict.INCONCLUSIVE, reason, **facts)
        return self.found(Verdict.PASS, reason, **facts)


class LosingStreak(Gate):
    """Breach on a streak of slots that the active version won and the canary lost.

    For two unrelated versions a quarter of the slots are like that. The limit is then longer than `slots`, so that
    chance alone makes such a streak in one of a thousand rollouts.
    """

    title: ClassVar[str] = "losing streak"
    help: ClassVar[str] = "Slots in a row that the new version lost and the active version won."

    kind: Literal["losing_streak"] = "losing_streak"
    slots: int = Field(default=8, ge=2)

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        n, streak = evidence.totals.slots, evidence.totals.longest_streak
        limit = self.limit(evidence.history)
        facts = {"value": streak, "limit": limit, "n": n}
        if streak >= limit:
            reason = f"{streak} slots in a row were won by the active version and lost by the canary"
            passed = f", passed by {streak - limit} that closed since the tick before" if streak > limit else ""
            return self.found(Verdict.BREACH, f"{reason} (limit {limit}{passed})", **facts)
        if n == 0:
            return self.nothing_yet("slot")
        return self.found(Verdict.PASS, f"longest streak {streak} slots", **facts)

    def limit(self, history: History) -> int:
        return max(self.slots, math.ceil(math.log(SURE) / math.log(history.lost_share)))


class ExcessDrawdown(Gate):
    """Breach when the canary's drawdown is large AND much larger than the active version's.

    The second condition prevents a rollback for a market shock that hits both versions. Its noise is the realised
    variance of the active version, scaled by the ratio from the shadow history:
    sigma = risk · sqrt(design effect · Σ d² / Σ a² in the history · Σ a² in the rollout), a the active version's R.
    Noise raises the limit to at most `MOST_FOR_NOISE` times `drawdown`: a long rollout of two versions with little in
    common has a sigma above all equity, and no user has that much to lose.
    """

    title: ClassVar[str] = "excess drawdown"
    help: ClassVar[str] = (
        "The fall of the new version's equity from its peak is large, and far deeper than the active's."
    )

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
        noisy = min(active + self.sigmas * sigma, MOST_FOR_NOISE * self.drawdown)
        limit = max(self.drawdown, active + max(self.excess, self.relative * active), noisy)
        facts = {"value": canary, "limit": limit, "n": totals.slots}
        reason = f"drawdown {canary:.2%}, the active version's {active:.2%}, limit {limit:.2%}"
        if canary < limit:
            return self.found(Verdict.PASS, reason, **facts)
        return self.found(Verdict.BREACH, reason + _passage(evidence.canary_falls, limit), **facts)


def likely_harm_evidence(finding: Finding) -> str:
    """Return the evidence in a finding of likely harm, without what it means for the stage."""
    reason = finding.reason.removeprefix(LIKELY_HARM).removeprefix(_LIKELY_HARM_BEFORE)
    return re.sub(r" \((held|frozen) from \d[^)]*\)$", "", reason)


def _passage(falls: Sequence[tuple[datetime, float]], limit: float) -> str:
    """Return at which candle the drawdown passed *limit*, from where, and by how much."""
    first = next((at for at, (_, value) in enumerate(falls) if value >= limit), None)
    if first is None:
        return ""
    close, value = falls[first]
    before = falls[first - 1][1] if first else 0.0
    where = f"at the candle that closed {close:%Y-%m-%d %H:%M} UTC, which fell from {before:.2%} to {value:.2%}"
    text = f"; passed by {100 * (value - limit):.2f} points {where}"
    return text if first == len(falls) - 1 else f"{text}, and deeper before this tick"


def _loses_largely(parts: Sequence[Totals | History]) -> bool:
    """Return whether losses beyond the clip outweigh the gains there by more than chance."""
    cut = sum(part.d - part.clipped for part in parts)
    return cut < 0 and cut <= -LARGE_LOSSES * math.sqrt(sum(part.cut_squares for part in parts))


def deviation_of(history: History) -> float:
    """Return the standard deviation of d by slot, with its clustering. 1 unit for a pair without a history."""
    if history.slots < 2:
        return history.unit
    mean = history.clipped / history.slots
    return math.sqrt(max(0.0, history.design_effect * (history.clipped_squares / history.slots - mean**2)))


def judge_watch(totals: Totals, history: History, risk_fraction: float) -> Finding:
    """Return whether a promoted version is proven to earn less than its predecessor since a standing watch began.

    It fails when E, the e-process of `Harm`, has ever reached 1/`WATCH_ALPHA`. A version that earns as much fails with
    a probability of at most `WATCH_ALPHA` in each quarter (Ville 1939). It is inconclusive while E is at `WATCH_LIKELY`
    or above, and blind if an invalid outcome has made E unreadable. Values are log10 E.
    """
    now, peak = totals.log_e / math.log(10), totals.log_peak / math.log(10)
    limit, likely = -math.log10(WATCH_ALPHA), math.log10(WATCH_LIKELY)
    if math.isnan(now) or math.isnan(peak):
        reason = "the e-process is not a number, because of an invalid outcome"
        return Finding(gate=WATCH, verdict=Verdict.BLIND, reason=reason, n=totals.slots)
    verdict = Verdict.FAIL if peak >= limit else Verdict.INCONCLUSIVE if now >= likely else Verdict.PASS
    shown = f"E reached {format_evidence(peak)}" if verdict is Verdict.FAIL else f"E = {format_evidence(now)}"
    reason = f"{_money(totals, history, risk_fraction)}, {shown} (limit {1 / WATCH_ALPHA:.0f})"
    value = peak if verdict is Verdict.FAIL else now
    return Finding(gate=WATCH, verdict=verdict, reason=reason, value=value, limit=limit, n=totals.slots)


def _money(totals: Totals, history: History, risk_fraction: float) -> str:
    """Return what the canary earned more or less, in R and in equity, and the symbol that stands out."""
    text = f"{totals.d:+.1f} R in {totals.slots:,} slots ({totals.d * risk_fraction:+.1%} of equity)"
    if len(history.symbols) > 1:
        share = totals.log_symbol + math.log(BY_SYMBOL / len(history.symbols)) - totals.log_e
        if share >= math.log(0.5):
            text += f", mostly on {history.symbols[totals.symbol]}"
    return text


def _slack(finding: Finding) -> float:
    """Return the distance of the bound from its margin, in margins. Of two findings the nearer one is reported."""
    return ((finding.low or 0.0) - (finding.limit or 0.0)) / abs(finding.limit or 1.0)
