"""Databases written by the code of earlier releases, as rows. `python -m tests.store.released` adds this release.

A release lives in its database for five weeks of daily candles: an active version, a rollout that was rolled back, one
that is open, trades, alerts, answers. All rows are kept as SQLite had them, and are loaded into either database.
"""

import gzip
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection, Engine, inspect, text

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.open import open_source
from strategy_core.market.source import CandleSource
from strategy_core.services.alerts import acknowledge
from strategy_core.services.compare import compare_all
from strategy_core.services.live_trades import ingest
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.users import load_users
from strategy_core.services.versions import register_version
from strategy_core.store import audit, evidence, rollouts
from strategy_core.store.engine import check_schema, open_database, reading, transaction, upgrade

FOLDER = Path(__file__).parent / "releases"
REVISIONS = sorted(file.name.partition(".")[0] for file in FOLDER.glob("*.json.gz"))
START = datetime(2025, 9, 1, tzinfo=UTC)
LEFT = START + timedelta(days=37)
DAY = timedelta(days=1)
ANA = Actor("ana")
MARGINS = {"pnl_r": 0.15, "win": 0.06}
PLAN = {
    "stages": [{"percent": percent, "minimum_time": 2 * 86_400, "margins": MARGINS} for percent in (5, 100)],
    "gates": [{"kind": kind} for kind in ("errors", "losing_streak", "harm", "not_worse")],
    "blind_limit": 5 * 86_400,
}
Rows = dict[str, list[dict[str, Any]]]


def rows_of(revision: str) -> Rows:
    """Return the rows that a release has left, by table."""
    plain = gzip.decompress((FOLDER / f"{revision}.json.gz").read_bytes())
    rows: Rows = json.loads(
        plain, object_hook=lambda each: bytes.fromhex(each["hex"]) if set(each) == {"hex"} else each
    )
    return rows


def live_in(engine: Engine, revision: str) -> Rows:
    """Leave *engine* as the release of *revision* left its database, rows before triggers, as a restore does."""
    upgrade(engine, revision)
    rows = rows_of(revision)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            _load(connection, rows, on_postgresql=True)
        else:
            guards = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")).all()
            for name, _ in guards:
                connection.execute(text(f"DROP TRIGGER {name}"))
            connection.execute(text("PRAGMA defer_foreign_keys = ON"))
            _load(connection, rows, on_postgresql=False)
            for _, definition in guards:
                connection.exec_driver_sql(definition)
    return rows


def _load(connection: Connection, rows: Rows, *, on_postgresql: bool) -> None:
    for table, of_table in rows.items():
        kinds = {each["name"]: str(each["type"]) for each in inspect(connection).get_columns(table)}
        for row in of_table:
            assert set(row) == set(kinds), f"{table} has other columns than the release had"
            names = ", ".join(f'"{name}"' for name in row)
            values = [_as(kinds[name], value) if on_postgresql else value for name, value in row.items()]
            marks = ", ".join(f":v{number}" for number in range(len(values)))
            connection.execute(
                text(f"INSERT INTO {table} ({names}) VALUES ({marks})"),
                {f"v{number}": value for number, value in enumerate(values)},
            )
        if on_postgresql and "id" in kinds and kinds["id"] == "INTEGER" and of_table:
            connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), max(id)) FROM {table}"))


def _as(kind: str, value: Any) -> Any:
    """Return what SQLite keeps as PostgreSQL takes it."""
    if value is None:
        return None
    if kind == "TIMESTAMP":
        return f"{value}+00"
    return bool(value) if kind == "BOOLEAN" else value


def market() -> CandleSource:
    return open_source("synthetic:GOLD?seed=7&symbols=1&days=500&start=2025-01-01", symbol=None, timeframe="1d")


