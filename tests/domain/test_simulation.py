"""Simulated pairs have the market that they claim, and the very change that they claim."""

from dataclasses import replace

import numpy as np
import pytest

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.pair_noise import day_variance, design_effect
from strategy_core.domain.simulation import (
    DECAY_DAYS,
    HARMFUL,
    HEALTHY,
    LARGER_LOSSES,
    LOSING,
    MEAN_SIZE,
    RARE,
    RARE_LOSS_R,
    RARELY,
    RISK_FRACTION,
    SCENARIOS,
    SPIKE_LOSS,
    SPIKE_TRADES,
    WEEKDAYS,
    Change,
    Market,
    Ramp,
    Scenario,
    changed_by,
    information_bound,
    payoffs,
    resampled,
    simulate,
    simulate_shadow,
)
from strategy_core.domain.slots import Slots, slots

DAYS = 20


def ramps(name: str, count: int = 30, days: int = DAYS) -> list[Ramp]:
    return [simulate(SCENARIOS[name], np.random.default_rng([7, i]), days=days) for i in range(count)]


def root_mean_square(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values**2)))


def differences(drawn: list[Ramp]) -> FloatArray:
    return np.concatenate([ramp.slots.pnl_difference for ramp in drawn])


def win_rate(drawn: list[Ramp], *, canary: bool = True) -> float:
    """Return the share of wins among the trades on the faulty slots, or on all without faulty ones."""
    won = traded = 0
    for ramp in drawn:
        chosen = ramp.faulty if ramp.faulty.any() else np.ones(len(ramp.slots), np.bool_)
        r, side = (
            (ramp.slots.canary_r, ramp.slots.canary_side) if canary else (ramp.slots.active_r, ramp.slots.active_side)
        )
        won += int(np.sum(r[chosen] > 0))
        traded += int(np.sum(side[chosen] != 0))
    return won / traded


@pytest.mark.parametrize("name", SCENARIOS)
def test_slots_come_in_the_order_in_which_they_close_each_on_its_day(name: str) -> None:
    ramp = simulate(SCENARIOS[name], np.random.default_rng(7), days=DAYS, first_day=100)

    assert np.all(np.diff(ramp.closed_at) >= 0)
    assert ramp.closed_at[0] >= 0
    assert ramp.closed_at[-1] < DAYS
    assert ramp.slots.day.tolist() == (100 + np.floor(ramp.closed_at)).tolist()
    assert len(ramp.slots) == len(ramp.closed_at) == len(ramp.faulty)
    assert np.all((ramp.slots.canary_side != 0) | (ramp.slots.active_side != 0))
    assert np.all(ramp.slots.canary_r[ramp.slots.canary_side == 0] == 0)
    assert np.all(ramp.slots.active_r[ramp.slots.active_side == 0] == 0)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_same_seed_gives_the_same_ramp(name: str) -> None:
    one, other = (simulate(SCENARIOS[name], np.random.default_rng(7), days=DAYS) for _ in range(2))

    assert one.slots.canary_r.tolist() == other.slots.canary_r.tolist()
    assert one.closed_at.tolist() == other.closed_at.tolist()


def test_the_market_has_the_spreads_that_the_gates_were_designed_for() -> None:
    drawn = ramps("equivalent")
    active = np.concatenate([ramp.slots.active_r[ramp.slots.active_side != 0] for ramp in drawn])

    assert sum(len(ramp.slots) for ramp in drawn) == 30 * DAYS * 96
    assert root_mean_square(active) == pytest.approx(1.55, rel=0.02)
    assert root_mean_square(differences(drawn)) == pytest.approx(0.68, abs=0.04)
    assert win_rate(drawn) == pytest.approx(0.55, abs=0.01)
    assert win_rate(drawn, canary=False) == pytest.approx(0.55, abs=0.01)


BETTER = {Change.FEWER_WINS, Change.IMPROVED, Change.MORE_TRADES}


