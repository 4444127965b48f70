"""The gates on live orders: verdicts, the error rate on healthy rollouts, and the power on harmful ones."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from strategy_core.domain.evidence import NO_ORDERS, Orders
from strategy_core.domain.gates.base import Verdict
from strategy_core.domain.gates.on_live_orders import ExecutionGate, Latency, OrderErrors, RoutingAudit, SampleRatio
from tests.domain.facts import judged

STREAMS = 2_000
PER_DAY = 8  # candles
GATES = [OrderErrors(), Latency(), SampleRatio(), RoutingAudit()]


def stream(
    seed: int,
    *,
    users: int = 100,
    candles: int = 40,
    share: float = 0.05,
    rate: float = 0.02,
    ratio: float = 1.0,
    since: int = 0,
    broken: float = 0.0,
    outage: float = 0.0,
    apart: float = 0.0,
    traded: float = 1.0,
    lost: float = 0.0,
    ramp: bool = False,
) -> Orders:
    """Return orders of users who copy every signal; each arm's fail at *rate*, the canary's at *ratio* times it.

    Args:
        since: candle from which the ratio holds.
        broken: share of accounts whose orders nearly all fail.
        outage: share of candles on which nearly all orders fail.
        apart: share of candles on which one version alone signals.
        traded: chance that a user copies a signal.
        lost: share of the canary's users who get no signal.
        ramp: whether the share climbs from 5 to 50 %.
    """
    rng = np.random.default_rng([11, seed])
    bucket = rng.random(users)
    shares = np.repeat([0.05, 0.10, 0.25, 0.50], candles // 4) if ramp else np.full(candles, share)
    canary = bucket < shares[:, np.newaxis]
    chance = np.where(canary & (np.arange(candles)[:, np.newaxis] >= since), rate * ratio, rate)
    chance = np.where(rng.random(users) < broken, 0.9, chance)
    chance = np.where(rng.random((candles, 1)) < outage, 0.8, chance)
    alone, whose = rng.random((candles, 1)) < apart, rng.random((candles, 1)) < 0.5
    sent = (~alone | (canary == whose)) & (rng.random((candles, users)) < traded)
    sent &= ~(canary & (rng.random(users) < lost))
    failed = rng.random((candles, users)) < chance
    candle, user = np.nonzero(sent)
    latency = np.where(failed, 900.0, 50.0) + 10 * rng.random((candles, users))
    return Orders(
        candle=candle * (86_400 // PER_DAY),
        user=user,
        canary=canary[sent],
        failed=failed[sent],
        latency_ms=latency[sent],
        share=shares[candle],
    )


def alarms(gate: ExecutionGate, streams: int = STREAMS, **of: Any) -> int:
    """Return in how many streams the evidence EVER passed the gate's limit."""
    verdicts = (judged(gate, orders=stream(seed, **of)).verdict for seed in range(streams))
    return sum(verdict is not Verdict.PASS for verdict in verdicts)


def upper(alarms: int, streams: int = STREAMS) -> float:
    """Return the upper 95 % limit of the rate (Clopper & Pearson 1934)."""
    return float(binomtest(alarms, streams).proportion_ci(0.90, "exact").high)


@pytest.mark.parametrize("gate", GATES)
def test_a_platform_that_reports_no_orders_is_judged_without_them(gate: ExecutionGate) -> None:
    finding = judged(gate, orders=NO_ORDERS)

    assert finding.verdict is Verdict.PASS
    assert "live orders" in finding.reason


@pytest.mark.parametrize("gate", GATES)
def test_unless_the_plan_requires_them(gate: ExecutionGate) -> None:
    required = gate.model_copy(update={"required": True})

    assert judged(required, orders=NO_ORDERS).verdict is Verdict.INSUFFICIENT


@pytest.mark.parametrize(("required", "verdict"), [(False, Verdict.INSUFFICIENT), (True, Verdict.BLIND)])
@pytest.mark.parametrize("gate", GATES)
def test_no_gate_passes_on_orders_that_have_stopped(gate: ExecutionGate, required: bool, verdict: Verdict) -> None:
    gate = gate.model_copy(update={"required": required})

    finding = judged(gate, orders=stream(1), orders_stopped="version 2 has no orders")

    assert judged(gate, orders=stream(1)).verdict is Verdict.PASS
    assert finding.verdict is verdict
    assert finding.reason.startswith("version 2 has no orders; before that: ")


