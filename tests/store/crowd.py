"""One strategy's life among many others': the rows of all of them, so that to find its own an index is worth while."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine, text
from sqlmodel import SQLModel

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.routing import BUCKETS, bucket_of
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.live_trades import ingest
from strategy_core.services.maintenance import maintain
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.store import evidence, rollouts
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, GOLD, HOUR, OWNER, decision_row, outcome_row, put_decisions, put_outcomes, put_version

START = datetime(2040, 1, 3, tzinfo=UTC)
NOW = START + 40 * DAY
OTHERS = 20
_MANY = f"(VALUES {', '.join(f'({number})' for number in range(1, OTHERS + 1))}) AS many"
_OF_A_STRATEGY = ("strategy_version", "shadow_decision_log", "outcome", "equity_mark", "decision_tally", "live_trade")
_OF_A_ROLLOUT = ("rollout", "rollout_book", "gate_verdict", "booked_slot", "metric_sample")


_USERS = [f"u{number}" for number in range(80) if bucket_of(f"u{number}", "") >= BUCKETS // 2]  # not the canary's


def market() -> SyntheticSource:
    return SyntheticSource((GOLD,), start=START - 60 * DAY, days=120)


def put_crowd(engine: Engine) -> None:
    """Run a rollout for ten days after thirty in shadow, then copy its rows under other names."""
    maintain(engine, now=START)
    put_version(engine, "1", Status.ACTIVE, at=START)
    for version in ("2", "3"):
        put_version(engine, version, at=START)
    candles = [START + hour * HOUR for hour in range(40 * 24)]
    said = {"1": 4, "2": 4, "3": 6}
    put_decisions(
        engine,
        *(
            decision_row(version, at, "buy" if n % every == 0 else "error" if n % 97 == 0 else "hold", error_kind=kind)
            for version, every in said.items()
            for n, at in enumerate(candles)
            for kind in ["raised" if n % 97 == 0 and n % every else ""]
        ),
    )
    put_outcomes(
        engine,
        *(
            outcome_row(version, at, 0.4 if n % 8 else -0.4)
            for version, every in said.items()
            for n, at in enumerate(candles[:-24])
            if n % every == 0
        ),
    )
    began = START + 30 * DAY
    start_rollout(engine, Command(OWNER, began), strategy_name="fib_rsi", version="2", plan=Plan())
    for day in (1, 5, 8):
        tick(engine, market(), now=began + day * DAY)
    ingest(engine, [_trade(n, began + n * HOUR) for n in range(200)], now=NOW)
    with reading(engine) as session:
        (rollout,) = rollouts.open_rollouts(session)
    taken = [
        {"rollout_id": rollout.id, "gate": "slippage", "taken_at": began + n * HOUR, "value": 1.0, "problem": ""}
        for n in range(200)
    ]
    with transaction(engine) as session:
        evidence.add_samples(session, taken)
    _give_others_the_same(engine)


def _trade(number: int, at: datetime) -> dict[str, Any]:
    user = _USERS[number % len(_USERS)]
    known = {"trade_id": f"t{number}", "user_id": user, "strategy_name": "fib_rsi", "version": "1"}
    closed = {"closed_at": at + HOUR, "pnl": 2.0, "risk": 10.0}
    return known | {"symbol": GOLD, "opened_at": at, "latency_ms": 80.0} | closed


def _give_others_the_same(engine: Engine) -> None:
    on_postgresql = engine.dialect.name == "postgresql"
    number = "lpad(to_hex(column1), 2, '0')" if on_postgresql else "printf('%02x', column1)"
    another = (  # of a new kind, with a unique end
        f"(overlay(substr({{0}}::text, 1, 34) PLACING 'a' FROM 15) || {number})::uuid"
        if on_postgresql
        else f"substr({{0}}, 1, 12) || 'a' || substr({{0}}, 14, 17) || {number}"
    )
    name = {"strategy_name": "'s' || column1"}
    with engine.begin() as connection:
        if on_postgresql:
            connection.execute(text("SET LOCAL session_replication_role = replica"))

        def copy(table: str, changed: dict[str, str]) -> None:
            columns = [each for each in SQLModel.metadata.tables[table].c if not _is_counted(each)]
            names = ", ".join(f'"{each.name}"' for each in columns)
            values = ", ".join(changed.get(each.name, f'"{each.name}"') for each in columns)
            connection.execute(text(f"INSERT INTO {table} ({names}) SELECT {values} FROM {table}, {_MANY}"))

        copy("strategy", {"name": "'s' || column1", "generation": "0", "audit_head": "''"})
        ids = {key: another.format(key) for key in ("id", "decision_id")}
        for table in _OF_A_STRATEGY:
            copy(table, ids | name | {"trade_id": "trade_id || '-' || column1"})
        ended = {"state": "'aborted'", "ended_at": "started_at", "rollout_id": another.format("rollout_id")}
        for table in _OF_A_ROLLOUT:
            copy(table, ids | name | ended)
        copy("alert_outbox", name | {"dedupe_key": "dedupe_key || '-' || column1", "rollout_id": "NULL"})
        if on_postgresql:  # SQLite's triggers let in only what follows, and its plans do not ask for sizes
            copy("audit_event", name | {"rollout_id": "NULL", "idempotency_key": "NULL"})
        if on_postgresql:  # SQLite is not analyzed, as in the product
            connection.execute(text("ANALYZE"))


def _is_counted(column: Any) -> bool:
    return (column.primary_key and column.autoincrement is True) or column.table.autoincrement_column is column