@pytest.mark.parametrize("scenario", HEALTHY, ids=lambda scenario: scenario.name)
def test_a_healthy_canary_earns_as_much_as_the_active_version_or_more(scenario: Scenario) -> None:
    drawn = ramps(scenario.name)
    by_ramp = np.array([ramp.slots.pnl_difference.mean() for ramp in drawn])
    error = by_ramp.std() / np.sqrt(len(by_ramp))

    assert scenario.healthy
    assert not any(ramp.faulty.any() for ramp in drawn)
    if scenario.change in BETTER:
        assert by_ramp.mean() > 3.3 * error
    else:
        assert abs(by_ramp.mean()) <= 3.3 * error


@pytest.mark.parametrize("scenario", HARMFUL, ids=lambda scenario: scenario.name)
def test_a_harmful_canary_earns_less(scenario: Scenario) -> None:
    drawn = ramps(scenario.name, days=40)
    by_ramp = np.array([ramp.slots.pnl_difference[ramp.faulty].mean() for ramp in drawn])

    assert not scenario.healthy
    assert by_ramp.mean() < -3.3 * by_ramp.std() / np.sqrt(len(by_ramp))


def test_identical_versions_never_differ_and_independent_ones_always() -> None:
    assert not differences(ramps("identical", 3)).any()
    assert np.all(differences(ramps("independent", 3)) != 0)


def test_swinging_days_hang_together_from_their_day_on() -> None:
    def effect(name: str, first: int, end: int) -> float:
        found = []
        for ramp in ramps(name, days=40):
            chosen = (ramp.slots.day >= first) & (ramp.slots.day < end)
            found.append(design_effect(ramp.slots.pnl_difference[chosen], ramp.slots.day[chosen]))
        return float(np.mean(found))

    assert effect("equivalent", 0, 40) == pytest.approx(1.1, abs=0.1)
    assert effect("day_clustered", 0, 40) > 1.4
    assert effect("clustering_from_day_8", 0, 8) < 1.3 < effect("clustering_from_day_8", 8, 40)
    assert effect("strong_clustering_from_day_8", 8, 40) > 1.3 * effect("clustering_from_day_8", 8, 40)


def test_good_and_bad_days_for_both_versions_swing_together() -> None:
    """A slot that one of the two trades alone then counts for the day: both versions have the day's win rate."""

    def between(first: int, end: int, side: str) -> float:
        found = []
        for ramp in ramps("regimes_from_day_8", days=40):
            chosen = (ramp.slots.day >= first) & (ramp.slots.day < end)
            traded = chosen & (getattr(ramp.slots, f"{side}_side") != 0)
            found.append(day_variance(getattr(ramp.slots, f"{side}_r")[traded], ramp.slots.day[traded]))
        return float(np.mean(found))

    expected = (2 * 0.2 * MEAN_SIZE) ** 2  # of the mean R of a day whose win rate has a deviation of 20 %
    for side in ("canary", "active"):
        assert between(0, 8, side) < expected / 4
        assert between(8, 40, side) == pytest.approx(expected, rel=0.25)


def test_trades_on_one_candle_win_and_lose_together() -> None:
    def correlation(name: str, apart: int) -> float:
        won = np.concatenate([np.sign(each.slots.active_r).reshape(-1, 10) for each in ramps(name, days=20)])
        return float(np.corrcoef(won[: len(won) - apart, 0], won[apart:, 1])[0, 1])

    assert abs(correlation("equivalent", 0)) < 0.06
    assert correlation("common_factor_in_a_candle", 0) > 0.2
    assert abs(correlation("common_factor_in_a_candle", 1)) < 0.06


def test_heavy_tails_keep_the_mean_size_and_begin_on_their_day() -> None:
    def sizes(name: str, first: int, end: int) -> FloatArray:
        found = []
        for ramp in ramps(name, 60):
            chosen = (ramp.slots.day >= first) & (ramp.slots.day < end) & (ramp.slots.active_side != 0)
            found.append(np.abs(ramp.slots.active_r[chosen]))
        return np.concatenate(found)

    def tail(each: FloatArray) -> float:
        high, middle = np.quantile(each, (0.999, 0.5))
        return float(high / middle)

    usual, heavy, later = (sizes(name, 8, 20) for name in ("equivalent", "heavy_tails", "heavy_tails_from_day_8"))
    assert usual.mean() == pytest.approx(MEAN_SIZE, rel=0.02)
    assert heavy.mean() == pytest.approx(MEAN_SIZE, rel=0.05)
    assert tail(heavy) > 2 * tail(usual)
    assert tail(later) > 2 * tail(usual)
    assert tail(sizes("heavy_tails_from_day_8", 0, 8)) == pytest.approx(tail(usual), rel=0.2)


