"""The e-process of harm: its guarantee for healthy canaries, restarts, and golden values."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.eprocess import AT_START, EProcess, advance, begin, bets, read_e_process
from strategy_core.domain.pair_noise import History
from strategy_core.domain.slots import Slots, slots

KNOWN = History(design_effect=1.0, design_effect_bound=1.0, provisional=False, win_noise=0.05, trade_r=1.0)
RESULTS = st.sampled_from([-1.5, -1.0, 0.0, 0.7, 1.0, 3.0])


def run(pairs: Slots, history: History = KNOWN) -> tuple[EProcess, list[float]]:
    process, path = advance(begin(history), pairs, history)
    return process, path.log_e.tolist()


def worse(count: int, *, a_day: int = 10, first_day: int = 0) -> Slots:
    return slots([(first_day + i // a_day, -1.0, 1.0, -1, 1) for i in range(count)])


def same(count: int, *, a_day: int = 10, first_day: int = 0) -> Slots:
    return slots([(first_day + i // a_day, 1.0, 1.0, 1, 1) for i in range(count)])


def joined(*parts: Slots) -> Slots:
    return Slots(
        np.concatenate([part.day for part in parts]),
        np.concatenate([part.canary_r for part in parts]),
        np.concatenate([part.active_r for part in parts]),
        np.concatenate([part.canary_side for part in parts]),
        np.concatenate([part.active_side for part in parts]),
    )


@given(st.floats(0, 1), st.floats(1, 20), st.floats(0.1, 5), st.tuples(RESULTS, RESULTS), st.tuples(RESULTS, RESULTS))
def test_no_fair_game_makes_wealth(
    win_noise: float, effect: float, trade_r: float, one: tuple[float, float], other: tuple[float, float]
) -> None:
    """The main guarantee: if a fair coin swaps the versions, no slot raises E on average, for any pair."""
    history = KNOWN.model_copy(update={"win_noise": win_noise, "design_effect_bound": effect, "trade_r": trade_r})
    expected = []
    for first, second in (one, other):
        ends = [
            np.exp(run(slots([(0, c, a, int(c != 0), int(a != 0))]), history)[1][0])
            for c, a in ((first, second), (second, first))
        ]
        expected.append(np.mean(ends))

    assert max(expected) <= 1.0 + 1e-12


def test_it_begins_at_one() -> None:
    assert np.exp(begin(KNOWN).log_wealth) == pytest.approx(AT_START)
    assert begin(KNOWN).log_e == 0.0


def test_a_canary_that_loses_what_the_active_wins_is_found_in_a_dozen_slots() -> None:
    path = run(worse(12))[1]

    assert path[11] > np.log(125) > path[5]


def test_one_that_falls_silent_is_found() -> None:
    path = run(slots([(0, 0.0, 1.0 if i % 2 else -1.0, 0, 1) for i in range(40)]))[1]

    assert path[34] > np.log(125)


def test_losses_that_grow_while_wins_stay_are_found() -> None:
    """No win is lost, so the win bets do not grow. The PnL bets do."""
    pairs = slots([(i // 10, -1.8 if i % 2 else 1.0, -1.0 if i % 2 else 1.0, 1, 1) for i in range(200)])

    assert run(pairs)[1][-1] > np.log(125)


def test_a_better_canary_raises_nothing() -> None:
    pairs = slots([(i // 10, 1.0, -1.0, 1, 1) for i in range(100)])

    assert max(run(pairs)[1]) < 0


def test_a_fault_that_begins_late_is_found_almost_as_soon() -> None:
    """Wealth held back is bet anew at each midnight: forty healthy days do not drown the forty-first."""
    late = run(joined(same(400), worse(25, first_day=41)))[1]

    assert late[399] < 0.5
    assert late[-1] > np.log(125)


def test_days_without_slots_pass_their_midnights() -> None:
    calm = advance(begin(KNOWN), same(1), KNOWN)[0]
    later = advance(calm, same(1, first_day=30), KNOWN)[0]

    assert later.held_back == pytest.approx((1 - AT_START) * 15 / 45)


def test_a_late_booking_never_turns_the_day_back() -> None:
    ahead = advance(begin(KNOWN), same(1, first_day=5), KNOWN)[0]
    behind = advance(ahead, same(1, first_day=3), KNOWN)[0]

    assert behind.last_day == 5


def test_days_that_move_together_take_more_to_convince() -> None:
    clustered = KNOWN.model_copy(update={"design_effect_bound": 3.0})

    assert run(worse(12), clustered)[1][-1] < run(worse(12))[1][-1]
    assert run(worse(60), clustered)[1][-1] > np.log(125)


def test_no_bet_is_larger_than_what_grows_when_every_slot_is_lost() -> None:
    for effect in (1.0, 1.5, 3.0, 10.0):
        staked = bets(KNOWN.model_copy(update={"design_effect_bound": effect}))
        total = staked.win + staked.pnl

        assert np.all(np.log1p(total) - (effect - 1) * total**2 / 2 > 0)


def test_a_pair_that_never_differed_is_not_bet_upon_with_everything() -> None:
    """The wealth must outlive a slot that the canary alone wins."""
    twins = KNOWN.model_copy(update={"win_noise": 0.0})

    assert np.isfinite(run(slots([(0, 9.0, -9.0, 1, 1)] * 50), twins)[0].log_wealth).all()


def test_shares_of_the_wealth_add_up() -> None:
    assert np.exp(bets(KNOWN).log_share).sum() == pytest.approx(1.0)


@given(st.lists(st.tuples(RESULTS, RESULTS), min_size=1, max_size=40), st.integers(1, 9), st.data())
def test_however_it_is_cut_and_stored_it_is_the_same(
    results: list[tuple[float, float]], a_day: int, data: st.DataObject
) -> None:
    """A restart changes no verdict: the state is stored and restored exactly."""
    rows = [(i // a_day, c, a, int(c != 0), int(a != 0) or 1) for i, (c, a) in enumerate(results)]
    cut: int = data.draw(st.integers(0, len(rows)))
    whole, path = run(slots(rows))

    stored = json.dumps(run(slots(rows[:cut]))[0].as_data())
    went_on, rest = advance(read_e_process(json.loads(stored)), slots(rows[cut:]), KNOWN)

    assert went_on.log_e == pytest.approx(whole.log_e, abs=1e-9)
    assert went_on.log_peak == pytest.approx(whole.log_peak, abs=1e-9)
    assert rest.log_e.tolist() == pytest.approx(path[cut:], abs=1e-9)


GOLDEN = [0.39239878091021996, 0.38484364645862, -0.02440309162727733, -0.7994603494789385]


def test_golden_values() -> None:
    """Old verdicts must be reproducible, so the bets must not change unnoticed."""
    pairs = slots([(0, -1.0, 1.0, -1, 1), (0, 1.0, 1.0, 1, 1), (1, 0.0, -1.0, 0, -1), (3, 2.0, -1.0, 1, 1)])

    assert run(pairs)[1] == pytest.approx(GOLDEN, abs=1e-12)
