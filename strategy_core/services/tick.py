"""The tick: read a rollout's evidence, decide the next step and apply it, in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.alerts import QUIET, WATCH_HARM, WATCH_LIKELY_HARM, Severity
from strategy_core.domain.audit import RAMP, Actor, Command
from strategy_core.domain.errors import EvidenceUnavailable, InvalidPlan, LostRace
from strategy_core.domain.gates.base import Finding, Freshness, Verdict
from strategy_core.domain.gates.on_slots import WATCH, WATCH_QUARTER, judge_watch
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.ramp import ENDED, Ruling, State, Step, decide, judge_all
from strategy_core.domain.readings import gates_of, read_finding
from strategy_core.domain.scoring import ScoringRule
from strategy_core.market.source import CandleSource
from strategy_core.services.all_strategies import try_complete_changes
from strategy_core.services.canary_capital import StageEntry, facts_of_large, release_idle, try_enter_stage
from strategy_core.services.evidence import (
    in_a_line,
    load_evidence,
    load_ledger,
    load_pair,
    load_watch,
    read_feed,
    save_ledger,
)
from strategy_core.services.position_holds import positions_problem
from strategy_core.services.release_times import load_times
from strategy_core.services.rollback import never_locked_out, take_off
from strategy_core.services.transitions import (
    ChangeAlert,
    end_rollout,
    exposure_of,
    recorded_change,
    reinstate_control,
    replace_active,
    retire_predecessors,
    strategy_state,
    why_unwatched,
)
from strategy_core.services.users import count_missing
from strategy_core.services.watchdog import BlindRollout, watch_blindness
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import BUSY_SECONDS, reading, retry_transient, transaction
from strategy_core.store.rollouts import position
from strategy_core.store.tables import Rollout

_CLOCK_DOUBT = timedelta(minutes=30)  # how late a tick may come after a later one: it was stopped, or lost a race
_WAITS = {Step.AWAIT_APPROVAL: State.AWAITING_APPROVAL, Step.AWAIT_DECISION: State.AWAITING_DECISION}
_ALERTS = {
    Step.ADVANCE: ("rollout.advanced", "info"),
    Step.AWAIT_APPROVAL: ("rollout.awaiting_approval", "warning"),
    Step.LAPSE: ("rollout.approval_lapsed", "warning"),
    Step.AWAIT_DECISION: ("rollout.awaiting_decision", "warning"),
    Step.PROMOTE: ("rollout.promoted", "warning"),
    Step.COMPLETE: ("rollout.completed", "info"),
    Step.ROLL_BACK: ("rollout.rolled_back", "critical"),
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class TickResult:
    """The ruling and the findings of a tick on one rollout.

    Attributes:
        ruling: None if the rollout lost a race, or if not even its blindness could be stored.
        error: why the evidence was unavailable. The ruling then treats the rollout as blind.
    """

    rollout_id: UUID
    strategy_name: str
    version: str
    ruling: Ruling | None
    findings: Sequence[Finding] = ()
    error: str = ""


def tick(
    engine: Engine, source: CandleSource, *, now: datetime, actor: Actor = RAMP, quiet: timedelta = QUIET
) -> list[TickResult]:
    """Tick every open rollout, then watch the versions that have completed one. A failure does not stop the others.

    Last come the large accounts of ended rollouts, and the events that a killed process has left out.

    Args:
        quiet: how long rollouts must see evidence until their blindness is over, for alerts.
    """
    with reading(engine) as session:
        open_now = rollouts.open_rollouts(session)
    ticked = []
    for rollout in open_now:
        about = (rollout.id, rollout.strategy_name, rollout.version)
        try:
            ruled = tick_rollout(engine, source, rollout.id, now=now, actor=actor)
        except Exception as error:  # noqa: BLE001  a failing rollout must not stop the rollback of another
            ticked.append(rule_unreadable(engine, about, error, now=now, actor=actor))
        else:
            if ruled is not None:
                ticked.append(TickResult(*about, *ruled))
    _report_blindness(engine, ticked, _watch_all(engine, now, actor), now, quiet)
    release_idle(engine, now=now, actor=actor)
    count_missing(engine)
    try_complete_changes(engine)
    return ticked


def _report_blindness(
    engine: Engine, ticked: Sequence[TickResult], unwatched: Sequence[BlindRollout], now: datetime, quiet: timedelta
) -> None:
    """Alert on blind rollouts once all rollouts are ruled on: one incident, however many there are.

    The rulings are committed. If the alerts cannot be written, the next tick writes them.

    Args:
        unwatched: completed rollouts whose watch failed.
    """
    blind = [
        BlindRollout(each.rollout_id, each.strategy_name, each.version, _blind_gate(each), each.ruling.reason)
        for each in ticked
        if each.ruling is not None and each.ruling.blind and each.ruling.step is not Step.ROLL_BACK
    ]
    try:
        watch_blindness(engine, [*blind, *unwatched], now=now, quiet=quiet)
    except DBAPIError as error:
        log.warning("tick.blindness_not_alerted", error=type(error).__name__)


def _blind_gate(result: TickResult) -> str:
    if result.error:
        return "tick"
    return next(each.gate for each in result.findings if each.armed and each.verdict is Verdict.BLIND)


def rule_unreadable(
    engine: Engine, about: tuple[UUID, str, str], error: Exception, *, now: datetime, actor: Actor
) -> TickResult:
    """Rule on a rollout whose tick has failed: it is blind. That is alerted at once, and ends at the plan's limit.

    A lost race is no failure: the other tick has ruled.
    """
    problem = in_a_line(error)
    if isinstance(error, LostRace):
        return TickResult(*about, ruling=None, error=problem)
    try:
        ruled = rule_blind(engine, about[0], problem, now=now, actor=actor)
    except Exception as another:  # noqa: BLE001  as above
        return TickResult(*about, ruling=None, error=f"{problem}; then {in_a_line(another)}")
    ruling, findings = ruled or (None, [])
    return TickResult(*about, ruling, findings, problem)


@never_locked_out(BUSY_SECONDS)
@retry_transient()
def rule_blind(
    engine: Engine, rollout_id: UUID, problem: str, *, now: datetime, actor: Actor
) -> tuple[Ruling, list[Finding]] | None:
    """Rule on a rollout whose evidence is unavailable. Return None if it has ended.

    If the plan is unreadable too, the default plan applies: the blindness must have a limit.
    """
    now = utc(now, "now")
    with transaction(engine) as session:
        rollout = rollouts.get_rollout(session, rollout_id)
        versions.lock_strategy(session, rollout.strategy_name)
        session.refresh(rollout)
        if rollout.state in ENDED:
            return None
        now = monotonic_now(now, rollout)
        try:
            plan = load_plan(rollout.plan)
        except InvalidPlan:
            plan = Plan()
        findings = [Freshness().found(Verdict.BLIND, f"the tick itself failed: {problem}")]
        ruling = decide(plan, position(rollout), findings, now)
        rollouts.record_findings(session, rollout, findings, now)
        record_tick(session, rollout, ruling, now)
        apply_ruling(session, rollout, plan, ruling, Command(actor, now))
        return ruling, findings


@never_locked_out(BUSY_SECONDS)
@retry_transient()
def tick_rollout(
    engine: Engine, source: CandleSource, rollout_id: UUID, *, now: datetime, actor: Actor = RAMP, apply: bool = True
) -> tuple[Ruling, list[Finding]] | None:
    """Decide and apply one rollout's next step. With *apply* False, only decide it. Return None if it has ended.

    A tick that comes late is judged at the time of the tick before it.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        rollout = rollouts.get_rollout(session, rollout_id)
        pair = load_pair(session, rollout)
    now = monotonic_now(now, rollout)  # else a candle that was due at the last tick would not be due now
    feed = read_feed(source, pair, now - load_plan(rollout.plan).late_candles * pair.timeframe)
    with transaction(engine) as session:
        versions.lock_strategy(session, rollout.strategy_name)
        rollout = rollouts.get_rollout(session, rollout_id)
        if rollout.state in ENDED:
            return None
        now = monotonic_now(now, rollout)
        plan = load_plan(rollout.plan)
        pair = load_pair(session, rollout)  # again: a symbol may have been excluded meanwhile
        booking = load_ledger(session, rollout, pair)
        gathered_evidence = load_evidence(session, rollout, plan, pair, feed, booking, now)
        findings = judge_all(plan.gates, gathered_evidence, plan.stages[rollout.stage_index].margins)
        times = load_times(session, rollout.strategy_name, rollout.stage_extended_at)
        at, command, entry = position(rollout, pair.excluded), Command(actor, now), None
        ruling = _hold_before_approval(session, rollout, decide(plan, at, findings, now, times), now)
        if ruling.step in (Step.ADVANCE, Step.PROMOTE):
            problem = positions_problem(session, rollout, plan, feed)
            if problem:
                ruling = decide(plan, at, findings, now, times, positions_problem=problem)
        if ruling.step is Step.ADVANCE:
            following = rollout.stage_index + 1
            entry, problem = try_enter_stage(session, command, rollout.strategy_name, plan, following, write=apply)
            if problem:
                ruling = decide(plan, at, findings, now, times, problem)
        if apply:
            fidelity = gathered_evidence.fidelity
            save_ledger(session, rollout, booking, now=now, concordance=fidelity.concordance if fidelity else None)
            turned = rollouts.record_findings(session, rollout, findings, now)
            _warn(session, rollout, plan, turned, now)
            record_tick(session, rollout, ruling, now)
            apply_ruling(session, rollout, plan, ruling, command, entry)
        return ruling, findings


