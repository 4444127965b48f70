"""Simulated pairs of versions for calibration: healthy ones in difficult markets, and ones with a known fault.

All randomness comes from the generator that is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

import numpy as np
from scipy.special import ndtr

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.slots import Slots


class Fault(StrEnum):
    """The fault of the canary."""

    NONE = "none"
    MILD = "mild"  # loses one of eleven wins: 55 % become 50 %
    SEVERE = "severe"  # loses three of eleven wins, 55 % become 40 %, and losses are 1.5 times as large
    EVERY_LOSS = "every_trade_loses"
    SILENT = "goes_silent"
    SPIKE = "drawdown_spike"  # the next eight trades lose 30 % of equity


LOST_WINS = {Fault.MILD: 1 / 11, Fault.SEVERE: 3 / 11}
LARGER_LOSSES = 1.5
SPIKE_TRADES, SPIKE_LOSS = 8, 0.30
BOUND_CLIP_IN_TRADES = 4.0  # in root mean square R of the active version's trades, so that it rarely clips
RISK_FRACTION = 0.0025  # of equity on one R: 2,000 trades of 1.55 R then have a deviation of 17 % of equity
SIZE_SPREAD = 0.6  # of log |R|
ROOT_MEAN_SQUARE_R = 1.55


@dataclass(frozen=True, slots=True)
class Market:
    """A pair of equally good versions and the market that they trade in.

    Attributes:
        slots_per_day: spread evenly over the day.
        win_rate: of both versions. Sizes of wins and losses are lognormal, 1.55 R in root mean square.
        apart: share of slots on which the two are independent. On all others they trade the same.
        alone: share of these independent slots on which only one of the two signals.
        day_swing: standard deviation of the canary's daily win rate, on the independent slots.
        swings_from_day: first day with these swings.
        overlap: consecutive slots with correlated outcomes, as for trades that are open at the same time.
        shock: for a third of one day, every trade of both versions loses 1.5 times its size.
        symbols: number of symbols, traded in turn.
        holding_days: mean time from a slot to its close, exponential. Slots are booked when they close.
        missing: share of slots that are missing from the records.
    """

    slots_per_day: int = 96
    win_rate: float = 0.55
    apart: float = 0.11
    alone: float = 0.3
    day_swing: float = 0.0
    swings_from_day: int = 0
    overlap: int = 1
    shock: bool = False
    symbols: int = 10
    holding_days: float = 0.0
    missing: float = 0.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """A market and a fault of the canary from a day on, on all symbols or on the first *symbols*.

    Attributes:
        in_shadow: whether the fault stood in shadow too. Otherwise it comes with the release.
    """

    name: str
    market: Market
    fault: Fault = Fault.NONE
    from_day: int = 0
    symbols: int | None = None
    in_shadow: bool = False

    @property
    def healthy(self) -> bool:
        return self.fault is Fault.NONE


HEALTHY = (
    Scenario("identical", Market(apart=0.0)),
    Scenario("equivalent", Market()),
    Scenario("independent", Market(apart=1.0, alone=0.0)),
    Scenario("day_clustered", Market(apart=0.3, day_swing=0.15)),
    Scenario("common_shock", Market(shock=True)),
    Scenario("tiny_traffic", Market(slots_per_day=4)),
    Scenario("overlapping_trades", Market(apart=0.3, overlap=8)),
    Scenario("delayed_closes", Market(holding_days=0.5)),
    Scenario("missing_candles", Market(missing=0.3)),
    Scenario("clustering_from_day_8", Market(apart=0.3, day_swing=0.15, swings_from_day=8)),
)
HARMFUL = (
    Scenario("severe", Market(), Fault.SEVERE),
    Scenario("mild", Market(), Fault.MILD),
    Scenario("every_trade_loses", Market(), Fault.EVERY_LOSS),
    Scenario("goes_silent", Market(), Fault.SILENT),
    Scenario("severe_from_day_10", Market(), Fault.SEVERE, from_day=10),
    Scenario("drawdown_spike", Market(), Fault.SPIKE, from_day=3),
    Scenario("one_symbol_of_ten", Market(), Fault.SEVERE, symbols=1),
    Scenario("severe_in_shadow_too", Market(), Fault.SEVERE, in_shadow=True),
    Scenario("mild_in_shadow_too", Market(), Fault.MILD, in_shadow=True),
    Scenario("every_trade_loses_in_shadow_too", Market(), Fault.EVERY_LOSS, in_shadow=True),
)
SCENARIOS = {scenario.name: scenario for scenario in (*HEALTHY, *HARMFUL)}


@dataclass(frozen=True, slots=True)
class Ramp:
    """Slots of a pair in the order in which they close.

    Attributes:
        closed_at: days since the start, ascending, shape (slots,).
        faulty: slots with the fault. All False without a fault.
    """

    slots: Slots
    closed_at: FloatArray
    faulty: BoolArray


def simulate(
    scenario: Scenario, rng: np.random.Generator, *, days: int, first_day: int = 0, risk_fraction: float = RISK_FRACTION
) -> Ramp:
    """Return a ramp of *days* from the UTC day *first_day* on. One R is *risk_fraction* of equity."""
    canary_r, active_r, canary_side, active_side, opened_at = _pair(scenario.market, rng, days)
    symbol = np.arange(len(opened_at)) % scenario.market.symbols
    faulty = opened_at >= scenario.from_day if not scenario.healthy else np.zeros(len(opened_at), np.bool_)
    if scenario.symbols is not None:
        faulty &= symbol < scenario.symbols
    canary_r, canary_side = harmed(scenario.fault, canary_r, canary_side, faulty, rng, risk_fraction)
    closed_at = opened_at + rng.exponential(scenario.market.holding_days, len(opened_at))
    recorded = ((canary_side != 0) | (active_side != 0)) & (rng.random(len(opened_at)) >= scenario.market.missing)
    order = np.argsort(closed_at, kind="stable")
    order = order[(recorded & (closed_at < days))[order]]
    slots = Slots(
        first_day + closed_at[order].astype(np.int64),
        canary_r[order],
        active_r[order],
        canary_side[order],
        active_side[order],
    )
    return Ramp(slots, closed_at[order], faulty[order])


def simulate_shadow(scenario: Scenario, rng: np.random.Generator, *, days: int) -> Slots:
    """Return the shadow history of the scenario's pair, without shock and late swings, and with a fault `in_shadow`."""
    market = scenario.market
    swing = 0.0 if market.swings_from_day > 0 else market.day_swing
    before = replace(market, day_swing=swing, swings_from_day=0, shock=False)
    calm = replace(scenario, market=before, fault=scenario.fault if scenario.in_shadow else Fault.NONE)
    return simulate(calm, rng, days=days, first_day=-days).slots


