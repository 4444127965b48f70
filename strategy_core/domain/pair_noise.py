"""Noise and daily clustering of a pair of versions, measured on its shadow history."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.slots import Slots

FEW_DAYS = 30  # of shadow history: with fewer, the measured design effect is not used
UNKNOWN_DESIGN_EFFECT = 3.0
SHRINKAGE_DAYS = 10  # independent days that are added to the measured ones
CLIPPED = 1.1  # corrects for clipping the day sums at their 95 % quantile: 1 / E[min(z², 1.96²)]
DOUBT = 1.9  # safety factor of a measured clustering, which two months give to within a quarter
EDGE_DAYS = 60
_SAME = 1e-12  # squares that differ by less are rounding
PRIOR_SLOTS = 4  # added slots of an unknown pair, of which the active version alone wins one


class History(BaseModel):
    """Figures of the pair's shadow history, measured when a rollout starts and frozen with it.

    Attributes:
        slots, days: number of slots, and of UTC days with slots.
        slots_per_day: over calendar days.
        design_effect: variance of a day's sum of d around its mean, relative to independent slots. At least 1.
        design_effect_bound: a cautious upper value, used to prove harm.
        provisional: too few days to measure the design effect, so it is assumed.
        trade_r: root mean square R of the active version's trades.
        win_noise: mean of w² by slot: how often the two differ in winning.
        lost_share: share of slots that the active version won and the canary lost. Above 0.
        unlike_share: share of slots on which the two decided differently. Above 0 and below 1.
        noise_ratio: Σ d² / Σ (active R)²: variance of the difference relative to the active version.
        edge: mean R per slot of the active version over the newest 60 days.
        pnl_deviation, win_deviation: sqrt(n) times the day-clustered standard error of mean d and w. None with fewer
            than two days.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slots: int = 0
    days: int = 0
    slots_per_day: float = 0.0
    design_effect: float = UNKNOWN_DESIGN_EFFECT
    design_effect_bound: float = UNKNOWN_DESIGN_EFFECT
    provisional: bool = True
    trade_r: float = 1.0
    win_noise: float = 0.5
    lost_share: float = 0.25
    unlike_share: float = 0.5
    noise_ratio: float = 1.0
    edge: float = 0.0
    pnl_deviation: float | None = None
    win_deviation: float | None = None


def measure(slots: Slots, calendar_days: float) -> History:
    """Measure the slots of the pair over *calendar_days* of shadow.

    Without slots, the result is a cautious guess for two independent versions.
    """
    if len(slots) == 0:
        return History()
    d, w = slots.pnl_difference, slots.win_difference
    days = len(np.unique(slots.day))
    measured = design_effect(d, slots.day)
    provisional = days < FEW_DAYS
    traded = slots.active_r[slots.active_side != 0]
    squares = float(np.sum(slots.active_r**2))
    lost = int(np.sum((slots.active_r > 0) & (slots.canary_r < 0)))
    return History(
        slots=len(slots),
        days=days,
        slots_per_day=len(slots) / calendar_days if calendar_days > 0 else 0.0,
        design_effect=max(UNKNOWN_DESIGN_EFFECT, measured) if provisional else measured,
        design_effect_bound=max(UNKNOWN_DESIGN_EFFECT, measured) if provisional else bound(measured),
        provisional=provisional,
        trade_r=float(np.sqrt(np.mean(traded**2))) if len(traded) and squares > 0 else 1.0,
        win_noise=float(np.mean(w**2)),
        lost_share=(lost + PRIOR_SLOTS * 0.25) / (len(slots) + PRIOR_SLOTS),
        unlike_share=(int(np.sum(slots.unlike)) + PRIOR_SLOTS * 0.5) / (len(slots) + PRIOR_SLOTS),
        noise_ratio=float(np.sum(d**2)) / squares if squares > 0 else 1.0,
        edge=float(np.mean(slots.active_r[slots.day > slots.day[-1] - EDGE_DAYS])),
        pnl_deviation=deviation(d, slots.day),
        win_deviation=deviation(w, slots.day),
    )


def design_effect(differences: FloatArray, days: IntArray) -> float:
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
    raw = CLIPPED * float(np.sum(np.clip(sums, -reach, reach) ** 2)) / squares
    count = len(sums)
    return max(1.0, (count * raw + SHRINKAGE_DAYS) / (count + SHRINKAGE_DAYS))


def bound(effect: float) -> float:
    """Return a cautious upper value of an estimated design effect."""
    return 1.0 + DOUBT * (effect - 1.0)


def deviation(differences: FloatArray, days: IntArray) -> float | None:
    """Return sqrt(n) times the day-clustered standard error of the mean, or None with fewer than two days."""
    _, codes = np.unique(days, return_inverse=True)
    clusters = int(codes.max()) + 1 if len(codes) else 0
    if clusters < 2:
        return None
    sums = np.bincount(codes, weights=differences - differences.mean())
    return float(np.sqrt(clusters / (clusters - 1) * np.sum(sums**2) / len(differences)))
