"""The evidence that gates judge: slots, decision counts, equity, live orders and metric samples of one rollout."""

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
    """The live orders of a rollout's two versions since its start, by candle and then in order of arrival.

    All arrays have shape (orders,). An order that was reported when it opened and when it closed may appear twice, so
    count users, not orders.

    Attributes:
        candle: open time of the candle in which it was sent, in seconds since 1970.
        user: a number for each user, 0 to users - 1.
        canary: whether the canary sent it, not the active version.
        failed: whether it came back with an error.
        latency_ms: from the signal to the fill, NaN if not reported.
        share: share of users on the canary at that time, 0..1.
        first_day: UTC day of the rollout's first order, as days since 1970.
        cut: whether only the newest days are included, because all orders would be too many to judge every minute.
        misrouted: trades of the strategy since the start on another version than routing gave the user.
        misrouted_example: one of them, to show to people.
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


SLOW_LOAD = 0.5  # share of the time to load a version from which on its host counts as too slow


@dataclass(frozen=True, slots=True)
class VersionRun:
    """How one version fared in a shadow run, to tell a slow host from a slow version.

    Attributes:
        serves: whether it is an active version. Only these measure a host, because they have passed every gate.
        hit: whether it missed a time limit or could not be isolated.
        load_share: its slowest load, as a share of the time limit. 0 if it was not loaded in this run.
    """

    strategy_name: str
    version: str
    serves: bool
    hit: bool = False
    load_share: float = 0.0


def host_at_fault(of: VersionRun, runs: Sequence[VersionRun]) -> str:
    """Return why the host is at fault for what hit a version in a run, or an empty text.

    The host is at fault if more than half of the other active versions of the run missed a time limit as well, or
    took over half of it to load. A version cannot excuse itself, and neither can versions that no user has.
    """
    others = [
        each for each in runs if each.serves and (each.strategy_name, each.version) != (of.strategy_name, of.version)
    ]
    slow = [each for each in others if each.hit or each.load_share >= SLOW_LOAD]
    if 2 * len(slow) <= len(others):
        return ""
    return f"{len(slow)} of {len(others)} other active versions missed a time limit or took over half of it to load"


@dataclass(frozen=True, slots=True)
class Record:
    """Counts from the decision log of one version since the rollout's start.

    What the host is at fault for is not counted against the version, see `host_at_fault`.

    Attributes:
        decided: rows of any kind, with errors but without `insufficient_history`.
        errors_in_a_row: errors at the newest end of the log, on the symbol with the most.
        silent_candles: candles that the other version has decided since this one last did, on the symbol with the most.
        host_errors_in_a_row, host_silent_candles: the same, with what the host is at fault for.
        host_fault: why the host is at fault, or "".
    """

    decided: int = 0
    errors: int = 0
    errors_in_a_row: int = 0
    invalid: int = 0
    breaches: int = 0
    silent_candles: int = 0
    last_error: str = ""
    host_errors_in_a_row: int = 0
    host_silent_candles: int = 0
    host_fault: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of an external metric. *value* is finite, or None for the reason in *problem*."""

    taken_at: datetime
    value: float | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The evidence of one rollout at one moment.

    Attributes:
        totals: sums over the slots booked since the start.
        history: the pair's shadow history, measured at the start.
        pending_slots: slots with a trade that is still open.
        canary_drawdown, active_drawdown: the largest since the start, of marked-to-market equity with open trades, as a
            fraction of the equity peak. None before the first trade.
        canary_falls: (close of the candle, drawdown) of the candles on which the canary's drawdown exceeded all before,
            oldest first, where the candles are known.
        risk_fraction: share of equity risked on one R.
        stage_entered_at: start of the present stage.
        newest_candle: open time of the newest candle on which both versions have a row, on the symbol that lags most.
            None before the first.
        due_candle: open time of that symbol's newest candle that is due by now, if any.
        overdue: a trade that should have closed by now but has no outcome, or "".
        feed_problem: why the feed could not give the due candles, or "".
        samples: by gate, the newest samples of its external metric, oldest first: as many with a value as the gate
            needs, and all later ones without a value.
        orders: users' live orders since the start, as reported by the platform.
        platform_problem: why the reports of the platform or its metrics could not be read, or "".
        orders_stopped: why live orders of a version seem to have stopped, or "".
        fidelity: how well shadow results predict live results of the active version, if there are live trades.
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
    orders_stopped: str = ""
    fidelity: Fidelity | None = None
    platform_problem: str = ""
    canary_falls: Sequence[tuple[datetime, float]] = ()