def test_harm_that_was_proven_before_they_stopped_stays_proven() -> None:
    wrong = replace(NO_ORDERS, misrouted=1, misrouted_example="trade t1 of user u1 on 2")

    assert judged(RoutingAudit(), orders=wrong, orders_stopped="no orders").verdict is Verdict.BREACH


@pytest.mark.full
@pytest.mark.parametrize(
    "of",
    [
        {"ratio": 1.5, "share": 0.25},
        {"ramp": True, "broken": 0.05, "rate": 0.005, "outage": 0.05, "apart": 0.3},
        {"broken": 0.1, "rate": 0.0},
        {"users": 20, "share": 0.2, "traded": 0.3, "outage": 0.1, "apart": 0.5},
    ],
    ids=["at the tolerated ratio", "accounts, outages and signals apart", "broken accounts alone", "tiny traffic"],
)
def test_healthy_orders_are_hardly_ever_called_sick(of: dict[str, Any]) -> None:
    """With a tenfold error budget, so that 2,000 streams suffice, and with all kinds of dependence from copying."""
    assert upper(alarms(OrderErrors(alpha=0.01), **of)) <= 0.01


@pytest.mark.full
def test_healthy_fills_are_hardly_ever_called_slow() -> None:
    """A slow market, and accounts at a slow broker, are slow for both versions."""
    gate = Latency(alpha=0.01, minimum_fills=100)

    assert upper(alarms(gate, ramp=True, broken=0.05, rate=0.01, outage=0.05, apart=0.3)) <= 0.01


@pytest.mark.full
@pytest.mark.parametrize("of", [{"ramp": True, "apart": 0.3}, {"users": 400, "traded": 0.02, "share": 0.1}])
def test_a_fair_split_is_hardly_ever_called_unfair(of: dict[str, Any]) -> None:
    assert upper(alarms(SampleRatio(alpha=0.01), **of)) <= 0.01


@pytest.mark.parametrize(
    ("gate", "of", "verdict"),
    [
        pytest.param(OrderErrors(), {"users": 2_000, "rate": 0.01, "ratio": 4}, "fail", marks=pytest.mark.full),
        (OrderErrors(), {"users": 400, "rate": 0.005, "ratio": 150}, "fail"),
        pytest.param(
            OrderErrors(), {"users": 1_000, "rate": 0.01, "ratio": 10, "since": 20}, "fail", marks=pytest.mark.full
        ),
        (OrderErrors(), {"users": 400, "rate": 0.05, "ratio": 3, "share": 0.5}, "fail"),
        (Latency(), {"users": 1_000, "rate": 0.005, "ratio": 20}, "fail"),
        (SampleRatio(), {"users": 2_000, "share": 0.25, "lost": 0.4}, "inconclusive"),
    ],
    ids=["four times", "all fail", "ten times, late", "at 50 %", "slow", "users lost"],
)
def test_a_sick_canary_is_found(gate: ExecutionGate, of: dict[str, Any], verdict: str) -> None:
    """In 19 of 20 streams at least, within five days."""
    found = [judged(gate, orders=stream(seed, **of)).verdict for seed in range(40)]

    assert found.count(Verdict(verdict)) >= 38


def test_fewer_errors_than_the_active_version_are_no_harm() -> None:
    assert alarms(OrderErrors(alpha=0.4), 50, ratio=0.1, rate=0.1, share=0.5) == 0


def orders(*rows: tuple[int, int, bool, bool], share: float = 0.5) -> Orders:
    """Return orders of (candle, user, canary, failed)."""
    candle, user, canary, failed = (np.array(column) for column in zip(*rows, strict=True))
    return Orders(candle * 3_600, user, canary, failed, np.full(len(rows), np.nan), np.full(len(rows), share))


def test_a_users_second_error_says_nothing_new() -> None:
    """A broken account fails repeatedly. Within a day it counts once."""
    rows = [(0, 0, True, True), (0, 1, False, False), (1, 0, True, True), (1, 1, False, False)]

    once, twice = judged(OrderErrors(), orders=orders(*rows[:2])), judged(OrderErrors(), orders=orders(*rows))

    assert once.value == twice.value
    assert once.reason.startswith("1 users with errors in 1 canary orders, 0 in 1 of the active version's")


def test_the_evidence_is_the_mean_likelihood_ratio_of_the_docstring() -> None:
    """One canary user fails, one active user does not: π(θ)/π(1.5), on 0.6 of the stake."""
    ratios = [(theta / (theta + 1)) / (1.5 / 2.5) for theta in (2, 4, 10)]

    found = judged(OrderErrors(), orders=orders((0, 0, True, True), (0, 1, False, False)))

    assert found.value == pytest.approx(0.6 * np.mean(ratios) + 0.4)


