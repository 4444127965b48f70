"""Queries of a tick return the same rows on both query paths, and on SQLite they skip older rows."""

from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import Engine, event

from strategy_core.store import evidence, outcomes
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import LIVE
from tests.builders import DAY, HOUR, MONDAY, decision_row, outcome_row, put_decisions, put_outcomes, put_version
from tests.prepared import prepared

SYMBOLS = ("", "A", "B", "Z", "a", "Ä", "é", "中")  # in the order of no language
SINCE = (MONDAY - DAY, MONDAY + 9 * HOUR, MONDAY + 3 * DAY, MONDAY + 90 * DAY)
ASKED: dict[str, Any] = {
    "strategy_name": "fib_rsi",
    "version": "2",
    "canary": "2",
    "active": "1",
    "one": "1",
    "other": "2",
}


@pytest.fixture
def log(engine: Engine) -> Engine:
    prepared(engine, put_log)
    return engine


def put_log(engine: Engine) -> None:
    for version in ("1", "2", "10", "3"):
        put_version(engine, version, symbols=SYMBOLS)
        for place, symbol in enumerate(SYMBOLS[: 6 if version == "1" else 8]):
            said = ["buy", "hold", "sell", "hold", "buy"][place % 5 :] * 4
            moments = [MONDAY + (place + hour * 7) * HOUR for hour in range(len(said))]
            rows = [decision_row(version, at, each, symbol=symbol) for at, each in zip(moments, said, strict=True)]
            put_decisions(engine, *(row for row in rows if version != "3"))
            traded = [row for row in rows if row["decision"] != "hold" and version != "3"]
            put_outcomes(engine, *(outcome_row(version, row["timestamp"], 0.5, symbol=symbol) for row in traded))


@pytest.mark.parametrize(
    "queries",
    [evidence._NEWEST_DECIDED, evidence._COUNTED, evidence._slot_queries(LIVE)[0], outcomes._MARKS],
    ids=["spoken", "counted", "slots", "marks"],
)
def test_symbol_by_symbol_is_the_same(log: Engine, queries: dict[str, Any]) -> None:
    for since, version in product(SINCE, ("2", "10", "3")):
        asked = ASKED | {"version": version, "canary": version, "other": version, "since": since, "start": since}
        with reading(log) as session:
            plain, sought = (session.exec(queries[way], params=asked).all() for way in ("postgresql", "sqlite"))
            assert sorted(map(repr, sought)) == sorted(map(repr, plain))
            assert plain or version == "3" or since == MONDAY + 90 * DAY


def test_sqlite_looks_at_nothing_older(sqlite_url: str) -> None:
    engine = open_database(sqlite_url)
    asked: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        asked.append((statement, parameters))

    with reading(engine) as session:
        evidence.newest_spoken(session, "fib_rsi", ("1", "2"), MONDAY)
        spoken: dict[str, Any] = {"1": {}, "2": {}}
        about: dict[str, Any] = {"symbols": [], "since": MONDAY, "spoken": spoken}
        evidence.read_record(session, "fib_rsi", "1", "2", **about)
        evidence.read_slots(session, "fib_rsi", "2", "1", start=MONDAY, end=MONDAY + timedelta(days=1))
        outcomes.marks_by_candle(session, "fib_rsi", "1", start=MONDAY)
    selects = [each for each in asked if "SELECT" in each[0]]
    assert len(selects) == 4

    for statement, parameters in selects:
        with engine.connect() as connection:
            plan = [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)]
        (seeks,) = [step for step in plan if "timestamp>" in step]
        assert "strategy_name=? AND version=? AND symbol=? AND timestamp>" in seeks
    engine.dispose()
