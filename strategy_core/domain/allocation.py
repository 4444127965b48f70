"""Give buckets of users to several versions by weights, and move as few of them as can be when weights change."""

import numpy as np

from strategy_core.domain.arrays import FloatArray, IntArray


def reallocate(present: IntArray, weights: FloatArray) -> IntArray:
    """Return the version of each bucket under new *weights*.

    A version that has too many buckets gives up its highest ones, and only those go to versions that have too few. So
    the number of moved buckets is the least possible, and no bucket moves between versions whose shares stay.

    Args:
        present: version of each bucket now, shape (buckets,).
        weights: at least 0, one of them above 0, shape (versions,). Shares are rounded by largest remainder.
    """
    wanted = _counts(weights, len(present))
    after = present.copy()
    freed = []
    for version, want in enumerate(wanted.tolist()):
        own = np.flatnonzero(present == version)
        freed.append(own[want:])
    free = np.sort(np.concatenate(freed))
    missing = np.maximum(0, wanted - np.bincount(present, minlength=len(weights)))
    after[free] = np.repeat(np.arange(len(weights)), missing)
    return after


def _counts(weights: FloatArray, buckets: int) -> IntArray:
    exact = weights / weights.sum() * buckets
    counts: IntArray = np.floor(exact + 1e-9).astype(np.int64)
    short = buckets - int(counts.sum())
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return counts
