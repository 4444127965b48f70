import math
from datetime import timedelta

import pytest

from strategy_core.domain.gates.base import Margins
from strategy_core.domain.gates.on_slots import SLOTS_FACTOR
from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.plan import Plan, Stage
from strategy_core.domain.preview import preview
from strategy_core.domain.slots import slots


def _plan(margins: Margins) -> Plan:
    return Plan(stages=(Stage(percent=100, minimum_time=timedelta(days=1), margins=margins),))


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
    plan = _plan(Margins(pnl_r=0.15))
    told = preview(plan, history(a_day=1, days=60, calendar_days=90), 90)
    needed = math.ceil((SLOTS_FACTOR * (told.pnl_deviation or 0.0) / 0.15) ** 2)

    assert told.pnl_deviation == pytest.approx(1.0, abs=0.01)
    assert told.stages[0].slots_needed == needed
    assert told.underpowered
    assert told.verdict.startswith(f"underpowered: the 100 % stage needs {needed} slots; at 0.7 a day")


def test_a_margin_for_wins_needs_more_slots() -> None:
    """Each slot is won by one of the two: a deviation of one win."""
    pair = history(a_day=1, days=60, calendar_days=90)
    needed = preview(_plan(Margins(pnl_r=0.15, win=0.06)), pair, 90).stages[0].slots_needed

    assert needed == math.ceil((SLOTS_FACTOR * (pair.win_deviation or 0.0) / 0.06) ** 2)
    assert needed > preview(_plan(Margins(pnl_r=0.15)), pair, 90).stages[0].slots_needed


def test_a_margin_a_year_needs_fewer_slots_where_signals_are_rare() -> None:
    """60 R a year at two slots in three days are 0.25 R a slot."""
    pair = history(a_day=1, days=60, calendar_days=90)
    needed = preview(_plan(Margins(pnl_r=0.15, pnl_r_per_year=60)), pair, 90).stages[0].slots_needed

    assert needed == math.ceil((SLOTS_FACTOR * (pair.pnl_deviation or 0.0) / (60 / (365 * 2 / 3))) ** 2)


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
