"""The present status of strategies: versions in service, the rollout, and its newest verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import SURE, ClockCheck
from strategy_core.domain.gates.base import SEVERITY, Finding, Freshness, Verdict
from strategy_core.domain.gates.on_slots import judge_watch
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import Outlook, outlook
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.evidence import read_watch
from strategy_core.services.live_trades import LiveSummary, summarise_trades
from strategy_core.services.tick import position
from strategy_core.services.transitions import strategy_state, why_unwatched
from strategy_core.store import evidence, live_trades, rollouts, versions
from strategy_core.store.alerts import find_alerts
from strategy_core.store.engine import reading
from strategy_core.store.tables import AlertOutbox, GateVerdict, Rollout

ALERTS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """A strategy's open rollout, or its last one.

    Attributes:
        stages: percents of the plan's stages. `rollout.stage_index` is the present one.
        verdicts: the newest verdict of each gate, the worst first.
        since: by gate, when its present verdict began.
        outlook: what the rollout waits for.
        live: by version, live trades since the start beside the shadow, if the platform reports trades of it.
        doubt: why no time left can be given, because the clocks disagree. Empty if they do not.
    """

    rollout: Rollout
    stages: tuple[float, ...]
    verdicts: Sequence[GateVerdict]
    since: Mapping[str, datetime]
    outlook: Outlook
    live: Mapping[str, LiveSummary]
    doubt: str = ""


@dataclass(frozen=True, slots=True)
class StrategyStatus:
    """One strategy.

    Attributes:
        percent: the canary's share of users.
        excluded: symbols on which every user gets the active version.
        shadows: versions in shadow.
        watch: what the standing watch of the active version has found, or why it is not watched.
    """

    strategy_name: str
    active: str | None
    canary: str | None
    percent: float
    excluded: tuple[str, ...]
    shadows: tuple[str, ...]
    watch: str
    rollout: RolloutStatus | None
    alerts: Sequence[AlertOutbox]


def read_status(
    engine: Engine, strategy_name: str | None = None, *, now: datetime, clock: ClockCheck = SURE
) -> list[StrategyStatus]:
    """Return the status of one strategy, or of all strategies by name.

    Args:
        clock: whether *now* can be compared with the times in the database.

    Raises:
        UnknownStrategy
    """
    now = utc(now, "now")
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
        names = versions.strategy_names(session) if strategy_name is None else [strategy_name]
        return [_status(session, name, now, clock) for name in names]


def _status(session: Session, strategy_name: str, now: datetime, clock: ClockCheck) -> StrategyStatus:
    state = strategy_state(session, strategy_name)
    newest = rollouts.open_rollout(session, strategy_name) or next(
        iter(rollouts.list_rollouts(session, strategy_name)), None
    )
    return StrategyStatus(
        strategy_name=strategy_name,
        active=state["active"],
        canary=state["canary"],
        percent=state["percent"],
        excluded=tuple(state.get("excluded", ())),
        shadows=tuple(v.version for v in versions.list_versions(session, strategy_name, Status.SHADOW)),
        watch=_watch(session, strategy_name),
        rollout=rollout_status(session, newest, now, clock, state=state) if newest else None,
        alerts=find_alerts(session, strategy_name, limit=ALERTS_SHOWN),
    )


def watch_of(engine: Engine, strategy_name: str) -> str:
    """Return `StrategyStatus.watch` of one strategy."""
    with reading(engine) as session:
        return _watch(session, strategy_name)


def _watch(session: Session, strategy_name: str) -> str:
    active = versions.with_status(session, strategy_name, Status.ACTIVE)
    if active is None:
        return ""
    if (baking := rollouts.open_rollout(session, strategy_name)) and baking.version == active.version:
        return "not yet: its rollout bakes, and the gates judge it"
    rollout = rollouts.completed_rollouts(session, strategy_name).get(strategy_name)
    if rollout is None:
        return f"not watched: no completed rollout made {active.version} active"
    if why := why_unwatched(session, rollout):
        return f"not watched: {why}"
    watch = read_watch(session, rollout)
    if watch is None:
        return f"against {rollout.control_version} since {rollout.ended_at:%Y-%m-%d}: no slot yet"
    history = History.model_validate(evidence.get_book(session, rollout.id).history)
    risk_fraction = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring).risk_fraction
    found = judge_watch(watch.book.totals, history, risk_fraction)
    return f"against {rollout.control_version} since {watch.since:%Y-%m-%d}: {found.reason}"


def rollout_status(
    session: Session,
    rollout: Rollout,
    now: datetime,
    clock: ClockCheck = SURE,
    *,
    with_live_trades: bool = True,
    state: Mapping[str, Any] | None = None,
) -> RolloutStatus:
    """Return the status of an open or ended rollout within the open transaction.

    Args:
        clock: whether *now* can be compared with the times in the database. Where it cannot, the outlook is empty.
        with_live_trades: summarise live trades, which takes longer the more there are. If False, `live` is empty.
        state: the `strategy_state` of its strategy, if it has been read.
    """
    plan = read_plan(rollout.plan)
    known = {gate.name for gate in plan.gates} | {Freshness().name}  # an earlier release may have had other gates
    known_rows = [row for row in rollouts.last_verdicts(session, rollout.id).values() if row.gate in known]
    newest = max(rollout.stage_entered_at, rollout.last_tick_at or rollout.started_at)
    doubt = "" if rollout.ended_at is not None else clock.doubt(newest, now)
    excluded = (strategy_state(session, rollout.strategy_name) if state is None else state).get("excluded", ())
    found = outlook(plan, position(rollout, excluded), [_finding(verdict) for verdict in known_rows], now)
    return RolloutStatus(
        rollout=rollout,
        stages=tuple(stage.percent for stage in plan.stages),
        verdicts=sorted(known_rows, key=lambda verdict: (SEVERITY[Verdict(verdict.verdict)], verdict.gate)),
        since={verdict.gate: rollouts.held_since(session, verdict) for verdict in known_rows},
        outlook=Outlook(None, None, (doubt,)) if doubt else found,
        live=_live(session, rollout, now) if with_live_trades else {},
        doubt=doubt,
    )


def _live(session: Session, rollout: Rollout, now: datetime) -> dict[str, LiveSummary]:
    since, until = rollout.started_at, rollout.ended_at or now
    if until <= since or not live_trades.reports_any(session, rollout.strategy_name):
        return {}
    pair = (rollout.version, rollout.control_version)
    found = {version: summarise_trades(session, rollout.strategy_name, version, since, until) for version in pair}
    return {version: summary for version, summary in found.items() if summary.trades}


def _finding(row: GateVerdict) -> Finding:
    return Finding.model_validate(row.model_dump(include=set(Finding.model_fields)))
