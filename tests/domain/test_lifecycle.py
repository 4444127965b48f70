from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import pytest

from strategy_core.domain.errors import IllegalTransition, NaiveTime
from strategy_core.domain.lifecycle import MAY_FOLLOW, Status, check_move, utc

MOVES = {
    ("shadow", "canary"),
    ("shadow", "active"),
    ("shadow", "retired"),
    ("canary", "active"),
    ("canary", "shadow"),
    ("canary", "retired"),
    ("active", "retired"),
    ("active", "shadow"),
    ("retired", "active"),
    ("retired", "shadow"),
}


def test_every_status_has_a_row() -> None:
    assert set(MAY_FOLLOW) == set(Status)


@pytest.mark.parametrize(("current", "target"), list(product(Status, Status)))
def test_moves_are_those_of_the_contract(current: Status, target: Status) -> None:
    if (current, target) in MOVES:
        check_move(current, target)
        return
    with pytest.raises(IllegalTransition) as refused:
        check_move(current, target)

    assert set(refused.value.allowed) == {to for of, to in MOVES if of == current}
    assert str(refused.value).startswith(f"cannot move {current} -> {target}; allowed: ")


def test_times_are_kept_in_utc() -> None:
    berlin = datetime(2026, 3, 2, 13, tzinfo=timezone(timedelta(hours=1)))

    assert utc(berlin) == datetime(2026, 3, 2, 12, tzinfo=UTC)
    assert utc(berlin).tzinfo is UTC


def test_a_naive_time_is_refused_by_name() -> None:
    with pytest.raises(NaiveTime, match="start has no time zone"):
        utc(datetime(2026, 3, 2), "start")  # noqa: DTZ001
