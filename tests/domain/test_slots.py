import numpy as np

from strategy_core.domain.slots import slots


def test_differences_are_the_canarys_side_of_each_slot() -> None:
    booked = slots([(0, 1.0, -1.0, 1, -1), (0, -1.0, 1.0, -1, 1), (1, 0.0, 2.0, 0, 1)])

    assert len(booked) == 3
    assert booked.pnl_difference.tolist() == [2.0, -2.0, -2.0]
    assert booked.win_difference.tolist() == [1.0, -1.0, -0.5]


def test_no_slots_are_empty_arrays() -> None:
    assert len(slots([])) == 0
    assert slots([]).pnl_difference.dtype == np.float64


def test_a_slot_is_unlike_by_its_decision_and_unequal_by_its_result_too() -> None:
    booked = slots([(0, 1.0, 1.0, 1, 1), (0, 1.0, 1.0, 1, -1), (0, 0.9, 1.0, 1, 1), (0, 0.0, 1.0, 0, 1)])

    assert booked.unlike.tolist() == [False, True, False, True]
    assert booked.unequal.tolist() == [False, True, True, True]
    assert booked.rate_difference.tolist() == [0.0, 0.0, 0.0, -1.0]


def test_a_slot_has_the_position_of_its_symbol_or_the_first() -> None:
    assert slots([(0, 1.0, 1.0, 1, 1, 3), (0, 1.0, 1.0, 1, 1, 0)]).symbol.tolist() == [3, 0]
    assert slots([(0, 1.0, 1.0, 1, 1)]).symbol.tolist() == [0]
    assert slots([]).symbol.dtype == np.int64


def test_chosen_slots_keep_all_their_columns() -> None:
    booked = slots([(day, day + 0.5, -1.0, 1, -1, day % 2) for day in range(5)])

    for chosen in (np.array([1, 3]), np.array([False, True, False, True, False]), slice(1, 4, 2)):
        taken = booked.take(chosen)
        assert taken.day.tolist() == [1, 3]
        assert taken.canary_r.tolist() == [1.5, 3.5]
        assert taken.active_side.tolist() == [-1, -1]
        assert taken.symbol.tolist() == [1, 1]
