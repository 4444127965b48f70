"""The newest rows of all symbols in one query are those of each symbol."""

from sqlalchemy import Engine

from strategy_core.store import decisions
from strategy_core.store.decisions import Last, last_rows, rows_since
from strategy_core.store.engine import reading
from tests.builders import DAY, HOUR, MONDAY, decision_row, put_decisions, put_version

LONG, SHORT, OLD = "LONG", "SHORT", "OLD"


def put(engine: Engine, version: str) -> None:
    put_version(engine, version, symbols=(LONG, SHORT, OLD))
    hours = {LONG: range(40), SHORT: range(3), OLD: range(-400, -360)}
    rows = [
        decision_row(version, MONDAY + hour * HOUR, symbol=symbol) | {"window_hash": f"{symbol} {hour}"}
        for symbol, its in hours.items()
        for hour in its
    ]
    put_decisions(engine, *rows)


def test_it_is_what_the_symbols_own_rows_say(engine: Engine) -> None:
    put(engine, "1")
    put(engine, "2")

    with reading(engine) as session:
        found = last_rows(session, "fib_rsi", "1", 24, since=MONDAY - DAY)
        newest = decisions.newest_rows(session, "fib_rsi", "1", LONG, 24)
        few = rows_since(session, "fib_rsi", "1", [SHORT, OLD], MONDAY - DAY)

    assert found == {
        LONG: Last(*newest[0], newest[-1][0]),
        SHORT: Last(MONDAY + 2 * HOUR, "SHORT 2", None),  # fewer than were asked for
    }
    assert few == {SHORT: [(MONDAY + hour * HOUR, f"SHORT {hour}") for hour in (2, 1, 0)]}


def test_a_version_that_never_decided_has_nothing(engine: Engine) -> None:
    put_version(engine, "1")

    with reading(engine) as session:
        assert last_rows(session, "fib_rsi", "1", 24, since=MONDAY) == {}