def test_a_pair_that_seldom_signals_has_fewer_slots_and_a_busy_canary_fills_them() -> None:
    """It trades where the pair holds, and wins there as often as elsewhere."""
    quiet = simulate(Scenario("quiet", Market(signals=1 / 3)), np.random.default_rng(7), days=DAYS)
    busy = ramps("three_times_the_trades")
    alone = np.concatenate([ramp.slots.canary_r[ramp.slots.active_side == 0] for ramp in busy])

    assert len(quiet.slots) / (96 * DAYS) == pytest.approx(1 / 3, abs=0.05)
    assert np.mean([np.mean(ramp.slots.rate_difference) for ramp in busy]) == pytest.approx(2 / 3, abs=0.02)
    assert np.mean(alone > 0) == pytest.approx(0.55, abs=0.02)


def test_overlapping_trades_win_and_lose_together() -> None:
    def together(name: str) -> float:
        won = np.concatenate([np.sign(ramp.slots.active_r[ramp.slots.active_side != 0]) for ramp in ramps(name, 5)])
        return float(np.corrcoef(won[:-1], won[1:])[0, 1])

    assert abs(together("equivalent")) < 0.05
    assert together("overlapping_trades") > 0.4


def test_a_shock_makes_both_lose_for_eight_hours() -> None:
    for ramp in ramps("common_shock", 5):
        nobody_won = (ramp.slots.canary_r <= 0) & (ramp.slots.active_r <= 0)
        runs = np.diff(np.flatnonzero(np.concatenate([[True], ~nobody_won, [True]]))) - 1

        assert runs.max() >= 31  # of 32 slots in eight hours


def test_fewer_slots_are_seen_where_traffic_is_tiny_candles_are_missing_or_trades_still_open() -> None:
    assert len(ramps("tiny_traffic", 1)[0].slots) == 4 * DAYS
    assert len(ramps("missing_candles", 1)[0].slots) / (96 * DAYS) == pytest.approx(0.7, abs=0.05)
    assert 96 * (DAYS - 1) < len(ramps("delayed_closes", 1)[0].slots) < 96 * DAYS


@pytest.mark.parametrize(
    ("name", "rate"),
    [("mild", 0.50), ("severe", 0.40), ("severe_from_day_10", 0.40), ("one_symbol_of_ten", 0.40)],
)
def test_lost_wins_lower_the_canarys_win_rate_alone(name: str, rate: float) -> None:
    drawn = ramps(name)

    assert win_rate(drawn) == pytest.approx(rate, abs=0.015)
    assert win_rate(drawn, canary=False) == pytest.approx(0.55, abs=0.015)


def test_every_trade_loses_and_a_silent_canary_has_none() -> None:
    assert win_rate(ramps("every_trade_loses", 3)) == 0.0
    assert not any(ramp.slots.canary_side.any() or ramp.slots.canary_r.any() for ramp in ramps("goes_silent", 3))


def test_a_fault_begins_on_its_day_and_stays_on_its_symbols() -> None:
    late, narrow = ramps("severe_from_day_10", 1)[0], ramps("one_symbol_of_ten", 1)[0]

    assert late.faulty.tolist() == (late.closed_at >= 10).tolist()
    assert narrow.faulty.sum() == len(narrow.faulty) / 10
    assert np.unique(narrow.slots.symbol[narrow.faulty]).tolist() == [0]
    assert np.unique(narrow.slots.symbol).tolist() == list(range(10))


