"""Rollout reports: progress, outcome, and the reasons of a rollback. Read-only."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import log10
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import ROLLED_BACK, SURE, ClockCheck, Severity
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidPlan, UnknownRollout
from strategy_core.domain.gates.base import SEVERITY, Verdict
from strategy_core.domain.gates.on_slots import Harm
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import load_plan
from strategy_core.domain.readings import GateReading
from strategy_core.domain.routing import as_percent
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.evidence import own_slots
from strategy_core.services.history import (
    ComparisonCurves,
    Day,
    Equity,
    ServedSpan,
    comparison_curves,
    count_users,
    days_of,
    read_equity,
    served,
    share_at,
)
from strategy_core.services.status import RolloutStatus, read_verdict_rows, rollout_status
from strategy_core.services.transitions import strategy_state
from strategy_core.store import alerts, audit, decisions, evidence, outcomes, pagination, rollouts, versions
from strategy_core.store.engine import snapshot
from strategy_core.store.tables import (
    AlertOutbox,
    AuditEvent,
    BookedSlot,
    FailedRun,
    GateVerdict,
    Rollout,
    ShadowDecisionLog,
)

_POINTS = 300  # of the e-process
_MOST_CHANGES = 200
_NEWEST_ROWS = 10
_NEWEST_ERRORS = 5
_ERRORS_FOR = timedelta(days=30)  # before the rollback of a version without a rollout
_ALERTS_READ = 100  # the newest of the strategy, and of incidents of several strategies
_ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class HarmPath:
    """The e-process of harm over time, as log10 E.

    Attributes:
        at, log_e: moments, and the highest value since the previous moment. Each holds until the next.
        limit: the value from which the rollout is rolled back.
        freeze_at: the value from which the stage is held.
    """

    at: tuple[datetime, ...]
    log_e: tuple[float, ...]
    limit: float
    freeze_at: float

    @classmethod
    def of(cls, gate: Harm, at: Iterable[datetime], log_e: Iterable[float]) -> "HarmPath":
        return cls(tuple(at), tuple(log_e), limit=-log10(gate.alpha), freeze_at=log10(gate.freeze_at))


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a rollout.

    Attributes:
        at: the moment of the report, or the end of the rollout.
        started_by: the actor, if the trail has one.
        percent: the version's share of users at that moment.
        users, directory: users of the version and of the whole directory, if one is loaded.
        harm: the path of the plan's harm gate, if it has one with values.
        excluded: by symbol, since when it was excluded from the canary. Its later candles are left out of reports.
    """

    status: RolloutStatus
    at: datetime
    started_by: str | None
    percent: float
    users: int | None
    directory: int | None
    served: Sequence[ServedSpan]
    harm: HarmPath | None
    excluded: Mapping[str, datetime]


@dataclass(frozen=True, slots=True)
class RollbackCost:
    """R over the booked slots, for a user who copied every signal of the canary, and of the control.

    Attributes:
        risk_fraction: share of equity risked on one R.
    """

    slots: int
    canary_r: float
    control_r: float
    risk_fraction: float

    @property
    def difference_r(self) -> float:
        return self.canary_r - self.control_r


@dataclass(frozen=True, slots=True)
class RollbackFacts:
    """Why users were taken off a version, the rows this rests on, and the users it had reached.

    Attributes:
        event: the audit event of the rollback.
        gate: the verdict that decided, or None for a rollback by a person.
        verdicts: the verdicts of all gates, the worst first. If the event names rows, these rows.
        readings: by gate, its verdict as owners read it.
        slots: the last booked slots, newest first.
        decisions: the version's last decisions before the rollback, newest first.
        errors: the version's newest errors before the rollback, newest first.
        excluded: by symbol, since when it was excluded. Its later candles are left out of errors and decisions.
        failed_run: the newest run before the rollback in which the version could not be run.
        alerts: the alerts about the version that were open at the rollback, newest first.
        now_active: the version that serves users since.
        cost: of the rollout's booked slots, if it was a rollout.
        equity, harm: of both versions and of the evidence, until the rollback, if it was a rollout.
        percent: of the stage that it was at, if it was a rollout.
    """

    event: AuditEvent
    gate: GateVerdict | None
    verdicts: Sequence[GateVerdict]
    slots: Sequence[BookedSlot]
    decisions: Sequence[ShadowDecisionLog]
    errors: Sequence[ShadowDecisionLog]
    failed_run: FailedRun | None
    alerts: Sequence[AlertOutbox]
    served: Sequence[ServedSpan]
    directory: int | None
    now_active: str | None
    cost: RollbackCost | None
    excluded: Mapping[str, datetime]
    readings: Mapping[str, GateReading]
    equity: Equity | None
    harm: HarmPath | None
    percent: float | None


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """The full report of a rollout.

    Attributes:
        usual_unlike: share of slots on which the two versions differed in shadow.
        comparison: the pair's newest nightly comparison with its curves, if there is one.
        changes: the newest audit events of the rollout, oldest first.
    """

    progress: Progress
    cost: RollbackCost
    equity: Equity
    days: Sequence[Day]
    usual_unlike: float | None
    comparison: ComparisonCurves | None
    changes: Sequence[AuditEvent]
    rolled_back: RollbackFacts | None


