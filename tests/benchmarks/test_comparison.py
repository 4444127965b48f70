"""What a comparison costs against hand-written SQL of the same answer, and how much memory; on both databases.

`ROLLOUT_BENCHMARK_DECISIONS` says how long the log of two versions is: ten million rows take five gigabytes on SQLite.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.comparison import Comparison
from strategy_core.domain.lifecycle import Status
from strategy_core.services.compare import compare_versions, period
from strategy_core.store.engine import upgrade
from tests.benchmarks.by_hand import answer
from tests.benchmarks.filling import Names
from tests.builders import MONDAY, put_version

pytestmark = pytest.mark.benchmark_suite

DECISIONS = int(os.environ.get("ROLLOUT_BENCHMARK_DECISIONS", "1000000"))
SYMBOLS = [f"SYM{number}" for number in range(10)]
CANDLES = DECISIONS // 2 // len(SYMBOLS)  # minutes
OVER = period(MONDAY, MONDAY + timedelta(minutes=CANDLES))
ASKED: dict[str, Any] = {"strategy_name": "fib_rsi", "shadow_version": "2"}
ROUNDS = 3
MOST_MB = 500
CHILD = Path(__file__).parent / "comparing.py"


@pytest.fixture
def large(vast: Engine) -> Engine:
    """A database with the log of two versions."""
    upgrade(vast)
    _fill(vast)
    return vast


def test_a_comparison_costs_what_its_sql_costs(large: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    ours, theirs = [], []
    for _ in range(ROUNDS):  # in turns: what else the machine does falls on both
        found, seconds = _timed(lambda: compare_versions(large, over=OVER, **ASKED))
        ours.append(seconds)
        meant, seconds = _timed(lambda: _by_hand(large))
        theirs.append(seconds)
    ratio = median(ours) / median(theirs)
    plain, labelled = (_in_a_child(large, source) for source in ("", "regimes"))
    with capsys.disabled():
        print(  # noqa: T201
            f"\n{large.dialect.name}, {DECISIONS:,} decisions: comparison {median(ours):.1f} s, by hand "
            f"{median(theirs):.1f} s, {ratio:.2f} times\n  memory of its process {plain['before_mb']:.0f} MB before, "
            f"{plain['peak_mb']:.0f} MB at most\n  by regime {labelled['seconds']:.1f} s, of which "
            f"{labelled['labelling']:.1f} s to make and label candles; {labelled['before_mb']:.0f} MB before, "
            f"{labelled['peak_mb']:.0f} MB at most\n  its curves and days {plain['curves']:.1f} s, "
            f"{plain['with_curves_mb']:.0f} MB at most"
        )
    assert _same(found) == pytest.approx(meant, rel=1e-9)
    assert found.slots > DECISIONS / 2 * 0.04
    assert found.candles_compared + found.candles_excluded == DECISIONS // 2
    assert max(plain["with_curves_mb"], labelled["with_curves_mb"]) < MOST_MB
    assert ratio < 2  # the figure is told; twice would be another plan


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    found = work()
    return found, time.perf_counter() - began


def _same(found: Comparison) -> dict[str, Any]:
    """Return what the hand-written statements answer."""
    kept = {"candles_compared", "candles_excluded", "slots", "pending_slots"}
    parts = {name: getattr(found, name).model_dump() for name in ("shadow", "active", "difference")}
    differing = found.candles_compared * (found.divergence_rate_all_candles or 0) / 100
    return _flat(found.model_dump(include=kept) | parts | {"differing": differing})


def _flat(found: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name} {inner}".strip(): value
        for name, part in found.items()
        for inner, value in (part.items() if isinstance(part, dict) else [("", part)])
    }


def _by_hand(engine: Engine) -> dict[str, Any]:
    if engine.dialect.name == "sqlite":
        with sqlite3.connect(str(engine.url.database)) as file:
            return _flat(answer(lambda query: file.execute(query).fetchall(), day="substr(a.timestamp, 1, 10)"))
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as server:
        day = "date_trunc('day', a.timestamp AT TIME ZONE 'UTC')"
        return _flat(answer(lambda query: server.execute(query).fetchall(), day=day))


def _in_a_child(engine: Engine, *regimes: str) -> dict[str, float]:
    url = engine.url.set(drivername=engine.dialect.name).render_as_string(hide_password=False)
    command = [sys.executable, str(CHILD), url, OVER.start.isoformat(), OVER.end.isoformat(), *filter(None, regimes)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=CHILD.parents[2])
    found: dict[str, float] = json.loads(run.stdout)
    return found


def _fill(engine: Engine) -> None:
    """Put two versions' decisions, outcomes and marks there, candle by candle, as they would have come.

    Of a candle 4.5 in a hundred are slots, two thirds of them signals that both gave; R is in eighths.
    """
    names, last = Names(engine), DECISIONS - 1
    said = "(d.n * 2654435761 % 1000003)"
    both = "(d.n / 2 * 2654435761 % 1000003)"
    fault = f"{said} % 100000 = 7"
    action = (
        f"CASE WHEN {fault} THEN 'error' WHEN {both} % 1000 < 15 THEN 'buy' WHEN {both} % 1000 < 30 THEN 'sell' "
        f"WHEN {said} % 1000 < 8 THEN 'buy' WHEN {said} % 1000 < 15 THEN 'sell' ELSE 'hold' END"
    )
    minute = f"d.n / {2 * len(SYMBOLS)} * 60"
    key = f"'fib_rsi', CASE d.n % 2 WHEN 0 THEN '1' ELSE '2' END, 'SYM' || (d.n / 2 % 10), {names.at(minute)}"
    r = f"(({said} % 33 - 16) / 8.0)"
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(engine, version, status, symbols=SYMBOLS, timeframe="1m")
    with engine.begin() as connection:
        if names.on_postgresql:
            connection.execute(text("SET session_replication_role = replica"))  # nobody waits for foreign keys
        for statement in (
            "INSERT INTO shadow_decision_log (id, strategy_name, version, symbol, timestamp, decision, confidence, "
            "features, reason, role, window_hash, duration_ms, error_kind, logged_at) "
            f"SELECT {names.uuid_of('d.n')}, {key}, {action}, 0.5, '{{\"rsi\": 28.5}}', '', 'shadow', "
            f"'{'0123456789abcdef' * 4}', 1.0, CASE WHEN {fault} THEN 'raised' ELSE '' END, {names.at(minute)} "
            f"FROM {names.series('d', 0, last)}",
            "INSERT INTO outcome (decision_id, strategy_name, version, symbol, timestamp, opened_at, closed_at, "
            "entry_price, exit_price, exit_reason, risk, pnl, return_fraction, r_multiple) "
            f"SELECT {names.uuid_of('d.n')}, {key}, {names.at(f'{minute} + 60')}, {names.at(f'{minute} + 1440')}, "
            f"2000, 2001, 'horizon', 10, {r} * 10, {r} / 200, {r} "
            f"FROM {names.series('d', 0, last - 24 * 2 * len(SYMBOLS))} WHERE {action} IN ('buy', 'sell')",
            "INSERT INTO equity_mark (strategy_name, version, symbol, timestamp, r) "
            f"SELECT {key}, ({said} % 17 - 8) / 64.0 FROM {names.series('d', 0, last)} WHERE {said} % 10 < 6",
        ):
            connection.execute(text(statement))
        if names.on_postgresql:
            connection.execute(text("SET session_replication_role = origin"))
    if names.on_postgresql:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))