def applied(change: Change, r: list[float], changed: list[bool] | None = None) -> list[float]:
    """Return the results of a version that always trades, after the change."""
    chosen = np.array([True] * len(r) if changed is None else changed)
    side = np.ones(len(r), np.int64)
    after, _ = changed_by(change, np.array(r), side, chosen, np.random.default_rng(7), RISK_FRACTION)
    found: list[float] = after.tolist()
    return found


class TestChanges:
    def test_severe_losses_are_larger(self) -> None:
        assert applied(Change.SEVERE, [-1.0, -2.0], [True, False]) == [-LARGER_LOSSES, -2.0]

    def test_a_spike_costs_its_share_of_equity_in_eight_trades(self) -> None:
        r, side = np.ones(20), np.array([1, 0] * 10)
        harm, _ = changed_by(Change.SPIKE, r, side, np.ones(20, np.bool_), np.random.default_rng(7), RISK_FRACTION)

        assert RISK_FRACTION * harm[harm < 0].sum() == pytest.approx(-SPIKE_LOSS)
        assert np.flatnonzero(harm < 0).tolist() == [2 * i for i in range(SPIKE_TRADES)]

    def test_rare_large_losses_come_with_more_wins_and_less_money(self) -> None:
        drawn = ramps("rare_large_losses")
        lost = np.concatenate([ramp.slots.canary_r[ramp.slots.canary_side != 0] for ramp in drawn])

        assert np.mean(lost == -RARE_LOSS_R) == pytest.approx(RARE, abs=0.003)
        assert win_rate(drawn) > win_rate(drawn, canary=False) + 0.01
        assert differences(drawn).mean() == pytest.approx(-0.14, abs=0.05)

    def test_a_slow_decay_loses_ever_more_wins(self) -> None:
        """After thirty days as many as the severe fault: 40 % instead of 55 %."""

        def rate(first: int, end: int) -> float:
            chosen = [
                ramp.slots.take((ramp.slots.day >= first) & (ramp.slots.day < end) & (ramp.slots.canary_side != 0))
                for ramp in ramps("slow_decay", 60, days=40)
            ]
            return float(np.mean(np.concatenate([each.canary_r for each in chosen]) > 0))

        assert rate(0, 3) == pytest.approx(0.55, abs=0.02)
        assert rate(14, 16) == pytest.approx(0.475, abs=0.02)
        assert rate(DECAY_DAYS, 40) == pytest.approx(0.40, abs=0.02)

    def test_a_decay_without_times_has_not_begun(self) -> None:
        assert applied(Change.SLOW_DECAY, [1.0, -1.0] * 20) == [1.0, -1.0] * 20

    @pytest.mark.parametrize(("name", "more"), [("fewer_wins_more_money", True), ("fewer_wins_as_much_money", False)])
    def test_fewer_wins_are_larger_ones(self, name: str, more: bool) -> None:
        drawn = ramps(name, 60)
        d = differences(drawn)
        wins = np.concatenate([ramp.slots.canary_r[ramp.slots.canary_side != 0] for ramp in drawn])
        active = np.concatenate([ramp.slots.active_r[ramp.slots.active_side != 0] for ramp in drawn])

        assert np.mean(wins > 0) == pytest.approx(0.44, abs=0.01)
        assert np.mean(active > 0) == pytest.approx(0.55, abs=0.01)
        assert d.mean() > 0.05 if more else abs(d.mean()) < 0.03

    def test_twice_the_variance_has_the_same_mean(self) -> None:
        drawn = ramps("twice_the_variance", 60)
        canary = np.concatenate([ramp.slots.canary_r[ramp.slots.canary_side != 0] for ramp in drawn])
        active = np.concatenate([ramp.slots.active_r[ramp.slots.active_side != 0] for ramp in drawn])

        assert canary.var() == pytest.approx(2 * active.var(), rel=0.05)
        assert canary.mean() == pytest.approx(active.mean(), abs=0.03)

    def test_an_improved_version_wins_more_often(self) -> None:
        assert win_rate(ramps("improved")) == pytest.approx(0.55 + 0.45 / 8, abs=0.015)

    def test_more_trades_change_no_trade_of_the_pair(self) -> None:
        assert applied(Change.MORE_TRADES, [1.0, -1.0]) == [1.0, -1.0]

    @pytest.mark.parametrize("change", Change)
    def test_slots_that_are_not_changed_stay_as_they_are(self, change: Change) -> None:
        assert applied(change, [1.0, -1.0, 2.0] * 50, [False] * 150) == [1.0, -1.0, 2.0] * 50


