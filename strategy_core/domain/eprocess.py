"""The e-processes of a rollout: the evidence that the canary earns less money, and that it wins less often.

An e-process starts at 1. It is the wealth of bets, slot after slot, on harm. Against a version that does no harm it
reaches 1/α at any time with a probability of at most α, however often it is looked at (Ville 1939). An average of
e-processes is one (Vovk & Wang 2021), so the wealth is spread over bets of several sizes, over the pair as a whole and
its symbols one by one, and over the days on which harm may begin.

**Money** is the evidence of harm. The canary does none if E[d] ≥ 0 on each slot, d = canary R - active R. With
x = d / (unit · v), the bet with stake κ multiplies its wealth by 1 - κ·(min(x, G) + b):

- Losses are not bounded, so that a rare large loss counts in full. Only gains are cut, at G = 0.9 / κ, which keeps the
  wealth above 0 (Catoni-type truncation on one side: Catoni 2012; Waudby-Smith & Ramdas 2024).
- What the cut takes from a version with rare large wins is given back as b: 1.5 times the mean gain above G, by kind of
  slot (both signalled, one alone) in shadow, or in the rollout so far if that is more.
- v ≥ 1 follows the size of the active version's newest trades, so that a wild market makes no larger bets.

Slots of one day are correlated. Each bet z also pays (δ - 1)/2 · min(z², 1), with δ the design effect, and
κ²/2 · 1.5·τ² · (max I² of the day so far), with I the slots that the canary traded alone less those that the active
version did, and τ² the variance between days of the active version's mean R. Both charges are the Gaussian price of a
common effect of the day (de la Peña 1999 for the sum). δ is that of the shadow history, and more if the differences
between successive days of the rollout say so: harm that begins late moves one such difference, clustering all.

**Silence**: a bet on missed signals, 1 - λ·(y + m): y = 1 where only the canary signals, -1 where only the active
version does, m = 1/3 more than the share of signals that the canary missed in shadow.

**Wins** are an e-process of their own, on w: bets 1 - λ·w, which pay exp(-(δ - 1)·(λ·w)²/2).

For harm that begins late, part of the wealth is held back, and a share of it is bet at each UTC midnight.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.pair_noise import (
    DOUBT,
    GAINS_DOUBT,
    KINDS,
    LARGEST_LOSS,
    STAKES,
    UNIT_OF_SIZE,
    History,
    slot_kind,
)
from strategy_core.domain.slots import Slots

AT_START = 0.72  # share of the wealth that is bet from the first slot on
HALF_LIFE_DAYS = 15  # of the held-back wealth: after t days 15 / (15 + t) of it is left
SHARES = (0.42, 0.12, 0.18, 0.08, 0.06, 0.05, 0.09)  # of the wealth on the pair, by stake on money and on silence
SYMBOL_SHARES = (0.0, 0.0, 0.10, 0.25, 0.25, 0.20, 0.20)  # of the wealth on a symbol: faults of one are large
PRIOR_DAYS = 7  # of the shadow's clustering, that are added to the rollout's own days
BY_SYMBOL = 0.3  # of the wealth, spread over the symbols
MISSED = 1 / 3  # of the signals: a canary that misses more, beyond what it missed in shadow, is silent
MOST_SILENT = 0.98  # of the wealth on silence, which a slot with a signal of the canary alone takes
MOST_LOST = 0.95  # of a bet's wealth on one slot
DAY_DOUBT = 1.5  # safety factor of the variance between days
CALM = 0.8  # share of the active version's newest size that counts
NEWEST_TRADES = 20
GAINS_PRIOR = 200  # slots for which the shadow's cut gains count, against the rollout's own
TYPICAL_FALL = 0.05  # of the win rate, for which the middle win bet grows fastest
LARGEST_MIDDLE = 0.6  # a pair without any difference so far may still differ
WIN_SHARES = (0.05, 0.475, 0.475)
WIN_PART = 0.5  # of clustering that begins in R, which begins in wins
FORGET_DAYS = 8  # of the running design effect: older days count less by 1/e
LARGEST_STEP = 9.0  # of a squared difference of two days, in its expected size

_KAPPA = np.array(STAKES)
_CUTS = LARGEST_LOSS / _KAPPA
_IS_KIND = np.eye(KINDS)
_LOG_WIN_SHARES = np.log(WIN_SHARES)


@lru_cache
def _log_shares(rows: int) -> FloatArray:
    with np.errstate(divide="ignore"):
        logs: FloatArray = np.log(np.array([SHARES, *[SYMBOL_SHARES] * (rows - 1)]))
    return logs


@dataclass(frozen=True, slots=True)
class EProcess:
    """The e-processes after some slots: all that is needed to add the next slot.

    Attributes:
        money: natural logarithm of the wealth of each bet, without its share, shape (1 + symbols, stakes + 1). Row 0 is
            the pair, the others its symbols. The last column is the bet on silence.
        wins: the same of the bets on w, shape (3,).
        held_back: share of the wealth that has not been bet yet.
        first_day, last_day: UTC days of the first and the newest slot, as days since 1970. None before the first.
        exposure, reach: I, and the maximum of |I|, on the newest day, shape (1 + symbols,).
        size: mean size of the active version's newest trades, in units. That of the shadow before the first.
        cut: sum of the gains above the cut by kind of slot and stake, shape (3, stakes). `kinds` counts the slots.
        day_d, day_squares: Σ d and Σ d² of the newest day. `yesterday_d` is Σ d of the day before, None before two.
        steps, expected: Σ of the squared differences of successive days, and of what independent slots would give.
        weight: number of these differences, the older ones counted less.
        log_e, log_peak: natural logarithm of E on money, now and at its highest.
        log_win, log_win_peak: the same of E on wins.
    """

    money: FloatArray
    wins: FloatArray
    exposure: FloatArray
    reach: FloatArray
    cut: FloatArray
    kinds: FloatArray
    held_back: float
    first_day: int | None = None
    last_day: int | None = None
    size: float = 0.0
    day_d: float = 0.0
    day_squares: float = 0.0
    yesterday_d: float | None = None
    yesterday_squares: float = 0.0
    steps: float = 0.0
    expected: float = 0.0
    weight: float = 0.0
    log_e: float = 0.0
    log_peak: float = 0.0
    log_win: float = 0.0
    log_win_peak: float = 0.0

    def as_data(self) -> dict[str, Any]:
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def read_e_process(data: dict[str, Any]) -> EProcess:
    """Restore an e-process from `EProcess.as_data`, bit by bit."""
    values: dict[str, Any] = {
        name: np.asarray(value, np.float64) if isinstance(value, list) else value for name, value in data.items()
    }
    return EProcess(**values)


def begin(history: History) -> EProcess:
    rows = 1 + max(1, len(history.symbols))
    return EProcess(
        money=np.full((rows, len(STAKES) + 1), np.log(AT_START)),
        wins=np.full(len(WIN_SHARES), np.log(AT_START)),
        exposure=np.zeros(rows),
        reach=np.zeros(rows),
        cut=np.zeros((KINDS, len(STAKES))),
        kinds=np.zeros(KINDS),
        held_back=1.0 - AT_START,
        size=1.0 / UNIT_OF_SIZE,
    )


@dataclass(frozen=True, slots=True)
class Path:
    """Natural logarithms of E and its peak after each slot, on money and on wins, shape (slots,).

    `symbol` is the position of the symbol with the most evidence, and `log_symbol` the logarithm of its E.
    """

    log_e: FloatArray
    log_peak: FloatArray
    log_win: FloatArray
    log_win_peak: FloatArray
    symbol: IntArray
    log_symbol: FloatArray


def advance(process: EProcess, slots: Slots, history: History) -> tuple[EProcess, Path]:
    """Return the e-processes after *slots*, in the order in which they were booked, and their path.

    Splitting the slots into several calls gives the same result up to rounding.
    """
    if len(slots) == 0:
        return process, Path(*(np.empty(0),) * 4, np.empty(0, np.int64), np.empty(0))
    days = np.maximum.accumulate(slots.day if process.last_day is None else np.maximum(slots.day, process.last_day))
    log_e, log_win, log_symbol = (np.empty(len(slots)) for _ in range(3))
    symbol = np.empty(len(slots), np.int64)
    for day, chosen in _by_day(days):
        process = _enter_day(process, day)
        process, by_row, log_win[chosen] = _bet(process, slots.take(chosen), history)
        by_symbol = np.logaddexp.reduce(by_row[:, 1:], axis=1) - math.log(by_row.shape[1] - 1)
        log_e[chosen] = np.logaddexp(math.log(1 - BY_SYMBOL) + by_row[:, 0], math.log(BY_SYMBOL) + by_symbol)
        symbol[chosen] = np.argmax(by_row[:, 1:], axis=1)
        log_symbol[chosen] = by_row[:, 1:].max(axis=1)
    peak = np.maximum(np.maximum.accumulate(log_e), process.log_peak)
    win_peak = np.maximum(np.maximum.accumulate(log_win), process.log_win_peak)
    process = replace(
        process,
        log_e=float(log_e[-1]),
        log_peak=float(peak[-1]),
        log_win=float(log_win[-1]),
        log_win_peak=float(win_peak[-1]),
    )
    return process, Path(log_e, peak, log_win, win_peak, symbol, log_symbol)


def _bet(process: EProcess, slots: Slots, history: History) -> tuple[EProcess, FloatArray, FloatArray]:
    """Bet on the slots of one day. Return the process, and after each slot log E on money by row, and on wins."""
    n, d = len(slots), slots.pnl_difference
    kind = slot_kind(slots)
    effect = design_effect_of_today(process, history)
    sizes = _sizes(process.size, slots, history.unit)
    calm = np.maximum(1.0, CALM * UNIT_OF_SIZE * sizes[:-1])
    x = d / (history.unit * calm)
    above = np.maximum(x[:, None] - _CUTS, 0.0)
    is_kind = _IS_KIND[kind]
    seen = process.cut + (is_kind[:, :, None] * above[:, None, :]).cumsum(axis=0)
    counts = process.kinds + is_kind.cumsum(axis=0)
    bias = _bias(process, history, kind, seen, counts)
    stake = np.minimum(_KAPPA, MOST_LOST / (_CUTS + bias))
    z = -stake * (np.minimum(x[:, None], _CUTS) + bias)
    factors = np.log1p(z) - (effect - 1.0) / 2 * np.minimum(z**2, 1.0)
    tolerated = min(1.0, history.missed + MISSED)
    silence = np.log1p(-MOST_SILENT / (1 + tolerated) * (slots.rate_difference + tolerated))
    gains = np.column_stack([factors, silence])

    rows = np.zeros((n, len(process.money)))
    rows[:, 0] = 1.0
    rows[np.arange(n), 1 + np.minimum(slots.symbol, len(process.money) - 2)] = 1.0
    exposure = process.exposure + (rows * slots.rate_difference[:, None]).cumsum(axis=0)
    reach = np.maximum(process.reach, np.maximum.accumulate(np.abs(exposure), axis=0))
    variance = DAY_DOUBT * history.day_variance / history.unit**2
    wealth = process.money + (rows[:, :, None] * gains[:, None, :]).cumsum(axis=0)
    if variance > 0:
        charge = variance * (reach**2 - process.reach**2)
        wealth[:, :, :-1] -= charge[:, :, None] * _KAPPA**2 / 2

    staked = _win_stakes(history)
    w = np.outer(slots.win_difference, staked)
    win_effect = history.win_effect_bound + WIN_PART * (effect - history.design_effect_bound)
    wins = process.wins + (np.log1p(-w) - (win_effect - 1.0) * w**2 / 2).cumsum(axis=0)

    by_row = _log_sum(wealth + _log_shares(len(process.money)), process.held_back)
    log_win = _log_sum(wins + _LOG_WIN_SHARES, process.held_back)
    after = replace(
        process,
        money=wealth[-1],
        wins=wins[-1],
        exposure=exposure[-1],
        reach=reach[-1],
        cut=seen[-1],
        kinds=counts[-1],
        size=float(sizes[-1]),
        day_d=process.day_d + float(d.sum()),
        day_squares=process.day_squares + float((d**2).sum()),
    )
    return after, by_row, log_win


def _sizes(before: float, slots: Slots, unit: float) -> FloatArray:
    """Return the running mean size of the active version's trades before each slot and after the last, in units."""
    newest = before
    sizes = [newest]
    for size, traded in zip((np.abs(slots.active_r) / unit).tolist(), slots.active_side.tolist(), strict=True):
        if traded:
            newest += (size - newest) / NEWEST_TRADES
        sizes.append(newest)
    return np.array(sizes)


