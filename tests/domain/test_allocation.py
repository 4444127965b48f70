"""Users of several versions: as few as possible move when weights change."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.allocation import reallocate

weights = st.lists(st.integers(0, 100), min_size=5, max_size=5).filter(any).map(np.array)


def test_versions_get_the_buckets_of_their_weights() -> None:
    first = reallocate(np.zeros(100, np.int64), np.array([0.9, 0.05, 0.05]))

    assert np.bincount(first).tolist() == [90, 5, 5]
    assert set(first[:90].tolist()) == {0}  # the highest buckets are given up
    assert np.bincount(reallocate(first, np.array([1.0, 1.0, 1.0]))).tolist() == [34, 33, 33]


@given(steps=st.lists(weights, min_size=1, max_size=6), buckets=st.integers(1, 300))
def test_the_least_possible_number_of_buckets_moves(steps: list[np.ndarray], buckets: int) -> None:
    present = np.zeros(buckets, np.int64)
    for each in steps:
        counts = np.bincount(present, minlength=5)
        after = reallocate(present, each.astype(np.float64))
        wanted = np.bincount(after, minlength=5)

        assert np.all(np.abs(wanted - each / each.sum() * buckets) < 1)
        assert np.sum(after != present) == np.sum(np.maximum(0, wanted - counts))
        assert np.array_equal(reallocate(after, each.astype(np.float64)), after)
        present = after
