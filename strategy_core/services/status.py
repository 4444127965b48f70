"""The present status of strategies: versions in service, the rollout, and its newest verdicts."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import SURE, ClockCheck
from strategy_core.domain.capital import Reach
from strategy_core.domain.errors import InvalidPlan
from strategy_core.domain.forecast import RolloutSubject
from strategy_core.domain.gates.base import SEVERITY, Finding, Freshness, Verdict, format_duration
from strategy_core.domain.gates.on_slots import judge_watch
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.overlap import ServingCanary, on_another_too
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.ramp import Outlook, Position, State, outlook
from strategy_core.domain.readings import GateReading, gates_of, has_data, read_finding
from strategy_core.domain.risk import load_risk
from strategy_core.domain.rollout_verdict import RolloutVerdict, VerdictKind, rollout_verdict
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.evidence import own_slots, read_watch
from strategy_core.services.live_trades import LiveSummary, summarise_trades
from strategy_core.services.positions import Draining, read_draining
from strategy_core.services.release_times import freeze_now, load_times
from strategy_core.services.risk import read_open_risk
from strategy_core.services.transitions import strategy_state, why_unwatched
from strategy_core.store import audit, evidence, live_trades, release_times, rollouts, versions
from strategy_core.store.alerts import find_alerts
from strategy_core.store.canary_reach import read_canary_reach
from strategy_core.store.engine import reading
from strategy_core.store.rollouts import position
from strategy_core.store.tables import AlertOutbox, GateVerdict, Rollout, ScheduledStart

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
        verdict: the verdict on the rollout: one sentence for owners, and its kind.
        readings: the verdicts as owners read them, in the same order.
        risk: what its version risks against the control, and its scale, in one line. Empty if it was not measured.
        open_risk: the canary's part of the strategy's open risk. Empty without open positions of it.
    """

    rollout: Rollout
    stages: tuple[float, ...]
    verdicts: Sequence[GateVerdict]
    since: Mapping[str, datetime]
    outlook: Outlook
    live: Mapping[str, LiveSummary]
    verdict: RolloutVerdict
    readings: Sequence[GateReading]
    doubt: str = ""
    risk: str = ""
    open_risk: str = ""


def stale_remark(status: RolloutStatus, now: datetime, overdue: timedelta) -> str:
    """Return how old the figures of an open rollout are if its ticks are overdue, or an empty text.

    Args:
        overdue: how long a rollout may be without a tick.
    """
    rollout = status.rollout
    age = now - (rollout.last_tick_at or rollout.started_at)
    if rollout.ended_at is not None or status.doubt or age < overdue:
        return ""
    return f"Its gates have not run for {format_duration(age)}: these figures are old, and its users are not protected."


