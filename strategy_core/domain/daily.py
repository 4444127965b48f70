"""What slots came to, day by day: how often the two versions differed, and their difference to date; no storage."""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second to import, and every run of a flow would pay it

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.slots import Slots


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


def by_day(slots: Slots, confidence: float = 0.95) -> Daily:
    """Return the slots day by day; the last day's interval is that of `comparison.day_cluster_interval`.

    With S the day's Σ d and n its slots, Σ (S - n·mean)² = Σ S² - 2·mean·Σ S·n + mean²·Σ n²: running sums are enough.
    """
    day, place = np.unique(slots.day, return_inverse=True)
    counts = np.bincount(place, minlength=len(day))
    sums = _sums(place, slots.pnl_difference, len(day))
    n, clusters = np.cumsum(counts), np.arange(1, len(day) + 1)
    mean = np.cumsum(sums) / n
    squares = np.cumsum(sums**2) - 2 * mean * np.cumsum(sums * counts) + mean**2 * np.cumsum(counts**2)
    with np.errstate(divide="ignore", invalid="ignore"):  # one day says nothing of the spread between days
        error = np.sqrt(clusters / (clusters - 1) * np.maximum(squares, 0.0)) / n
        reach = stdtrit(clusters - 1, (1 + confidence) / 2) * error
    return Daily(
        day=day,
        slots=counts,
        unlike=np.bincount(place[slots.unlike], minlength=len(day)),
        canary_r=_sums(place, slots.canary_r, len(day)),
        active_r=_sums(place, slots.active_r, len(day)),
        mean=mean,
        low=mean - reach,
        high=mean + reach,
    )


def _sums(place: IntArray, values: FloatArray, days: int) -> FloatArray:
    return np.bincount(place, weights=values, minlength=days).astype(np.float64)
