"""Races: evidence between all pairs, what it eliminates, and which version is nominated."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr

from strategy_core.domain import race
from strategy_core.domain.race import (
    ALPHA,
    DECLINED_AT,
    DOUBT,
    HOLD_AT,
    LEAST_DAYS,
    LEAST_SLOTS,
    MOST_A_DAY,
    SLACK,
    WARM_UP_DAYS,
    Canary,
    Day,
    Entry,
    Pairs,
    Ruling,
    Standing,
    Standings,
    Status,
    Step,
    add_day,
    begin,
    bounds,
    enter,
    log_limits,
    measure_noise,
    read_pairs,
    rule,
    standings,
)


def day_of(*rows: Sequence[float | None], held: float = 0.0) -> Day:
    """Return a day from R by slot and version. None: no decision. 0: it held."""
    r = np.array([[0.0 if each is None else each for each in row] for row in rows]).reshape(len(rows), -1)
    decided = np.array([[each is not None for each in row] for row in rows]).reshape(r.shape)
    return Day(r, decided, decided & (r != held))


def after(days: Sequence[Day], versions: int = 2) -> Pairs:
    pairs = begin(versions)
    for day in days:
        pairs = add_day(pairs, day)
    return pairs


def drawn(rng: np.random.Generator, edges: Sequence[float], slots: int = 6) -> Day:
    r = rng.standard_t(4, (slots, len(edges))) + np.array(edges)
    return Day(r, np.ones(r.shape, np.bool_), np.ones(r.shape, np.bool_))


def test_a_day_is_summed_over_the_candles_that_both_decided() -> None:
    pairs = after([day_of([1.0, -1.0, None], [0.0, 2.0, 1.0], [0.0, 0.0, 3.0])], 3)

    assert pairs.slots.tolist() == [[1, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert pairs.difference[0, 1] == 2.0 - 2.0
    assert pairs.difference[2, 0] == 1.0 + 3.0
    assert pairs.difference[1, 2] == 1.0 - 3.0
    assert np.allclose(pairs.difference, -pairs.difference.T)
    assert pairs.unlike.tolist() == [[0, 2, 2], [2, 0, 2], [2, 2, 0]]
    assert pairs.mean[2, 0] == 2.0


def test_the_evidence_is_the_half_normal_mixture() -> None:
    """It is integrated here over the stakes, with the charges summed day by day."""
    rng = np.random.default_rng(5)
    days = [drawn(rng, (0.3, 0.0)) for _ in range(40)]
    pairs = after(days)
    sums = np.array([float((day.r[:, 0] - day.r[:, 1]).sum()) for day in days])
    scale = DOUBT * (sums[:WARM_UP_DAYS] ** 2).sum() / (6 * WARM_UP_DAYS)
    rho = scale * 6 * race.TUNED_DAYS / race.TUNED_LOG
    charge = sum((sums[t] ** 2 + 2 * DOUBT * (sums[:t] ** 2).sum() / t) / 3 for t in range(WARM_UP_DAYS, len(sums)))
    stakes = np.linspace(0, 12 / math.sqrt(rho), 200_001)
    density = 2 * math.sqrt(rho / (2 * math.pi)) * np.exp(-rho * stakes**2 / 2)
    wealth = np.exp(stakes * sums[WARM_UP_DAYS:].sum() - stakes**2 * charge / 2)

    assert pairs.log_e[0, 1] == pytest.approx(math.log(np.trapezoid(density * wealth, stakes)), abs=1e-6)
    assert pairs.peak[0, 1] >= pairs.log_e[0, 1] > pairs.log_e[1, 0]


def test_without_a_bet_there_is_no_evidence_and_no_bound() -> None:
    pairs = after([day_of([1.0, -1.0])] * WARM_UP_DAYS)
    low, high = bounds(pairs, 0.05)

    assert pairs.log_e[0, 1] == pairs.peak[0, 1] == 0
    assert (low[0, 1], high[0, 1]) == (-np.inf, np.inf)
    assert after([day_of([1.0, -1.0])] * (WARM_UP_DAYS + 1)).log_e[0, 1] != 0
    assert np.all(after([day_of([1.0, 1.0])] * 40).log_e == 0)  # they never differ


def test_days_before_the_race_measure_noise_alone() -> None:
    quiet, wild = day_of([0.1, 0.0]), day_of([3.0, 0.0])
    known = measure_noise(begin(2), wild)
    one = after([quiet] * 20)
    other = known
    for _ in range(20):
        other = add_day(other, quiet)

    assert other.slots[0, 1] == one.slots[0, 1] == 20
    assert other.log_e[0, 1] < one.log_e[0, 1]


def test_evidence_against_an_equal_version_seldom_becomes_large() -> None:
    """400 races of 80 days at several sizes of market: a share of 1/20 at most may ever reach 20."""
    reached = 0
    for number in range(100):
        rng = np.random.default_rng([3, number])
        pairs = after([drawn(rng, (0.0,) * 4) for _ in range(80)], 4)
        reached += int(np.sum(pairs.peak[[0, 2], [1, 3]] >= math.log(20)))  # independent pairs

    assert reached <= 200 * 0.05


def test_a_difference_is_found_and_lies_within_its_bounds() -> None:
    rng = np.random.default_rng(11)
    pairs = begin(2)
    for _ in range(120):
        pairs = add_day(pairs, drawn(rng, (0.5, 0.0)))
        low, high = bounds(pairs, 0.025)
        assert low[0, 1] < 0.5 < high[0, 1]

    assert low[0, 1] > 0
    assert pairs.peak[0, 1] > math.log(1000) > 0 >= pairs.log_e[1, 0]


def test_a_bound_is_the_mean_at_which_the_evidence_is_its_limit() -> None:
    rng = np.random.default_rng(12)
    days = [drawn(rng, (0.2, 0.0)) for _ in range(50)]
    low, _ = bounds(after(days), 0.05)
    shifted = [Day(day.r - np.array([low[0, 1], 0.0]), day.decided, day.signalled) for day in days]
    before, moved = after(days), after(shifted)
    s, v = moved.x[0, 1], before.v[0, 1]  # v and ρ are those of the unshifted days, as the noise is
    width = (moved.xx[0, 1] + 2 * v) / 3 + before.rho[0, 1]
    evidence = 2 * math.sqrt(before.rho[0, 1] / width) * math.exp(s**2 / (2 * width)) * ndtr(s / math.sqrt(width))

    assert evidence == pytest.approx(20, rel=1e-6)


@given(began=st.integers(2, 17), late=st.integers(0, 40))
def test_the_limits_of_all_pairs_spend_no_more_than_alpha(began: int, late: int) -> None:
    limits = log_limits(began, began + late)
    spent = np.exp(-limits)
    np.fill_diagonal(spent, 0)

    assert spent.sum() <= ALPHA * (1 + 1e-9)
    assert np.allclose(limits, limits.T)
    assert np.array_equal(log_limits(began, began), limits[:began, :began])  # who enters later changes nothing for them


def test_a_version_that_enters_later_starts_its_own_clock() -> None:
    rng = np.random.default_rng(4)
    early = after([drawn(rng, (0.4, 0.0)) for _ in range(30)])
    pairs = enter(early, 1)

    assert pairs.log_e[0, 1] == early.log_e[0, 1]
    assert pairs.log_e[2, 0] == pairs.log_e[0, 2] == 0
    assert pairs.days[2, 0] == 0


def test_pairs_are_read_as_they_were_stored() -> None:
    rng = np.random.default_rng(4)
    pairs = after([drawn(rng, (0.4, 0.0)) for _ in range(12)])
    again = read_pairs(pairs.stored())

    assert again.stored() == pairs.stored()
    assert add_day(again, drawn(np.random.default_rng(1), (0, 0))).stored() == (
        add_day(pairs, drawn(np.random.default_rng(1), (0, 0))).stored()
    )


def race_of(edges: Sequence[float], days: int, seed: int = 1, **facts: Any) -> Standings:
    rng = np.random.default_rng(seed)
    pairs, entries = begin(len(edges)), [Entry(str(number)) for number in range(len(edges))]
    for _ in range(days):
        pairs = add_day(pairs, drawn(rng, edges))
    return standings(pairs, entries, active="0", began=len(edges), **facts)


def test_what_is_eliminated_stays_out() -> None:
    rng = np.random.default_rng(2)
    pairs, entries = begin(3), [Entry(name) for name in ("1.0", "2.0", "3.0")]
    for _ in range(60):
        pairs = add_day(pairs, drawn(rng, (0.0, 1.0, -1.0)))
    at = standings(pairs, entries, active="1.0", began=3)
    assert [row.status for row in at.rows] == [Status.ELIMINATED, Status.RUNNING, Status.ELIMINATED]
    assert {row.version: row.by for row in at.rows} == {"1.0": "2.0", "2.0": "", "3.0": "2.0"}
    assert at.leader is not None
    assert at.leader.version == "2.0"
    assert at.rows[1].low > 0
    for _ in range(200):
        pairs = add_day(pairs, drawn(rng, (0.0, 0.0, 3.0)))

    later = standings(pairs, at.entries, active="1.0", began=3)

    assert later.rows[2].status is Status.ELIMINATED
    assert later.rows[2].log10_e > 3


def test_a_version_with_errors_is_withdrawn_for_good() -> None:
    at = race_of((0.0, 0.1, 0.1), 20, errors={"1": 0.021, "2": 0.02})

    assert (at.rows[1].status, at.rows[1].by) == (Status.WITHDRAWN, "errors on 2.1% of its candles, at most 2%")
    assert at.rows[2].status is Status.RUNNING
    assert at.entries[1].withdrawn
    assert race_of((0.0, 0.1), 9).entries[1].withdrawn == ""


def test_of_versions_that_do_the_same_the_first_stands_for_all() -> None:
    rng = np.random.default_rng(3)
    pairs, entries = begin(3), [Entry(name) for name in ("a", "b", "c")]
    for _ in range(20):
        day = drawn(rng, (0.0, 0.3))
        pairs = add_day(pairs, Day(day.r[:, [0, 1, 1]], day.decided[:, [0, 1, 1]], day.signalled[:, [0, 1, 1]]))

    at = standings(pairs, entries, active="a", began=3)
    assert [(row.status, row.by) for row in at.rows] == [(Status.RUNNING, ""), (Status.RUNNING, ""), (Status.SAME, "b")]
    gone = standings(pairs, [entries[0], Entry("b", withdrawn="by its owner"), entries[2]], active="a", began=3)
    assert [row.status for row in gone.rows] == [Status.RUNNING, Status.WITHDRAWN, Status.RUNNING]


def standing(version: str, mean: float | None = 0.1, z: float = 2.0, **facts: Any) -> Standing:
    known: dict[str, Any] = {
        "status": Status.RUNNING,
        "slots": 100,
        "days": 30,
        "low": -1.0,
        "high": 1.0,
        "log10_e": 0.1,
    }
    return Standing(version=version, mean=mean, z=z, **known | facts)


def among(*rows: Standing) -> Standings:
    every = [standing("1.0", None, 0.0), *rows]
    return Standings("1.0", every, [Entry(row.version) for row in every], len(rows))


def test_the_leader_is_nominated() -> None:
    found = rule(among(standing("2.0", 0.1), standing("3.0", 0.2)), None)

    assert (found.step, found.version) == (Step.NOMINATE, "3.0")
    assert found.reason == "3.0 leads with +0.200 R a slot over 100 slots, 2.0 standard errors above 1.0"
    assert rule(among(standing("2.0", 0.1), standing("3.0", 0.2)), None, refused=["3.0"]).version == "2.0"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([standing("2.0", slots=LEAST_SLOTS - 1)], "2.0 leads with 29 of 30 slots, 30 of 14 days"),
        ([standing("2.0", days=LEAST_DAYS - 1)], "2.0 leads with 100 of 30 slots, 13 of 14 days"),
        ([standing("2.0", None, slots=0)], "2.0 leads with 0 of 30 slots, 30 of 14 days"),
        ([standing("2.0", z=0.9)], "2.0 leads with +0.100 R a slot over 100 slots, 0.9 standard errors of at least 1"),
        ([standing("2.0", status=Status.ELIMINATED)], "no version is left to nominate: 1 eliminated"),
        ([standing("2.0", status=Status.SAME), standing("9")], "no version is left to nominate: 1 same, 1 rolled back"),
        ([], "no version is left to nominate: it has none"),
    ],
)
def test_a_race_waits_and_says_for_what(rows: list[Standing], reason: str) -> None:
    found = rule(among(*rows), None, refused=["9"])

    assert (found.step, found.reason) == (Step.WAIT, reason)


def test_a_canary_of_few_users_may_be_replaced() -> None:
    at = among(standing("2.0"), standing("3.0"), standing("4.0", status=Status.ELIMINATED))

    def against(evidence: float, percent: float = 25.0, **facts: Any) -> Ruling:
        return rule(at, Canary("2.0", percent, {"3.0": evidence, "4.0": 9.0, "1.0": 9.0}), **facts)

    assert against(1.77) == Ruling(Step.WAIT, "2.0", "2.0 is in a rollout")  # the limit is 20 × 3 = 60
    assert against(1.78) == Ruling(Step.SUPERSEDE, "3.0", "3.0 earns more than 2.0: E = 60 of 60")
    assert against(1.78, refused=["3.0"]).step is Step.WAIT
    assert against(2.0, 50.0).reason == "3.0 earns more than 2.0: E = 100 of 60, but 50 % of users have 2.0"
    waits = against(2.0, days_since_superseded=6.5)
    assert (waits.step, waits.reason.rpartition(", ")[2]) == (Step.WAIT, "but a rollout was ended 6.5 days ago")
    assert rule(among(standing("2.0")), Canary("2.0", 5.0, {})).step is Step.WAIT


def test_a_canary_whose_lead_is_gone_is_withdrawn() -> None:
    at = among(standing("2.0", -0.05, -0.1), standing("3.0"))

    found = rule(at, Canary("2.0", 25.0, {}))

    assert found == Ruling(Step.WITHDRAW, "2.0", "the lead of 2.0 is gone: -0.050 R a slot over 100 slots")
    assert rule(at, Canary("2.0", 50.0, {})).step is Step.WAIT
    assert rule(at, Canary("2.0", 25.0, {"3.0": 2.0})).step is Step.SUPERSEDE


def test_a_canary_that_has_lately_fallen_behind_is_held_and_then_withdrawn() -> None:
    def about(decline: float, percent: float = 50.0) -> Ruling:
        return rule(among(standing("2.0", decline=decline)), Canary("2.0", percent, {}), days_since_superseded=1)

    assert about(HOLD_AT - 0.1) == Ruling(Step.WAIT, "2.0", "2.0 is in a rollout")
    fell = "2.0 has lately fallen 2.0 standard deviations of a day behind 1.0"
    assert about(HOLD_AT) == Ruling(Step.WAIT, "2.0", fell, hold=True)
    assert about(DECLINED_AT).step is Step.WITHDRAW
    assert about(DECLINED_AT, 5.0).version == "2.0"


def test_a_leader_that_has_lately_fallen_behind_is_not_nominated() -> None:
    found = rule(among(standing("2.0", decline=HOLD_AT)), None)

    assert found.step is Step.WAIT
    assert found.reason.endswith("but 2.0 has lately fallen 2.0 standard deviations of a day behind 1.0")


def test_users_return_to_the_predecessor_when_the_active_version_has_fallen_behind_it() -> None:
    at = among(standing("0.9", overtaken=DECLINED_AT), standing("2.0", 0.2))

    found = rule(at, None, predecessor="0.9")

    assert (found.step, found.version) == (Step.RETURN, "0.9")
    assert found.reason == "1.0 has lately fallen 5.0 standard deviations of a day behind 0.9"
    assert rule(at, Canary("2.0", 5.0, {}), predecessor="0.9").step is Step.RETURN
    assert rule(at, None).step is Step.NOMINATE
    assert rule(among(standing("0.9", overtaken=4.9), standing("2.0", 0.2)), None, predecessor="0.9").version == "2.0"
    gone = among(standing("0.9", overtaken=9.0, status=Status.WITHDRAWN), standing("2.0"))
    assert rule(gone, None, predecessor="0.9").version == "2.0"


def test_a_decline_sums_what_days_fall_short_and_no_day_counts_for_more_than_two() -> None:
    alike = [day_of([1.0, -1.0], [-1.0, 1.0], [1.0, 0.0]), day_of([1.0, -1.0], [-1.0, 1.0], [0.0, 1.0])] * 5
    known = after(alike)
    assert known.decline[0, 1] < HOLD_AT

    crash = add_day(known, day_of([-100.0, 0.0]))
    again = add_day(crash, day_of([100.0, 0.0]))

    assert crash.decline[0, 1] == pytest.approx(known.decline[0, 1] + MOST_A_DAY - SLACK)
    assert crash.decline[1, 0] == 0
    assert again.decline[0, 1] < crash.decline[0, 1]
    assert after(alike[:WARM_UP_DAYS]).decline.tolist() == [[0, 0], [0, 0]]


def test_pairs_of_an_earlier_release_begin_without_a_decline() -> None:
    rng = np.random.default_rng(4)
    stored = after([drawn(rng, (0.0, 1.0)) for _ in range(30)]).stored()
    del stored["decline"]

    assert read_pairs(stored).decline.tolist() == [[0, 0], [0, 0]]


def test_standings_have_the_declines_and_may_leave_out_the_bounds() -> None:
    rng = np.random.default_rng(4)
    pairs = after([drawn(rng, (0.0, -1.0)) for _ in range(30)])

    at = standings(pairs, [Entry("1.0"), Entry("2.0")], active="1.0", began=2, bounded=False)

    assert at.rows[1].decline == pairs.decline[1, 0] > 0
    assert at.rows[1].overtaken == pairs.decline[0, 1]
    assert (at.rows[1].low, at.rows[1].high) == (-math.inf, math.inf)
