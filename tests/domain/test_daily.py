"""Slots by day: the sums are the slots', and the last interval is the comparison's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.daily import by_day
from strategy_core.domain.slots import slots
from tests.in_memory import day_cluster_interval

SIDES = st.sampled_from([(1, 1), (1, -1), (0, 1), (-1, 0)])
ROWS = st.lists(st.tuples(st.integers(20_000, 20_009), st.floats(-3, 3), st.floats(-3, 3), SIDES), min_size=1)


def test_a_day_counts_its_slots_and_those_on_which_the_two_differed() -> None:
    found = by_day(slots([(5, 1.0, 0.5, 1, 1), (7, -1.0, 1.0, 1, -1), (7, 0.5, 0.5, -1, -1)]))

    assert found.day.tolist() == [5, 7]
    assert found.slots.tolist() == [1, 2]
    assert found.unlike.tolist() == [0, 1]
    assert found.canary_r.tolist() == [1.0, -0.5]
    assert found.active_r.tolist() == [0.5, 1.5]
    assert found.mean.tolist() == [0.5, -0.5]


@given(rows=ROWS)
def test_at_each_day_the_interval_is_that_of_all_slots_until_then(
    rows: list[tuple[int, float, float, tuple[int, int]]],
) -> None:
    given_slots = slots(sorted((day, ours, theirs, *sides) for day, ours, theirs, sides in rows))

    found = by_day(given_slots)

    for place, day in enumerate(found.day):
        until = given_slots.day <= day
        expected = day_cluster_interval(given_slots.pnl_difference[until], given_slots.day[until])
        assert found.mean[place] == pytest.approx(expected.mean, abs=1e-9)
        if expected.low is None:
            assert np.isnan(found.low[place])
        else:
            assert found.low[place] == pytest.approx(expected.low, abs=1e-6)
            assert found.high[place] == pytest.approx(expected.high, abs=1e-6)


def test_without_slots_there_are_no_days() -> None:
    assert len(by_day(slots([])).day) == 0
