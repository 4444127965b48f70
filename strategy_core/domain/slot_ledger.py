"""The running totals of a rollout's booked slots: what its paired gates look at, and how they go on."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.eprocess import EProcess, advance, begin, read_e_process
from strategy_core.domain.pair_noise import History
from strategy_core.domain.slots import Slots


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over the slots booked so far; d and w as in `Slots`.

    Attributes:
        days: distinct UTC days on which slots were booked.
        active_squares: Σ (active R)².
        unlike: slots on which the two said different things.
        streak, longest_streak: slots in a row that the active version won and the canary lost: at the end, and ever.
        log_e, log_peak: natural logarithm of the e-process of harm, now and at its highest.
    """

    slots: int = 0
    days: int = 0
    d: float = 0.0
    d_squares: float = 0.0
    w: float = 0.0
    w_squares: float = 0.0
    active_squares: float = 0.0
    unlike: int = 0
    streak: int = 0
    longest_streak: int = 0
    log_e: float = 0.0
    log_peak: float = 0.0


SCHEME = 1  # of what is bet and summed; raised with any change, so that stored totals are computed anew from their rows
NUMBERS = tuple(each.name for each in fields(Totals))


@dataclass(frozen=True, slots=True)
class SlotLedger:
    """All that a rollout needs to know of its past slots to judge the next one."""

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
    """Return what `Book.as_data` gave; None when that was by another scheme, or never written."""
    if data.get("scheme") != SCHEME:
        return None
    return SlotLedger(read_e_process(data["harm"]), Totals(**data["totals"]))


def add_slots(before: SlotLedger, slots: Slots, history: History) -> tuple[SlotLedger, Sequence[Totals]]:
    """Book *slots*, in the order in which they closed, and return the book and the totals after each of them."""
    if len(slots) == 0:
        return before, []
    then = before.totals
    harm, path = advance(before.harm, slots, history)
    d, w = slots.pnl_difference, slots.win_difference
    lost = (slots.canary_r < 0) & (slots.active_r > 0)
    streaks = _streaks(lost, then.streak)
    columns: dict[str, FloatArray | IntArray] = {
        "slots": then.slots + np.arange(1, len(slots) + 1),
        "days": then.days + np.cumsum(_new_days(slots.day, before.harm.last_day)),
        "d": then.d + np.cumsum(d),
        "d_squares": then.d_squares + np.cumsum(d**2),
        "w": then.w + np.cumsum(w),
        "w_squares": then.w_squares + np.cumsum(w**2),
        "active_squares": then.active_squares + np.cumsum(slots.active_r**2),
        "unlike": then.unlike + np.cumsum(slots.unlike),
        "streak": streaks,
        "longest_streak": np.maximum(np.maximum.accumulate(streaks), then.longest_streak),
        "log_e": path.log_e,
        "log_peak": path.log_peak,
    }
    after = [Totals(*row) for row in zip(*(columns[name].tolist() for name in NUMBERS), strict=True)]
    return replace(before, harm=harm, totals=after[-1]), after


def _new_days(days: IntArray, last: int | None) -> BoolArray:
    """Return which slots are the first of a day that has none yet."""
    before = np.concatenate([[days[0] - 1 if last is None else last], days[:-1]])
    return days > np.maximum.accumulate(before)


def _streaks(lost: BoolArray, before: int) -> IntArray:
    """Return how many in a row were lost at each slot, counting on from *before*."""
    position = np.arange(len(lost))
    last_kept = np.maximum.accumulate(np.where(lost, -1, position))
    return np.where(lost, position - last_kept + np.where(last_kept < 0, before, 0), 0).astype(np.int64)
