"""The facts a gate may look at: one rollout's slots, decision counts and equity; never how they are fetched."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from strategy_core.domain.arrays import FloatArray, IntArray
from strategy_core.domain.fidelity import Fidelity
from strategy_core.domain.orders import NO_ORDERS, Orders


@dataclass(frozen=True, slots=True)
class Slots:
    """Closed slots in the order they were booked; the unit of evidence.

    A slot is a (symbol, candle) on which the canary or the active version signalled while both decided; it is booked
    when the trades of both have closed. All arrays have shape (slots,).

    Attributes:
        day: UTC day of the candle, as days since 1970.
        canary_r, active_r: R-multiple of the arm's trade; 0 where it held.
        canary_side, active_side: +1 buy, -1 sell, 0 hold.
    """

    day: IntArray
    canary_r: FloatArray
    active_r: FloatArray
    canary_side: IntArray
    active_side: IntArray

    def __len__(self) -> int:
        return len(self.day)

    @property
    def pnl_difference(self) -> FloatArray:
        """d = canary R - active R, by slot."""
        return self.canary_r - self.active_r

    @property
    def win_difference(self) -> FloatArray:
        """w = (sgn canary R - sgn active R) / 2, by slot: +1 when the canary won what the active lost."""
        return (np.sign(self.canary_r) - np.sign(self.active_r)) / 2


@dataclass(frozen=True, slots=True)
class Record:
    """What one arm's decision log says of it since the rollout began.

    Attributes:
        decided: rows of any kind, errors included, `insufficient_history` not.
        errors_in_a_row: errors at the newest end of the log, on the symbol that has most.
        silent_candles: the most candles, by symbol, on which the other arm has decided since this one last did.
    """

    decided: int = 0
    errors: int = 0
    errors_in_a_row: int = 0
    invalid: int = 0
    breaches: int = 0
    silent_candles: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one rollout at one moment.

    Attributes:
        canary_marks, active_marks: change of marked-to-market R at each candle since the start, open trades included,
            summed over symbols; shape (candles,), aligned with each other.
        risk_fraction: of equity, staked on one R.
        stage_entered_at: when users of the present stage began to be served.
        pending_slots: signalled, but a trade of theirs is still open.
        newest_candle: open time of the newest candle on which both arms have a row, on the symbol that lags most;
            None before the first.
        due_candle: open time of that symbol's newest candle that must have been decided by now; None if there is none.
        overdue: which trade should have closed by now and has no outcome; "" when none.
        feed_problem: why the feed could not even say what to expect; "" when it could.
        orders: users' live orders since the start, as far as the platform reports them.
        fidelity: how well the shadow tells what the active version is worth live; None without live trades.
    """

    now: datetime
    started_at: datetime
    stage_entered_at: datetime
    slots: Slots
    pending_slots: int
    canary: Record
    active: Record
    canary_marks: FloatArray
    active_marks: FloatArray
    risk_fraction: float
    newest_candle: datetime | None
    due_candle: datetime | None
    overdue: str = ""
    feed_problem: str = ""
    orders: Orders = NO_ORDERS
    fidelity: Fidelity | None = None


def slots(rows: list[tuple[int, float, float, int, int]]) -> Slots:
    """Return Slots from rows of (day, canary_r, active_r, canary_side, active_side), already in booking order."""
    columns: list[tuple[Any, ...]] = list(zip(*rows, strict=True)) if rows else [()] * 5
    day, canary_r, active_r, canary_side, active_side = columns
    return Slots(
        np.asarray(day, np.int64),
        np.asarray(canary_r, np.float64),
        np.asarray(active_r, np.float64),
        np.asarray(canary_side, np.int64),
        np.asarray(active_side, np.int64),
    )
