"""The e-process of harm: the evidence that a canary is worse, one per rollout and without resets.

E starts at 1. It is the wealth of bets, slot after slot, that the canary is worse. Against a version that is not worse,
it reaches 1/α at any time with a probability of at most α, however often it is checked (Ville 1939). The wealth is
spread over bets of several sizes on three faults (an average of e-processes is one: Vovk & Wang 2021):

- win: the canary loses where the active version wins. Bet 1 - λ·w (Waudby-Smith & Ramdas 2024, "betting").
- PnL: its R is lower. Bet 1 - κ·clip(d / scale, -1, 1), scale = 1.5 times the active version's root mean square R.
- rate: it misses signals. Bet 1 - 0.66·(y + 1/2): y = 1 where only it signals, -1 where only the active version does.

Slots of one day are correlated, so each bet x also pays exp(-(δ - 1)·x²/2), with δ the design effect of the shadow
history (de la Peña 1999). δ is fixed with the rollout. If it were updated, a fault that begins late would look like
clustering and stay hidden. For such faults, part of the wealth is held back, and a share of it is bet at each UTC
midnight.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.pair_noise import History
from strategy_core.domain.slots import Slots

AT_START = 0.72  # share of the wealth that is bet from the first slot on
HALF_LIFE_DAYS = 15  # of the held-back wealth: after t days 15 / (15 + t) of it is left
CLIP_IN_TRADES = 1.5  # the PnL bets' scale, in root mean square R of the active version's trades
TYPICAL_FALL = 0.05  # of the win rate, for which the middle win bet grows fastest
LARGEST_MIDDLE = 0.6  # a pair without any difference so far may still differ
RATE_BET = 0.66  # below 2/3, where a slot on which only the canary signals would take all wealth


@dataclass(frozen=True, slots=True)
class Bets:
    """The stakes on each slot, on w and on clipped d, and the shares of wealth. Arrays have shape (bets,)."""

    win: FloatArray
    pnl: FloatArray
    log_share: FloatArray  # shape (bets + 1,): the last one is of the rate bet
    scale: float


def bets(history: History) -> Bets:
    """Return the bets for a pair with that history, sized to grow fastest under a typical fault.

    The log-optimal bet on a fall Δ of the win rate, if a share n of slots differs anyway, is Δ / (n + Δ). Bets are
    capped at the size that grows fastest when every slot is lost, the maximum of log(1 + x) - (δ - 1)·x²/2.
    """
    middle = min(LARGEST_MIDDLE, TYPICAL_FALL / (history.win_noise + TYPICAL_FALL))
    rows = np.array(
        [  # win, pnl, share
            (middle / 2, 0.0, 0.03),
            (middle, 0.0, 0.30),
            (0.98, 0.0, 0.30),
            (0.0, 0.3, 0.03),
            (0.0, 0.8, 0.13),
            (0.3, 0.6, 0.14),
        ]
    )
    charge = history.design_effect_bound - 1.0
    top = (math.sqrt(1.0 + 4.0 / charge) - 1.0) / 2.0 if charge > 0 else 1.0
    sized = np.minimum(1.0, top / (rows[:, 0] + rows[:, 1]))
    shares = np.append(rows[:, 2], 1.0 - rows[:, 2].sum())
    return Bets(rows[:, 0] * sized, rows[:, 1] * sized, np.log(shares), CLIP_IN_TRADES * history.trade_r)


@dataclass(frozen=True, slots=True)
class EProcess:
    """The e-process after some slots: all that is needed to add the next slot.

    Attributes:
        log_wealth: natural logarithm of the wealth of each bet, without its share, shape (bets + 1,).
        held_back: share of the wealth that has not been bet yet.
        first_day, last_day: UTC days of the first and the newest slot, as days since 1970. None before the first.
        log_e: natural logarithm of E. `log_peak` is its maximum so far.
    """

    log_wealth: FloatArray
    held_back: float
    first_day: int | None = None
    last_day: int | None = None
    log_e: float = 0.0
    log_peak: float = 0.0

    def as_data(self) -> dict[str, Any]:
        return {
            "log_wealth": self.log_wealth.tolist(),
            "held_back": self.held_back,
            "first_day": self.first_day,
            "last_day": self.last_day,
            "log_e": self.log_e,
            "log_peak": self.log_peak,
        }


def read_e_process(data: dict[str, Any]) -> EProcess:
    """Restore an e-process from `EProcess.as_data`, bit by bit."""
    return EProcess(**data | {"log_wealth": np.asarray(data["log_wealth"], np.float64)})


def begin(history: History) -> EProcess:
    return EProcess(np.full(len(bets(history).log_share), np.log(AT_START)), held_back=1.0 - AT_START)


@dataclass(frozen=True, slots=True)
class Path:
    """Natural logarithms of E and its peak after each slot, shape (slots,)."""

    log_e: FloatArray
    log_peak: FloatArray


def advance(process: EProcess, slots: Slots, history: History) -> tuple[EProcess, Path]:
    """Return the e-process after *slots*, in the order in which they were booked, and its path.

    Splitting the slots into several calls gives the same result up to rounding.
    """
    if len(slots) == 0:
        return process, Path(np.empty(0), np.empty(0))
    days = np.maximum.accumulate(slots.day if process.last_day is None else np.maximum(slots.day, process.last_day))
    staked = bets(history)
    factors = _log_factors(staked, history.design_effect_bound, slots)
    log_e = np.empty(len(slots))
    for day, chosen in _by_day(days):
        process = _enter_day(process, day)
        wealth = process.log_wealth + np.cumsum(factors[chosen], axis=0)
        log_e[chosen] = _log_sum(wealth + staked.log_share, process.held_back)
        process = replace(process, log_wealth=wealth[-1])
    peak = np.maximum(np.maximum.accumulate(log_e), process.log_peak)
    return replace(process, log_e=float(log_e[-1]), log_peak=float(peak[-1])), Path(log_e, peak)


def _log_factors(staked: Bets, design_effect: float, slots: Slots) -> FloatArray:
    """Return the logarithm of the factor of each slot on the wealth of each bet, shape (slots, bets + 1)."""
    clipped = np.clip(slots.pnl_difference / staked.scale, -1.0, 1.0)
    payoff = np.outer(slots.win_difference, staked.win) + np.outer(clipped, staked.pnl)
    charged = np.log1p(-payoff) - (design_effect - 1.0) * payoff**2 / 2
    return np.column_stack([charged, np.log1p(-RATE_BET * (slots.rate_difference + 0.5))])


def _by_day(days: IntArray) -> list[tuple[int, slice]]:
    starts = np.flatnonzero(np.diff(days, prepend=days[:1] - 1)).tolist()
    ends = [*starts[1:], len(days)]
    return [(int(days[start]), slice(start, end)) for start, end in zip(starts, ends, strict=True)]


def _enter_day(process: EProcess, day: int) -> EProcess:
    """Enter *day*: bet a share of the held-back wealth for the midnights since the newest slot."""
    if process.first_day is None:
        return replace(process, first_day=day, last_day=day)
    if day == process.last_day:
        return process
    left = (1.0 - AT_START) * HALF_LIFE_DAYS / (HALF_LIFE_DAYS + day - process.first_day)
    staked = np.log(process.held_back - left)
    return replace(process, log_wealth=np.logaddexp(process.log_wealth, staked), held_back=left, last_day=day)


def _log_sum(log_parts: FloatArray, rest: float) -> FloatArray:
    """Return log(Σ exp(parts) + rest) by row. *log_parts* has shape (slots, parts)."""
    highest = log_parts.max(axis=1)
    summed: FloatArray = highest + np.log(np.exp(log_parts - highest[:, None]).sum(axis=1))
    return np.logaddexp(summed, np.log(rest))