def read_report(
    engine: Engine, rollout_id: UUID, *, now: datetime, clock: ClockCheck = SURE
) -> tuple[RolloutReport, int]:
    """Return the report of an open or ended rollout, and the generation of its strategy.

    Raises:
        UnknownRollout
    """
    now = utc(now, "now")
    with snapshot(engine) as session:
        rollout, generation = pagination.rollout_at(session, rollout_id)
        progress = _progress(session, rollout, now, clock, with_live_trades=True)
        pair = (rollout.strategy_name, rollout.version, rollout.control_version)
        nightly = outcomes.newest_report(session, *pair)
        undone = _rollback_event(session, rollout)
        report = RolloutReport(
            progress=progress,
            cost=cost_of(session, rollout),
            equity=read_equity(
                session, *pair, start=rollout.started_at, end=progress.at, left_out=_left_out(session, rollout)
            ),
            days=days_of(evidence.booked_by_day(session, rollout_id, first=own_slots(session, rollout))),
            usual_unlike=_usual_unlike(session, rollout),
            comparison=None if nightly is None else comparison_curves(session, nightly),
            changes=audit.find_events(session, limit=_MOST_CHANGES, newest=True, rollout_id=rollout_id),
            rolled_back=None if undone is None else _rollback_facts(session, undone, rollout),
        )
        return report, generation


def resolve_rollout(engine: Engine, named: str) -> UUID:
    """Return *named* as a rollout id, or the id of the newest rollout of the strategy of that name.

    Raises:
        UnknownRollout, UnknownStrategy
    """
    with suppress(ValueError):
        return UUID(named)
    with snapshot(engine) as session:
        versions.get_strategy(session, named)
        found = rollouts.list_rollouts(session, named)
    if not found:
        raise UnknownRollout(f"of {named!r}")
    return found[0].id


def read_progress(
    engine: Engine, rollout_ids: Sequence[UUID], *, now: datetime, clock: ClockCheck = SURE
) -> Iterator[Progress]:
    """Yield the progress of these rollouts, without live trades.

    Rollouts with an unreadable plan are skipped.
    """
    now = utc(now, "now")
    with snapshot(engine) as session:
        for rollout_id in rollout_ids:
            rollout = rollouts.get_rollout(session, rollout_id)
            with suppress(InvalidPlan):
                yield _progress(session, rollout, now, clock, with_live_trades=False)


def read_rollback(engine: Engine, *, rollout_id: UUID | None = None, event: AuditEvent | None = None) -> RollbackFacts:
    """Return the facts of a rollback, by the rollout that it ended or by its *event*.

    Raises:
        UnknownRollout: there is no such rollout, or it was not rolled back.
    """
    with snapshot(engine) as session:
        of = rollout_id if event is None else event.rollout_id
        rollout = None if of is None else rollouts.get_rollout(session, of)
        undone = event or (_rollback_event(session, rollout) if rollout else None)
        if undone is None:
            raise UnknownRollout(f"{rollout_id} that was rolled back")
        return _rollback_facts(session, undone, rollout)


def _progress(
    session: Session, rollout: Rollout, now: datetime, clock: ClockCheck, *, with_live_trades: bool
) -> Progress:
    at = rollout.ended_at or max(now, rollout.started_at)
    shares = served(session, rollout.strategy_name, rollout.version, since=rollout.started_at, until=at)
    (first, beyond), users = share_at(session, rollout.strategy_name, rollout.version, at)
    return Progress(
        status=rollout_status(session, rollout, at, clock, with_live_trades=with_live_trades),
        at=at,
        started_by=audit.starter(session, rollout.id),
        percent=as_percent(beyond - first),
        users=users,
        directory=count_users(session, rollout.strategy_name),
        served=shares,
        harm=harm_path(session, rollout),
        excluded=_excluded(session, rollout),
    )


def _excluded(session: Session, rollout: Rollout) -> dict[str, datetime]:
    """Return by symbol since when it was excluded, by the audit trail: the canary of an ended rollout has no more."""
    events = audit.find_events(session, limit=None, newest=False, rollout_id=rollout.id, action="exclude_symbol")
    found = ((event.after.get("symbol"), event.after.get("since")) for event in events)
    return {symbol: datetime.fromisoformat(since) for symbol, since in found if symbol and since}


def _left_out(session: Session, rollout: Rollout) -> dict[str, datetime]:
    """Return by excluded symbol the first candle that does not count: a signal comes when its candle closes."""
    timeframe = timeframe_delta(versions.get_version(session, rollout.strategy_name, rollout.version).timeframe)
    return {symbol: since - timeframe for symbol, since in _excluded(session, rollout).items()}


def harm_path(session: Session, rollout: Rollout) -> HarmPath | None:
    """Return the path of the plan's harm gate, if it has one with values."""
    gate = next((gate for gate in load_plan(rollout.plan).gates if isinstance(gate, Harm)), None)
    peaks = rollouts.value_peaks(session, rollout.id, gate.name, most=_POINTS) if gate else []
    if gate is None or not peaks:
        return None
    at, values = zip(*peaks, strict=True)
    return HarmPath.of(gate, at, values)


