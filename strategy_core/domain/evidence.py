"""The facts a gate may look at: one rollout's slots, decision counts and equity; never how they are fetched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.live_trades import Fidelity
from strategy_core.domain.pair_noise import History
from strategy_core.domain.slot_ledger import Totals


@dataclass(frozen=True, slots=True)
class Orders:
    """The live orders of a rollout's two versions since it began, oldest candle first, then in order of arrival.

    All arrays have shape (orders,). An order that was reported twice, when it opened and when it closed, may stand
    there twice: whoever counts, counts users.

    Attributes:
        candle: open time of the candle in which it was sent, in seconds since 1970.
        user: a number for each user, 0 to users - 1.
        canary: whether the rollout's version sent it, not the one it is measured against.
        failed: whether it came back with an error.
        latency_ms: from the signal to the fill; NaN where nobody said.
        share: of users that routing sent to the canary then, 0..1.
        first_day: UTC day of the rollout's first order, as days since 1970.
        cut: whether these are the newest days' alone, since all would be too many to look at every minute.
        misrouted: trades of the strategy since then whose version was not what routing gave the user.
        misrouted_example: one of them, for people.
    """

    candle: IntArray
    user: IntArray
    canary: BoolArray
    failed: BoolArray
    latency_ms: FloatArray
    share: FloatArray
    first_day: int = 0
    cut: bool = False
    misrouted: int = 0
    misrouted_example: str = ""

    def __len__(self) -> int:
        return len(self.candle)

    def where(self, chosen: BoolArray) -> "Orders":
        return replace(
            self,
            candle=self.candle[chosen],
            user=self.user[chosen],
            canary=self.canary[chosen],
            failed=self.failed[chosen],
            latency_ms=self.latency_ms[chosen],
            share=self.share[chosen],
        )


NO_ORDERS = Orders(
    np.array([], np.int64),
    np.array([], np.int64),
    np.array([], np.bool_),
    np.array([], np.bool_),
    np.array([], np.float64),
    np.array([], np.float64),
)


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
class Sample:
    """One answer of an external metric; *value* is finite, or None, and then *problem* says why there is none."""

    taken_at: datetime
    value: float | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one rollout at one moment.

    Attributes:
        totals: of the slots booked since the start.
        history: of the pair's shadow, as it was measured at the start.
        pending_slots: signalled, but a trade of theirs is still open.
        canary_drawdown, active_drawdown: the deepest since the start, of marked-to-market equity, open trades included;
            as a fraction of its peak. None before the first trade.
        risk_fraction: of equity, staked on one R.
        stage_entered_at: when users of the present stage began to be served.
        newest_candle: open time of the newest candle on which both arms have a row, on the symbol that lags most;
            None before the first.
        due_candle: open time of that symbol's newest candle that must have been decided by now; None if there is none.
        overdue: which trade should have closed by now and has no outcome; "" when none.
        feed_problem: why the feed could not even say what to expect; "" when it could.
        samples: by gate, the newest answers of its external metric, oldest first: as many with a value as the gate
            asks for, and whatever came last.
        orders: users' live orders since the start, as far as the platform reports them.
        platform_problem: why what the platform and its metrics report could not be read; "" when it could.
        fidelity: how well the shadow tells what the active version is worth live; None without live trades.
    """

    now: datetime
    started_at: datetime
    stage_entered_at: datetime
    totals: Totals
    history: History
    pending_slots: int
    canary: Record
    active: Record
    canary_drawdown: float | None
    active_drawdown: float | None
    risk_fraction: float
    newest_candle: datetime | None
    due_candle: datetime | None
    overdue: str = ""
    feed_problem: str = ""
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    orders: Orders = NO_ORDERS
    fidelity: Fidelity | None = None
    platform_problem: str = ""
