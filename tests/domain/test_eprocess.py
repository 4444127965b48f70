"""The e-processes: the guarantee for healthy canaries, what they find, restarts, and a slow oracle."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategy_core.domain import eprocess as constants
from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.eprocess import (
    AT_START,
    BY_SYMBOL,
    SHARES,
    SYMBOL_SHARES,
    WIN_SHARES,
    EProcess,
    Path,
    advance,
    begin,
    design_effect_of_today,
    read_e_process,
)
from strategy_core.domain.pair_noise import (
    DOUBT,
    GAINS_DOUBT,
    LARGEST_LOSS,
    STAKES,
    UNIT_OF_SIZE,
    UNKNOWN_DESIGN_EFFECT,
    History,
    measure,
)
from strategy_core.domain.slots import Slots, slots

KNOWN = History(
    design_effect=1.0,
    design_effect_bound=1.0,
    win_effect_bound=1.0,
    provisional=False,
    unit=UNIT_OF_SIZE,  # the active version's trades have a mean size of 1 R
    win_noise=0.05,
    missed=0.0,
)
TWO_SYMBOLS = KNOWN.model_copy(update={"symbols": ("GOLD", "SILVER")})
ROLLED_BACK = math.log(100)  # log E at which the default gate fails
RESULTS = st.sampled_from([-1.5, -1.0, 0.0, 0.7, 1.0, 3.0])
WILD = st.sampled_from([-1000.0, -1.0, 0.0, 1.0, 1000.0])
Row = tuple[int, float, float, int, int, int]


def run(pairs: Slots, history: History = KNOWN) -> tuple[EProcess, Path]:
    return advance(begin(history), pairs, history)


def highest(pairs: Slots, history: History = KNOWN) -> float:
    return run(pairs, history)[0].log_peak


def worse(count: int, *, a_day: int = 10, first_day: int = 0, symbol: int = 0) -> Slots:
    return slots([(first_day + i // a_day, -1.0, 1.0, -1, 1, symbol) for i in range(count)])


def same(count: int, *, a_day: int = 10, first_day: int = 0, symbol: int = 0) -> Slots:
    return slots([(first_day + i // a_day, 1.0, 1.0, 1, 1, symbol) for i in range(count)])


def joined(*parts: Slots) -> Slots:
    return Slots(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("day", "canary_r", "active_r", "canary_side", "active_side", "symbol")
        )
    )


def of_difference(d: FloatArray, *, a_day: int, active_r: float = 1.0) -> Slots:
    """Return slots on which both traded the same way, and the canary earned *d* more."""
    return slots([(i // a_day, active_r + each, active_r, 1, 1) for i, each in enumerate(d.tolist())])


def rows(results: list[tuple[float, float]], a_day: int, symbols: int = 2) -> list[Row]:
    return [(i // a_day, c, a, int(c != 0), int(a != 0) or 1, i % symbols) for i, (c, a) in enumerate(results)]


class Oracle:
    """The e-processes by their description: one slot at a time, and each part of the wealth on its own.

    A bet is a list of parts. Each was staked at the start or at a midnight, and grows from there.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.names = ["pair", *range(max(1, len(history.symbols)))]
        self.bets = {
            (name, stake): [AT_START] for name in [*self.names, "wins"] for stake in range(max(len(SHARES), 3))
        }
        self.held_back = 1 - AT_START
        self.first: int | None = None
        self.day = 0
        self.sums: dict[int, float] = {}
        self.squares: dict[int, float] = {}
        self.days: list[int] = []
        self.exposure = dict.fromkeys(self.names, 0.0)
        self.reach = dict.fromkeys(self.names, 0.0)
        self.size = 1 / UNIT_OF_SIZE
        self.above: dict[tuple[int, int], list[float]] = {}
        self.win_stakes = self._win_stakes()

    def add(self, row: Row) -> tuple[float, float]:
        """Return E on money and on wins after the slot."""
        day, canary_r, active_r, canary_side, active_side, symbol = row
        self._enter(day)
        history, d = self.history, canary_r - active_r
        y = (canary_side != 0) - (active_side != 0)
        kind = 1 if active_side == 0 else 2 if canary_side == 0 else 0
        x = d / history.unit / max(1.0, constants.CALM * UNIT_OF_SIZE * self.size)
        effect = self.design_effect()
        chosen = ("pair", min(symbol, len(self.names) - 2))
        for number, stake in enumerate(STAKES):
            factor = self._factor(x, kind, number, stake, effect)
            for name in chosen:
                farthest = max(self.reach[name], abs(self.exposure[name] + y))
                further = farthest**2 - self.reach[name] ** 2
                tau = constants.DAY_DOUBT * history.day_variance / history.unit**2
                self._multiply(name, number, factor * math.exp(-(stake**2) / 2 * tau * further))
        tolerated = min(1.0, history.missed + constants.MISSED)
        for name in chosen:
            self.exposure[name] += y
            self.reach[name] = max(self.reach[name], abs(self.exposure[name]))
            self._multiply(name, len(STAKES), 1 - constants.MOST_SILENT * (y + tolerated) / (1 + tolerated))
        w = (float(np.sign(canary_r)) - float(np.sign(active_r))) / 2
        for number, stake in enumerate(self.win_stakes):
            clustered = history.win_effect_bound + constants.WIN_PART * (effect - history.design_effect_bound)
            charge = (clustered - 1) / 2 * (stake * w) ** 2
            self._multiply("wins", number, (1 - stake * w) * math.exp(-charge))
        if active_side != 0:
            self.size += (abs(active_r) / history.unit - self.size) / constants.NEWEST_TRADES
        self.sums[self.day] = self.sums.get(self.day, 0.0) + d
        self.squares[self.day] = self.squares.get(self.day, 0.0) + d**2
        return self._e()

    def _enter(self, day: int) -> None:
        if self.first is None:
            self.first = self.day = day
            self.days.append(day)
        if day <= self.day:
            return
        left = (1 - AT_START) * constants.HALF_LIFE_DAYS / (constants.HALF_LIFE_DAYS + day - self.first)
        for parts in self.bets.values():
            parts.append(self.held_back - left)
        self.held_back, self.day = left, day
        self.days.append(day)
        self.exposure = dict.fromkeys(self.names, 0.0)
        self.reach = dict.fromkeys(self.names, 0.0)

    def design_effect(self) -> float:
        """Compare each two successive days that are over. Older ones count less."""
        steps = expected = weight = 0.0
        for age, (one, other) in enumerate(zip(self.days[-2:0:-1], self.days[-3::-1], strict=False)):
            kept = math.exp(-age / constants.FORGET_DAYS)
            usual = (self.squares[one] + self.squares[other]) / 2
            if usual > 0:
                step = (self.sums[one] - self.sums[other]) ** 2 / 2
                steps += kept * min(step, constants.LARGEST_STEP * usual)
                expected, weight = expected + kept * usual, weight + kept
        bound = self.history.design_effect_bound
        if expected == 0:
            return bound
        prior = constants.PRIOR_DAYS
        found = (prior * self.history.design_effect + weight * steps / expected) / (prior + weight)
        return max(bound, 1 + (1 + DOUBT / math.sqrt(60)) * (found - 1))

    def _factor(self, x: float, kind: int, number: int, stake: float, effect: float) -> float:
        cut = LARGEST_LOSS / stake
        seen = self.above.setdefault((kind, number), [])
        shadow = self.history.cut_gains[kind][number]
        prior = constants.GAINS_PRIOR
        bias = GAINS_DOUBT * max(shadow, (prior * shadow + sum(seen)) / (prior + len(seen)))
        seen.append(max(0.0, x - cut))
        z = -min(stake, constants.MOST_LOST / (cut + bias)) * (min(x, cut) + bias)
        return (1 + z) * math.exp(-(effect - 1) / 2 * min(z**2, 1))

    def _win_stakes(self) -> tuple[float, ...]:
        """The largest is found by bisection: where wealth grows fastest if the canary loses every win."""
        typical, charge = constants.TYPICAL_FALL, self.history.win_effect_bound - 1
        middle = min(constants.LARGEST_MIDDLE, typical / (self.history.win_noise + typical))
        top, high = 0.0, 0.98
        for _ in range(60):
            tried = (top + high) / 2
            top, high = (tried, high) if 1 / (1 + tried) > charge * tried else (top, tried)
        return min(top, middle / 2), min(top, middle), top

    def _multiply(self, name: object, number: int, factor: float) -> None:
        self.bets[name, number] = [part * factor for part in self.bets[name, number]]

    def _e(self) -> tuple[float, float]:
        def wealth(name: object, shares: tuple[float, ...]) -> float:
            own = sum(share * sum(self.bets[name, number]) for number, share in enumerate(shares))
            return own + self.held_back

        by_symbol = [wealth(name, SYMBOL_SHARES) for name in self.names[1:]]
        money = (1 - BY_SYMBOL) * wealth("pair", SHARES) + BY_SYMBOL * sum(by_symbol) / len(by_symbol)
        return money, wealth("wins", WIN_SHARES)