def cost_of(session: Session, rollout: Rollout) -> RollbackCost:
    """Return R over the rollout's booked slots."""
    slots, canary_r, control_r = evidence.booked_r(session, rollout.id, first=own_slots(session, rollout))
    risk = ScoringRule.model_validate(versions.get_strategy(session, rollout.strategy_name).scoring).risk_fraction
    return RollbackCost(slots, canary_r, control_r, risk)


def _usual_unlike(session: Session, rollout: Rollout) -> float | None:
    history = evidence.get_book(session, rollout.id).history
    return History.model_validate(history).unlike_share if history else None


def _rollback_event(session: Session, rollout: Rollout) -> AuditEvent | None:
    return next(iter(audit.find_events(session, limit=1, newest=True, rollout_id=rollout.id, action=_ROLL_BACK)), None)


def _rollback_facts(session: Session, event: AuditEvent, rollout: Rollout | None) -> RollbackFacts:
    verdicts = _verdicts(session, event, rollout)
    since = rollout.started_at if rollout else event.at - _ERRORS_FOR
    failed = decisions.failed_run(session, event.strategy_name, event.version)
    symbols = versions.get_version(session, event.strategy_name, event.version).symbols
    left_out = _left_out(session, rollout) if rollout else {}
    newest = (
        row
        for symbol in symbols
        for row in decisions.find_decisions(
            session,
            event.strategy_name,
            event.version,
            symbol,
            end=min(event.at, left_out.get(symbol, event.at)),
            limit=_NEWEST_ROWS,
        )
        if row.logged_at <= event.at  # later decisions were made in shadow
    )
    return RollbackFacts(
        event=event,
        gate=_deciding_verdict(event, verdicts),
        verdicts=verdicts,
        slots=[] if rollout is None else evidence.newest_booked(session, rollout.id, _NEWEST_ROWS),
        errors=decisions.find_errors(
            session,
            event.strategy_name,
            event.version,
            since=since,
            before=event.at,
            limit=_NEWEST_ERRORS,
            left_out=left_out,
        ),
        failed_run=failed if failed is not None and since <= failed.at <= event.at else None,
        alerts=_open_alerts(session, event),
        decisions=sorted(newest, key=lambda row: (row.timestamp, row.symbol), reverse=True)[:_NEWEST_ROWS],
        served=served(
            session,
            event.strategy_name,
            event.version,
            since=rollout.started_at if rollout else None,
            until=event.at,
        ),
        directory=count_users(session, event.strategy_name),
        now_active=strategy_state(session, event.strategy_name)["active"],
        cost=None if rollout is None else cost_of(session, rollout),
        excluded=_excluded(session, rollout) if rollout else {},
        readings={} if rollout is None else read_verdict_rows(rollout, verdicts),
        equity=None if rollout is None else _equity_until(session, rollout, event.at),
        harm=None if rollout is None else harm_path(session, rollout),
        percent=None if rollout is None else load_plan(rollout.plan).stages[rollout.stage_index].percent,
    )


def _equity_until(session: Session, rollout: Rollout, end: datetime) -> Equity:
    pair = (rollout.strategy_name, rollout.version, rollout.control_version)
    left_out = _left_out(session, rollout)
    return read_equity(session, *pair, start=rollout.started_at, end=end, left_out=left_out)


def _open_alerts(session: Session, event: AuditEvent) -> list[AlertOutbox]:
    """Return the newest alerts about a version that were not acknowledged when it was rolled back."""
    found = []
    for alert in alerts.alerts_before(session, event.strategy_name, event.at, limit=_ALERTS_READ):
        was_open = alert.acknowledged_at is None or alert.acknowledged_at >= event.at
        about = alert.facts.get("version") == event.version or event.strategy_name in alert.facts.get("strategies", ())
        if was_open and about and alert.severity != Severity.INFO and alert.kind != ROLLED_BACK:
            found.append(alert)
    return found[:_NEWEST_ERRORS]


def _verdicts(session: Session, event: AuditEvent, rollout: Rollout | None) -> list[GateVerdict]:
    """Return the verdicts that the event rests on. For a rollback by a person, the last verdicts."""
    if event.evidence:
        found = rollouts.find_verdicts(session, [UUID(each) for each in event.evidence])
    else:
        found = [] if rollout is None else list(rollouts.last_verdicts(session, rollout.id).values())
    return sorted(found, key=lambda row: (not row.armed, SEVERITY[Verdict(row.verdict)], row.gate))


def _deciding_verdict(event: AuditEvent, verdicts: Sequence[GateVerdict]) -> GateVerdict | None:
    """Return the verdict that a tick's ruling quotes in its reason. A person's rollback has no such verdict."""
    if not event.evidence or not verdicts:
        return None
    return next((row for row in verdicts if f"{row.gate}: {row.reason}" in event.reason), verdicts[0])
