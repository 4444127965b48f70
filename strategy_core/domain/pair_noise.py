"""What the shadow history of a pair says of its evidence: how noisy it is, and how its slots hang together by day."""

import numpy as np
from pydantic import BaseModel, ConfigDict

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.slots import Slots

FEW_DAYS = 30  # of shadow history: with fewer its design effect is not believed
UNKNOWN_DESIGN_EFFECT = 3.0
SHRINKAGE_DAYS = 10  # of independence, put beside the measured days
CLIPPED = 1.1  # what clipping the day sums at their 95 % quantile takes away, given back: 1 / E[min(z², 1.96²)]
DOUBT = 1.9  # by which a measured clustering is taken for stronger: two months know it to a quarter
EDGE_DAYS = 60
PRIOR_SLOTS = 4  # with one slot of four lost to the active one: what an unknown pair is taken for


class History(BaseModel):
    """The pair's shadow history, measured when a rollout starts and frozen with it. R is in R-multiples.

    Attributes:
        slots, days: what it had, and on how many UTC days.
        slots_per_day: over calendar days.
        design_effect: variance of a day's sum of d over what independent slots would give; >= 1.
        design_effect_bound: the same on the safe side, for what proves harm.
        provisional: too few days to measure it: it is assumed.
        trade_r: root mean square R of the active version's trades.
        win_noise: mean of w² by slot: how often the two arms differ in winning.
        lost_share: share of slots that the active version won and the canary lost; never quite 0.
        unlike_share: share of slots on which the two said different things; never quite 0 or 1.
        noise_ratio: Σ d² over Σ (active R)²: how much of the active version's variance the difference has.
        edge: mean R by slot of the active version, over the newest 60 days.
        pnl_deviation, win_deviation: sqrt(n) times the day-clustered standard error of mean d and w; None with fewer
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
    """Measure the slots that the pair had in *calendar_days* of shadow.

    Without slots it is the cautious guess of two independent versions.
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
    """Return Σ_day (Σ d)² / Σ d², shrunk towards 1 by ten days of independence; at least 1.

    Day sums are clipped at the 95 % quantile of the size of those that are not 0, so that no single day makes it; with
    the zeros, a pair that differs on one day of forty would seem not to cluster at all.

    Source: Kish (1965), "Survey Sampling", 5.4, for clusters of unequal size around a mean of 0.
    """
    squares = float(np.sum(differences**2))
    if squares == 0:
        return 1.0
    _, codes = np.unique(days, return_inverse=True)
    sums = np.bincount(codes, weights=differences)
    reach = np.quantile(np.abs(sums[sums != 0]), 0.95) if np.any(sums) else 0.0
    raw = CLIPPED * float(np.sum(np.clip(sums, -reach, reach) ** 2)) / squares
    count = len(sums)
    return max(1.0, (count * raw + SHRINKAGE_DAYS) / (count + SHRINKAGE_DAYS))


def bound(effect: float) -> float:
    """Return a design effect on the safe side of one that was estimated."""
    return 1.0 + DOUBT * (effect - 1.0)


def deviation(differences: FloatArray, days: IntArray) -> float | None:
    """Return sqrt(n) times the day-clustered standard error of the mean; None with fewer than two days."""
    _, codes = np.unique(days, return_inverse=True)
    clusters = int(codes.max()) + 1 if len(codes) else 0
    if clusters < 2:
        return None
    sums = np.bincount(codes, weights=differences - differences.mean())
    return float(np.sqrt(clusters / (clusters - 1) * np.sum(sums**2) / len(differences)))
