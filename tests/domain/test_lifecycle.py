from datetime import UTC, datetime, timedelta, timezone
from itertools import product

import pandas as pd
import pytest

from strategy_core.domain.errors import IllegalTransition, NaiveTime, TimeOutOfRange
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


@pytest.mark.parametrize(
    "moment",
    [
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-12))),
        datetime(1677, 12, 31, tzinfo=UTC),
        datetime(2262, 1, 1, tzinfo=UTC),
        datetime(2261, 12, 31, 23, tzinfo=timezone(timedelta(hours=-12))),
    ],
)
def test_a_time_at_which_no_candle_can_be_is_refused_by_name(moment: datetime) -> None:
    with pytest.raises(TimeOutOfRange, match=r"end .* is out of range; allowed: the years 1678 to 2261"):
        utc(moment, "end")


@pytest.mark.parametrize("moment", [datetime(1678, 1, 1, tzinfo=UTC), datetime(2261, 12, 31, 23, 59, 59, tzinfo=UTC)])
def test_what_is_in_range_is_so_for_pandas(moment: datetime) -> None:
    assert pd.Timestamp(utc(moment)).as_unit("ns") == moment
