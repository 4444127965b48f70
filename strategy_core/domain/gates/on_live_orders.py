"""Gates on users' live orders: order errors, latency, sample ratio and routing.

Without reported live orders these gates pass with that reason, unless they are `required`. Once there are orders of a
version, they must go on while it signals: if they stop, what they showed before is old, and no gate passes on it.

Users of one version copy the same signals, and a broken account fails repeatedly, so neither orders nor candles are
independent. A user therefore counts once, with the first fault. Faults are compared between users of the two versions
on the same candle, where an outage of the broker hits both.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field
from scipy.special import betaln, logsumexp

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.errors import EvidenceUnavailable
from strategy_core.domain.evidence import Evidence, Orders
from strategy_core.domain.gates.base import Finding, Gate, Margins, Verdict, format_evidence

_DAY = 86_400  # seconds
_WEEK = 7  # days that a restart lasts: later faults have later restarts
_FIRST_START = 0.6  # weight of the rollout's start among the restarts
_SLOW = 0.01  # share of the active version's fills that counts as slow
_LARGEST = 700.0  # a larger exponent of e overflows


class ExecutionGate(Gate):
    """A gate on live orders. *alpha* bounds the probability that a healthy rollout EVER gets another verdict."""

    alpha: float = Field(default=0.001, gt=0, lt=0.5)
    required: bool = Field(
        default=False, description="whether missing live orders hold the rollout, and stopped ones are `blind`"
    )

    def judge(self, evidence: Evidence, margins: Margins) -> Finding:
        if evidence.platform_problem:
            raise EvidenceUnavailable(evidence.platform_problem)
        found = self.judge_orders(evidence.orders)
        if found.verdict is not Verdict.PASS or not evidence.orders_stopped:
            return found
        verdict = Verdict.BLIND if self.required else Verdict.INSUFFICIENT
        reason = f"{evidence.orders_stopped}; before that: {found.reason}"
        return found.model_copy(update={"verdict": verdict, "reason": reason})

    def judge_orders(self, orders: Orders) -> Finding:
        """Return the finding on the orders that have come."""
        raise NotImplementedError

    def none_of(self, what: str) -> Finding:
        verdict = Verdict.INSUFFICIENT if self.required else Verdict.PASS
        return self.found(verdict, f"no {what}", n=0)

    def weighed(self, harm: Verdict, log_e: float, counted: str, n: int) -> Finding:
        """Return the finding: *harm* when exp(*log_e*) reaches 1/alpha. *counted* describes the evidence."""
        limit = 1 / self.alpha
        verdict = harm if log_e >= math.log(limit) else Verdict.PASS
        e = math.exp(min(log_e, _LARGEST))
        reason = f"{counted}; E = {format_evidence(log_e / math.log(10))} against {limit:,.0f}"
        return self.found(verdict, reason, value=e, limit=limit, n=n)

    def _faults(
        self, orders: Orders, faulty: BoolArray, tolerated: float, against: tuple[float, ...], what: str
    ) -> Finding:
        seen = first_faults(orders, faulty)
        both = (seen.canary_users > 0) & (seen.active_users > 0)
        n = int(seen.canary_users[both].sum())
        if n == 0:
            return self.none_of("canary order on a candle that the active version traded too")
        counted = (
            f"{int(seen.canary[both].sum()):,} users with {what} in {n:,} canary orders, "
            f"{int(seen.active[both].sum()):,} in {int(seen.active_users[both].sum()):,} of the active "
            "version's on the same candles"
        )
        path = log_evidence(orders, faulty, tolerated, against)
        return self.weighed(Verdict.FAIL, float(path.max()), counted, n)


class OrderErrors(ExecutionGate):
    """Fail when the canary's users get order errors more than *tolerated* times as often as the active version's."""

    title: ClassVar[str] = "order errors"
    help: ClassVar[str] = "Evidence that orders of the new version's users fail more often."

    kind: Literal["order_errors"] = "order_errors"
    tolerated: float = Field(default=1.5, ge=1)
    against: tuple[float, ...] = Field(default=(2.0, 4.0, 10.0), min_length=1)

    def judge_orders(self, orders: Orders) -> Finding:
        if len(orders) == 0:
            return self.none_of("live orders are reported")
        return self._faults(orders, orders.failed, self.tolerated, self.against, "errors")


class Latency(ExecutionGate):
    """Fail when more than *tolerated* of the canary's fills are slower than all but 1 % of the active version's.

    A fill is slow beyond the 99th percentile of the active version's fills on all earlier days, so that no fill is
    measured against itself. The rates are shares of fills. They are compared as ratios to the active version's share on
    the same candles, because a slow market is slow for both.
    """

    title: ClassVar[str] = "slow fills"
    help: ClassVar[str] = "Evidence that orders of the new version's users are filled later."

    kind: Literal["latency"] = "latency"
    tolerated: float = Field(default=0.02, ge=0.01, lt=1)
    against: tuple[float, ...] = Field(default=(0.04, 0.08, 0.20), min_length=1)
    minimum_fills: int = Field(default=500, ge=100, description="fills of the active version before any counts as slow")

    def judge_orders(self, orders: Orders) -> Finding:
        filled = orders.where(~np.isnan(orders.latency_ms))
        if len(filled) == 0:
            return self.none_of("latency of live orders is reported")
        limit = _slow_beyond(filled, self.minimum_fills)
        judged = filled.where(~np.isnan(limit))
        slow = judged.latency_ms > limit[~np.isnan(limit)]
        ratios = tuple(rate / _SLOW for rate in self.against)
        return self._faults(judged, slow, self.tolerated / _SLOW, ratios, "slow fills")


class SampleRatio(ExecutionGate):
    """Inconclusive, so that the rollout holds, when the canary's share of trading users is not its share of users.

    E = B(c + κp, a + κ(1 − p)) / B(κp, κ(1 − p)) / (p^c (1 − p)^a), of c canary and a active users at a share p: a
    Dirichlet-multinomial against the multinomial of the share (Lindon & Malek 2022, "Anytime-valid inference for
    multinomial count data"). Buckets of users are fixed, so counts at two shares are dependent. The evidence is the
    mean over shares, which needs no independence (Vovk & Wang 2021).

    A user counts once at each share, by the newest order, because routers follow a change with a delay. Only candles on
    which other users of both versions traded count, or the version that signals first would look favoured. If one
    version has no orders yet and the other has too many for that, the gate is insufficient.
    """

    warns: ClassVar[bool] = True
    title: ClassVar[str] = "share of trading users"
    help: ClassVar[str] = "Evidence that the users who trade on the new version are not the planned percent."

    kind: Literal["sample_ratio"] = "sample_ratio"
    concentration: float = Field(default=100, gt=0, description="κ, in users: larger values detect smaller deviations")

    def judge_orders(self, orders: Orders) -> Finding:
        orders = orders.where((orders.share > 0) & (orders.share < 1))
        if len(orders) == 0:
            return self.none_of("live orders while a canary serves a part of the users")
        now = float(orders.share[-1])
        counts = {share: _users(orders.where(orders.share == share)) for share in np.unique(orders.share).tolist()}
        canary, active = counts[now]
        n = canary + active
        counted = f"{canary:,} of {n:,} users who trade at {now:.2%} are on the canary"
        logs = [self._log_e(share, *count) for share, count in counts.items()]
        found = self.weighed(Verdict.INCONCLUSIVE, float(logsumexp(logs)) - math.log(len(logs)), counted, n)
        if found.verdict is not Verdict.PASS and min(canary, active) == 0:
            return found.model_copy(update={"verdict": Verdict.INSUFFICIENT})  # its first signal may still come
        return found

    def _log_e(self, share: float, canary: int, active: int) -> float:
        a, b = self.concentration * share, self.concentration * (1 - share)
        expected = canary * math.log(share) + active * math.log1p(-share)
        return float(betaln(canary + a, active + b) - betaln(a, b)) - expected


class RoutingAudit(ExecutionGate):
    """Breach on any live trade on another version than routing gives its user. This is exact, not statistical."""

    title: ClassVar[str] = "routing"
    help: ClassVar[str] = "A live trade of a user is on another version than the one that routing gives."

    kind: Literal["routing_audit"] = "routing_audit"

    def judge_orders(self, orders: Orders) -> Finding:
        facts = {"value": orders.misrouted, "limit": 1, "n": len(orders)}
        if orders.misrouted:
            reason = f"{orders.misrouted} live trades of users on a wrong version, such as {orders.misrouted_example}"
            return self.found(Verdict.BREACH, reason, **facts)
        if len(orders) == 0:
            return self.none_of("live orders are reported")
        return self.found(Verdict.PASS, "every live trade is on the version that routing gives its user", **facts)


@dataclass(frozen=True, slots=True)
class Faults:
    """Users without an earlier fault, counted by candle. All arrays have shape (candles,).

    Attributes:
        canary_users, active_users: users who traded.
        canary, active: users among them with their first fault.
    """

    canary_users: IntArray
    active_users: IntArray
    canary: IntArray
    active: IntArray


def first_faults(orders: Orders, faulty: BoolArray) -> Faults:
    """Count, by candle, the users who traded without an earlier fault, and those with their first fault there."""
    candles, at = np.unique(orders.candle, return_inverse=True)
    users = int(orders.user.max(initial=0)) + 1
    pairs, pair = np.unique((at * users + orders.user) * 2 + orders.canary, return_inverse=True)
    fault = np.bincount(pair, weights=faulty, minlength=len(pairs)) > 0
    canary, user, place = pairs % 2 == 1, pairs // 2 % users, pairs // 2 // users
    first = np.full(users, len(candles))
    np.minimum.at(first, user[fault], place[fault])
    fresh = place <= first[user]
    chosen = (fresh & canary, fresh & ~canary, fresh & fault & canary, fresh & fault & ~canary)
    return Faults(*(np.bincount(place[each], minlength=len(candles)) for each in chosen))


def log_evidence(orders: Orders, faulty: BoolArray, tolerated: float, against: tuple[float, ...]) -> FloatArray:
    """Return, after each candle, the logarithm of the evidence that the canary's rate exceeds *tolerated* times.

    Of the users at risk on a candle, n_c are on the canary and n_a are not. If the canary's rate is θ times the other
    rate, a fault is one of a canary user with probability π(θ) = θ·n_c/(θ·n_c + n_a). E is the mean over the θ of
    *against* of Π (π(θ)/π(tolerated))^f_c ((1 − π(θ))/(1 − π(tolerated)))^f_a. It is a supermartingale while the true
    ratio is at most *tolerated*, even if rates change from candle to candle: the safe log-rank test (ter Schure,
    Pérez-Ortiz, Ly & Grünwald 2020). Faults of one candle are drawn without replacement, which has a smaller spread
    (Hoeffding 1963).

    To find faults that begin late, the evidence is a mixture over starts: weight 0.6 on the start of the rollout and
    0.4/(d(d + 1)) on the d-th UTC day after the first order. After each start, users are counted again for a week. A
    mixture of such processes is one too, even if they are dependent. If the orders are cut, earlier starts are left
    out, which only lowers the evidence.
    """
    candles = np.unique(orders.candle)
    mornings = np.flatnonzero(np.diff(candles // _DAY, prepend=-1))
    day = candles[mornings] // _DAY - orders.first_day
    restarts = [
        (begin, (1 - _FIRST_START) / (d * (d + 1)), (d + orders.first_day + _WEEK) * _DAY)
        for begin, d in zip(mornings.tolist(), day.tolist(), strict=True)
        if d > 0
    ]
    starts = restarts if orders.cut else [(0, _FIRST_START, math.inf), *restarts]
    total = np.full(len(candles), -np.inf)
    waiting = np.full(len(candles), (1 - _FIRST_START) / max(float(day[0]), 1.0) if orders.cut else 1.0)
    for begin, weight, end in starts:
        within = (orders.candle >= candles[begin]) & (orders.candle < end)
        path = _log_ratios(first_faults(orders.where(within), faulty[within]), tolerated, against)
        held = np.concatenate([path, np.full(len(candles) - begin - len(path), path[-1])])
        total[begin:] = np.logaddexp(total[begin:], math.log(weight) + held)
        waiting[begin:] -= weight
    return np.asarray(np.logaddexp(total, np.log(waiting)), np.float64)


def _log_ratios(faults: Faults, tolerated: float, against: tuple[float, ...]) -> FloatArray:
    """Return the log of the mean likelihood ratio after each candle. Candles of one version alone add 0."""
    alternatives = np.array(against)[:, np.newaxis]
    null = np.maximum(tolerated * faults.canary_users + faults.active_users, 1)
    total = np.log(null) - np.log(np.maximum(alternatives * faults.canary_users + faults.active_users, 1))
    steps = faults.canary * (np.log(alternatives / tolerated) + total) + faults.active * total
    return np.asarray(logsumexp(np.cumsum(steps, axis=1), axis=0) - math.log(len(against)), np.float64)


def _slow_beyond(filled: Orders, minimum: int) -> FloatArray:
    """Return, by fill, the active version's 99th percentile of earlier days. NaN below *minimum* fills."""
    day = filled.candle // _DAY
    limit = np.full(len(filled), np.nan)
    for today in np.unique(day):
        known = filled.latency_ms[(day < today) & ~filled.canary]
        if len(known) >= minimum:
            limit[day == today] = np.quantile(known, 1 - _SLOW)
    return limit


def _users(orders: Orders) -> tuple[int, int]:
    """Count the users whose newest order was on the canary, and the others. See `SampleRatio`."""
    if orders.canary.any() and not orders.canary.all():
        _, at = np.unique(orders.candle, return_inverse=True)
        ours, theirs = np.bincount(at, weights=orders.canary), np.bincount(at, weights=~orders.canary)
        orders = orders.where((ours[at] - orders.canary > 0) & (theirs[at] - ~orders.canary > 0))
    _, newest = np.unique(orders.user[::-1], return_index=True)
    canary = int(orders.canary[::-1][newest].sum())
    return canary, len(newest) - canary
