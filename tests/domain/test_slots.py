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
