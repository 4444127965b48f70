"""Noise and daily clustering of a pair of versions, measured on its shadow history."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.slots import Slots

FEW_DAYS = 30  # of shadow history: with fewer, the measured design effect is not used
UNKNOWN_DESIGN_EFFECT = 3.0
LEAST_EFFECT = 1.2  # of a bound: two months without any clustering do not exclude a little
SHRINKAGE_DAYS = 10  # independent days that are added to the measured ones
CLIPPED = 1.1  # corrects for clipping the day sums at their 95 % quantile: 1 / E[min(z², 1.96²)]
DOUBT = 7.0  # safety factor of a measured clustering: 1 + 7 / sqrt(days), two months give it to within a quarter
EDGE_DAYS = 60
_SAME = 1e-12  # squares that differ by less are rounding
PRIOR_SLOTS = 4  # added slots of an unknown pair, of which the active version alone wins one
PRIOR_TRADES = 20  # added slots of each kind, with the active version's own trades, for the gains of a rare kind
STAKES = (0.04, 0.08, 0.16, 0.3, 0.55, 1.0)  # of the bets on money, in wealth for each unit of R
LARGEST_LOSS = 0.9  # of a bet's wealth on one slot: gains above 0.9 / stake are cut
GAINS_DOUBT = 1.5  # safety factor of the gains that are cut
UNIT_OF_SIZE = 0.78  # of the mean |R|
CLIP_UNITS = 3.0  # where d is clipped to prove that the canary is not worse
KINDS = 3  # of slots: both signalled, the canary alone, the active version alone


class History(BaseModel):
    """Figures of the pair's shadow history, measured when a rollout starts and frozen with it.

    Attributes:
        slots, days: number of slots, and of UTC days with slots.
        slots_per_day: over calendar days.
        design_effect: variance of a day's sum of d around its mean, relative to independent slots. At least 1.
        design_effect_bound: a cautious upper value without what *day_variance* explains, used to prove harm.
        win_effect_bound: the same for w.
        unlike_effect: the design effect of deciding differently.
        provisional: too few days to measure the design effects, so they are assumed.
        unit: 0.78 times the mean size of the active version's trades, in R: the unit of the stakes on money.
        day_variance: variance between days of the active version's mean R a trade, in R².
        cut_gains: mean gain above `LARGEST_LOSS` / stake, in units, by kind of slot and stake, shape (3, stakes).
        missed: share of the slots on which the canary missed a signal, less those on which it alone signalled. At least
            0, and a little more where slots are few.
        win_noise: mean of w² by slot: how often the two differ in winning.
        lost_share: share of slots that the active version won and the canary lost. Above 0.
        unlike_share: share of slots on which the two decided differently. Above 0 and below 1.
        noise_ratio: Σ d² / Σ (active R)²: variance of the difference relative to the active version.
        edge: mean R per slot of the active version over the newest 60 days.
        pnl_deviation, win_deviation: sqrt(n) times the day-clustered standard error of mean d and w. None with fewer
            than two days.
        d, d_squares, clipped, clipped_squares, cut_squares: sums over the slots, as in `slot_ledger.Totals`.
        alike_candles: candles of each symbol that both versions decided without any unequal slot. 0 if there was one.
        symbols: that both versions decide on, in alphabetical order.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)  # older rollouts have other fields

    slots: int = 0
    days: int = 0
    slots_per_day: float = 0.0
    design_effect: float = UNKNOWN_DESIGN_EFFECT
    design_effect_bound: float = UNKNOWN_DESIGN_EFFECT
    win_effect_bound: float = UNKNOWN_DESIGN_EFFECT
    unlike_effect: float = UNKNOWN_DESIGN_EFFECT
    provisional: bool = True
    unit: float = 1.0
    day_variance: float = 0.0
    cut_gains: tuple[tuple[float, ...], ...] = ((0.0,) * len(STAKES),) * KINDS
    missed: float = 0.5
    win_noise: float = 0.5
    lost_share: float = 0.25
    unlike_share: float = 0.5
    noise_ratio: float = 1.0
    edge: float = 0.0
    pnl_deviation: float | None = None
    win_deviation: float | None = None
    d: float = 0.0
    d_squares: float = 0.0
    clipped: float = 0.0
    clipped_squares: float = 0.0
    cut_squares: float = 0.0
    alike_candles: int = 0
    symbols: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_sums(cls, data: Any) -> Any:
        """Count no slots of an older release: it kept no sums of d, and zeros in their place would be evidence."""
        if isinstance(data, dict) and data.get("slots") and "d_squares" not in data and "trade_r" in data:
            return data | {"slots": 0, "days": 0}
        return data


