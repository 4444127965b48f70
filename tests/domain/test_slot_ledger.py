"""The running totals of booked slots: the same however often the book is closed and opened."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.pair_noise import CLIP_UNITS, History
from strategy_core.domain.slot_ledger import Totals, add_slots, open_ledger, read_ledger
from strategy_core.domain.slots import Slots, slots

HISTORY = History()
Row = tuple[int, float, float, int, int]
ROWS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from([-1.0, 0.0, 0.5, 2.0]),
        st.sampled_from([-1.0, 1.0, 3.0]),
        st.just(1),
        st.just(1),
    ),
    max_size=40,
).map(lambda rows: sorted(rows, key=lambda row: row[0]))


def totals(pairs: Slots) -> Totals:
    return add_slots(open_ledger(HISTORY), pairs, HISTORY)[0].totals


def test_it_adds_up() -> None:
    found = totals(slots([(0, -1.0, 1.0, -1, 1), (0, 2.0, 1.0, 1, 1), (3, 0.0, 2.0, 0, 1)]))

    assert (found.slots, found.days) == (3, 2)
    assert (found.d, found.d_squares) == (-3.0, 9.0)
    assert (found.w, found.w_squares) == (-1.5, 1.25)
    assert found.active_squares == 6.0
    assert (found.unlike, found.unequal) == (2, 3)


def test_differences_beyond_three_units_are_cut_and_what_is_cut_is_kept() -> None:
    """One unit of this history is 1 R."""
    found = totals(slots([(0, 11.0, 1.0, 1, 1), (0, -4.0, 1.0, 1, 1), (0, 2.0, 1.0, 1, 1)]))

    assert found.d == 6.0
    assert (found.clipped, found.clipped_squares) == (CLIP_UNITS - CLIP_UNITS + 1, 2 * CLIP_UNITS**2 + 1)
    assert found.cut_squares == (10 - CLIP_UNITS) ** 2 + (5 - CLIP_UNITS) ** 2


def test_the_totals_have_the_newest_evidence_by_symbol() -> None:
    history = HISTORY.model_copy(update={"symbols": ("GOLD", "OIL")})
    rows = slots([(0, -1.0 if i % 2 else 1.0, 1.0, 1, 1, i % 2) for i in range(60)])
    found = add_slots(open_ledger(history), rows, history)[0].totals

    assert found.symbol == 1
    assert found.log_symbol > 0


def test_streaks_go_on_from_one_booking_to_the_next() -> None:
    lost = slots([(0, -1.0, 1.0, -1, 1)] * 3)
    kept = slots([(0, 1.0, 1.0, 1, 1)])
    begun, _ = add_slots(open_ledger(HISTORY), lost, HISTORY)
    longer, after = add_slots(begun, lost, HISTORY)
    broken, _ = add_slots(longer, kept, HISTORY)
    again, _ = add_slots(broken, lost, HISTORY)

    assert [one.streak for one in after] == [4, 5, 6]
    assert (broken.totals.streak, broken.totals.longest_streak) == (0, 6)
    assert (again.totals.streak, again.totals.longest_streak) == (3, 6)


def test_nothing_new_changes_nothing() -> None:
    before = open_ledger(HISTORY)

    assert add_slots(before, slots([]), HISTORY) == (before, [])


@given(ROWS, st.data())
def test_however_it_is_cut_and_stored_it_is_the_same(rows: list[Row], data: st.DataObject) -> None:
    cut: int = data.draw(st.integers(0, len(rows)))
    first, _ = add_slots(open_ledger(HISTORY), slots(rows[:cut]), HISTORY)
    stored = json.loads(json.dumps(first.as_data()))
    read = read_ledger(stored)
    assert read is not None
    second, _ = add_slots(read, slots(rows[cut:]), HISTORY)
    whole = totals(slots(rows))

    for name in Totals.__dataclass_fields__:
        assert getattr(second.totals, name) == pytest.approx(getattr(whole, name), abs=1e-9), name


@given(ROWS)
def test_the_totals_after_each_slot_are_those_of_the_slots_so_far(
    rows: list[Row],
) -> None:
    _, after = add_slots(open_ledger(HISTORY), slots(rows), HISTORY)

    assert [one.slots for one in after] == list(range(1, len(rows) + 1))
    for index in range(0, len(rows), 7):
        so_far = totals(slots(rows[: index + 1]))
        assert after[index].d == pytest.approx(so_far.d)
        assert after[index].log_peak == pytest.approx(so_far.log_peak, abs=1e-9)
        assert after[index].days == so_far.days


def test_totals_by_another_scheme_are_not_read() -> None:
    """What is bet may change with a release: then the rows speak, not the totals."""
    assert read_ledger({}) is None
    assert read_ledger(open_ledger(HISTORY).as_data() | {"scheme": 0}) is None
