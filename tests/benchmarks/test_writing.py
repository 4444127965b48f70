"""How fast decisions are written beside what the bare driver takes for the same rows, into the same full table.

`ROLLOUT_BENCHMARK_DECISIONS` says how many rows it holds already.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from itertools import product
from statistics import median
from typing import Any

import pytest
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from strategy_core.store import decisions
from strategy_core.store.engine import transaction
from strategy_core.store.tables import UtcDateTime, decision_id
from tests.builders import MONDAY, decision_row, put_version

pytestmark = pytest.mark.benchmark_suite
HELD = int(os.environ.get("ROLLOUT_BENCHMARK_DECISIONS", "1000000"))
VERSIONS, SYMBOLS = [f"v{number}" for number in range(5)], [f"SYM{number:02}" for number in range(20)]
NAMES = list(decision_row("", MONDAY))
COPY = f"COPY shadow_decision_log ({', '.join(NAMES)}) FROM STDIN"
INSERT = f"INSERT INTO shadow_decision_log ({', '.join(NAMES)}) VALUES ({', '.join('?' * len(NAMES))})"
SIZES = [(100_000, 5), (2_500, 25)]  # rows at once; rounds

Rows = Sequence[dict[str, Any]]


@pytest.mark.parametrize(("size", "rounds"), SIZES, ids=[f"{size} rows" for size, _ in SIZES])
def test_decisions_are_written_beside_the_bare_driver(
    engine: Engine, size: int, rounds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours begins with the rows that a run has made, and counts them; the bare driver's are converted beforehand."""
    for version in VERSIONS:
        put_version(engine, version, symbols=SYMBOLS)
    rows = _rows()
    for start in range(0, HELD, 100_000):
        _bare(engine, _taken(rows, min(100_000, HELD - start)))
    ways: dict[str, Callable[[Engine, Rows], float]] = {"ours": _ours, "bare": _bare}
    if engine.dialect.name == "postgresql":
        ways["bare, binary"] = lambda engine, given: _bare(engine, given, " (FORMAT BINARY)")
    took: dict[str, list[float]] = {name: [] for name in ways}

    for _ in range(rounds):  # in turns: what else the machine does falls on all
        for name, write in ways.items():
            took[name].append(write(engine, _taken(rows, size)))

    per_row = {name: median(times) / size * 1e6 for name, times in took.items()}
    told = ", ".join(
        f"{name} {each:.1f} us a row" + (f" ({each / per_row['ours']:.2f} x its speed)" if name != "ours" else "")
        for name, each in per_row.items()
    )
    with capsys.disabled():
        print(f"\n{engine.dialect.name}, {size:,} rows into {HELD:,}: {told}")  # noqa: T201
    assert per_row["bare"] > 0.4 * per_row["ours"]


def _rows() -> Iterator[dict[str, Any]]:
    """Yield what five versions say of twenty symbols, minute after minute, for ever."""
    minute = 0
    while True:
        at = MONDAY + minute * timedelta(minutes=1)
        for version, symbol in product(VERSIONS, SYMBOLS):
            features = {"rsi": minute % 89 + 0.25, "close": 1834.25, "trend": -0.125}
            said = {"id": decision_id("fib_rsi", version, symbol, at), "features": features}
            yield decision_row(version, at, symbol=symbol, reason="rsi above 20") | said
        minute += 1


def _taken(rows: Iterator[dict[str, Any]], size: int) -> list[dict[str, Any]]:
    return [next(rows) for _ in range(size)]


def _ours(engine: Engine, rows: Rows) -> float:
    began = time.perf_counter()
    with transaction(engine) as session:
        new = decisions.log_decisions(session, rows)
    took = time.perf_counter() - began
    assert new == len(rows)
    return took


def _bare(engine: Engine, rows: Rows, form: str = "") -> float:
    if engine.dialect.name == "sqlite":
        return _executemany(engine, rows)
    prepared = [tuple(Jsonb(value) if name == "features" else value for name, value in row.items()) for row in rows]
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        began = time.perf_counter()
        with driver.cursor() as cursor, cursor.copy(COPY + form) as copy:
            for row in prepared:
                copy.write_row(row)
        driver.commit()
        return time.perf_counter() - began


def _executemany(engine: Engine, rows: Rows) -> float:
    moment = UtcDateTime().bind_processor(engine.dialect)
    assert moment is not None
    ways: dict[str, Callable[[Any], Any]] = {
        "id": lambda each: each.hex,
        "features": json.dumps,
        "timestamp": moment,
        "logged_at": moment,
    }
    prepared = [tuple(ways[name](value) if name in ways else value for name, value in row.items()) for row in rows]
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.rollback()
        began = time.perf_counter()
        driver.execute("BEGIN IMMEDIATE")
        driver.executemany(INSERT, prepared)
        driver.execute("COMMIT")
        return time.perf_counter() - began
