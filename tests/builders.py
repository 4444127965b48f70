"""Rows as they stand after a registration and a shadow run, written through the store, for tests of what follows."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command, values_digest
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.scoring import ScoringRule
from strategy_core.isolation.fingerprint import digest_of
from strategy_core.services.transitions import recorded_change
from strategy_core.store import decisions, outcomes, replays, versions
from strategy_core.store.engine import insert_if_new, transaction
from strategy_core.store.tables import ShadowDecisionLog, StrategyVersion, decision_id

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
OWNER = Actor("ana")
GOLD = "GOLD"


def version_row(
    version: str,
    status: Status | str = Status.SHADOW,
    *,
    strategy_name: str = "fib_rsi",
    symbols: Sequence[str] = (GOLD,),
    at: datetime = MONDAY - DAY,
    **columns: Any,
) -> StrategyVersion:
    values: dict[str, Any] = {
        "strategy_name": strategy_name,
        "version": version,
        "status": str(status),
        "entry_point": "fib_rsi",
        "config": {"rsi_period": 14},
        "symbols": list(symbols),
        "timeframe": "1h",
        "warmup_bars": 150,
        "registration_report": {},
        "created_at": at,
        "activated_at": at if status == Status.ACTIVE else None,
        "retired_at": at if status == Status.RETIRED else None,
    }
    values |= columns
    toggles = values.pop("toggles", "")
    parts = {
        "config": json.dumps(values["config"], sort_keys=True),
        "symbols": ",".join(sorted(symbols)),
        "timeframe": values["timeframe"],
        "warmup_bars": str(values["warmup_bars"]),
        "source": version,
        **({"toggles": toggles} if toggles else {}),
    }
    return StrategyVersion(**{"fingerprint_parts": parts, "fingerprint": digest_of(parts)} | values)


def put_version(
    engine: Engine,
    version: str,
    status: Status | str = Status.SHADOW,
    *,
    strategy_name: str = "fib_rsi",
    at: datetime = MONDAY - DAY,
    salt: str = "",
    recorded: bool = False,
    **columns: Any,
) -> StrategyVersion:
    """Store a version; *recorded* with the audit event of its registration, for tests that verify the trail."""
    row = version_row(version, status, strategy_name=strategy_name, at=at, **columns)
    scoring = ScoringRule().model_dump(mode="json")
    with transaction(engine) as session:
        versions.create_strategy(session, strategy_name, salt=salt, scoring=scoring, now=at)
        if not recorded:
            versions.add_version(session, row)
            return row
        with recorded_change(session, Command(OWNER, at), "register_version", strategy_name, version) as change:
            versions.add_version(session, row)
            change.after |= {"fingerprint": row.fingerprint, "status": row.status}
            change.after |= {"salt": salt, "scoring": values_digest(scoring)}
    return row


def put_pair(engine: Engine) -> None:
    """Version 1 is active, version 2 in shadow."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")


def decision_row(
    version: str,
    at: datetime,
    decision: str = "hold",
    *,
    strategy_name: str = "fib_rsi",
    symbol: str = GOLD,
    error_kind: str = "",
    reason: str = "",
    intent: str = "open",
) -> dict[str, Any]:
    return {
        "id": decision_id(strategy_name, version, symbol, at),
        "strategy_name": strategy_name,
        "version": version,
        "symbol": symbol,
        "timestamp": at,
        "decision": decision,
        "intent": intent,
        "confidence": 0.5,
        "features": {"rsi": 28.5},
        "reason": reason,
        "role": "shadow",
        "window_hash": "0" * 64,
        "duration_ms": 1.0,
        "error_kind": error_kind,
        "error": f"{error_kind} at {at:%H:%M}" if error_kind else None,
        "logged_at": at + HOUR,
    }


def put_decisions(engine: Engine, *rows: dict[str, Any], counted: bool = True) -> None:
    """Log decisions; not *counted* as releases before the sixth schema did, which knew no intent either."""
    with transaction(engine) as session:
        if counted:
            decisions.log_decisions(session, rows)
        else:
            insert_if_new(session, ShadowDecisionLog, [before_intents(row) for row in rows])


def before_intents(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row as schemas before v0017 have it."""
    return {name: value for name, value in row.items() if name != "intent"}


def replay_row(version: str, at: datetime, decision: str = "hold", **changes: Any) -> dict[str, Any]:
    key = {"strategy_name": "fib_rsi", "version": version, "symbol": GOLD, "timestamp": at}
    made = {"confidence": 0.5, "reason": "", "window_hash": f"{at:%H}" * 32, "replayed_at": at + 9 * DAY}
    return {**key, "decision": decision, "intent": "open", **made, **changes}


def put_replays(engine: Engine, *rows: dict[str, Any]) -> None:
    """Store replayed decisions."""
    with transaction(engine) as session:
        replays.add_decisions(session, rows)


def outcome_row(version: str, at: datetime, r: float, *, symbol: str = GOLD, candles: int = 2) -> dict[str, Any]:
    return {
        "decision_id": decision_id("fib_rsi", version, symbol, at),
        "strategy_name": "fib_rsi",
        "version": version,
        "symbol": symbol,
        "timestamp": at,
        "opened_at": at + HOUR,
        "closed_at": at + candles * HOUR,
        "entry_price": 2000.0,
        "exit_price": 2000.0 + 10 * r,
        "exit_reason": "horizon",
        "risk": 10.0,
        "pnl": 10 * r,
        "return_fraction": r / 200,
        "r_multiple": r,
    }


def put_outcomes(engine: Engine, *rows: dict[str, Any]) -> None:
    with transaction(engine) as session:
        outcomes.book_outcomes(session, rows)
        marks = [
            {key: row[key] for key in ("strategy_name", "version", "symbol")}
            | {"timestamp": row["opened_at"], "r": row["r_multiple"]}
            for row in rows
        ]
        outcomes.mark_equity(session, marks)


def put_day(
    engine: Engine,
    day: datetime,
    said: dict[str, str],
    worth: dict[str, float],
    *,
    signal_hours: Sequence[int],
    counted: bool = True,
) -> None:
    """Log 24 candles of each version of *said*; on *signal_hours* it says that, worth R as *worth* has it."""
    hours = [day + hour * HOUR for hour in range(24)]
    signals = [day + hour * HOUR for hour in signal_hours]
    rows = [
        decision_row(version, at, action if at in signals else "hold")
        for version, action in said.items()
        for at in hours
    ]
    put_decisions(engine, *rows, counted=counted)
    put_outcomes(
        engine,
        *(outcome_row(version, at, worth[version]) for version in said if said[version] != "hold" for at in signals),
    )


def without_caps(plan: Plan) -> Plan:
    """Return the plan without a cap on capital, so that percents of users are all that counts."""
    stages = tuple(stage.model_copy(update={"capital_percent": None}) for stage in plan.stages)
    return plan.model_copy(update={"stages": stages, "largest_account_percent": None})