def _hold_before_approval(session: Session, rollout: Rollout, ruling: Ruling, now: datetime) -> Ruling:
    """Hold an advance whose approval was given after *now*, the moment that a late tick judges."""
    if ruling.step is not Step.ADVANCE or rollout.approved_stage != rollout.stage_index + 1:
        return ruling
    given = audit.find_events(session, rollout_id=rollout.id, action="approve", limit=1, newest=True)
    if not given or given[0].at <= now:
        return ruling
    reason = f"approved at {given[0].at:%Y-%m-%d %H:%M} UTC, after the moment that this tick judges; {ruling.reason}"
    return replace(ruling, step=Step.HOLD, reason=reason, held=True)


def _watch_all(engine: Engine, now: datetime, actor: Actor) -> list[BlindRollout]:
    """Watch every active version that has completed a rollout, and return those whose watch failed."""
    try:
        with reading(engine) as session:
            completed = list(rollouts.completed_rollouts(session).values())
    except DBAPIError as error:
        log.warning("tick.watch_failed", error=type(error).__name__)
        return []
    failed = []
    for rollout in completed:
        try:
            watch_version(engine, rollout.id, now=now, actor=actor)
        except Exception as error:  # noqa: BLE001  as in `tick`
            problem = f"its standing watch failed: {in_a_line(error)}"
            failed.append(BlindRollout(rollout.id, rollout.strategy_name, rollout.version, WATCH, problem))
    return failed