def resampled(
    history: Slots,
    fault: Fault,
    rng: np.random.Generator,
    *,
    days: int,
    from_day: int = 0,
    risk_fraction: float = RISK_FRACTION,
) -> Ramp:
    """Return a ramp of whole days drawn from the history of a pair, with an optional fault.

    On each day the two versions are swapped with probability 1/2, so that the canary of the ramp is as good as its
    active version. Correlations within a day are kept. Days without a slot are drawn too, such as weekends.
    """
    edges = np.searchsorted(history.day, np.arange(history.day[0], history.day[-1] + 2))
    by_day = [np.arange(first, end) for first, end in pairwise(edges.tolist())]
    drawn = rng.integers(0, len(by_day), days)
    rows = [by_day[code] for code in drawn.tolist()]
    chosen = np.concatenate(rows)
    day = np.repeat(np.arange(days), [len(each) for each in rows])
    swapped = (rng.random(days) < 0.5)[day]
    canary_r = np.where(swapped, history.active_r[chosen], history.canary_r[chosen])
    active_r = np.where(swapped, history.canary_r[chosen], history.active_r[chosen])
    canary_side = np.where(swapped, history.active_side[chosen], history.canary_side[chosen])
    active_side = np.where(swapped, history.canary_side[chosen], history.active_side[chosen])
    faulty = day >= from_day if fault is not Fault.NONE else np.zeros(len(day), np.bool_)
    canary_r, canary_side = harmed(fault, canary_r, canary_side, faulty, rng, risk_fraction)
    signalled = (canary_side != 0) | (active_side != 0)
    position = np.concatenate([np.arange(len(each)) / len(each) for each in rows])
    slots = Slots(
        day[signalled],
        canary_r[signalled],
        active_r[signalled],
        canary_side[signalled],
        active_side[signalled],
    )
    return Ramp(slots, (day + position)[signalled], faulty[signalled])


def harmed(
    fault: Fault,
    r: FloatArray,
    side: IntArray,
    faulty: BoolArray,
    rng: np.random.Generator,
    risk_fraction: float,
) -> tuple[FloatArray, IntArray]:
    """Return R and sides of a healthy version after adding the fault on the slots *faulty*."""
    if fault in LOST_WINS:
        lost = faulty & (r > 0) & (rng.random(len(r)) < LOST_WINS[fault])
        r = np.where(lost, -r, r)
        if fault is Fault.SEVERE:
            r = np.where(faulty & (r < 0), LARGER_LOSSES * r, r)
    elif fault is Fault.EVERY_LOSS:
        r = np.where(faulty, -np.abs(r), r)
    elif fault is Fault.SILENT:
        r, side = np.where(faulty, 0.0, r), np.where(faulty, 0, side)
    elif fault is Fault.SPIKE:
        spiked = faulty & (side != 0)
        spiked &= np.cumsum(spiked) <= SPIKE_TRADES
        r = np.where(spiked, -SPIKE_LOSS / SPIKE_TRADES / risk_fraction, r)
    return r, side