@dataclass(frozen=True, slots=True)
class StrategyStatus:
    """One strategy.

    Attributes:
        percent: the canary's share of users.
        reach: the users that the canary serves, with the percent that its stage asks for. None without a canary.
        also_on: share of all users who are on this canary and on that of another strategy, by their buckets.
        excluded: symbols on which every user gets the active version.
        shadows: versions in shadow.
        watch: what the standing watch of the active version has found, or why it is not watched.
        frozen: the freeze that lasts now, and until when, or an empty text.
        scheduled: the start of a rollout that is scheduled for a later time.
        was_served: a version was active at some time.
        draining: versions that serve no users and still manage open positions, or did until a short while ago.
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
    frozen: str = ""
    scheduled: ScheduledStart | None = None
    was_served: bool = True
    draining: Sequence[Draining] = ()
    reach: Reach | None = None
    also_on: float = 0.0

    @property
    def serves_none(self) -> str:
        """Why no version serves its users, where none is active."""
        return "closed: its users get no version" if self.was_served else "no version was ever activated"

    @property
    def sentence(self) -> str:
        """One line: the verdict on its open rollout, or what serves its users and the verdict on its last one."""
        newest = self.rollout
        if newest is not None and newest.rollout.ended_at is None:
            return newest.verdict.sentence
        serves = f"{self.active} serves all users." if self.active else f"{self.serves_none.capitalize()}."
        if self.canary:
            serves = f"{self.canary} serves {self.percent:g} % of users, without a rollout. {self.active} the others."
        if newest is None:
            return serves
        promoted = newest.verdict.kind is VerdictKind.PROMOTED
        last = "Last rollout:" if promoted else f"Last rollout, {newest.rollout.version}:"
        return f"{serves} {last} {newest.verdict.sentence}"


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
        serving = rollouts.serving_canaries(session)
        return [_status(session, name, now, clock, serving) for name in names]


def _status(
    session: Session, strategy_name: str, now: datetime, clock: ClockCheck, serving: Sequence[ServingCanary]
) -> StrategyStatus:
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
        frozen=str(freeze_now(session, strategy_name, now) or ""),
        scheduled=release_times.pending_start(session, strategy_name),
        was_served=state["active"] is not None
        or any(each.activated_at for each in versions.list_versions(session, strategy_name)),
        draining=read_draining(session, strategy_name, now),
        reach=read_canary_reach(session, [strategy_name], now).get(strategy_name) if state["canary"] else None,
        also_on=_also_on(strategy_name, serving),
    )


def _also_on(strategy_name: str, serving: Sequence[ServingCanary]) -> float:
    mine = next((each for each in serving if each.strategy_name == strategy_name), None)
    return 0.0 if mine is None else on_another_too(mine, [each for each in serving if each is not mine])


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
    plan = load_plan(rollout.plan)
    known = {gate.name for gate in plan.gates} | {Freshness().name}  # an earlier release may have had other gates
    known_rows = [row for row in rollouts.last_verdicts(session, rollout.id).values() if row.gate in known]
    newest = max(rollout.stage_entered_at, rollout.last_tick_at or rollout.started_at)
    doubt = "" if rollout.ended_at is not None else clock.doubt(newest, now)
    excluded = (strategy_state(session, rollout.strategy_name) if state is None else state).get("excluded", ())
    at = position(rollout, excluded)
    gates = gates_of(plan)

    def order(row: GateVerdict) -> tuple[int, bool, str]:
        return SEVERITY[Verdict(row.verdict)], not has_data(gates[row.gate], _finding(row)), row.gate

    rows = sorted(known_rows, key=order)
    findings = [_finding(row) for row in rows]
    times = load_times(session, rollout.strategy_name, rollout.stage_extended_at)
    found = outlook(plan, at, findings, now, times)
    subject = _subject(session, rollout, plan, at, times.closed(plan.advance_windows, now))
    verdict = rollout_verdict(subject, findings, now, doubt=doubt)
    measured = load_risk(rollout.risk)
    open_now = rollout.ended_at is None and rollout.promoted_at is None
    held = read_open_risk(session, rollout.strategy_name, rollout.version) if open_now else None
    return RolloutStatus(
        rollout=rollout,
        stages=tuple(stage.percent for stage in plan.stages),
        verdicts=rows,
        since={row.gate: rollouts.held_since(session, row) for row in known_rows},
        outlook=Outlook(None, None, (doubt,)) if doubt else found,
        live=_live(session, rollout, now) if with_live_trades else {},
        verdict=verdict,
        readings=[read_finding(gates[finding.gate], finding) for finding in findings],
        doubt=doubt,
        risk="" if measured is None else measured.line(rollout.version, rollout.control_version),
        open_risk=held.summary if held is not None and held.positions else "",
    )


def read_endings(engine: Engine, found: Iterable[Rollout]) -> dict[UUID, str]:
    """Return, by id, how each ended rollout has ended: the sentence of its verdict. Unreadable plans are left out."""
    endings = {}
    with reading(engine) as session:
        for rollout in found:
            if rollout.ended_at is not None:
                with suppress(InvalidPlan):
                    subject = _subject(session, rollout, load_plan(rollout.plan), position(rollout), "")
                    endings[rollout.id] = rollout_verdict(subject, (), rollout.ended_at).sentence
    return endings


def read_verdict_rows(rollout: Rollout, rows: Iterable[GateVerdict]) -> dict[str, GateReading]:
    """Return the verdicts of a rollout as owners read them, by gate. Gates of an earlier release are left out."""
    gates = gates_of(load_plan(rollout.plan))
    return {row.gate: read_finding(gates[row.gate], _finding(row)) for row in rows if row.gate in gates}


def _subject(session: Session, rollout: Rollout, plan: Plan, at: Position, closed: str) -> RolloutSubject:
    book = evidence.get_book(session, rollout.id)
    return RolloutSubject(
        plan=plan,
        at=at,
        version=rollout.version,
        control=rollout.control_version,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        reason=rollout.reason,
        paused_by=_paused_by(session, rollout) if at.state is State.PAUSED else "",
        history=History.model_validate(book.history),
        slots=own_slots(session, rollout),
        closed=closed,
    )


def _paused_by(session: Session, rollout: Rollout) -> str:
    paused = audit.find_events(session, limit=1, newest=True, rollout_id=rollout.id, action="pause")
    return next((f"{event.actor}: {event.reason or 'no reason given'}" for event in paused), "an owner")


def _live(session: Session, rollout: Rollout, now: datetime) -> dict[str, LiveSummary]:
    since, until = rollout.started_at, rollout.ended_at or now
    if until <= since or not live_trades.reports_any(session, rollout.strategy_name):
        return {}
    pair = (rollout.version, rollout.control_version)
    found = {version: summarise_trades(session, rollout.strategy_name, version, since, until) for version in pair}
    return {version: summary for version, summary in found.items() if summary.trades}


def _finding(row: GateVerdict) -> Finding:
    return Finding.model_validate(row.model_dump(include=set(Finding.model_fields)))
