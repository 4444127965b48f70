"""The slot ledger: running totals over the booked slots of a rollout, which its paired gates judge."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.eprocess import EProcess, advance, begin, read_e_process
from strategy_core.domain.pair_noise import CLIP_UNITS, History
from strategy_core.domain.slots import Slots


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the slots booked so far, with d and w as in `Slots`.

    Attributes:
        days: distinct UTC days on which slots were booked.
        clipped, clipped_squares: Σ and Σ of squares of d, clipped at plus or minus three units of the shadow history.
        cut_squares: Σ of squares of what the clip cuts off.
        active_squares: Σ (active R)².
        unlike: slots on which the two versions decided differently.
        unequal: slots on which they decided differently, or had another R.
        streak, longest_streak: slots in a row that the active version won and the canary lost: the current and
            the longest streak.
        log_e, log_peak: natural logarithm of the e-process on money, now and at its highest.
        log_win, log_win_peak: the same of the e-process on wins.
        symbol, log_symbol: the position of the symbol with the most evidence, and the logarithm of its e-process.
    """

    slots: int = 0
    days: int = 0
    d: float = 0.0
    d_squares: float = 0.0
    clipped: float = 0.0
    clipped_squares: float = 0.0
    cut_squares: float = 0.0
    w: float = 0.0
    w_squares: float = 0.0
    active_squares: float = 0.0
    unlike: int = 0
    unequal: int = 0
    streak: int = 0
    longest_streak: int = 0
    log_e: float = 0.0
    log_peak: float = 0.0
    log_win: float = 0.0
    log_win_peak: float = 0.0
    symbol: int = 0
    log_symbol: float = 0.0


SCHEME = 2  # raise it when bets or sums change: stored totals of another scheme are recomputed from their slots
NUMBERS = tuple(each.name for each in fields(Totals))


@dataclass(frozen=True, slots=True)
class SlotLedger:
    """The state after some slots: all that is needed to add the next one."""

    harm: EProcess
    totals: Totals = field(default_factory=Totals)

    def as_data(self) -> dict[str, Any]:
        return {
            "scheme": SCHEME,
            "harm": self.harm.as_data(),
            "totals": {name: getattr(self.totals, name) for name in NUMBERS},
        }


def open_ledger(history: History) -> SlotLedger:
    return SlotLedger(begin(history))


def read_ledger(data: dict[str, Any]) -> SlotLedger | None:
    """Restore a ledger from `SlotLedger.as_data`. Return None for another scheme or empty data."""
    if data.get("scheme") != SCHEME:
        return None
    return SlotLedger(read_e_process(data["harm"]), Totals(**data["totals"]))


def add_slots(before: SlotLedger, slots: Slots, history: History) -> tuple[SlotLedger, Sequence[Totals]]:
    """Add *slots*, in the order in which they closed. Return the new ledger and the totals after each slot."""
    if len(slots) == 0:
        return before, []
    then = before.totals
    harm, path = advance(before.harm, slots, history)
    d, w, reach = slots.pnl_difference, slots.win_difference, CLIP_UNITS * history.unit
    clipped = np.clip(d, -reach, reach)
    lost = (slots.canary_r < 0) & (slots.active_r > 0)
    streaks = _streaks(lost, then.streak)
    columns: dict[str, FloatArray | IntArray] = {
        "slots": then.slots + np.arange(1, len(slots) + 1),
        "days": then.days + np.cumsum(_new_days(slots.day, before.harm.last_day)),
        "d": then.d + np.cumsum(d),
        "d_squares": then.d_squares + np.cumsum(d**2),
        "clipped": then.clipped + np.cumsum(clipped),
        "clipped_squares": then.clipped_squares + np.cumsum(clipped**2),
        "cut_squares": then.cut_squares + np.cumsum((d - clipped) ** 2),
        "w": then.w + np.cumsum(w),
        "w_squares": then.w_squares + np.cumsum(w**2),
        "active_squares": then.active_squares + np.cumsum(slots.active_r**2),
        "unlike": then.unlike + np.cumsum(slots.unlike),
        "unequal": then.unequal + np.cumsum(slots.unequal),
        "streak": streaks,
        "longest_streak": np.maximum(np.maximum.accumulate(streaks), then.longest_streak),
        "log_e": path.log_e,
        "log_peak": path.log_peak,
        "log_win": path.log_win,
        "log_win_peak": path.log_win_peak,
        "symbol": path.symbol,
        "log_symbol": path.log_symbol,
    }
    after = [Totals(*row) for row in zip(*(columns[name].tolist() for name in NUMBERS), strict=True)]
    return replace(before, harm=harm, totals=after[-1]), after


def _new_days(days: IntArray, last: int | None) -> BoolArray:
    """Return which slots are the first of their day."""
    before = np.concatenate([[days[0] - 1 if last is None else last], days[:-1]])
    return days > np.maximum.accumulate(before)


def _streaks(lost: BoolArray, before: int) -> IntArray:
    """Return the length of the losing streak at each slot, given the streak *before* the first."""
    position = np.arange(len(lost))
    last_kept = np.maximum.accumulate(np.where(lost, -1, position))
    return np.where(lost, position - last_kept + np.where(last_kept < 0, before, 0), 0).astype(np.int64)