def payoffs(ramps: Sequence[Ramp]) -> dict[str, FloatArray]:
    """Return the payoffs of the three kinds of bets on harm on the faulty slots, each in [-1, 1]."""
    w = np.concatenate([ramp.slots.win_difference[ramp.faulty] for ramp in ramps])
    d = np.concatenate([ramp.slots.pnl_difference[ramp.faulty] for ramp in ramps])
    y = np.concatenate([ramp.slots.rate_difference[ramp.faulty] for ramp in ramps])
    traded = sum(int(np.count_nonzero(ramp.slots.active_side)) for ramp in ramps)
    squares = sum(float(np.sum(ramp.slots.active_r**2)) for ramp in ramps)
    scale = BOUND_CLIP_IN_TRADES * np.sqrt(squares / traded) if squares > 0 else 1.0
    return {"win": -w, "pnl": -np.clip(d / scale, -1.0, 1.0), "rate": -(y + 0.5) / 1.5}


def information_bound(ramps: Sequence[Ramp], alpha: float) -> float:
    """Return ln(1/alpha) / KL_inf: the slots that the best test of win, PnL or rate needs if it knows the fault.

    KL_inf is the growth of the best bet on one of the three, with knowledge of the fault and its symbols. Slots are
    counted on all symbols from the first faulty one. This is a bound of the mean. A median may be lower, and so may a
    test that combines the three.

    Source: Agrawal, Juneja & Glynn (2020), "Optimal δ-correct best-arm selection for heavy-tailed distributions".
    """
    faulty = sum(int(np.count_nonzero(ramp.faulty)) for ramp in ramps)
    if faulty == 0:
        return float("inf")
    best = max(
        float(np.max([np.mean(np.log1p(stake * paid)) for stake in np.linspace(0.02, 0.98, 49)]))
        for paid in payoffs(ramps).values()
    )
    since = sum(len(ramp.faulty) - int(np.argmax(ramp.faulty)) for ramp in ramps if ramp.faulty.any())
    return float(-np.log(alpha) / (best * faulty / since)) if best > 0 else float("inf")


def _pair(
    market: Market, rng: np.random.Generator, days: int
) -> tuple[FloatArray, FloatArray, IntArray, IntArray, FloatArray]:
    n = days * market.slots_per_day
    opened_at = np.arange(n) / market.slots_per_day
    day = opened_at.astype(np.int64)
    active_r = _trades(market, rng, np.full(n, market.win_rate))
    rates = np.full(days, market.win_rate) + market.day_swing * rng.standard_normal(days)
    rates[: market.swings_from_day] = market.win_rate
    own = _trades(market, rng, np.clip(rates, 0.02, 0.98)[day])
    apart = rng.random(n) < market.apart
    one_sided = rng.random(n)
    active_alone = apart & (one_sided < market.alone / 2)
    canary_alone = apart & (one_sided >= market.alone / 2) & (one_sided < market.alone)
    if market.shock:
        begins = rng.uniform(0, days - 1 / 3)
        struck = (opened_at >= begins) & (opened_at < begins + 1 / 3)
        active_r = np.where(struck, -LARGER_LOSSES * np.abs(active_r), active_r)
        own = np.where(struck, -LARGER_LOSSES * np.abs(own), own)
    side = np.ones(n, np.int64)
    canary_r = np.where(active_alone, 0.0, np.where(apart, own, active_r))
    return (
        canary_r,
        np.where(canary_alone, 0.0, active_r),
        np.where(active_alone, 0, side),
        np.where(canary_alone, 0, side),
        opened_at,
    )


def _trades(market: Market, rng: np.random.Generator, win_rates: FloatArray) -> FloatArray:
    n = len(win_rates)
    size = np.exp(SIZE_SPREAD * rng.standard_normal(n)) * ROOT_MEAN_SQUARE_R / np.exp(SIZE_SPREAD**2)
    if market.overlap == 1:
        won = rng.random(n) < win_rates
    else:  # a moving average of normal noise is correlated over `overlap` slots, and its ranks are uniform
        noise = rng.standard_normal(n + market.overlap - 1)
        mixed = np.convolve(noise, np.ones(market.overlap), mode="valid") / np.sqrt(market.overlap)
        won = ndtr(mixed) < win_rates
    trades: FloatArray = np.where(won, size, -size)
    return trades
