"""Against scipy where days weigh the same, and by its own coverage where they do not."""

import numpy as np
import pytest
from scipy import stats

from strategy_core.domain.arrays import FloatArray
from tests.in_memory import day_cluster_interval


def test_one_outcome_a_day_gives_the_plain_t_interval() -> None:
    differences = np.random.default_rng(1).normal(0.1, 1, 30)

    ours = day_cluster_interval(differences, np.arange(30), 0.9)

    theirs = stats.ttest_1samp(differences, 0).confidence_interval(0.9)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high])


def test_as_many_outcomes_each_day_give_the_t_interval_of_the_days_means() -> None:
    differences = np.random.default_rng(2).normal(0.1, 1, (30, 4)) + np.random.default_rng(3).normal(0, 1, (30, 1))

    ours = day_cluster_interval(differences.ravel(), np.repeat(np.arange(30), 4))

    theirs = stats.ttest_1samp(differences.mean(axis=1), 0).confidence_interval(0.95)
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high])


@pytest.mark.parametrize("days", [[], [5], [5, 5, 5]])
def test_fewer_than_two_days_have_no_limits(days: list[int]) -> None:
    interval = day_cluster_interval(np.ones(len(days)), np.array(days, dtype=np.int64))

    assert (interval.n, interval.days) == (len(days), len(set(days)))
    assert (interval.low, interval.high) == (None, None)
    assert interval.mean == (1.0 if days else None)


@pytest.mark.full
def test_the_interval_covers_as_often_as_it_says_under_day_clustering() -> None:
    """2,000 seeded histories of 60 days; heavy tails, days of unequal size whose outcomes share a shock.

    The plain t interval, which takes trades for independent, is shown beside it: it covers far too seldom.
    """
    random = np.random.default_rng(20240601)
    runs, truth = 2_000, 0.05
    covered = plain_covered = 0
    for _ in range(runs):
        days = np.repeat(np.arange(60), random.poisson(6, 60))
        shock: FloatArray = random.normal(0, 0.5, 60)
        differences = truth + shock[days] + 0.5 * random.standard_t(4, len(days))
        ours = day_cluster_interval(differences, days)
        plain = day_cluster_interval(differences, np.arange(len(days)))
        assert ours.low is not None
        assert ours.high is not None
        assert plain.low is not None
        assert plain.high is not None
        covered += ours.low <= truth <= ours.high
        plain_covered += plain.low <= truth <= plain.high

    assert 0.935 <= covered / runs <= 0.96
    assert plain_covered / runs < 0.85
