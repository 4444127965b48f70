"""Curves are thinned by the database: what is left of them is what all marks come to, on either one."""

from itertools import accumulate

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.report.comparison import verdict
from strategy_core.services.compare import compare_with_curves, period
from strategy_core.services.history import MOST_POINTS, read_equity
from strategy_core.store import outcomes
from strategy_core.store.engine import reading, transaction
from tests.builders import (
    DAY,
    GOLD,
    HOUR,
    MONDAY,
    decision_row,
    outcome_row,
    put_decisions,
    put_outcomes,
    put_version,
)

BOTH = (GOLD, "SILVER")


def put_marks(engine: Engine, hours: int) -> None:
    """Mark two symbols, the second only of version 1; version 2 has no mark in each third hour."""
    for version, symbols in (("1", ["GOLD", "TIN"]), ("2", ["GOLD"])):
        put_version(engine, version, Status.ACTIVE if version == "1" else Status.SHADOW, symbols=symbols)
    rows = [
        {
            "strategy_name": "fib_rsi",
            "version": version,
            "symbol": symbol,
            "timestamp": MONDAY + hour * HOUR,
            "r": (hour * (7 if version == "1" else 5) % 17 - 8) / 8,
        }
        for version, symbol in (("1", "GOLD"), ("1", "TIN"), ("2", "GOLD"))
        for hour in range(hours)
        if version == "1" or hour % 3
    ]
    with transaction(engine) as session:
        outcomes.mark_equity(session, rows)


@pytest.mark.parametrize("hours", [3, 40, 1_000])
def test_each_point_of_a_curve_is_the_sum_of_all_marks_until_then(engine: Engine, hours: int) -> None:
    put_marks(engine, hours)

    with reading(engine) as session:
        found = read_equity(session, "fib_rsi", "2", "1", start=MONDAY, end=MONDAY + hours * HOUR)

    assert min(hours, MOST_POINTS - 100) <= len(found.at) <= MOST_POINTS
    assert (found.at[0], found.at[-1]) == (MONDAY, MONDAY + (hours - 1) * HOUR)
    for said, times, skips in ((found.control, 7, False), (found.canary, 5, True)):
        marks = [0.0 if skips and hour % 3 == 0 else (hour * times % 17 - 8) / 8 for hour in range(hours)]
        until = dict(zip((MONDAY + hour * HOUR for hour in range(hours)), accumulate(marks), strict=True))
        assert said == pytest.approx([said[0], *(until[at] for at in found.at[1:])])


def test_a_pair_without_marks_stands_at_nothing(engine: Engine) -> None:
    put_marks(engine, 0)

    with reading(engine) as session:
        found = read_equity(session, "fib_rsi", "2", "1", start=MONDAY, end=MONDAY + HOUR)

    assert (found.at, found.canary, found.control) == ((MONDAY,), (0.0,), (0.0,))


def test_a_comparison_of_one_symbol_has_the_curves_of_that_symbol(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE, symbols=BOTH)
    put_version(engine, "2", symbols=BOTH)
    worth = {GOLD: {"1": 0.5, "2": -0.25}, "SILVER": {"1": 8.0, "2": 9.0}}
    for symbol, by_version in worth.items():
        put_decisions(engine, *(decision_row(version, MONDAY, "buy", symbol=symbol) for version in by_version))
        put_outcomes(engine, *(outcome_row(version, MONDAY, r, symbol=symbol) for version, r in by_version.items()))

    _, found = compare_with_curves(
        engine,
        strategy_name="fib_rsi",
        shadow_version="2",
        over=period(MONDAY, MONDAY + DAY),
        symbol=GOLD,
        source=market,
        now=MONDAY + DAY,
    )

    assert (found.equity.canary[-1], found.equity.control[-1]) == (-0.25, 0.5)
    assert [(day.slots, day.canary_r) for day in found.days] == [(1, -0.25)]
    assert verdict(found) == "2 made -0.750 R a slot against 1, on too few days for an interval"
