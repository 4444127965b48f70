"""Simulated pairs of versions for calibration: healthy ones in difficult markets, and ones with a known fault.

All randomness comes from the generator that is passed in.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import pairwise

import numpy as np
from scipy.special import gammaln, ndtr

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.slots import Slots


class Change(StrEnum):
    """What makes the canary different from the active version. Some changes do no harm."""

    NONE = "none"
    MILD = "mild"  # loses one of eleven wins: 55 % become 50 %
    SEVERE = "severe"  # loses three of eleven wins, 55 % become 40 %, and losses are 1.5 times as large
    EVERY_LOSS = "every_trade_loses"
    SILENT = "goes_silent"
    SPIKE = "drawdown_spike"  # the next eight trades lose 30 % of equity
    RARE_LOSSES = "rare_large_losses"  # wins one of ten losses, but one trade of fifty loses 13 R
    SLOW_DECAY = "slow_decay"  # loses ever more wins: after 30 days as many as SEVERE
    IMPROVED = "improved"  # wins one of eight losses
    FEWER_WINS = "fewer_wins"  # 55 % become 44 %, and wins are 1.75 times as large: more R a trade
    FEWER_WINS_ALIKE = "fewer_wins_alike"  # 55 % become 44 %, and wins are 1.5 times as large: as much R a trade
    WIDER = "twice_the_variance"  # of its R, around the same mean
    MORE_TRADES = "more_trades"  # also trades where the pair holds, as well as elsewhere


LOST_WINS = {
    Change.MILD: 1 / 11,
    Change.SEVERE: 3 / 11,
    Change.SLOW_DECAY: 3 / 11,
    Change.FEWER_WINS: 0.2,
    Change.FEWER_WINS_ALIKE: 0.2,
}
LARGER_WINS = {Change.FEWER_WINS: 1.75, Change.FEWER_WINS_ALIKE: 1.5}
WON_LOSSES = {Change.RARE_LOSSES: 0.1, Change.IMPROVED: 0.125}
RARE, RARE_LOSS_R = 0.02, 13.0
DECAY_DAYS = 30
LARGER_LOSSES = 1.5
SPIKE_TRADES, SPIKE_LOSS = 8, 0.30
BOUND_CLIP_IN_TRADES = 4.0  # in root mean square R of the active version's trades, so that it rarely clips
RISK_FRACTION = 0.0025  # of equity on one R: 2,000 trades of 1.55 R then have a deviation of 17 % of equity
SIZE_SPREAD = 0.6  # of log |R|
ROOT_MEAN_SQUARE_R = 1.55
MEAN_SIZE = ROOT_MEAN_SQUARE_R / np.exp(SIZE_SPREAD**2 / 2)


@dataclass(frozen=True, slots=True)
class Market:
    """A pair of equally good versions and the market that they trade in.

    Attributes:
        slots_per_day: spread evenly over the day, one of each symbol on a candle.
        win_rate: of both versions. Sizes of wins and losses are lognormal, 1.55 R in root mean square.
        apart: share of slots on which the two are independent. On all others they trade the same.
        alone: share of these independent slots on which only one of the two signals.
        signals: share of slots on which the pair trades. On the others only `Change.MORE_TRADES` does.
        day_swing: standard deviation of the canary's daily win rate, on the independent slots.
        common_swing: the same, of both versions and on all slots: days that are good or bad for both.
        swings_from_day: first day with these swings.
        overlap: consecutive slots with correlated outcomes, as for trades that are open at the same time.
        together: correlation of the outcomes on one candle, over its symbols.
        tail: sizes follow a Student t with these degrees of freedom, of the same mean. 0: lognormal.
        tail_from_day: first day with this tail.
        shock: for a third of one day, every trade of both versions loses 1.5 times its size.
        symbols: number of symbols.
        holding_days: mean time from a slot to its close, exponential. Slots are booked when they close.
        missing: share of slots that are missing from the records.
    """

    slots_per_day: float = 96
    win_rate: float = 0.55
    apart: float = 0.11
    alone: float = 0.3
    signals: float = 1.0
    day_swing: float = 0.0
    common_swing: float = 0.0
    swings_from_day: int = 0
    overlap: int = 1
    together: float = 0.0
    tail: float = 0.0
    tail_from_day: int = 0
    shock: bool = False
    symbols: int = 10
    holding_days: float = 0.0
    missing: float = 0.0

    @property
    def calm(self) -> "Market":
        """The market before the ramp: without what begins during it."""
        before = replace(self, shock=False)
        if self.swings_from_day > 0:
            before = replace(before, day_swing=0.0, common_swing=0.0, swings_from_day=0)
        if self.tail_from_day > 0:
            before = replace(before, tail=0.0, tail_from_day=0)
        return before


@dataclass(frozen=True, slots=True)
class Scenario:
    """A market, and a change of the canary from a day on, on all symbols or on the first *symbols*.

    Attributes:
        healthy: whether the canary is as good as the active version, or better, for as long as the ramp lasts.
        in_shadow: whether the change stood in shadow too. Otherwise it comes with the release.
        shadow_days: days of shadow before the ramp.
        days: of the ramp, if not those of the calibration.
    """

    name: str
    market: Market
    change: Change = Change.NONE
    healthy: bool = True
    from_day: int = 0
    symbols: int | None = None
    in_shadow: bool = False
    shadow_days: int = 60
    days: int | None = None


YEARS = 5 * 365  # of past candles before a slow pair's ramp
RARELY = Market(slots_per_day=1.5 / 7, symbols=1)  # one strategy on one symbol
WEEKDAYS = Market(slots_per_day=5 / 7, symbols=1)
THIRD = Market(signals=1 / 3)
LOSING = Market(signals=1 / 3, win_rate=0.45)


def _harm(
    name: str,
    change: Change,
    market: Market | None = None,
    *,
    symbols: int | None = None,
    days: int | None = None,
    shadow_days: int = 60,
) -> tuple[Scenario, Scenario]:
    """Return a fault in both forms: it comes with the release, and it stood in shadow too."""
    market = market or Market()
    release = Scenario(name, market, change, healthy=False, symbols=symbols, days=days, shadow_days=shadow_days)
    return release, replace(release, name=f"{name}_in_shadow_too", in_shadow=True)


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
    Scenario("common_factor_in_a_candle", Market(apart=0.3, together=0.5)),
    Scenario("heavy_tails", Market(tail=2.2)),
    Scenario("heavy_tails_from_day_8", Market(tail=2.2, tail_from_day=8)),
    Scenario("clustering_from_day_8", Market(apart=0.3, day_swing=0.15, swings_from_day=8)),
    Scenario("strong_clustering_from_day_8", Market(apart=0.6, day_swing=0.15, swings_from_day=8)),
    Scenario("regimes_from_day_8", Market(apart=0.3, alone=1.0, common_swing=0.2, swings_from_day=8)),
    Scenario("three_times_the_trades", THIRD, Change.MORE_TRADES),
    Scenario("three_times_the_trades_in_shadow_too", THIRD, Change.MORE_TRADES, in_shadow=True),
    Scenario("twice_the_variance", Market(), Change.WIDER),
    Scenario("twice_the_variance_in_shadow_too", Market(), Change.WIDER, in_shadow=True),
    Scenario("fewer_wins_more_money", Market(), Change.FEWER_WINS),
    Scenario("fewer_wins_more_money_in_shadow_too", Market(), Change.FEWER_WINS, in_shadow=True),
    Scenario("fewer_wins_as_much_money", Market(), Change.FEWER_WINS_ALIKE),
    Scenario("improved", Market(), Change.IMPROVED, in_shadow=True),
    Scenario("rare_signals_identical", replace(RARELY, apart=0.0), shadow_days=YEARS, days=60),
    Scenario("rare_signals", RARELY, shadow_days=YEARS, days=60),
    Scenario("five_signals_a_week_identical", replace(WEEKDAYS, apart=0.0), shadow_days=YEARS, days=60),
    Scenario("five_signals_a_week", WEEKDAYS, shadow_days=YEARS, days=60),
)
HARMFUL = (
    *_harm("severe", Change.SEVERE),
    *_harm("mild", Change.MILD),
    *_harm("every_trade_loses", Change.EVERY_LOSS),
    *_harm("goes_silent", Change.SILENT),
    *_harm("rare_large_losses", Change.RARE_LOSSES, days=40),
    *_harm("one_symbol_of_ten", Change.SEVERE, symbols=1),
    *_harm("one_dead_symbol_of_ten", Change.EVERY_LOSS, symbols=1),
    *_harm("one_silent_symbol_of_ten", Change.SILENT, symbols=1),
    *_harm("three_times_the_losing_trades", Change.MORE_TRADES, LOSING),
    Scenario("severe_from_day_10", Market(), Change.SEVERE, healthy=False, from_day=10),
    Scenario("severe_from_day_15", Market(), Change.SEVERE, healthy=False, from_day=15, days=40),
    Scenario("slow_decay", Market(), Change.SLOW_DECAY, healthy=False, days=40),
    *_harm("rare_signals_severe", Change.SEVERE, RARELY, shadow_days=YEARS, days=90),
    *_harm("rare_signals_every_trade_loses", Change.EVERY_LOSS, RARELY, shadow_days=YEARS, days=90),
    *_harm("five_signals_a_week_severe", Change.SEVERE, WEEKDAYS, shadow_days=YEARS, days=90),
    *_harm("five_signals_a_week_every_trade_loses", Change.EVERY_LOSS, WEEKDAYS, shadow_days=YEARS, days=45),
    Scenario("drawdown_spike", Market(), Change.SPIKE, healthy=False, from_day=3),
)
SCENARIOS = {scenario.name: scenario for scenario in (*HEALTHY, *HARMFUL)}
USUAL = [  # one form of each, and none that takes years of shadow
    name for name, scenario in SCENARIOS.items() if not scenario.in_shadow and scenario.shadow_days < YEARS
]


@dataclass(frozen=True, slots=True)
class Ramp:
    """Slots of a pair in the order in which they close.

    Attributes:
        closed_at: days since the start, ascending, shape (slots,).
        faulty: slots with a harmful change. All False without one.
    """

    slots: Slots
    closed_at: FloatArray
    faulty: BoolArray


def simulate(
    scenario: Scenario, rng: np.random.Generator, *, days: int, first_day: int = 0, risk_fraction: float = RISK_FRACTION
) -> Ramp:
    """Return a ramp of *days* from the UTC day *first_day* on. One R is *risk_fraction* of equity."""
    market = scenario.market
    canary_r, active_r, canary_side, active_side, opened_at = _pair(market, rng, days, scenario.change)
    symbol = np.arange(len(opened_at)) % market.symbols
    changed = np.full(len(opened_at), scenario.change is not Change.NONE) & (opened_at >= scenario.from_day)
    if scenario.symbols is not None:
        changed &= symbol < scenario.symbols
    canary_r, canary_side = changed_by(
        scenario.change, canary_r, canary_side, changed, rng, risk_fraction, opened_at=opened_at, market=market
    )
    closed_at = opened_at + rng.exponential(market.holding_days, len(opened_at))
    recorded = ((canary_side != 0) | (active_side != 0)) & (rng.random(len(opened_at)) >= market.missing)
    order = np.argsort(closed_at, kind="stable")
    order = order[(recorded & (closed_at < days))[order]]
    slots = Slots(first_day + closed_at.astype(np.int64), canary_r, active_r, canary_side, active_side, symbol).take(
        order
    )
    return Ramp(slots, closed_at[order], changed[order] & (not scenario.healthy))


def simulate_shadow(scenario: Scenario, rng: np.random.Generator, *, days: int) -> Slots:
    """Return the shadow history of the scenario's pair, in its calm market, and with a change `in_shadow`."""
    before = replace(
        scenario, market=scenario.market.calm, change=scenario.change if scenario.in_shadow else Change.NONE
    )
    return simulate(before, rng, days=days, first_day=-days).slots