def same_slots(one: Slots, other: Slots) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in Slots.__dataclass_fields__)


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=lambda scenario: scenario.name)
def test_the_shadow_history_ends_before_the_ramp_and_has_a_change_only_if_the_scenario_says_so(
    scenario: Scenario,
) -> None:
    history = simulate_shadow(scenario, np.random.default_rng(7), days=60)
    change = scenario.change if scenario.in_shadow else Change.NONE
    expected = replace(scenario, market=scenario.market.calm, change=change)

    assert history.day[0] >= -60
    assert history.day[-1] <= -1
    assert same_slots(history, simulate(expected, np.random.default_rng(7), days=60, first_day=-60).slots)


@pytest.mark.parametrize("scenario", [each for each in HARMFUL if each.in_shadow], ids=lambda scenario: scenario.name)
def test_a_fault_in_both_forms_is_the_same_fault(scenario: Scenario) -> None:
    release = SCENARIOS[scenario.name.removesuffix("_in_shadow_too")]

    assert replace(scenario, name=release.name, in_shadow=False) == release
    assert same_slots(ramps(scenario.name, 1)[0].slots, ramps(release.name, 1)[0].slots)
    history = [simulate_shadow(each, np.random.default_rng(7), days=60) for each in (scenario, release)]
    assert history[0].pnl_difference.mean() < history[1].pnl_difference.mean()


class TestCalmMarket:
    """The market before the ramp."""

    def test_what_begins_during_the_ramp_is_not_in_it(self) -> None:
        late = Market(shock=True, day_swing=0.1, common_swing=0.1, swings_from_day=8, tail=2.2, tail_from_day=8)

        assert late.calm == Market()

    def test_what_was_always_there_stays(self) -> None:
        always = Market(apart=0.3, day_swing=0.1, common_swing=0.1, tail=2.2, together=0.5, overlap=8, missing=0.3)

        assert always.calm == always


def test_clustering_that_begins_late_is_not_in_the_shadow_history() -> None:
    def effect(name: str) -> float:
        drawn = [simulate_shadow(SCENARIOS[name], np.random.default_rng([7, i]), days=60) for i in range(20)]
        return float(np.mean([design_effect(each.pnl_difference, each.day) for each in drawn]))

    assert effect("clustering_from_day_8") < 1.3
    assert effect("day_clustered") > 1.4


def bad_history() -> Slots:
    """Thirty weekdays of a canary that loses R after R, six slots a day."""
    days = [day for day in range(42) if day % 7 < 5]
    rng = np.random.default_rng(7)
    return slots([(day, float(rng.normal(-1, 1)), float(rng.normal(1, 1)), 1, 1) for day in days for _ in range(6)])


