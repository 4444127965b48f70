"""Simulated races: the market is what its scenario says, and each policy does what its name says."""

from dataclasses import replace

import numpy as np
import pytest

from strategy_core.domain import race
from strategy_core.domain.plan import Plan
from strategy_core.domain.race_simulation import (
    POLICIES,
    SCENARIOS,
    Known,
    Market,
    RaceCase,
    RaceResult,
    RaceScenario,
    Served,
    follow_the_leader,
    hedge,
    judge_race,
    patient,
    run_race,
    simulate_market,
    summarise,
    thompson,
)

QUICK = Plan()


def drawn(name: str, candidates: int = 4, *, days: int = 60, shadow_days: int = 0, seed: int = 1) -> Market:
    rng = np.random.default_rng(seed)
    return simulate_market(SCENARIOS[name], candidates, rng, days=days, shadow_days=shadow_days)


@pytest.mark.parametrize("name", SCENARIOS)
def test_versions_earn_what_the_scenario_says(name: str) -> None:
    market = drawn(name, 3, days=2_000)
    edges = market.edges.mean(axis=0)
    found = market.r.mean(axis=0) - market.r[:, 0].mean()
    error = (market.r - market.r[:, [0]]).std(axis=0) / np.sqrt(len(market.r)) * (8 if name == "heavy_tails" else 4)

    assert np.all(np.abs(found - edges) <= error + 1e-9)
    assert market.r.shape == market.signalled.shape == (48_000, 4)
    assert np.all(market.r[~market.signalled] == 0)


def test_clones_hardly_differ_and_correlated_candidates_often_agree() -> None:
    clones, apart, together = (drawn(name, days=400) for name in ("near_clones", "one_better", "correlated"))

    def unlike(market: Market, i: int, j: int) -> float:
        return float(np.mean(market.r[:, i] != market.r[:, j]))

    assert 0 < unlike(clones, 1, 2) < 0.01 < unlike(clones, 2, 3)
    assert unlike(together, 2, 3) < 0.5 * unlike(apart, 2, 3)


def test_one_turns_bad_on_its_day() -> None:
    edges = drawn("one_turns_bad").edges

    assert edges[:30, 1].tolist() == [0.05] * 30
    assert edges[30:, 1].tolist() == [-0.15] * 30


def test_days_are_cut_from_shadow_to_the_end() -> None:
    market = drawn("all_equal", days=3, shadow_days=2)

    assert [len(market.of_day(day).r) for day in (-3, -2, 2, 3)] == [0, 24, 24, 0]
    slots = market.pair(2, 0, -1, 1)
    assert set(slots.day.tolist()) == {-1, 0}
    assert np.all((slots.canary_side + slots.active_side) > 0)


def flat(days: int, edges: tuple[float, ...]) -> Market:
    """Return a market without noise: each version earns the same on each day, on two slots."""
    r = np.tile(np.array(edges), (2 * days, 1))
    day = np.repeat(np.arange(days), 2)
    return Market(r, np.ones(r.shape, np.bool_), day, np.tile(np.array(edges) - edges[0], (days, 1)))


def test_a_race_is_judged_by_what_each_user_earned() -> None:
    market = flat(4, (0.0, 0.5, -0.5))
    versions = np.array([[0, 0], [1, 0], [1, 2], [1, 1]])

    found = judge_race(market, Served(versions, promoted=[(1, 3)], eliminated={2}))

    assert found == RaceResult(
        gain=1.5,
        worst=0.0,
        best_fixed=4.0,
        worse_days=1 / 8,
        switches=1.5,
        served_all_on=3,
        best_eliminated=False,
        worse_promoted=False,
    )
    bad = judge_race(market, Served(np.zeros((4, 2), np.int64), promoted=[(2, 1)], eliminated={1}))
    assert (bad.gain, bad.served_all_on, bad.best_eliminated, bad.worse_promoted) == (0.0, None, True, True)
    kept = judge_race(flat(2, (0.0, -1.0)), Served(np.zeros((2, 2), np.int64)))
    assert (kept.best_fixed, kept.served_all_on) == (0.0, None)


def test_the_policies_give_users_as_their_names_say() -> None:
    rng = np.random.default_rng(1)
    sums = np.column_stack([rng.standard_normal(40), 3 + rng.standard_normal(40), rng.standard_normal(40)])

    assert follow_the_leader(sums, rng).tolist() == [0, 1, 0]
    assert hedge(sums, rng).argmax() == 1
    assert hedge(sums, rng).sum() == pytest.approx(1)
    assert thompson(sums, rng).tolist() == pytest.approx([0.01 / 1.02, 1 / 1.02, 0.01 / 1.02])
    assert thompson(sums[:1], rng).tolist() == [1, 0, 0]
    wait = patient()
    assert wait(sums[:10], rng).tolist() == [1, 0, 0]
    assert wait(sums, rng).tolist() == [0, 1, 0]
    assert wait(sums, rng).tolist() == [0, 1, 0]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_race_is_the_same_again(policy: str) -> None:
    case = RaceCase(SCENARIOS["one_better"], 2, policy, QUICK, 20, 15)

    assert run_race(case, 5, 3) == run_race(case, 5, 3)


