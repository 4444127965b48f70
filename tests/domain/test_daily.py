"""Slots by day: the sums are the slots', and the last interval is the comparison's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.comparison import DaySums, by_day
from tests.in_memory import day_cluster_interval

SIDES = st.sampled_from([(1, 1), (1, -1), (0, 1), (-1, 0)])
ROWS = st.lists(st.tuples(st.integers(20_000, 20_009), st.floats(-3, 3), st.floats(-3, 3), SIDES), min_size=1)


def test_a_day_counts_its_slots_and_those_on_which_the_two_differed() -> None:
    found = by_day([DaySums(7, 2, 1, -0.5, 1.5), DaySums(5, 1, 0, 1.0, 0.5), DaySums(7, 1, 1, 0.25, 0.25)])

    assert found.day.tolist() == [5, 7]
    assert found.slots.tolist() == [1, 3]
    assert found.unlike.tolist() == [0, 2]
    assert found.canary_r.tolist() == [1.0, -0.25]
    assert found.active_r.tolist() == [0.5, 1.75]
    assert found.mean.tolist() == [0.5, -0.375]


@given(rows=ROWS)
def test_at_each_day_the_interval_is_that_of_all_slots_until_then(
    rows: list[tuple[int, float, float, tuple[int, int]]],
) -> None:
    found = by_day([DaySums(day, 1, ours != theirs, r, other_r) for day, r, other_r, (ours, theirs) in rows])

    days = np.array([day for day, *_ in rows])
    difference = np.array([r - other_r for _, r, other_r, _ in rows])
    for place, day in enumerate(found.day):
        until = days <= day
        expected = day_cluster_interval(difference[until], days[until])
        assert found.mean[place] == pytest.approx(expected.mean, abs=1e-9)
        if expected.low is None:
            assert np.isnan(found.low[place])
        else:
            assert found.low[place] == pytest.approx(expected.low, abs=1e-6)
            assert found.high[place] == pytest.approx(expected.high, abs=1e-6)


def test_without_slots_there_are_no_days() -> None:
    assert len(by_day([]).day) == 0