def _bias(process: EProcess, history: History, kind: IntArray, seen: FloatArray, counts: FloatArray) -> FloatArray:
    """Return b before each slot, by stake: of the shadow, or of the rollout so far if that is more."""
    shadow = np.array(history.cut_gains)
    before = np.concatenate([process.cut[None], seen[:-1]])
    number = np.concatenate([process.kinds[None], counts[:-1]])
    rolled = (GAINS_PRIOR * shadow + before) / (GAINS_PRIOR + number)[:, :, None]
    bias: FloatArray = GAINS_DOUBT * np.maximum(shadow, rolled)[np.arange(len(kind)), kind]
    return bias


def _win_stakes(history: History) -> FloatArray:
    """Return the stakes on w. The middle one grows fastest under a typical fall of the win rate.

    The log-optimal bet on a fall Δ of the win rate, if a share n of slots differs anyway, is Δ / (n + Δ). Bets are
    capped at the size that grows fastest when every slot is lost, the maximum of log(1 + x) - (δ - 1)·x²/2.
    """
    middle = min(LARGEST_MIDDLE, TYPICAL_FALL / (history.win_noise + TYPICAL_FALL))
    charge = history.win_effect_bound - 1.0
    top = (math.sqrt(1.0 + 4.0 / charge) - 1.0) / 2.0 if charge > 0 else 1.0
    stakes: FloatArray = np.minimum(top, np.array([middle / 2, middle, 0.98]))
    return stakes