class TestResampled:
    def test_whatever_the_history_the_two_arms_are_as_good(self) -> None:
        history = bad_history()
        means = [
            resampled(history, Change.NONE, np.random.default_rng([7, i]), days=40).slots.pnl_difference.mean()
            for i in range(400)
        ]

        assert history.pnl_difference.mean() < -1.5
        assert abs(np.mean(means)) < 3.3 * np.std(means) / 20

    def test_days_stay_whole_and_weekends_stay_empty(self) -> None:
        ramp = resampled(bad_history(), Change.NONE, np.random.default_rng(7), days=700)
        days, counts = np.unique(ramp.slots.day, return_counts=True)
        by_day = np.split(ramp.slots.pnl_difference, np.cumsum(counts)[:-1])

        assert set(counts.tolist()) == {6}
        assert len(days) / 700 == pytest.approx(30 / 40, abs=0.05)  # from a Monday to the last Friday
        assert len({round(abs(float(day.sum())), 9) for day in by_day}) == 30
        assert np.all(np.diff(ramp.closed_at) >= 0)
        assert ramp.slots.day.tolist() == np.floor(ramp.closed_at).tolist()
        assert not ramp.faulty.any()

    def test_a_fault_is_put_upon_it_from_its_day_on(self) -> None:
        ramp = resampled(bad_history(), Change.EVERY_LOSS, np.random.default_rng(7), days=40, from_day=10)

        assert ramp.faulty.tolist() == (ramp.slots.day >= 10).tolist()
        assert np.all(ramp.slots.canary_r[ramp.faulty] < 0)
        assert np.any(ramp.slots.canary_r[~ramp.faulty] > 0)

    def test_a_slot_on_which_nobody_signals_any_more_is_none(self) -> None:
        alone = slots([(day, 1.0, 0.0, 1, 0) if day % 2 else (day, 1.0, 1.0, 1, 1) for day in range(40)])
        ramp = resampled(alone, Change.SILENT, np.random.default_rng(7), days=40)

        assert 0 < len(ramp.slots) < 40
        assert np.all(ramp.slots.active_side != 0)


class TestInformationBound:
    def test_of_a_canary_that_loses_each_win_it_is_what_the_full_stake_takes(self) -> None:
        """Each slot pays 1: wealth grows by ln(1.98) with the largest stake of the grid."""
        ramp = one_sided(100, canary=-1.0, active=1.0)

        assert information_bound([ramp], 0.01) == pytest.approx(np.log(100) / np.log(1.98))

    def test_of_a_rare_fault_it_counts_the_slots_between(self) -> None:
        ramp = one_sided(100, canary=-1.0, active=1.0)
        rare = Ramp(ramp.slots, ramp.closed_at, np.arange(100) % 10 == 0)

        assert information_bound([rare], 0.01) == pytest.approx(10 * np.log(100) / np.log(1.98), rel=0.1)

    def test_slots_before_the_fault_are_not_counted(self) -> None:
        ramp = one_sided(100, canary=-1.0, active=1.0)
        late = Ramp(ramp.slots, ramp.closed_at, np.arange(100) >= 60)

        assert information_bound([late], 0.01) == pytest.approx(np.log(100) / np.log(1.98))

    def test_without_a_fault_or_without_its_trace_there_is_none(self) -> None:
        healthy = one_sided(100, canary=1.0, active=1.0, faulty=False)
        better = one_sided(100, canary=1.0, active=-1.0)

        assert information_bound([healthy], 0.01) == float("inf")
        assert information_bound([better], 0.01) == float("inf")

    def test_payoffs_lie_between_minus_one_and_one_and_large_trades_are_hardly_clipped(self) -> None:
        drawn = ramps("severe", 5)
        paid = payoffs(drawn)

        assert all(np.all(np.abs(each) <= 1) for each in paid.values())
        assert np.mean(np.abs(paid["pnl"]) == 1) < 0.02

    def test_an_active_version_that_never_trades_gives_a_scale_of_one(self) -> None:
        assert payoffs([one_sided(3, canary=-0.5, active=0.0)])["pnl"].tolist() == [0.5] * 3

    def test_a_longer_ramp_has_the_same_bound(self) -> None:
        assert information_bound(ramps("mild"), 0.01) == pytest.approx(
            information_bound(ramps("mild", 60), 0.01), rel=0.1
        )


def one_sided(count: int, *, canary: float, active: float, faulty: bool = True) -> Ramp:
    side = (int(np.sign(canary)), int(np.sign(active)))
    rows = slots([(0, canary, active, *side)] * count)
    return Ramp(rows, np.arange(count) / count, np.full(count, faulty))


def test_names_are_unique_and_markets_are_equal_but_for_the_fault() -> None:
    assert len(SCENARIOS) == len(HEALTHY) + len(HARMFUL)
    assert {scenario.market for scenario in HARMFUL} == {Market(), LOSING, RARELY, WEEKDAYS}
    assert not any(scenario.healthy for scenario in HARMFUL)