def measure(slots: Slots, calendar_days: float, *, symbols: Sequence[str] = (), candles: int = 0) -> History:
    """Measure the slots of the pair over *calendar_days* of shadow.

    Without slots, the result is a cautious guess for two independent versions.

    Args:
        symbols: see `History`.
        candles: of each symbol, that both versions decided with or without a slot.
    """
    if len(slots) == 0:
        return History(symbols=tuple(symbols), alike_candles=candles)
    d, w = slots.pnl_difference, slots.win_difference
    days = len(np.unique(slots.day))
    traded = slots.active_side != 0
    squares = float(np.sum(slots.active_r**2))
    size = float(np.mean(np.abs(slots.active_r[traded]))) if squares > 0 else 1.0
    unit = UNIT_OF_SIZE * size
    lost = int(np.sum((slots.active_r > 0) & (slots.canary_r < 0)))
    clipped = np.clip(d, -CLIP_UNITS * unit, CLIP_UNITS * unit)
    variance = day_variance(slots.active_r[traded], slots.day[traded])
    by_days = float(np.sum(day_sums(slots.rate_difference, slots.day) ** 2)) * variance

    counts = day_sums(np.ones(len(slots)), slots.day)
    guess = min(UNKNOWN_DESIGN_EFFECT, float(np.sum(counts**2)) / len(slots)) if days < FEW_DAYS else 1.0

    def cautious(differences: FloatArray, explained: float = 0.0) -> float:
        return max(guess, bound(design_effect(differences, slots.day, explained=explained), days))

    return History(
        slots=len(slots),
        days=days,
        slots_per_day=len(slots) / calendar_days if calendar_days > 0 else 0.0,
        design_effect=max(guess, design_effect(d, slots.day)),
        design_effect_bound=cautious(d, by_days),
        win_effect_bound=cautious(w),
        unlike_effect=max(guess, design_effect(slots.unlike.astype(np.float64), slots.day)),
        provisional=days < FEW_DAYS,
        unit=unit,
        day_variance=variance,
        cut_gains=cut_gains(slots, unit),
        missed=max(0.0, (PRIOR_TRADES * 0.5 - float(slots.rate_difference.sum())) / (len(slots) + PRIOR_TRADES)),
        win_noise=float(np.mean(w**2)),
        lost_share=(lost + PRIOR_SLOTS * 0.25) / (len(slots) + PRIOR_SLOTS),
        unlike_share=(int(np.sum(slots.unlike)) + PRIOR_SLOTS * 0.5) / (len(slots) + PRIOR_SLOTS),
        noise_ratio=float(np.sum(d**2)) / squares if squares > 0 else 1.0,
        edge=float(np.mean(slots.active_r[slots.day > slots.day[-1] - EDGE_DAYS])),
        pnl_deviation=deviation(d, slots.day),
        win_deviation=deviation(w, slots.day),
        d=float(np.sum(d)),
        d_squares=float(np.sum(d**2)),
        clipped=float(np.sum(clipped)),
        clipped_squares=float(np.sum(clipped**2)),
        cut_squares=float(np.sum((d - clipped) ** 2)),
        alike_candles=0 if np.any(slots.unequal) else candles,
        symbols=tuple(symbols),
    )


def day_sums(values: FloatArray, days: IntArray) -> FloatArray:
    """Return the sum of *values* by day, in the order of the days."""
    _, codes = np.unique(days, return_inverse=True)
    sums: FloatArray = np.bincount(codes, weights=values).astype(np.float64)
    return sums