def test_a_candle_that_one_version_traded_alone_says_nothing() -> None:
    alone = orders(*((0, user, True, True) for user in range(50)))

    assert (
        judged(OrderErrors(), orders=alone).reason == "no canary order on a candle that the active version traded too"
    )
    beside = orders(*((0, user, True, True) for user in range(50)), (1, 50, False, False), (1, 51, True, False))
    assert judged(OrderErrors(), orders=beside).value == pytest.approx(1)


def test_found_once_it_stays_found() -> None:
    """Good days after the harm do not take it back."""
    sick = stream(1, users=400, rate=0.005, ratio=150)
    later = stream(2, users=400, rate=0.005)
    a_week = int(sick.candle.max()) + 7 * 86_400
    both = Orders(
        candle=np.concatenate([sick.candle, later.candle + a_week]),
        user=np.concatenate([sick.user, later.user]),
        canary=np.concatenate([sick.canary, later.canary]),
        failed=np.concatenate([sick.failed, later.failed]),
        latency_ms=np.concatenate([sick.latency_ms, later.latency_ms]),
        share=np.concatenate([sick.share, later.share]),
    )

    assert judged(OrderErrors(), orders=both).verdict is Verdict.FAIL


def test_what_is_cut_only_lowers_the_evidence() -> None:
    """With too many orders, a tick only judges the newest days. Continuing harm is still found."""
    sick = stream(1, users=2_000, rate=0.01, ratio=8)
    newest = replace(sick.where(sick.candle >= 2 * 86_400), cut=True)

    whole, part = judged(OrderErrors(), orders=sick), judged(OrderErrors(), orders=newest)

    assert (whole.verdict, part.verdict) == (Verdict.FAIL, Verdict.FAIL)
    assert part.value is not None
    assert whole.value is not None
    assert part.value < whole.value


@pytest.mark.parametrize("days", [1, 2, 4])
def test_nothing_is_staked_twice_on_what_is_cut(days: int) -> None:
    """Without any fault the evidence is what is left of the stake: that of the days cut is gone."""
    quiet = stream(1, rate=0.0)
    newest = replace(quiet.where(quiet.candle >= days * 86_400), cut=True)

    assert judged(OrderErrors(), orders=quiet).value == pytest.approx(1)
    assert judged(OrderErrors(), orders=newest).value == pytest.approx(0.4 / days)


def test_slow_is_measured_by_earlier_days_alone() -> None:
    """On the first day no fill is slow, because there is no reference yet."""
    first = stream(1, users=1_000, candles=PER_DAY, rate=0.005, ratio=50)

    found = judged(Latency(), orders=first)

    assert (found.verdict, found.n) == (Verdict.PASS, 0)


def test_a_version_without_any_order_yet_holds_the_ramp() -> None:
    """Its first signal may still come, or its signals may not reach its users."""
    silent = orders(*((0, user, False, False) for user in range(500)), share=0.05)

    found = judged(SampleRatio(), orders=silent)

    assert found.verdict is Verdict.INSUFFICIENT
    assert found.reason.startswith("0 of 500 users who trade at 5.00% are on the canary")


def test_a_user_counts_by_his_newest_order() -> None:
    """In the minute that a change takes, orders go by the share before."""
    stale = [(0, user, user < 50, False) for user in range(500)]
    right = [(1, user, user < 250, False) for user in range(500)]

    assert judged(SampleRatio(), orders=orders(*stale)).verdict is Verdict.INCONCLUSIVE
    assert judged(SampleRatio(), orders=orders(*stale, *right)).verdict is Verdict.PASS


def test_one_user_on_a_wrong_version_is_a_breach() -> None:
    wrong = replace(NO_ORDERS, misrouted=1, misrouted_example="trade t1 of user u1 on 2")

    found = judged(RoutingAudit(), orders=wrong)

    assert found.verdict is Verdict.BREACH
    assert found.reason == "1 live trades of users on a wrong version, such as trade t1 of user u1 on 2"
    assert judged(RoutingAudit(), orders=stream(1)).verdict is Verdict.PASS


def test_the_verdict_follows_from_the_rows_alone() -> None:
    """The numbering of users does not matter."""
    one = stream(3, rate=0.05)

    assert judged(OrderErrors(), orders=one) == judged(OrderErrors(), orders=replace(one, user=99 - one.user))