def resampled(
    history: Slots,
    change: Change,
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
    chosen = history.take(np.concatenate(rows))
    day = np.repeat(np.arange(days), [len(each) for each in rows])
    swapped = (rng.random(days) < 0.5)[day]
    canary_r = np.where(swapped, chosen.active_r, chosen.canary_r)
    active_r = np.where(swapped, chosen.canary_r, chosen.active_r)
    canary_side = np.where(swapped, chosen.active_side, chosen.canary_side)
    active_side = np.where(swapped, chosen.canary_side, chosen.active_side)
    faulty = day >= from_day if change is not Change.NONE else np.zeros(len(day), np.bool_)
    position = np.concatenate([np.arange(len(each)) / len(each) for each in rows])
    canary_r, canary_side = changed_by(
        change, canary_r, canary_side, faulty, rng, risk_fraction, opened_at=day + position
    )
    signalled = (canary_side != 0) | (active_side != 0)
    slots = Slots(day, canary_r, active_r, canary_side, active_side, chosen.symbol).take(signalled)
    return Ramp(slots, (day + position)[signalled], faulty[signalled])


def changed_by(
    change: Change,
    r: FloatArray,
    side: IntArray,
    changed: BoolArray,
    rng: np.random.Generator,
    risk_fraction: float,
    *,
    opened_at: FloatArray | None = None,
    market: Market = Market(),
) -> tuple[FloatArray, IntArray]:
    """Return R and sides of a version after the change on the slots *changed*."""
    if change in LOST_WINS:
        chance: float | FloatArray = LOST_WINS[change]
        if change is Change.SLOW_DECAY:
            chance = chance * np.minimum(1.0, (np.zeros(len(r)) if opened_at is None else opened_at) / DECAY_DAYS)
        lost = changed & (r > 0) & (rng.random(len(r)) < chance)
        r = np.where(lost, -r, r)
        r = np.where(changed & (r > 0), LARGER_WINS.get(change, 1.0) * r, r)
        if change is Change.SEVERE:
            r = np.where(changed & (r < 0), LARGER_LOSSES * r, r)
    if change in WON_LOSSES:
        won = changed & (r < 0) & (rng.random(len(r)) < WON_LOSSES[change])
        r = np.where(won, -r, r)
        if change is Change.RARE_LOSSES:
            r = np.where(changed & (side != 0) & (rng.random(len(r)) < RARE), -RARE_LOSS_R, r)
    elif change is Change.EVERY_LOSS:
        r = np.where(changed, -np.abs(r), r)
    elif change is Change.SILENT:
        r, side = np.where(changed, 0.0, r), np.where(changed, 0, side)
    elif change is Change.SPIKE:
        spiked = changed & (side != 0)
        spiked &= np.cumsum(spiked) <= SPIKE_TRADES
        r = np.where(spiked, -SPIKE_LOSS / SPIKE_TRADES / risk_fraction, r)
    elif change is Change.WIDER:
        mean = (2 * market.win_rate - 1) * MEAN_SIZE
        r = np.where(changed & (side != 0), mean + np.sqrt(2) * (r - mean), r)
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
    market: Market, rng: np.random.Generator, days: int, change: Change
) -> tuple[FloatArray, FloatArray, IntArray, IntArray, FloatArray]:
    n = round(days * market.slots_per_day)
    opened_at = np.arange(n) / market.slots_per_day
    day = opened_at.astype(np.int64)
    common = market.win_rate + _swing(market, market.common_swing, rng, days)
    active_r = _trades(market, rng, np.clip(common, 0.02, 0.98)[day], day)
    rates = common + _swing(market, market.day_swing, rng, days)
    own = _trades(market, rng, np.clip(rates, 0.02, 0.98)[day], day)
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
    active_r = np.where(canary_alone, 0.0, active_r)
    canary_side, active_side = np.where(active_alone, 0, side), np.where(canary_alone, 0, side)
    if market.signals < 1:
        idle = rng.random(n) >= market.signals
        busy = change is Change.MORE_TRADES
        canary_r, canary_side = np.where(idle, own * busy, canary_r), np.where(idle, int(busy), canary_side)
        active_r, active_side = np.where(idle, 0.0, active_r), np.where(idle, 0, active_side)
    return canary_r, active_r, canary_side, active_side, opened_at