def known(market: Market, shadow_days: int) -> Known:
    return Known(market, shadow_days, QUICK, (np.arange(100) + 0.5) / 100, np.random.default_rng(1))


def test_the_ramp_widens_with_its_stages_and_promotes_the_better_version() -> None:
    much = RaceScenario("much_better", (0.3, -0.3))
    market = simulate_market(much, 3, np.random.default_rng(4), days=60, shadow_days=30)

    served = POLICIES["ramp"]()(known(market, 30))

    shares = np.mean(served.versions == 1, axis=1)
    assert sorted(set(shares.tolist())) == [0.05, 0.1, 0.25, 0.5, 1]
    assert np.all(np.diff(shares) >= 0)
    assert [version for version, _ in served.promoted] == [1]
    assert served.eliminated >= {2, 3}


def led(edge: float, *, lead: float = 1.5, other: float = 0.0, days: int = 40) -> Market:
    """Return a race of two whose first candidate led in shadow, and earns *edge* from the first stage on."""
    market = simulate_market(SCENARIOS["all_equal"], 2, np.random.default_rng(4), days=days, shadow_days=20)
    traded = market.signalled[:, 1]
    market.r[traded & (market.day < 1), 1] += lead
    market.r[traded & (market.day >= 1), 1] += edge
    market.r[market.signalled[:, 2] & (market.day >= 1), 2] += other
    return market


def test_a_version_that_turns_bad_is_rolled_back_and_not_nominated_again() -> None:
    served = POLICIES["ramp"]()(known(led(-3.0), 20))

    shares = np.mean(served.versions == 1, axis=1)
    assert shares[0] == 0.05
    assert np.flatnonzero(shares)[-1] < 5
    assert not served.promoted


def test_a_canary_whose_lead_is_gone_is_withdrawn() -> None:
    served = POLICIES["ramp"]()(known(led(-0.15, lead=0.15), 20))

    shares = np.mean(served.versions == 1, axis=1)
    assert shares[0] == 0.05
    assert shares[-1] == 0
    assert not served.promoted


def test_a_better_challenger_takes_over_from_a_canary_of_few_users() -> None:
    served = POLICIES["ramp"]()(known(led(0.05, lead=0.15, other=3.0), 20))

    shares = [np.mean(served.versions == number, axis=1) for number in (1, 2)]
    last = int(np.flatnonzero(shares[0])[-1])
    assert (shares[0][0], shares[0][last]) == (0.05, 0.25)
    assert shares[1][last + 1] == 0.05
    assert [version for version, _ in served.promoted] == [2]


def test_users_return_to_the_predecessor_of_a_version_that_turned_bad_after_its_promotion() -> None:
    market = simulate_market(RaceScenario("turns", (0.3, -0.3)), 2, np.random.default_rng(4), days=60, shadow_days=40)
    market.r[market.signalled[:, 1] & (market.day >= 25), 1] -= 0.9

    served = POLICIES["ramp"]()(known(market, 40))

    shares = np.mean(served.versions == 1, axis=1)
    assert [version for version, _ in served.promoted] == [1]
    assert served.promoted[0][1] < 25
    assert shares[25] == 1
    assert shares[40] == 0
    assert np.all(served.versions[40] == 0)
    assert served.events[-1][2].startswith("its users go back: 1 has lately fallen ")


def test_harm_that_the_standing_watch_proves_ends_a_promotion(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "DECLINED_AT", np.inf)
    market = simulate_market(RaceScenario("turns", (0.3, -0.3)), 2, np.random.default_rng(4), days=60, shadow_days=40)
    market.r[market.signalled[:, 1] & (market.day >= 25), 1] -= 1.5

    served = POLICIES["ramp"]()(known(market, 40))

    shares = np.mean(served.versions == 1, axis=1)
    assert served.promoted[0][1] < 25
    assert shares[25] == 1
    assert shares[-1] == 0


def test_the_foreseen_choice_is_the_best_version_from_the_first_day_on() -> None:
    better, worse = (
        simulate_market(RaceScenario("one", (edge, -0.3)), 2, np.random.default_rng(4), days=40, shadow_days=40)
        for edge in (0.3, -0.3)
    )

    assert POLICIES["foreseen"]()(known(better, 40)).promoted[0][0] == 1
    assert not POLICIES["foreseen"]()(known(worse, 40)).versions.any()


def test_a_cell_has_means_and_upper_limits() -> None:
    case = RaceCase(SCENARIOS["all_equal"], 2, "ramp", QUICK, 20, 15)
    one = RaceResult(1.0, -1.0, 2.0, 0.5, 1.0, 7, best_eliminated=True, worse_promoted=False)
    cell = summarise(case, [one, replace(one, gain=3.0, served_all_on=None, best_eliminated=False)])

    assert (cell.gain, round(cell.gain_error, 3), cell.served_all, cell.median_days) == (2.0, 0.707, 0.5, 7.0)
    assert (cell.best_eliminated, round(cell.best_eliminated_limit, 3)) == (0.5, 0.975)
    assert (cell.worse_promoted, round(cell.worse_promoted_limit, 3)) == (0.0, 0.776)
    assert summarise(case, [replace(one, served_all_on=None)]).median_days is None
