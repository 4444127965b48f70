"""The shadow history of a pair: its noise, and the clustering of its slots by day."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.pair_noise import (
    CLIP_UNITS,
    KINDS,
    LARGEST_LOSS,
    LEAST_EFFECT,
    PRIOR_TRADES,
    STAKES,
    UNIT_OF_SIZE,
    UNKNOWN_DESIGN_EFFECT,
    History,
    bound,
    cut_gains,
    day_variance,
    design_effect,
    deviation,
    measure,
)
from strategy_core.domain.slot_ledger import add_slots, open_ledger
from strategy_core.domain.slots import Slots, slots

A_DAY, DAYS = 20, 200


def noise(seed: int, *, by_day: float = 0.0) -> tuple[FloatArray, np.ndarray]:
    """Differences of variance 1 + by_day², of which by_day is shared by all of a day."""
    rng = np.random.default_rng(seed)
    days = np.repeat(np.arange(DAYS), A_DAY)
    return rng.standard_normal(len(days)) + by_day * rng.standard_normal(DAYS)[days], days


def pairs(rows: int, a_day: int) -> Slots:
    rng = np.random.default_rng(3)
    r = rng.normal(0.1, 1.5, (rows, 2))
    return slots([(i // a_day, c, a, 1, 1) for i, (c, a) in enumerate(r.tolist())])


def test_independent_slots_have_a_design_effect_of_one() -> None:
    effects = [design_effect(*noise(seed)) for seed in range(40)]

    assert np.mean(effects) == pytest.approx(1.04, abs=0.04)  # at least 1, so a little above on average


def test_what_a_day_shares_raises_it_as_kish_says() -> None:
    """1 + (slots a day - 1) · ICC: here 1 + 19 · 0.09 / 1.09 = 2.57."""
    effects = [design_effect(*noise(seed, by_day=0.3)) for seed in range(40)]

    assert np.mean(effects) == pytest.approx(2.57, abs=0.15)


@pytest.mark.parametrize("each", [-1.0, 0.5])
def test_a_steady_difference_is_no_clustering(each: float) -> None:
    d, days = noise(1)

    assert design_effect(d + each, days) == pytest.approx(design_effect(d, days), abs=1e-9)
    assert design_effect(np.full(len(days), each), days) == 1.0


def test_no_single_day_makes_it() -> None:
    d, days = noise(1)
    d[days == 7] += 40.0

    assert design_effect(d, days) < 1.5


def test_a_pair_that_differs_on_one_day_alone_hangs_together_by_day() -> None:
    """Clipped among all days, thirty-nine of them alike, that one would vanish."""
    d, days = np.zeros(400), np.repeat(np.arange(40), 10)
    d[days == 7] = -1.3

    assert design_effect(d, days) > 2.5


def test_a_pair_that_never_differs_has_none() -> None:
    assert design_effect(np.zeros(10), np.arange(10)) == 1.0


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=60), st.integers(1, 7))
def test_it_is_never_below_one(differences: list[float], a_day: int) -> None:
    assert design_effect(np.array(differences), np.arange(len(differences)) // a_day) >= 1.0


def test_a_measured_clustering_is_taken_for_stronger_where_harm_is_proven() -> None:
    measured = measure(pairs(400, 10), 40.0)

    assert measured.design_effect_bound > measured.design_effect
    assert bound(2.0, 49) == pytest.approx(3.0)  # 1 + (1 + 7 / sqrt(49)) · (2 - 1)


def test_the_bound_is_wider_after_fewer_days_and_leaves_a_little_clustering_possible() -> None:
    assert bound(2.0, 400) < bound(2.0, 100) < bound(2.0, 30)
    assert bound(1.0, 10_000) == LEAST_EFFECT > 1


def test_a_month_that_is_missing_makes_the_effect_provisional() -> None:
    few, enough = measure(pairs(290, 10), 29.0), measure(pairs(300, 10), 30.0)

    assert few.provisional
    assert few.design_effect == few.design_effect_bound == UNKNOWN_DESIGN_EFFECT
    assert not enough.provisional


def test_few_days_of_one_slot_each_cannot_cluster() -> None:
    """The guess is what a day of equal slots would give, and at most that of an unknown pair."""
    single, double = measure(pairs(20, 1), 20.0), measure(pairs(40, 2), 20.0)

    assert single.provisional
    assert single.design_effect_bound < double.design_effect_bound <= UNKNOWN_DESIGN_EFFECT
    assert double.design_effect >= 2.0


def test_it_measures_the_pair() -> None:
    rows = [(day, -1.0, 2.0, -1, 1) for day in range(50)] + [(50 + day, 2.0, 2.0, 1, 1) for day in range(50)]
    measured = measure(slots(rows), 200.0)

    assert (measured.slots, measured.days, measured.slots_per_day) == (100, 100, 0.5)
    assert measured.unit == UNIT_OF_SIZE * 2.0
    assert measured.win_noise == 0.5
    assert measured.lost_share == pytest.approx(51 / 104)  # half of them, and one of four that stand for not knowing
    assert measured.noise_ratio == pytest.approx(50 * 9 / 400)
    assert measured.edge == 2.0
    assert (measured.d, measured.d_squares) == (-150.0, 450.0)


def test_sums_are_those_of_the_ledger() -> None:
    """Rollout and shadow are added where slots of both count, so they are clipped alike."""
    chosen = pairs(400, 10)
    measured = measure(chosen, 40.0)
    totals = add_slots(open_ledger(measured), chosen, measured)[0].totals

    for name in ("slots", "days", "d", "d_squares", "clipped", "clipped_squares", "cut_squares"):
        assert getattr(measured, name) == pytest.approx(getattr(totals, name)), name
    d, reach = chosen.pnl_difference, CLIP_UNITS * measured.unit
    assert measured.clipped == pytest.approx(sum(min(max(each, -reach), reach) for each in d.tolist()))
    assert measured.cut_squares > 0


def test_candles_count_as_alike_only_if_no_slot_differs() -> None:
    same = [(day, 1.0, 1.0, 1, 1) for day in range(20)]

    assert measure(slots(same), 20.0, candles=480).alike_candles == 480
    assert measure(slots([]), 20.0, candles=480).alike_candles == 480
    for unlike in ((20, 1.0, 1.0, -1, 1), (20, 0.9, 1.0, 1, 1), (20, 0.0, 1.0, 0, 1)):
        assert measure(slots([*same, unlike]), 21.0, candles=480).alike_candles == 0


@pytest.mark.parametrize("chosen", [slots([]), pairs(40, 2)])
def test_the_symbols_of_the_pair_are_kept(chosen: Slots) -> None:
    assert measure(chosen, 20.0, symbols=["GOLD", "OIL"]).symbols == ("GOLD", "OIL")


def test_missed_signals_are_those_that_the_canary_alone_did_not_make_up_for() -> None:
    """Of 180 slots it misses a quarter. Twenty slots stand for not knowing, of which it misses half."""
    missed = [(i // 6, 0.0 if i % 4 == 0 else 1.0, 1.0, int(i % 4 != 0), 1) for i in range(180)]
    alone = [(i // 6, 1.0, 0.0, 1, 0) for i in range(180)]

    assert measure(slots(missed), 30.0).missed == pytest.approx((45 + 10) / 200)
    assert measure(slots(alone), 30.0).missed == 0.0


class TestDayVariance:
    """The variance between days of the mean R of a trade."""

    @pytest.mark.parametrize("between", [0.0, 0.3, 1.0])
    def test_it_is_what_days_share(self, between: float) -> None:
        """Means over forty draws, with days of unequal size."""
        found = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            days = np.repeat(np.arange(DAYS), rng.integers(1, 2 * A_DAY, DAYS))
            r = rng.standard_normal(len(days)) + between * rng.standard_normal(DAYS)[days]
            found.append(day_variance(r, days))

        assert np.mean(found) == pytest.approx(between**2, abs=0.02 + 0.05 * between)

    def test_it_is_that_of_the_textbook(self) -> None:
        """Three days of 2, 3 and 1 trades: MSA = 16.5 / 2, MSE = 4 / 3, and n0 = (6 - 14 / 6) / 2."""
        r, days = np.array([1.0, 3.0, 4.0, 5.0, 6.0, 0.0]), np.array([0, 0, 1, 1, 1, 2])
        overall = 19 / 6
        between = 2 * (2 - overall) ** 2 + 3 * (5 - overall) ** 2 + overall**2

        assert day_variance(r, days) == pytest.approx((between / 2 - 4 / 3) / ((6 - 14 / 6) / 2))

    def test_days_that_differ_less_than_chance_have_none(self) -> None:
        assert day_variance(np.array([1.0, -1.0] * 20), np.repeat(np.arange(20), 2)) == 0.0

    @pytest.mark.parametrize("days", [[], [0], [0, 0, 0], [0, 1, 2]])
    def test_it_needs_two_days_and_more_trades_than_days(self, days: list[int]) -> None:
        assert day_variance(np.arange(len(days), dtype=np.float64), np.array(days, np.int64)) == 0.0

    def test_what_it_explains_is_not_clustering_as_well(self) -> None:
        """A pair that trades alone on different sides of wild days: the exposure is charged, not the design effect."""
        rng = np.random.default_rng(6)
        days = np.repeat(np.arange(100), 10)
        r = rng.normal(0, 1.5, 100)[days] + rng.normal(0, 0.5, len(days))
        canary = (days % 2 == 0).astype(np.int64)
        chosen = Slots(days, r * canary, r * (1 - canary), canary, 1 - canary, 0 * days)
        measured = measure(chosen, 100.0)
        d = chosen.pnl_difference

        assert measured.day_variance == pytest.approx(2.25, rel=0.4)
        assert measured.design_effect > 3
        assert measured.design_effect_bound < bound(design_effect(d, days), 100) / 2


class TestCutGains:
    """What the cut takes from each bet, by kind of slot."""

    def test_it_is_the_mean_gain_above_the_cut(self) -> None:
        """Both trade, and one of fifty slots gains 30 R. Twenty slots without a gain are added."""
        rows = slots([(i // 10, 31.0 if i % 50 == 0 else 1.0, 1.0, 1, 1) for i in range(500)])
        expected = [10 * max(0.0, 30.0 - LARGEST_LOSS / stake) / (500 + PRIOR_TRADES) for stake in STAKES]

        assert cut_gains(rows, 1.0)[0] == pytest.approx(expected)
        assert max(expected) > 0.5

    def test_it_is_in_units(self) -> None:
        rows = slots([(0, 31.0, 1.0, 1, 1)] * 50)

        assert cut_gains(rows, 2.0)[0] == pytest.approx(cut_gains(slots([(0, 16.0, 1.0, 1, 1)] * 50), 1.0)[0])

    def test_a_rare_kind_counts_trades_like_those_of_the_active_version(self) -> None:
        """The canary never traded alone. It might gain what the active version gains, and be spared what it loses."""
        rows = slots([(i // 10, 1.0, (40.0, -30.0)[i % 2], 1, 1) for i in range(500)])
        _, canary_alone, active_alone = cut_gains(rows, 1.0)
        cuts = [LARGEST_LOSS / stake for stake in STAKES]

        assert canary_alone == pytest.approx([max(0.0, 40.0 - cut) / 2 for cut in cuts])
        assert active_alone == pytest.approx([max(0.0, 30.0 - cut) / 2 for cut in cuts])

    def test_without_a_trade_of_the_active_version_there_is_nothing_to_count(self) -> None:
        assert cut_gains(slots([(0, 0.5, 0.0, 1, 0)]), 1.0) == ((0.0,) * len(STAKES),) * KINDS


def test_the_edge_is_that_of_the_newest_sixty_days() -> None:
    rows = [(day, 0.0, -5.0, 0, 1) for day in range(40)] + [(day, 0.0, 1.0, 0, 1) for day in range(40, 100)]

    assert measure(slots(rows), 100.0).edge == 1.0


def test_without_slots_it_is_a_cautious_guess() -> None:
    assert measure(slots([]), 60.0) == History()
    assert History().provisional


def test_an_active_version_that_only_held_gives_no_scale() -> None:
    measured = measure(slots([(day, 1.0, 0.0, 1, 0) for day in range(3)]), 0.0)

    assert (measured.unit, measured.noise_ratio, measured.slots_per_day) == (UNIT_OF_SIZE, 1.0, 0.0)


def test_one_day_has_no_deviation() -> None:
    assert deviation(np.ones(5), np.zeros(5, np.int64)) is None
    assert deviation(np.array([]), np.array([], np.int64)) is None


def test_a_history_of_an_older_release_counts_no_slots() -> None:
    """It has no sums of d. Zeros in their place would be evidence that the two are equal."""
    older = History.model_validate({"slots": 50, "days": 40, "slots_per_day": 0.3, "trade_r": 1.4, "win_noise": 0.2})

    assert (older.slots, older.days, older.slots_per_day, older.win_noise) == (0, 0, 0.3, 0.2)
    assert History.model_validate(History(slots=50).model_dump()).slots == 50