def _swing(market: Market, deviation: float, rng: np.random.Generator, days: int) -> FloatArray:
    swing: FloatArray = deviation * rng.standard_normal(days)
    swing[: market.swings_from_day] = 0.0
    return swing


def _trades(market: Market, rng: np.random.Generator, win_rates: FloatArray, day: IntArray) -> FloatArray:
    n = len(win_rates)
    size = np.exp(SIZE_SPREAD * rng.standard_normal(n)) * ROOT_MEAN_SQUARE_R / np.exp(SIZE_SPREAD**2)
    if market.tail:
        heavy = np.abs(rng.standard_t(market.tail, n)) * MEAN_SIZE / _mean_size(market.tail)
        size = np.where(day >= market.tail_from_day, heavy, size)
    if market.overlap > 1:  # a moving average of normal noise is correlated over `overlap` slots
        noise = rng.standard_normal(n + market.overlap - 1)
        won = ndtr(np.convolve(noise, np.ones(market.overlap), mode="valid") / np.sqrt(market.overlap)) < win_rates
    elif market.together:
        factor = np.repeat(rng.standard_normal(n // market.symbols + 1), market.symbols)[:n]
        own = rng.standard_normal(n)
        won = ndtr(np.sqrt(market.together) * factor + np.sqrt(1 - market.together) * own) < win_rates
    else:
        won = rng.random(n) < win_rates
    trades: FloatArray = np.where(won, size, -size)
    return trades


def _mean_size(df: float) -> float:
    """Return the mean of |t| with *df* degrees of freedom."""
    return float(np.exp(gammaln((df + 1) / 2) - gammaln(df / 2)) * 2 * np.sqrt(df / np.pi) / (df - 1))