def day_variance(r: FloatArray, days: IntArray) -> float:
    """Return the variance between days of the mean R of a trade, beyond what chance within the days explains.

    Source: Searle, Casella & McCulloch (1992), "Variance Components", 3.6, the ANOVA estimator of unequal groups.
    """
    if len(r) == 0:
        return 0.0
    counts, sums = day_sums(np.ones(len(r)), days), day_sums(r, days)
    groups, n = len(counts), len(r)
    if groups < 2 or n <= groups:
        return 0.0
    between = float(np.sum(counts * (sums / counts - r.mean()) ** 2))
    within = (float(np.sum((r - r.mean()) ** 2)) - between) / (n - groups)
    return max(0.0, (between - (groups - 1) * within) / (n - float(np.sum(counts**2)) / n))


def slot_kind(slots: Slots) -> IntArray:
    """Return by slot whether both versions signalled (0), the canary alone (1) or the active version alone (2)."""
    kind: IntArray = np.where(slots.active_side == 0, 1, np.where(slots.canary_side == 0, 2, 0))
    return kind


def cut_gains(slots: Slots, unit: float) -> tuple[tuple[float, ...], ...]:
    """Return `History.cut_gains`. A kind that is rare in shadow counts trades like the active version's too."""
    kind, gain = slot_kind(slots), slots.pnl_difference / unit
    own = slots.active_r[slots.active_side != 0] / unit
    like = {0: np.zeros(1), 1: own, 2: -own}  # what such a slot pays when the versions are otherwise alike
    cuts = LARGEST_LOSS / np.array(STAKES)
    found = []
    for code in range(KINDS):
        seen = gain[kind == code]
        above = np.maximum(seen[:, None] - cuts, 0.0).sum(axis=0)
        prior = np.maximum(like[code][:, None] - cuts, 0.0).mean(axis=0) if len(like[code]) else np.zeros(len(cuts))
        found.append(tuple(((above + PRIOR_TRADES * prior) / (len(seen) + PRIOR_TRADES)).tolist()))
    return tuple(found)


def design_effect(differences: FloatArray, days: IntArray, *, explained: float = 0.0) -> float:
    """Return Σ_day (Σ (d - mean))² / Σ (d - mean)², shrunk towards 1 by ten independent days. At least 1.

    Sums are taken around the mean: around 0, a steady loss would look like clustering, and hide itself. They are
    clipped at the 95 % quantile of their size, so that no single day dominates. Days on which the pair never differs do
    not count in the quantile, or a pair that differs on one day of forty would seem not to cluster.

    Source: Kish (1965), "Survey Sampling", 5.4, for clusters of unequal size.
    """
    if not np.any(differences):
        return 1.0
    around = differences - differences.mean()
    squares = float(np.sum(around**2))
    if squares <= _SAME * float(np.sum(differences**2)):
        return 1.0
    _, codes = np.unique(days, return_inverse=True)
    sums = np.bincount(codes, weights=around)
    differs = np.bincount(codes, weights=differences != 0) > 0
    reach = np.quantile(np.abs(sums[differs]), 0.95)
    raw = max(0.0, CLIPPED * float(np.sum(np.clip(sums, -reach, reach) ** 2)) - explained) / squares
    count = len(sums)
    return max(1.0, (count * raw + SHRINKAGE_DAYS) / (count + SHRINKAGE_DAYS))


def bound(effect: float, days: int) -> float:
    """Return a cautious upper value of a design effect that was estimated from so many days."""
    return max(LEAST_EFFECT, 1.0 + (1.0 + DOUBT / float(np.sqrt(days))) * (effect - 1.0))


def deviation(differences: FloatArray, days: IntArray) -> float | None:
    """Return sqrt(n) times the day-clustered standard error of the mean, or None with fewer than two days."""
    _, codes = np.unique(days, return_inverse=True)
    clusters = int(codes.max()) + 1 if len(codes) else 0
    if clusters < 2:
        return None
    sums = np.bincount(codes, weights=differences - differences.mean())
    return float(np.sqrt(clusters / (clusters - 1) * np.sum(sums**2) / len(differences)))
