import pytest

from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.plan import Plan
from strategy_core.domain.preview import preview
from strategy_core.domain.slots import slots


def history(a_day: int, days: int, calendar_days: float) -> History:
    """Slots whose difference is +1 R or -1 R in turn: a deviation of 1 R and of one win a slot, days independent."""
    rows = []
    for i in range(a_day * days):
        ours = 0.5 if i % 2 else -0.5
        rows.append((i // a_day, ours, -ours, 1, -1))
    return measure(slots(rows), calendar_days)


def test_slots_needed_follow_the_formula_and_are_shared_by_the_stages() -> None:
    told = preview(Plan(), history(a_day=101, days=60, calendar_days=60), 60)

    assert told.win_deviation == pytest.approx(0.1, abs=0.01)  # an odd day's one slot too many is all that is left
    assert told.slots_per_day == 101
    assert [stage.slots_needed for stage in told.stages] == sorted(stage.slots_needed for stage in told.stages)
    assert not told.underpowered
    assert told.verdict.startswith("the evidence can suffice: about")


def test_one_symbols_handful_of_signals_is_underpowered() -> None:
    told = preview(Plan(), history(a_day=1, days=60, calendar_days=90), 90)

    assert told.pnl_deviation == pytest.approx(1.0, abs=0.01)
    assert told.stages[0].slots_needed == pytest.approx((3.1 / 0.06) ** 2, rel=0.03)
    assert told.underpowered
    assert told.verdict.startswith("underpowered: the 5 % stage needs 2")


def test_without_a_history_it_says_that_it_does_not_know() -> None:
    told = preview(Plan(), History(), 10)

    assert told.verdict == "unknown: 0 slots in 10 days of shadow are too few to plan by"
    assert told.underpowered
    assert preview(Plan(), measure(slots([(0, 1.0, 1.0, 1, 1)]), 0), 0).slots_per_day == 0.0


def test_identical_versions_need_only_the_minimum_time() -> None:
    same = measure(slots([(day, 1.0, 1.0, 1, 1) for day in range(30)]), 30)

    told = preview(Plan(), same, 30)

    assert [stage.slots_needed for stage in told.stages] == [30] * 5  # the paired gate's own minimum
    assert [stage.days_expected for stage in told.stages] == [30.0, 1.0, 1.0, 1.0, 1.0]