@never_locked_out(BUSY_SECONDS)
@retry_transient()
def watch_version(engine: Engine, rollout_id: UUID, *, now: datetime, actor: Actor = RAMP) -> Finding | None:
    """Book the new slots of a promoted version and its predecessor, and act if harm is proven or likely.

    It does nothing, and locks nothing, if the version is not watched or no new slot has closed.
    """
    now = utc(now, "now")
    since = now - WATCH_QUARTER  # a trade that has not closed within a quarter is given up
    with reading(engine) as session:
        rollout = rollouts.get_rollout(session, rollout_id)
        if why_unwatched(session, rollout):
            return None
        pair = load_pair(session, rollout)
        if not load_ledger(session, rollout, pair, not_before=since).new:
            return None
    with transaction(engine) as session:
        strategy = versions.lock_strategy(session, rollout.strategy_name)
        rollout = rollouts.get_rollout(session, rollout_id)
        newest = rollouts.completed_rollouts(session, rollout.strategy_name).get(rollout.strategy_name)
        if newest is None or newest.id != rollout.id or why_unwatched(session, rollout):
            return None
        booking = load_ledger(session, rollout, pair, not_before=since)
        watch = load_watch(session, rollout, booking, pair.symbols, now)
        save_ledger(session, rollout, booking, now=now, watch=watch)
        risk_fraction = ScoringRule.model_validate(strategy.scoring).risk_fraction
        finding = judge_watch(watch.book.totals, booking.history, risk_fraction)
        _act_on_watch(session, rollout, finding, watch.since, Command(actor, now))
        return finding