def design_effect_of_today(process: EProcess, history: History) -> float:
    """Return δ: the shadow's bound, or the bound that the successive days of the rollout give, if that is more.

    Half the squared difference of two successive days' sums has the variance of a day as its mean, whatever the level
    (von Neumann 1941). Seven days of the shadow's clustering are added.
    """
    if process.expected <= 0:
        return history.design_effect_bound
    weight = process.weight
    raw = process.steps / process.expected
    found = (PRIOR_DAYS * history.design_effect + weight * raw) / (PRIOR_DAYS + weight)
    return max(history.design_effect_bound, 1.0 + (1.0 + DOUBT / math.sqrt(60)) * (found - 1.0))


def _by_day(days: IntArray) -> list[tuple[int, slice]]:
    starts = np.flatnonzero(np.diff(days, prepend=days[:1] - 1)).tolist()
    ends = [*starts[1:], len(days)]
    return [(int(days[start]), slice(start, end)) for start, end in zip(starts, ends, strict=True)]


def _enter_day(process: EProcess, day: int) -> EProcess:
    """Enter *day*: close the day before, and bet a share of the held-back wealth for the midnights since."""
    if process.first_day is None:
        return replace(process, first_day=day, last_day=day)
    if day == process.last_day:
        return process
    left = (1.0 - AT_START) * HALF_LIFE_DAYS / (HALF_LIFE_DAYS + day - process.first_day)
    staked = np.log(process.held_back - left)
    return replace(
        _close_day(process),
        money=np.logaddexp(process.money, staked),
        wins=np.logaddexp(process.wins, staked),
        exposure=np.zeros_like(process.exposure),
        reach=np.zeros_like(process.reach),
        held_back=left,
        last_day=day,
    )


def _close_day(process: EProcess) -> EProcess:
    """Compare the newest day with the one before it."""
    kept = math.exp(-1 / FORGET_DAYS)
    steps, expected, weight = kept * process.steps, kept * process.expected, kept * process.weight
    if process.yesterday_d is not None:
        usual = (process.day_squares + process.yesterday_squares) / 2
        if usual > 0:
            step = (process.day_d - process.yesterday_d) ** 2 / 2
            steps, expected, weight = steps + min(step, LARGEST_STEP * usual), expected + usual, weight + 1
    return replace(
        process,
        steps=steps,
        expected=expected,
        weight=weight,
        yesterday_d=process.day_d,
        yesterday_squares=process.day_squares,
        day_d=0.0,
        day_squares=0.0,
    )


def _log_sum(log_parts: FloatArray, rest: float) -> FloatArray:
    """Return log(Σ exp(parts) + rest) over the last axis."""
    highest = log_parts.max(axis=-1)
    summed: FloatArray = highest + np.log(np.exp(log_parts - highest[..., None]).sum(axis=-1))
    return np.logaddexp(summed, np.log(rest))