def live(engine: Engine) -> None:
    """Live in an empty database of this release until `LEFT`."""
    source, now = market(), START
    settings = {"1.0.0": (10, 5), "2.0.0": (12, 5), "3.0.0": (10, 4)}
    for version, (lookback, period) in settings.items():
        register_version(
            engine,
            Command(ANA, now),
            source,
            strategy_name="fib_rsi",
            version=version,
            config={"fib_lookback_bars": lookback, "rsi_period": period},
            entry_point="fib_rsi",
            symbols=["GOLD"],
            timeframe="1d",
            status=Status.ACTIVE if version == "1.0.0" else Status.SHADOW,
        )
    with WorkerPool() as workers:
        now = _pass(engine, source, workers, now, days=12)
        _start(engine, "2.0.0", now)
        now = _pass(engine, source, workers, now, days=6)
        roll_back(engine, Command(ANA, now, "not convinced"), strategy_name="fib_rsi")
        now = _pass(engine, source, workers, now, days=2)
        load_users(engine, [(f"user_{n}", 100.0 * n if n % 3 else None) for n in range(40)], now=now)
        _start(engine, "3.0.0", now)
        now = _pass(engine, source, workers, now, days=16)
        ingest(engine, [_trade(n, now - DAY + n * timedelta(minutes=1)) for n in range(12)], now=now)
        now = _pass(engine, source, workers, now, days=1)
    compare_all(engine, source, now=now, days=20)
    with reading(engine) as session:
        (rollout,) = rollouts.open_rollouts(session)
    with transaction(engine) as session:
        sample = {"rollout_id": rollout.id, "gate": "slippage", "taken_at": now, "value": 1.5, "problem": ""}
        evidence.add_samples(session, [sample])
        answered = {"status": 200, "headers": {"ETag": '"3"'}, "body": "{}", "answered_at": now}
        asked = {"actor": "ana", "idempotency_key": "k1", "digest": "0" * 64, "strategies": ["fib_rsi"]}
        audit.keep_answer(session, asked | answered)
    acknowledge(engine, Command(ANA, now, "seen"), [1])


def _start(engine: Engine, version: str, now: datetime) -> None:
    start_rollout(
        engine, Command(ANA, now, "größer 日本"), strategy_name="fib_rsi", version=version, plan=read_plan(PLAN)
    )


def _pass(engine: Engine, source: CandleSource, workers: WorkerPool, now: datetime, *, days: int) -> datetime:
    for _ in range(days):
        now += DAY
        run_shadow(engine, source, workers, now=now)
        score_outcomes(engine, source, now=now)
        tick(engine, source, now=now)
    return now


def _trade(number: int, at: datetime) -> dict[str, Any]:
    ends: Sequence[dict[str, Any]] = (
        {},
        {"closed_at": at + timedelta(hours=3), "pnl": 2.5 - number, "risk": 10.0},
        {"error": "margin"},
        {},
    )
    known = {"trade_id": f"t{number}", "user_id": f"user_{number}", "strategy_name": "fib_rsi", "version": "1.0.0"}
    return known | {"symbol": "GOLD", "opened_at": at, "latency_ms": 80.0 + number} | ends[number % 4]


def keep() -> Path:
    """Live in a database of this release, and keep its rows under the name of its schema's revision."""
    with TemporaryDirectory() as folder:
        engine = open_database(f"sqlite:///{folder}/release.db")
        upgrade(engine)
        live(engine)
        with engine.connect() as connection:
            tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
            rows = {table: _all_of(connection, table) for table in sorted(tables)}
        file = FOLDER / f"{check_schema(engine)}.json.gz"
        engine.dispose()
    plain = json.dumps(
        rows, ensure_ascii=False, separators=(",", ":"), default=lambda each: {"hex": each.hex()}
    ).encode()
    file.write_bytes(gzip.compress(plain, mtime=0))
    return file


def _all_of(connection: Connection, table: str) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(text(f"SELECT * FROM {table} ORDER BY rowid")).mappings()]


if __name__ == "__main__":
    sys.stdout.write(f"{keep()}\n")
