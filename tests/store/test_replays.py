"""Replayed rows: constraints, and reads and writes by stretch, equally on SQLite and PostgreSQL."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.errors import InvariantRefused
from strategy_core.store import replays
from strategy_core.store.engine import reading, transaction
from strategy_core.store.replays import Span, Stretch
from tests.builders import DAY, GOLD, HOUR, MONDAY, outcome_row, put_version
from tests.builders import replay_row as of_version

KEY = {"strategy_name": "fib_rsi", "version": "1", "symbol": GOLD}
ALL_DAY = Stretch("fib_rsi", "1", GOLD, MONDAY, MONDAY + DAY)


def replay_row(at: datetime, decision: str = "buy", **changes: Any) -> dict[str, Any]:
    return {**of_version("1", at, decision), **changes}


def replayed_outcome(at: datetime, r: float = 1.0) -> dict[str, Any]:
    return {name: value for name, value in outcome_row("1", at, r).items() if name != "decision_id"}


def mark(at: datetime, r: float) -> dict[str, Any]:
    return {**KEY, "timestamp": at, "r": r}


@pytest.fixture
def replayed(engine: Engine) -> Engine:
    """Three hours, the first and the last of which signalled. The first trade has closed."""
    put_version(engine, "1")
    with transaction(engine) as session:
        hours = [MONDAY, MONDAY + HOUR, MONDAY + 2 * HOUR]
        replays.add_decisions(session, [replay_row(hours[0]), replay_row(hours[1], "hold"), replay_row(hours[2])])
        replays.add_outcomes(session, [replayed_outcome(hours[0])])
        replays.replace_marks(session, ALL_DAY, [mark(hours[1], 1.0)])
    return engine


def test_rows_are_read_by_stretch(replayed: Engine) -> None:
    first = ALL_DAY._replace(end=MONDAY + HOUR)

    with reading(replayed) as session:
        assert replays.read_hashes(session, first) == {MONDAY: "00" * 32, MONDAY + HOUR: "01" * 32}
        assert replays.read_signals(session, ALL_DAY) == [(MONDAY, "buy"), (MONDAY + 2 * HOUR, "buy")]
        assert replays.read_booked(session, ALL_DAY) == {MONDAY}
        assert replays.read_marks(session, first) == {MONDAY + HOUR: 1.0}
        assert replays.read_hashes(session, first._replace(symbol="SILVER")) == {}
        assert replays.replayed_span(session, "fib_rsi", "1", [GOLD]) == Span(MONDAY, MONDAY + 2 * HOUR, 3)
        assert replays.replayed_span(session, "fib_rsi", "2", [GOLD]) is None


def test_what_is_there_is_not_added_again(replayed: Engine) -> None:
    with transaction(replayed) as session:
        added = replays.add_decisions(session, [replay_row(MONDAY, "sell"), replay_row(MONDAY + 3 * HOUR)])
        booked = replays.add_outcomes(session, [replayed_outcome(MONDAY, -1.0)])

    with reading(replayed) as session:
        assert (added, booked) == (1, 0)
        assert dict(replays.read_signals(session, ALL_DAY))[MONDAY] == "buy"


def test_marks_are_replaced_within_the_stretch(replayed: Engine) -> None:
    with transaction(replayed) as session:
        replays.replace_marks(session, ALL_DAY._replace(start=MONDAY + 2 * HOUR), [mark(MONDAY + 2 * HOUR, -0.5)])

    with reading(replayed) as session:
        assert replays.read_marks(session, ALL_DAY) == {MONDAY + HOUR: 1.0, MONDAY + 2 * HOUR: -0.5}


def test_an_outcome_goes_with_its_decision(replayed: Engine) -> None:
    with transaction(replayed) as session:
        discarded = replays.discard_decisions(session, ALL_DAY._replace(end=MONDAY))

    with reading(replayed) as session:
        assert discarded == 1
        assert replays.read_booked(session, ALL_DAY) == set()
        assert len(replays.read_hashes(session, ALL_DAY)) == 2


@pytest.mark.parametrize(
    "row",
    [
        replay_row(MONDAY + 5 * HOUR, "error"),
        replay_row(MONDAY + 5 * HOUR, "short"),
        replay_row(MONDAY + 5 * HOUR, confidence=1.5),
        replay_row(MONDAY + 5 * HOUR, version="9"),
        replay_row(MONDAY + 5 * HOUR, replayed_at=MONDAY + 5 * HOUR),
    ],
    ids=["an error", "no such action", "confidence", "no such version", "a candle that is not past"],
)
def test_a_replayed_decision_that_must_not_be_is_refused(replayed: Engine, row: dict[str, Any]) -> None:
    with pytest.raises(InvariantRefused), transaction(replayed) as session:
        replays.add_decisions(session, [row])


def test_an_outcome_without_a_replayed_decision_is_refused(replayed: Engine) -> None:
    with pytest.raises(InvariantRefused), transaction(replayed) as session:
        replays.add_outcomes(session, [replayed_outcome(MONDAY + 7 * HOUR)])


@pytest.mark.parametrize("table", ["replay_decision", "replay_outcome", "replay_mark"])
def test_a_replayed_row_is_not_changed(replayed: Engine, table: str) -> None:
    with pytest.raises(InvariantRefused, match="is evidence"), transaction(replayed) as session:
        session.connection().execute(text(f"UPDATE {table} SET symbol = 'SILVER'"))
