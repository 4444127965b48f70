"""What slots came to, day by day: how often the two versions differed, and their difference to date; no storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second to import, and every run of a flow would pay it

from strategy_core.domain.arrays import FloatArray, IntArray


class DaySums(NamedTuple):
    """What some of a day's closed slots add up to; from one slot to all of the day's.

    Attributes:
        day: as days since 1970.
        unlike: how many of *slots* the two said different things on.
        canary_r, active_r: Σ R.
    """

    day: int
    slots: int
    unlike: int
    canary_r: float
    active_r: float


@dataclass(frozen=True, slots=True)
class Daily:
    """Slots by the day that stands in them; every array has shape (days,), oldest day first.

    Attributes:
        day: as days since 1970; days without a slot are not in it.
        slots: on that day; `unlike` are those on which the two said different things.
        canary_r, active_r: Σ R of that day.
        mean: canary R - active R per slot, over all days up to that one.
        low, high: the day-cluster t interval of that mean; NaN on the first day.
    """

    day: IntArray
    slots: IntArray
    unlike: IntArray
    canary_r: FloatArray
    active_r: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def by_day(sums: Sequence[DaySums], confidence: float = 0.95) -> Daily:
    """Return slots day by day, given in any order; the last interval is that of `comparison.day_cluster_interval`.

    With S the day's Σ d and n its slots, Σ (S - n·mean)² = Σ S² - 2·mean·Σ S·n + mean²·Σ n²: running sums are enough.
    """
    table = np.array(sums, np.float64).reshape(-1, len(DaySums._fields))
    day, place = np.unique(table[:, 0].astype(np.int64), return_inverse=True)
    counts, unlike, canary_r, active_r = (_added(place, column, len(day)) for column in table.T[1:])
    apart = canary_r - active_r
    n, clusters = np.cumsum(counts), np.arange(1, len(day) + 1)
    mean = np.cumsum(apart) / n
    squares = np.cumsum(apart**2) - 2 * mean * np.cumsum(apart * counts) + mean**2 * np.cumsum(counts**2)
    with np.errstate(divide="ignore", invalid="ignore"):  # one day says nothing of the spread between days
        error = np.sqrt(clusters / (clusters - 1) * np.maximum(squares, 0.0)) / n
        reach = stdtrit(clusters - 1, (1 + confidence) / 2) * error
    return Daily(
        day=day,
        slots=counts.astype(np.int64),
        unlike=unlike.astype(np.int64),
        canary_r=canary_r,
        active_r=active_r,
        mean=mean,
        low=mean - reach,
        high=mean + reach,
    )


def _added(place: IntArray, column: FloatArray, days: int) -> FloatArray:
    return np.bincount(place, weights=column, minlength=days).astype(np.float64)
