"""A decision log, an audit chain and a routing table, byte for byte as release 0.2.0 wrote them."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from sqlmodel import select

from strategy_core import VersionRegistry
from strategy_core.domain.audit import BEFORE_THE_FIRST, Actor, event_hash
from strategy_core.domain.scoring import ScoringRule
from strategy_core.isolation.fingerprint import Fingerprint, fingerprint
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.shadow import run_shadow
from strategy_core.store import versions
from strategy_core.store.audit import link_of
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import AuditEvent, ShadowDecisionLog, StrategyVersion

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)
SYMBOLS = ("GOLD", "SILVER")

# Read from release 0.2.0. A change means that users move, or that stored evidence and trails no longer verify.
DECISION_LOG = "00072a91bf9b008ecc3f2b39f5a6bceb63024e68df62913b6b253fa3bdd686ff"
AUDIT_HEAD = "895e2e5a8ef0e68475e866caf9201bba94bc10006792930a3778da5ca685dc64"
ROUTING_TABLE = "667e5a1b782fe59c50f04638e5352dbe807761018978acc57129ed05ca38596e"


def test_a_short_life_of_two_versions_is_recorded_as_before(tmp_path: Path) -> None:
    clock = [MONDAY]
    market = SyntheticSource(SYMBOLS, start=MONDAY - timedelta(days=60), days=90)
    registry = VersionRegistry(
        f"sqlite:///{tmp_path}/golden.db", source=market, actor=Actor("ana"), clock=lambda: clock[0]
    )

    registry.register_version(
        "fib_rsi", "1.0.0", {"fib_lookback_bars": 40}, symbols=SYMBOLS, status="active", reason="first"
    )
    clock[0] += HOUR
    registry.register_version("fib_rsi", "2.0.0", {}, symbols=SYMBOLS, reason="second")
    clock[0] += HOUR
    registry.activate_canary("fib_rsi", "2.0.0", 12.5, reason="try it")
    clock[0] += HOUR
    registry.update_canary_percent("fib_rsi", 50, reason="wider")
    routing = [f"user_{i} {registry.route_user_to_version(f'user_{i}', 'fib_rsi')}" for i in range(1000)]
    clock[0] = MONDAY + 72 * HOUR
    with WorkerPool() as pool:
        run_shadow(registry.engine, market, pool, now=clock[0])
    registry.activate_version("fib_rsi", "2.0.0", reason="better")
    clock[0] += HOUR
    registry.activate_version("fib_rsi", "1.0.0", reason="undo")

    with reading(registry.engine) as session:
        log = sorted(_decision(row) for row in session.exec(select(ShadowDecisionLog)))
        events = session.exec(select(AuditEvent).order_by(AuditEvent.id)).all()  # type: ignore[arg-type]
        versions = session.exec(select(StrategyVersion)).all()
    assert (len(log), _digest(log)) == (274, DECISION_LOG)
    assert (len(events), _head_of_release_0_2_0(events, versions)) == (6, AUDIT_HEAD)
    assert _digest(routing) == ROUTING_TABLE


def test_versions_of_release_0_2_0_decide_as_before(tmp_path: Path) -> None:
    market = SyntheticSource(SYMBOLS, start=MONDAY - timedelta(days=60), days=90)
    clock = [MONDAY]
    registry = VersionRegistry(f"sqlite:///{tmp_path}/new.db", source=market, clock=lambda: clock[0])
    registry.register_version("fib_rsi", "1.0.0", {"fib_lookback_bars": 40}, symbols=SYMBOLS, status="active")
    clock[0] += HOUR
    registry.register_version("fib_rsi", "2.0.0", {}, symbols=SYMBOLS)
    with transaction(registry.engine) as session:
        registered = [version.model_dump() for version in session.exec(select(StrategyVersion))]
    old = VersionRegistry(f"sqlite:///{tmp_path}/old.db", source=market, clock=lambda: MONDAY)
    with transaction(old.engine) as session:
        versions.create_strategy(session, "fib_rsi", salt="", scoring=ScoringRule().model_dump(mode="json"), now=MONDAY)
        for columns in registered:
            build = _build_of_schema_1(StrategyVersion(**columns))
            parts: dict[str, Any] = {
                "fingerprint": build.digest,
                "fingerprint_parts": build.parts,
                "registration_report": {},
            }
            versions.add_version(session, StrategyVersion(**columns | parts))
    old.activate_canary("fib_rsi", "2.0.0", 12.5)

    with WorkerPool() as pool:
        run_shadow(old.engine, market, pool, now=MONDAY + 72 * HOUR)

    with reading(old.engine) as session:
        log = sorted(_decision(row) for row in session.exec(select(ShadowDecisionLog)))
    assert "schema" not in build.parts
    assert (len(log), _digest(log)) == (274, DECISION_LOG)


def _head_of_release_0_2_0(events: Sequence[AuditEvent], versions: Sequence[StrategyVersion]) -> str:
    """Return the head of the trail that release 0.2.0 would have written.

    Its fingerprints are those of schema 1, and an event of a registration has nothing else.
    """
    old = {version.fingerprint: _build_of_schema_1(version).digest for version in versions}
    head = BEFORE_THE_FIRST
    for event in events:
        facts = link_of(event).facts
        after = dict(facts["after"])
        if "fingerprint" in after:
            after["fingerprint"] = old[after["fingerprint"]]
            after = {name: value for name, value in after.items() if name not in {"status", "salt", "scoring"}}
        head = event_hash(head, {**facts, "after": after})
    return head


def _build_of_schema_1(version: StrategyVersion) -> Fingerprint:
    return fingerprint(
        version.entry_point,
        version.config,
        symbols=version.symbols,
        timeframe=version.timeframe,
        warmup_bars=version.warmup_bars,
        schema="1",
    )


def _decision(row: ShadowDecisionLog) -> str:
    at = row.timestamp.isoformat()
    decided = [row.decision, row.confidence, row.features, row.reason, row.role]
    return json.dumps([row.version, row.symbol, at, *decided, row.window_hash, str(row.id)], sort_keys=True)


def _digest(lines: list[str]) -> str:
    return sha256("\n".join(lines).encode()).hexdigest()