@given(
    st.lists(st.tuples(RESULTS, RESULTS), min_size=1, max_size=30),
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=30, max_size=30),
    st.integers(1, 9),
    st.floats(1, 4),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.floats(0.4, 2),
)
@settings(deadline=None)
def test_it_bets_as_described(
    results: list[tuple[float, float]],
    sides: list[tuple[bool, bool]],
    a_day: int,
    effect: float,
    variance: float,
    missed: float,
    unit: float,
) -> None:
    gains = tuple((0.1 * kind,) * len(STAKES) for kind in range(3))
    history = TWO_SYMBOLS.model_copy(
        update={
            "design_effect_bound": effect,
            "win_effect_bound": effect,
            "day_variance": variance,
            "missed": missed,
            "unit": unit,
            "cut_gains": gains,
        }
    )
    booked = [
        (i // a_day, c * canary, a * active, int(canary), int(active), i % 2)
        for i, ((c, a), (canary, active)) in enumerate(zip(results, sides, strict=False))
        if canary or active
    ]
    oracle = Oracle(history)
    expected = np.log([oracle.add(row) for row in booked]).reshape(-1, 2)

    path = run(slots(booked), history)[1]

    assert path.log_e == pytest.approx(expected[:, 0], abs=1e-6)
    assert path.log_win == pytest.approx(expected[:, 1], abs=1e-6)
    assert path.log_peak == pytest.approx(np.maximum(np.maximum.accumulate(expected[:, 0]), 0), abs=1e-6)
    assert path.log_win_peak == pytest.approx(np.maximum(np.maximum.accumulate(expected[:, 1]), 0), abs=1e-6)


@given(st.lists(st.floats(-30, 30), min_size=1, max_size=12), st.floats(1, 20), st.sampled_from([0, 1, 2]))
def test_no_fair_game_makes_wealth(outcomes: list[float], effect: float, kind: int) -> None:
    """The main guarantee: on outcomes of mean 0, whatever their tails, no bet on money grows on average."""
    d = np.array(outcomes) - np.mean(outcomes)
    above = np.maximum(d[:, None] / KNOWN.unit - LARGEST_LOSS / np.array(STAKES), 0).mean(axis=0)
    history = KNOWN.model_copy(
        update={"design_effect_bound": effect, "design_effect": effect, "cut_gains": (tuple(above.tolist()),) * 3}
    )
    sides = [(1, 1), (1, 0), (0, 1)][kind]
    ends = []
    for each in d.tolist():
        r = [(each + 1, 1.0), (each, 0.0), (0.0, -each)][kind]
        ends.append(np.exp(run(slots([(0, *r, *sides)]), history)[0].money - math.log(AT_START)))

    assert np.mean(ends, axis=0)[:, :-1].max() <= 1.0 + 1e-12


SHAPES: dict[str, Callable[[np.random.Generator, int], FloatArray]] = {
    "heavy tails": lambda rng, n: rng.standard_t(2.2, n),
    "rare large gains": lambda rng, n: np.where(rng.random(n) < 0.02, 13.0, -0.26 / 0.98),
    "rare large losses": lambda rng, n: np.where(rng.random(n) < 0.02, -13.0, 0.26 / 0.98),
    "skewed gains": lambda rng, n: rng.exponential(1.0, n) - 1,
}


@pytest.mark.parametrize("shape", SHAPES)
def test_on_average_no_bet_earns_on_a_canary_that_is_as_good(shape: str) -> None:
    """A second, over fifteen hundred streams: mean wealth of each bet is at most 1 and three standard errors."""
    rng = np.random.default_rng(5)
    history = measure(of_difference(SHAPES[shape](rng, 6_000), a_day=100), 60)
    ends = np.array(
        [run(of_difference(SHAPES[shape](rng, 30), a_day=30), history)[0].money[0] for _ in range(1_500)]
    ) - math.log(AT_START)
    wealth = np.exp(ends[:, :-1])
    error = wealth.std(axis=0) / math.sqrt(len(wealth))

    assert np.all(wealth.mean(axis=0) <= 1 + 3 * error)


def test_a_bet_that_is_not_given_back_what_the_cut_takes_would_earn() -> None:
    """Without the shadow's cut gains the same average lies above 1: they are what holds the error."""
    rng = np.random.default_rng(5)
    draw = SHAPES["rare large gains"]
    ends = np.array([run(of_difference(draw(rng, 30), a_day=30))[0].money[0] for _ in range(1_500)])
    wealth = np.exp(ends[:, :-1] - math.log(AT_START))
    error = wealth.std(axis=0) / math.sqrt(len(wealth))

    assert np.any(wealth.mean(axis=0) > 1 + 3 * error)


def test_it_begins_at_one() -> None:
    process = begin(TWO_SYMBOLS)

    assert np.exp(process.money) == pytest.approx(AT_START)
    assert process.held_back == pytest.approx(1 - AT_START)
    assert (process.log_e, process.log_win) == (0.0, 0.0)


@pytest.mark.parametrize("shares", [SHARES, SYMBOL_SHARES, WIN_SHARES])
def test_shares_of_the_wealth_add_up(shares: tuple[float, ...]) -> None:
    assert sum(shares) == pytest.approx(1.0)
    assert min(shares) >= 0


def test_nothing_new_changes_nothing() -> None:
    process, path = advance(begin(KNOWN), slots([]), KNOWN)

    assert process.as_data() == begin(KNOWN).as_data()
    assert [len(getattr(path, name)) for name in Path.__dataclass_fields__] == [0] * 6


class TestMoney:
    def test_a_canary_that_loses_what_the_active_wins_is_found_in_two_dozen_slots(self) -> None:
        path = run(worse(25))[1].log_e

        assert path[24] > ROLLED_BACK > path[3]

    def test_losses_that_grow_while_wins_stay_are_found(self) -> None:
        """No win is lost, so E on wins stays at 1. Money is what counts."""
        pairs = slots([(i // 10, -1.8 if i % 2 else 1.0, -1.0 if i % 2 else 1.0, 1, 1) for i in range(200)])
        process = run(pairs)[0]

        assert process.log_peak > ROLLED_BACK
        assert process.log_win_peak == pytest.approx(0.0, abs=1e-12)

    def test_a_better_canary_raises_nothing(self) -> None:
        process = run(slots([(i // 10, 1.0, -1.0, 1, 1) for i in range(100)]))[0]

        assert (process.log_peak, process.log_win_peak) == (0.0, 0.0)

    def test_fewer_wins_that_earn_more_are_no_harm(self) -> None:
        """The canary wins every second of the active version's wins, three times as large."""
        pairs = slots([(i // 20, (3.5, -1.0)[i % 2], 1.0, 1, 1) for i in range(400)])
        process = run(pairs, measure(pairs, 20))[0]

        assert process.log_peak < math.log(10)
        assert process.log_win_peak > ROLLED_BACK

    def test_rare_large_wins_of_the_same_mean_are_no_harm_and_rare_large_losses_are(self) -> None:
        """Both in shadow too. The losses of one trade in fifty cost 0.26 R a slot."""

        def drawn(rng: np.random.Generator, days: int, rare_r: float, usual_r: float) -> Slots:
            usual = rng.normal(usual_r, 0.4, days * 96)
            return of_difference(np.where(rng.random(len(usual)) < 0.02, rare_r, usual), a_day=96)

        peaks: dict[str, list[float]] = {"wins": [], "losses": []}
        for seed in range(20):
            rng = np.random.default_rng([3, seed])
            for name, results in (("wins", (13.0, -0.26 / 0.98)), ("losses", (-13.0, 0.0))):
                history = measure(drawn(rng, 60, *results), 60)
                peaks[name].append(highest(drawn(rng, 20, *results), history))

        assert sum(peak >= ROLLED_BACK for peak in peaks["wins"]) <= 1
        assert min(peaks["losses"]) > ROLLED_BACK

    @given(st.lists(st.tuples(WILD, WILD), min_size=1, max_size=60), st.integers(1, 30), st.floats(1, 20))
    @settings(deadline=None)
    def test_wealth_outlives_any_result(self, results: list[tuple[float, float]], a_day: int, effect: float) -> None:
        twins = TWO_SYMBOLS.model_copy(update={"win_noise": 0.0, "win_effect_bound": effect, "day_variance": 1.0})
        process, path = run(slots(rows(results, a_day)), twins)

        assert np.isfinite(process.money).all()
        assert np.isfinite(process.wins).all()
        assert np.isfinite([path.log_e, path.log_win, path.log_symbol]).all()

    def test_a_rare_large_loss_counts_in_full(self) -> None:
        """Ten times the loss has more than twice the evidence of the smallest bet, which never cuts."""
        money = [run(of_difference(np.array([loss]), a_day=1))[0].money[0, 0] for loss in (-10.0, -100.0, -1000.0)]

        assert np.exp(np.diff(money)).min() > 2

    def test_a_market_twice_as_wild_makes_no_larger_bets(self) -> None:
        """Once the active version's trades are eight times as large, so is v, save for the 20 % of its doubt."""

        def lost(scale: float, d: float) -> float:
            calm = slots([(0, scale, scale, 1, 1)] * 400)
            harm = slots([(0, scale + d, scale, 1, 1)] * 30)
            return float(run(joined(calm, harm))[1].log_e[-1])

        assert lost(8.0, -8.0) == pytest.approx(lost(1.0, -1.0 / constants.CALM), rel=1e-3)

    def test_a_canary_cannot_make_its_own_losses_look_small(self) -> None:
        """Only the active version's trades make v: losses twice as large are more evidence, however long they last."""
        small, large = (of_difference(np.full(40, loss), a_day=40) for loss in (-0.2, -0.4))

        assert run(large)[0].log_e > 1.5 * run(small)[0].log_e > 0

    def test_a_steady_loss_in_shadow_does_not_shrink_the_bets(self) -> None:
        """The formula of the first edition took it for clustering. The canary's loss is the same in both."""
        noise = np.random.default_rng(1).normal(0, 0.7, 60 * 20)
        healthy, faulty = (measure(of_difference(noise + each, a_day=20), 60) for each in (0.0, -1.0))
        ramp = of_difference(np.random.default_rng(2).normal(-1.0, 0.7, 60), a_day=20)

        assert faulty.design_effect_bound == pytest.approx(healthy.design_effect_bound)
        assert highest(ramp, faulty) >= highest(ramp, healthy) - 1e-9 > ROLLED_BACK

    def test_days_that_move_together_take_more_to_convince(self) -> None:
        clustered = KNOWN.model_copy(update={"design_effect_bound": 3.0})

        assert run(worse(12), clustered)[0].log_e < run(worse(12))[0].log_e
        assert highest(worse(90), clustered) > ROLLED_BACK


class TestExposure:
    def alone(self, results: list[float], sides: list[tuple[int, int]]) -> Slots:
        return slots(
            [(0, r * canary, r * active, canary, active) for r, (canary, active) in zip(results, sides, strict=True)]
        )

    def test_a_bad_day_of_a_canary_that_trades_alone_is_charged_to_the_day(self) -> None:
        """If days differ, ten trades of the canary alone are one bet on that day. In a quiet market they are ten."""
        lost = self.alone([-1.0] * 10, [(1, 0)] * 10)
        restless = KNOWN.model_copy(update={"day_variance": 0.3})

        assert run(lost)[0].log_e > math.log(2)
        assert run(lost, restless)[0].log_e < run(lost)[0].log_e - math.log(1.5)

    def test_an_exposure_to_both_sides_is_hardly_charged(self) -> None:
        """The canary alone and the active version alone in turn: a good day for both moves d nowhere."""
        restless = KNOWN.model_copy(update={"day_variance": 0.3})
        results, sides = [-1.0, 1.0] * 5, [(1, 0), (0, 1)] * 5
        turns, one_way = self.alone(results, sides), self.alone([-1.0] * 10, [(1, 0)] * 10)

        def charged(pairs: Slots) -> FloatArray:
            charge: FloatArray = (run(pairs)[0].money - run(pairs, restless)[0].money)[0, :-1]
            return charge

        assert charged(one_way) == pytest.approx(100 * charged(turns))  # the square of ten against that of one
        assert np.all(charged(turns) > 0)

    def test_a_new_day_starts_at_no_exposure(self) -> None:
        restless = KNOWN.model_copy(update={"day_variance": 0.3})
        process = run(self.alone([-1.0] * 10, [(1, 0)] * 10), restless)[0]
        later = advance(process, same(1, first_day=1), restless)[0]

        assert (process.exposure[0], process.reach[0]) == (10.0, 10.0)
        assert (later.exposure[0], later.reach[0]) == (0.0, 0.0)


class TestSymbols:
    SYMBOLS = tuple(f"S{number}" for number in range(10))
    TEN = KNOWN.model_copy(update={"symbols": SYMBOLS})

    def one_dead(self, dead: int, count: int, *, seed: int = 4, apart: float = 0.0) -> Slots:
        """Return slots of ten symbols. One loses always. On the share *apart* of the others chance decides anew."""
        rng = np.random.default_rng([4, seed])
        active, other = np.where(rng.random((2, count)) < 0.55, 1.0, -1.0)
        symbol = np.arange(count) % 10
        canary = np.where(symbol == dead, -1.0, np.where(rng.random(count) < apart, other, active))
        ones = np.ones(count, np.int64)
        return Slots(np.arange(count) // 96, canary, active, ones, ones, symbol)

    def test_the_symbol_with_a_fault_is_named(self) -> None:
        path = run(self.one_dead(7, 600), self.TEN)[1]

        assert path.log_peak[-1] > ROLLED_BACK
        assert path.symbol[-300:].tolist() == [7] * 300
        assert path.log_symbol[-1] > path.log_e[-1]

    def test_it_is_found_sooner_than_by_the_pair_as_a_whole(self) -> None:
        """Nine other symbols whose results differ by chance hide the one. The median of eleven seeds."""
        history = self.TEN.model_copy(update={"win_noise": 0.15})
        found: list[tuple[int, int]] = []
        for seed in range(11):
            pairs = self.one_dead(7, 1_500, seed=seed, apart=0.3)
            as_one = replace(pairs, symbol=np.zeros(len(pairs), np.int64))
            late = [int(np.sum(run(each, history)[1].log_peak < ROLLED_BACK)) for each in (pairs, as_one)]
            found.append((late[0], late[1]))
        by_symbol, whole = np.median(found, axis=0)

        assert by_symbol < whole / 2

    def test_a_position_without_a_name_does_not_fail(self) -> None:
        """A symbol that was added later counts on the last one, and on the pair."""
        process = run(worse(30, symbol=25), self.TEN)[0]

        assert process.log_peak > ROLLED_BACK
        assert run(worse(30, symbol=25), self.TEN)[1].symbol[-1] == 9

    def test_a_history_without_symbols_has_one(self) -> None:
        assert run(worse(5, symbol=3))[0].money.shape == (2, len(STAKES) + 1)


class TestSilence:
    def test_a_canary_that_falls_silent_is_found(self) -> None:
        """It misses as many wins as losses, so its money stays the same."""
        path = run(slots([(0, 0.0, 1.0 if i % 2 else -1.0, 0, 1) for i in range(60)]))[1]

        assert path.log_e[-1] > ROLLED_BACK

    def test_one_that_was_as_silent_in_shadow_is_not(self) -> None:
        pairs = slots([(i // 20, 0.0, 1.0 if i % 2 else -1.0, 0, 1) for i in range(600)])
        process = run(pairs, measure(pairs, 30))[0]

        assert process.log_peak < math.log(10)

    def test_one_that_signals_more_often_is_not(self) -> None:
        pairs = slots([(i // 20, 1.0 if i % 2 else -1.0, 0.0, 1, 0) for i in range(600)])

        assert run(pairs)[0].money[0, -1] < math.log(AT_START)


class TestWins:
    def test_lost_wins_are_found(self) -> None:
        process = run(worse(30))[0]

        assert process.log_win_peak > ROLLED_BACK

    def test_no_bet_is_larger_than_what_grows_when_every_slot_is_lost(self) -> None:
        for effect in (1.0, 1.5, 3.0, 10.0):
            history = KNOWN.model_copy(update={"win_effect_bound": effect})

            assert np.all(np.diff([run(worse(n), history)[0].wins for n in (1, 2, 10)], axis=0) > 0)

    @given(st.floats(0, 1), st.floats(1, 20), st.tuples(RESULTS, RESULTS))
    def test_no_fair_game_makes_wealth(self, noise: float, effect: float, results: tuple[float, float]) -> None:
        """If a fair coin swaps the versions, no slot raises E on wins on average."""
        history = KNOWN.model_copy(update={"win_noise": noise, "win_effect_bound": effect})
        ends = [run(slots([(0, c, a, 1, 1)]), history)[0].log_win for c, a in (results, results[::-1])]

        assert np.exp(ends).mean() <= 1.0 + 1e-12


class TestLateHarm:
    def test_a_fault_that_begins_late_is_found_by_the_wealth_that_was_held_back(self) -> None:
        """Forty better days use up what was bet from the start. What is bet at a midnight is as good as new."""
        better = slots([(i // 10, 1.0, -1.0, 1, 1) for i in range(400)])
        late = joined(better, worse(40, first_day=41))
        in_one_day = replace(late, day=np.zeros(len(late), np.int64))

        assert run(late)[1].log_e[399] < 0
        assert highest(late) > ROLLED_BACK
        assert highest(in_one_day) < math.log(10)
        assert highest(worse(40)) > ROLLED_BACK

    def test_days_without_slots_pass_their_midnights(self) -> None:
        """What is held back depends on the day alone, and nothing of the wealth is lost on the way."""
        calm = advance(begin(KNOWN), same(1), KNOWN)[0]
        later = advance(calm, same(1, first_day=30), KNOWN)[0]
        daily = run(same(31, a_day=1))[0]

        assert later.held_back == pytest.approx(daily.held_back)
        assert later.held_back < calm.held_back
        assert np.exp(later.money[0, 0]) + later.held_back == pytest.approx(1.0)

    def test_a_late_booking_never_turns_the_day_back(self) -> None:
        ahead = advance(begin(KNOWN), same(1, first_day=5), KNOWN)[0]
        behind = advance(ahead, same(1, first_day=3), KNOWN)[0]

        assert behind.last_day == 5
        assert behind.held_back == ahead.held_back


class TestDesignEffectOfToday:
    HISTORY = KNOWN.model_copy(update={"design_effect": 1.05, "design_effect_bound": 1.1})

    def by_day(self, seed: int, *, swing: float = 0.0, shift: float = 0.0) -> Slots:
        """Forty days of thirty slots. From day 10 on the days differ, or the canary loses *shift* R more a slot."""
        rng = np.random.default_rng(seed)
        day = np.repeat(np.arange(40), 30)
        level = swing * rng.standard_normal(40)[day] - shift
        return of_difference(rng.normal(0, 0.7, len(day)) + np.where(day >= 10, level, 0.0), a_day=30)

    def effect(self, pairs: Slots) -> float:
        return design_effect_of_today(run(pairs, self.HISTORY)[0], self.HISTORY)

    def test_it_is_the_shadows_until_two_days_are_over(self) -> None:
        assert self.effect(of_difference(np.linspace(-1, 1, 20), a_day=10)) == self.HISTORY.design_effect_bound

    def test_it_is_the_shadows_as_long_as_the_pair_does_not_differ(self) -> None:
        assert self.effect(same(100)) == self.HISTORY.design_effect_bound

    def test_it_rises_with_clustering_that_begins_late(self) -> None:
        clustered = [self.effect(self.by_day(seed, swing=0.5)) for seed in range(10)]
        before = [self.effect(self.by_day(seed, swing=0.5).take(slice(0, 300))) for seed in range(10)]

        assert np.median(clustered) > 4  # each day shares a variance of 30 · 0.25 against 0.49 a slot
        assert np.median(before) < 2

    @pytest.mark.parametrize("shift", [0.3, 1.0, 3.0])
    def test_a_new_level_is_no_clustering(self, shift: float) -> None:
        """Each day of a steady loss is like the day before."""
        shifted = np.array([self.effect(self.by_day(seed, shift=shift)) for seed in range(10)])
        steady = np.array([self.effect(self.by_day(seed)) for seed in range(10)])

        assert np.all(shifted <= steady + 0.05)

    def test_one_wild_day_is_not_enough_to_stop_all_bets(self) -> None:
        pairs = self.by_day(1)
        d = pairs.pnl_difference + np.where(pairs.day == 38, 50.0, 0.0)

        assert self.effect(of_difference(d, a_day=30)) < 2 * constants.LARGEST_STEP

    def test_it_never_falls_below_that_of_the_shadow(self) -> None:
        known = self.HISTORY.model_copy(update={"design_effect": 3.0, "design_effect_bound": 5.0})

        assert design_effect_of_today(run(self.by_day(1), known)[0], known) == 5.0

    @pytest.mark.full
    def test_a_swinging_canary_is_seldom_rolled_back_for_it(self) -> None:
        """Ten seconds, over ten ramps. Bets that know the shadow's clustering alone roll back half of them."""

        class Unaware(Oracle):
            def design_effect(self) -> float:
                return self.history.design_effect_bound

        def peak(oracle: Oracle, pairs: Slots) -> float:
            columns = (pairs.day, pairs.canary_r, pairs.active_r, pairs.canary_side, pairs.active_side, pairs.symbol)
            return math.log(max(oracle.add(row)[0] for row in zip(*(each.tolist() for each in columns), strict=True)))

        ramps = [self.by_day(seed, swing=0.3) for seed in range(10)]
        aware = sum(highest(one, self.HISTORY) >= ROLLED_BACK for one in ramps)
        unaware = sum(peak(Unaware(self.HISTORY), one) >= ROLLED_BACK for one in ramps)

        assert unaware >= 4
        assert aware <= unaware / 3


class TestRestarts:
    @given(
        st.lists(st.tuples(RESULTS, RESULTS), min_size=1, max_size=40),
        st.integers(1, 9),
        st.lists(st.integers(0, 40), max_size=4),
    )
    def test_any_split_gives_the_same(self, results: list[tuple[float, float]], a_day: int, cuts: list[int]) -> None:
        """A restart changes no verdict: the state is stored and restored between the parts."""
        pairs = slots(rows(results, a_day))
        history = TWO_SYMBOLS.model_copy(update={"day_variance": 0.2})
        whole, path = run(pairs, history)
        process, parts = begin(history), []
        edges = [0, *sorted(min(cut, len(pairs)) for cut in cuts), len(pairs)]
        for first, end in pairwise(edges):
            process = read_e_process(json.loads(json.dumps(process.as_data())))
            process, part = advance(process, pairs.take(slice(first, end)), history)
            parts.append(part)

        for name in Path.__dataclass_fields__:
            together = np.concatenate([getattr(part, name) for part in parts])
            assert together == pytest.approx(getattr(path, name), abs=1e-9) or name == "symbol"
        one, other = process.as_data(), whole.as_data()
        for name, value in one.items():
            assert (value is None) == (other[name] is None)
            assert value is None or np.asarray(value) == pytest.approx(np.asarray(other[name]), abs=1e-9)

    @given(st.lists(st.tuples(RESULTS, RESULTS), max_size=40), st.integers(1, 9))
    def test_it_is_stored_bit_by_bit(self, results: list[tuple[float, float]], a_day: int) -> None:
        process = run(slots(rows(results, a_day)), TWO_SYMBOLS)[0]
        restored = read_e_process(json.loads(json.dumps(process.as_data())))

        assert restored.as_data() == process.as_data()
        one, other = (advance(each, worse(7, first_day=60), TWO_SYMBOLS) for each in (process, restored))
        assert one[0].as_data() == other[0].as_data()
        assert one[1].log_e.tolist() == other[1].log_e.tolist()


def test_an_unknown_pair_is_bet_on_with_care() -> None:
    """Without a shadow history the design effect is assumed, and harm takes longer to prove."""
    unknown = History()

    assert unknown.design_effect_bound == UNKNOWN_DESIGN_EFFECT
    assert highest(worse(12), unknown) < highest(worse(12))
    assert highest(worse(120), unknown) > ROLLED_BACK
