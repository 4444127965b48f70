"""The shadow history of a pair: its noise, and the clustering of its slots by day."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.pair_noise import UNKNOWN_DESIGN_EFFECT, History, bound, design_effect, deviation, measure
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

    assert measured.design_effect_bound == bound(measured.design_effect) >= measured.design_effect
    assert bound(2.0) == pytest.approx(2.9)


def test_a_month_that_is_missing_makes_the_effect_provisional() -> None:
    few, enough = measure(pairs(290, 10), 29.0), measure(pairs(300, 10), 30.0)

    assert few.provisional
    assert few.design_effect == few.design_effect_bound == UNKNOWN_DESIGN_EFFECT
    assert not enough.provisional


def test_it_measures_the_pair() -> None:
    rows = [(day, -1.0, 2.0, -1, 1) for day in range(50)] + [(50 + day, 2.0, 2.0, 1, 1) for day in range(50)]
    measured = measure(slots(rows), 200.0)

    assert (measured.slots, measured.days, measured.slots_per_day) == (100, 100, 0.5)
    assert measured.trade_r == 2.0
    assert measured.win_noise == 0.5
    assert measured.lost_share == pytest.approx(51 / 104)  # half of them, and one of four that stand for not knowing
    assert measured.noise_ratio == pytest.approx(50 * 9 / 400)
    assert measured.edge == 2.0


def test_the_edge_is_that_of_the_newest_sixty_days() -> None:
    rows = [(day, 0.0, -5.0, 0, 1) for day in range(40)] + [(day, 0.0, 1.0, 0, 1) for day in range(40, 100)]

    assert measure(slots(rows), 100.0).edge == 1.0


def test_without_slots_it_is_a_cautious_guess() -> None:
    assert measure(slots([]), 60.0) == History()
    assert History().provisional


def test_an_active_version_that_only_held_gives_no_scale() -> None:
    measured = measure(slots([(day, 1.0, 0.0, 1, 0) for day in range(3)]), 0.0)

    assert (measured.trade_r, measured.noise_ratio, measured.slots_per_day) == (1.0, 1.0, 0.0)


def test_one_day_has_no_deviation() -> None:
    assert deviation(np.ones(5), np.zeros(5, np.int64)) is None
    assert deviation(np.array([]), np.array([], np.int64)) is None