def _act_on_watch(session: Session, rollout: Rollout, finding: Finding, since: datetime, command: Command) -> None:
    """Alert on harm that is proven or likely, once a quarter, or roll the version back if its plan says so."""
    if finding.verdict is Verdict.PASS:
        return
    if finding.verdict is Verdict.BLIND:
        raise EvidenceUnavailable(finding.reason)
    proven = finding.verdict is Verdict.FAIL
    reason = f"against {rollout.control_version} since {since:%Y-%m-%d}: {finding.reason}"
    facts = {"version": rollout.version, "control_version": rollout.control_version, **finding.model_dump(mode="json")}
    if proven and rollout.plan.get("watch") == "rollback":
        command = replace(command, reason=f"standing watch {reason}")
        take_off(session, command, rollout.strategy_name, rollout.version, cause=WATCH, facts=facts)
        return
    name, kind = rollout.strategy_name, WATCH_HARM if proven else WATCH_LIKELY_HARM
    what = "earns less than its predecessor" if proven else "seems to earn less than its predecessor"
    alerts.raise_alert(
        session,
        kind,
        f"{name} {rollout.version} {what}, {reason}",
        severity=(Severity.CRITICAL if proven else Severity.WARNING).value,
        strategy_name=name,
        dedupe_key=f"{rollout.id} {kind} {since.isoformat()}",
        facts={**facts, "exposed": exposure_of(session, name, rollout.version, strategy_state(session, name))},
        now=command.now,
        rollout_id=rollout.id,
    )


def monotonic_now(now: datetime, rollout: Rollout) -> datetime:
    """Return the time of this tick: at least the previous tick's, unless that clock was far ahead.

    To wait until the true time reaches a clock that was hours ahead would stop the limit on blindness for as long.
    """
    last = rollout.last_tick_at or rollout.started_at
    return max(now, last) if last - now <= _CLOCK_DOUBT else now


def apply_ruling(
    session: Session,
    rollout: Rollout,
    plan: Plan,
    ruling: Ruling,
    command: Command,
    entry: StageEntry | None = None,
) -> None:
    """Apply a ruling: versions, percent, rollout, audit event and alert change together.

    Args:
        entry: of the next stage, for a ruling that enters it.
    """
    if ruling.step is Step.HOLD or _waits_already(rollout, ruling):
        return
    kind, severity = _ALERTS[ruling.step]
    with recorded_change(
        session,
        command,
        ruling.step.value,
        rollout.strategy_name,
        rollout.version,
        rollout_id=rollout.id,
        reason=ruling.reason,
        evidence=rollouts.verdict_ids(session, rollout.id),
        cause=ruling.cause,
    ) as change:
        change.after |= _take_step(session, rollout, plan, ruling, command.now, entry)
        worst = _gate_facts(plan, ruling.worst) if ruling.worst else {}
        change.alert = ChangeAlert(
            kind,
            _alert_text(rollout, kind, ruling.reason),
            severity=severity,
            dedupe_key=_dedupe_key(rollout, kind, command.now),
            facts={"control_version": rollout.control_version, **worst},
            exposed_before=True,
        )


def _warn(session: Session, rollout: Rollout, plan: Plan, turned: Sequence[Finding], now: datetime) -> None:
    """Alert the owner of likely but unproven harm. The stage is held until the harm is refuted or proven."""
    warning = {gate.name for gate in plan.gates if gate.warns and not gate.dry_run}
    for finding in turned:
        if finding.gate in warning and finding.verdict is Verdict.INCONCLUSIVE:
            facts = strategy_state(session, rollout.strategy_name) | _gate_facts(plan, finding)
            reason = f"{finding.gate}: {finding.reason}"
            _raise_alert(session, rollout, "rollout.frozen", reason, facts=facts, now=now, gate=finding.gate)


