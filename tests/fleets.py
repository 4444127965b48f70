"""A fleet of strategies in all situations that an owner meets, written through the store."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import State
from strategy_core.services.transitions import recorded_change
from strategy_core.store import alerts, rollouts
from strategy_core.store.engine import transaction
from strategy_core.store.tables import Rollout, RolloutBook
from tests.builders import DAY, HOUR, OWNER, decision_row, put_decisions, put_version

HISTORY = History(
    slots=120,
    days=60,
    slots_per_day=4.0,
    design_effect=1.0,
    provisional=False,
    pnl_deviation=0.45,
    win_deviation=0.5,
    d_squares=24.0,
    clipped_squares=24.0,
)
PASSES = (
    Finding(gate="errors", verdict=Verdict.PASS, reason="0 of 96 decisions failed", value=0.0, limit=0.05, n=96),
    Finding(gate="losing_streak", verdict=Verdict.PASS, reason="2 losses in a row", value=2.0, limit=9.0, n=69),
    Finding(gate="harm", verdict=Verdict.PASS, reason="E = 0.4 of 1000", value=-0.4, limit=3.0, n=69),
)
UNPROVEN = Finding(
    gate="not_worse",
    verdict=Verdict.INCONCLUSIVE,
    reason="at least -0.210 R per slot, needs -0.150",
    value=-0.02,
    limit=-0.15,
    low=-0.21,
    n=69,
)
LIKELY_HARM = Finding(
    gate="harm",
    verdict=Verdict.INCONCLUSIVE,
    reason="harm is likely, the stage is held: E = 41 of 1000",
    value=1.6,
    limit=3.0,
    n=34,
)
BLIND = Finding(gate="freshness", verdict=Verdict.BLIND, reason="no decision on GOLD since 3 candles")


def put_strategy(
    engine: Engine,
    name: str,
    now: datetime,
    *,
    canary: str | None = None,
    decided: int = 0,
    shadows: Sequence[str] = (),
) -> None:
    """Store a strategy with the active version 1.0.0, which has decided up to *decided* candles ago."""
    since = now - 90 * DAY
    put_version(engine, "1.0.0", Status.ACTIVE, strategy_name=name, at=since)
    if canary:
        put_version(engine, canary, Status.CANARY, strategy_name=name, at=since + HOUR)
    for shadow in shadows:
        put_version(engine, shadow, strategy_name=name, at=since + HOUR)
    newest = now.replace(minute=0, second=0, microsecond=0) - HOUR - decided * HOUR
    put_decisions(engine, decision_row("1.0.0", newest, strategy_name=name))


def put_rollout(
    engine: Engine,
    name: str,
    now: datetime,
    findings: Sequence[Finding] = (*PASSES, UNPROVEN),
    *,
    stage: int = 1,
    version: str = "2.0.0",
    ticked: timedelta = timedelta(seconds=20),
    slots: int = 69,
    **columns: Any,
) -> UUID:
    """Store a strategy with an open rollout at *stage*, begun four days ago and last ticked *ticked* ago."""
    put_strategy(engine, name, now, canary=version, shadows=("3.0.0-rc1",))
    began, plan = now - 4 * DAY, Plan()
    made = Rollout(
        strategy_name=name,
        version=version,
        control_version="1.0.0",
        plan=plan.model_dump(mode="json"),
        stage_index=stage,
        started_at=began - 20 * DAY,
        stage_entered_at=began,
        stage_extended_at=began,
        last_tick_at=now - ticked,
        **{"state": State.RUNNING.value} | columns,
    )
    percent = plan.stages[stage].percent_bp
    with transaction(engine) as session:
        rollouts.add_rollout(session, made, HISTORY.model_dump(mode="json"))
        session.get_one(RolloutBook, made.id).slots = slots
        rollouts.point_canary(session, name, version, rollout_bp=percent, salt="", now=began)
        rollouts.record_findings(session, made, findings, now - ticked)
        command = Command(OWNER, now - 24 * DAY, "30 days in shadow without a fault")
        with recorded_change(session, command, "start_rollout", name, version, rollout_id=made.id) as change:
            change.after |= {"percent": plan.stages[stage].percent}
    return made.id


def put_fleet(engine: Engine, now: datetime) -> dict[str, UUID]:
    """Store strategies from harm that is likely to one that rests, and return the ids of their rollouts."""
    made = {
        "gold_trend": put_rollout(engine, "gold_trend", now, (*PASSES[:2], LIKELY_HARM), slots=34, stage=0),
        "silver_swing": put_rollout(engine, "silver_swing", now, PASSES, slots=212, state="awaiting_approval", stage=3),
        "oil_breakout": put_rollout(engine, "oil_breakout", now),
        "fx_carry": put_rollout(engine, "fx_carry", now, (*PASSES, BLIND), blind_since=now - 2 * HOUR, ticked=HOUR),
        "index_mean": put_rollout(
            engine, "index_mean", now, PASSES, stage=4, slots=311, promoted_at=now - 2 * DAY, version="2.1.0"
        ),
    }
    put_strategy(engine, "copper_scalp", now, decided=3)
    put_strategy(engine, "platinum_slow", now, shadows=("1.1.0", "1.2.0", "1.3.0"))
    raise_alert(engine, "copper_scalp", "version.refused", "critical", "1.0.0 was not run: its files have changed", now)
    raise_alert(engine, "silver_swing", "rollout.awaiting_approval", "warning", "100 % needs an owner's approval", now)
    raise_alert(engine, "oil_breakout", "rollout.advanced", "info", "5 % becomes 10 %: every gate passed", now)
    return made


def raise_alert(engine: Engine, name: str, kind: str, severity: str, text: str, now: datetime) -> None:
    """Put an alert into the outbox."""
    with transaction(engine) as session:
        alerts.raise_alert(
            session,
            kind,
            text,
            severity=severity,
            strategy_name=name,
            dedupe_key=f"{name} {kind} {text}",
            facts={"version": "1.0.0"},
            now=now - timedelta(minutes=4),
        )