def _gate_facts(plan: Plan, finding: Finding) -> dict[str, Any]:
    """Return a finding as facts of an alert: its figures, and how owners read them."""
    facts = finding.model_dump(mode="json")
    try:
        shown = read_finding(gates_of(plan)[finding.gate], finding)
    except Exception:  # noqa: BLE001  the words of an alert must not stop a rollback
        return facts
    return {**facts, "shown": {name: getattr(shown, name) for name in ("title", "value", "limit", "count")}}


def record_tick(session: Session, rollout: Rollout, ruling: Ruling, now: datetime) -> None:
    """Store the time of the tick, and since when the rollout is blind."""
    blind_since = min(rollout.blind_since or now, now) if ruling.blind else None
    if rollout.last_tick_at is not None and now < rollout.last_tick_at:
        blind_since = blind_since or rollout.blind_since  # a tick for an earlier time does not end the blindness
    rollouts.touch_rollout(session, rollout, last_tick_at=now, blind_since=blind_since)


def _waits_already(rollout: Rollout, ruling: Ruling) -> bool:
    return ruling.step in _WAITS and rollout.state == _WAITS[ruling.step]


def _take_step(
    session: Session, rollout: Rollout, plan: Plan, ruling: Ruling, now: datetime, entry: StageEntry | None
) -> dict[str, Any]:
    """Take the step, and return what the audit event shows beside the strategy's state."""
    entered = {"state": State.RUNNING.value, "stage_entered_at": now, "stage_extended_at": now}
    match ruling.step:
        case Step.ADVANCE:
            following, name = rollout.stage_index + 1, rollout.strategy_name
            if entry is None:
                raise EvidenceUnavailable(f"the users at {plan.stages[following].percent:g} %")
            rollouts.set_canary_share(session, name, entry.share.percent_bp, asked_bp=entry.share.asked_bp)
            rollouts.change_rollout(session, rollout, stage_index=following, reason=ruling.reason, **entered)
            return facts_of_large(name, entry.new_large)
        case Step.LAPSE:
            rollouts.change_rollout(session, rollout, approved_stage=None, reason=ruling.reason)
        case Step.AWAIT_APPROVAL | Step.AWAIT_DECISION:
            state = _WAITS[ruling.step].value
            rollouts.change_rollout(session, rollout, state=state, approved_stage=None, reason=ruling.reason)
        case Step.PROMOTE:
            winner = versions.get_version(session, rollout.strategy_name, rollout.version)
            replace_active(session, winner, outgoing_becomes=Status.SHADOW, now=now)
            rollouts.change_rollout(session, rollout, promoted_at=now, reason=ruling.reason, **entered)
        case Step.COMPLETE:
            end_rollout(session, rollout, State.COMPLETED, ruling.reason, now)
            return {"retired": retire_predecessors(session, rollout, now, keep=plan.watch != "off")}
        case Step.ROLL_BACK:
            reinstate_control(session, rollout, now=now)
            end_rollout(session, rollout, State.ROLLED_BACK, ruling.reason, now)
    return {}


def _raise_alert(
    session: Session,
    rollout: Rollout,
    kind: str,
    reason: str,
    *,
    facts: dict[str, object],
    now: datetime,
    gate: str = "",
) -> None:
    name = rollout.strategy_name
    alerts.raise_alert(
        session,
        kind,
        _alert_text(rollout, kind, reason),
        severity=Severity.WARNING.value,
        strategy_name=name,
        dedupe_key=_dedupe_key(rollout, kind, now, gate),
        facts={
            "version": rollout.version,
            "control_version": rollout.control_version,
            "exposed": exposure_of(session, name, rollout.version, strategy_state(session, name)),
            **facts,
        },
        now=now,
        rollout_id=rollout.id,
    )


def _alert_text(rollout: Rollout, kind: str, reason: str) -> str:
    what = "held" if kind == "rollout.frozen" else kind.removeprefix("rollout.").replace("_", " ")
    return f"{rollout.strategy_name} {rollout.version} {what}: {reason}"


def _dedupe_key(rollout: Rollout, kind: str, now: datetime, gate: str = "") -> str:
    return f"{rollout.id} {kind} {gate} {now.isoformat()}"
