"""Reports that are written for owners without being asked for, and stored nightly comparisons.

A report is stored as facts, together with the digest of the page that is rendered from them. Facts are read in one
snapshot, and the page is rendered before the transaction that stores it. So a report holds no lock of a strategy.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any
from uuid import UUID

import numpy as np
import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import REPORT_READY, SURE, ClockCheck, Severity
from strategy_core.domain.comparison import Comparison, Interval, day_cluster_interval
from strategy_core.domain.errors import UnknownReport
from strategy_core.domain.gates.base import format_duration, format_r
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.owner_reports import (
    Kind,
    Reading,
    ShadowVerdict,
    as_clause,
    day_before,
    in_one_sentence,
    judge_shadow,
    news,
    week_before,
)
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import State
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.evidence import LOOK_BACK, in_a_line, live_since, read_shadow, shared_symbols
from strategy_core.services.history import Day, Equity, comparison_curves
from strategy_core.services.queries import Scope
from strategy_core.services.report_facts import (
    ALPHA,
    DroppedVersion,
    GateFacts,
    ReportFacts,
    RolloutFacts,
    VersionFacts,
)
from strategy_core.services.reports import RolloutReport, read_report
from strategy_core.services.transitions import strategy_state
from strategy_core.store import alerts, outcomes, owner_reports, rollouts, versions
from strategy_core.store.engine import reading, retry_transient, snapshot, transaction
from strategy_core.store.tables import ComparisonReport, OwnerReport, Rollout, StrategyVersion

FINAL_WITHIN = timedelta(days=7)  # after its end, a rollout gets a final report
_POINTS = 150  # of each equity curve
_NOTES = (Kind.MORNING, Kind.WEEKLY)
_READY = (Reading.READY, Reading.NEVER)

log = structlog.get_logger(__name__)


Page = Callable[[ReportFacts], str]  # renders facts. The report layer is above the services


@dataclass(frozen=True, slots=True)
class WrittenReports:
    """The reports that a run has written, and the problems of those that it could not write, a line each."""

    reports: Sequence[OwnerReport]
    problems: Sequence[str]


def write_reports(engine: Engine, page: Page, *, now: datetime, clock: ClockCheck = SURE) -> WrittenReports:
    """Write the reports that are due, and raise an alert for each. A report that fails does not stop the others.

    A report is written once, however often this runs: final reports of rollouts that have ended, ready notes, and for
    each strategy with an open rollout or a version to replace the active one, the report of last week or else the
    morning note of today. Without news, or on the day of a ready note, there is no morning note.
    """
    now = utc(now, "now")
    written = write_final_reports(engine, page, now=now, clock=clock)
    reports, problems = list(written.reports), list(written.problems)
    with reading(engine) as session:
        names = versions.strategy_names(session)
    for name in names:
        try:
            for facts in _due_notes(engine, name, now, clock):
                reports += _write(engine, page, facts)
        except Exception as error:  # noqa: BLE001  the other strategies get theirs
            problems.append(_problem(name, error))
    return WrittenReports(reports, problems)


def write_final_reports(
    engine: Engine, page: Page, *, now: datetime, clock: ClockCheck = SURE, most: int | None = None
) -> WrittenReports:
    """Write the final report of each rollout that has ended in the last week and has none. Raises nothing.

    It runs after a tick has been committed, so an error here is only logged and returned.

    Args:
        most: write at most so many, and leave the others for the next run.
    """
    now = utc(now, "now")
    reports: list[OwnerReport] = []
    problems: list[str] = []
    try:
        with reading(engine) as session:
            ended = owner_reports.ended_without_report(session, Kind.FINAL, now - FINAL_WITHIN, limit=most)
    except Exception as error:  # noqa: BLE001  as below
        return WrittenReports([], [_problem("final reports", error)])
    for rollout in ended:
        try:
            reports += _write(engine, page, _final_facts(engine, rollout, now, clock))
        except Exception as error:  # noqa: BLE001  the rollback is committed and must not fail now
            problems.append(_problem(f"{rollout.strategy_name} {rollout.version}", error))
    return WrittenReports(reports, problems)


def list_owner_reports(
    engine: Engine, scope: Scope, *, before: tuple[datetime, UUID] | None = None, limit: int = 100
) -> Sequence[OwnerReport]:
    """Return a page of reports without their facts, newest first, before the cursor *before*.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
        return owner_reports.page_owner_reports(session, strategies=scope.names, before=before, limit=limit)


def find_owner_report(engine: Engine, report_id: UUID) -> tuple[OwnerReport, ReportFacts]:
    """Return a report and its facts.

    Raises:
        UnknownReport
    """
    with reading(engine) as session:
        found = owner_reports.get_owner_report(session, report_id)
    return found, ReportFacts.model_validate(found.facts)


def resolve_owner_report(engine: Engine, named: str) -> tuple[OwnerReport, ReportFacts] | None:
    """Return the report with the id *named*, or None if that is the name or id of something else."""
    with suppress(ValueError, UnknownReport):
        return find_owner_report(engine, UUID(named))
    return None


def list_comparisons(
    engine: Engine,
    scope: Scope,
    *,
    version: str | None = None,
    since: datetime | None = None,
    before: tuple[datetime, UUID] | None = None,
    limit: int = 100,
) -> Sequence[ComparisonReport]:
    """Return a page of nightly comparisons, newest first, before the cursor *before*.

    Args:
        since: leave out those that were made before.

    Raises:
        UnknownStrategy, UnknownVersion
    """
    with reading(engine) as session:
        if scope.strategy_name is not None:
            versions.get_strategy(session, scope.strategy_name)
            if version is not None:
                versions.get_version(session, scope.strategy_name, version)
        return owner_reports.page_comparisons(
            session, strategies=scope.names, version=version, since=since, before=before, limit=limit
        )


def find_comparison(engine: Engine, comparison_id: UUID) -> ComparisonReport:
    """Return a nightly comparison.

    Raises:
        UnknownReport
    """
    with reading(engine) as session:
        return owner_reports.get_comparison(session, comparison_id)


def _problem(what: str, error: Exception) -> str:
    line = f"{what}: {in_a_line(error)}"
    log.warning("report.not_written", problem=line)
    return line


def _write(engine: Engine, page: Page, facts: ReportFacts) -> list[OwnerReport]:
    """Store the report and raise its alert, unless another process has done so."""
    data = _compact(facts.model_dump(mode="json"))
    report = OwnerReport(
        kind=facts.kind,
        strategy_name=facts.strategy_name,
        subject=facts.subject,
        period_start=facts.period_start,
        period_end=facts.period_end,
        sentence=facts.sentence,
        facts=data,
        html_sha256=sha256(page(ReportFacts.model_validate(data)).encode()).hexdigest(),
        created_at=facts.at,
    )
    return [report] if _keep(engine, report, facts) else []


@retry_transient()
def _keep(engine: Engine, report: OwnerReport, facts: ReportFacts) -> bool:
    with transaction(engine) as session:
        if not owner_reports.keep_owner_report(session, report):
            return False
        alerts.raise_alert(
            session,
            REPORT_READY,
            f"{report.strategy_name}: {facts.sentence}",
            severity=Severity.INFO.value,
            strategy_name=report.strategy_name,
            dedupe_key=f"report {report.strategy_name} {report.kind} {report.subject}",
            facts={
                "report": str(report.id),
                "report_kind": report.kind,
                "version": facts.rollout.version if facts.rollout and facts.kind is Kind.FINAL else "",
                "period_start": report.period_start.isoformat(),
                "period_end": report.period_end.isoformat(),
            },
            now=report.created_at,
            rollout_id=facts.rollout.id if facts.rollout and facts.kind is Kind.FINAL else None,
        )
    return True


def _compact(value: Any) -> Any:
    """Return *value* with six digits a number and sorted keys, as both databases give it back."""
    match value:
        case float():
            return float(f"{value:.6g}") + 0.0  # no -0.0, which PostgreSQL does not keep
        case dict():
            return {key: _compact(value[key]) for key in sorted(value)}
        case list() | tuple():
            return [_compact(each) for each in value]
        case _:
            return value


# Morning notes, weekly reports and ready notes


def _due_notes(engine: Engine, name: str, now: datetime, clock: ClockCheck) -> Iterator[ReportFacts]:
    """Yield the facts of the strategy's reports that are due, without final reports."""
    day, week = day_before(now), week_before(now)
    subjects = {Kind.MORNING: f"{day[1]:%Y-%m-%d}", Kind.WEEKLY: f"{week[0]:%G-W%V}"}
    with reading(engine) as session:
        known = versions.list_versions(session, name)
        active = next((each for each in known if each.status == Status.ACTIVE), None)
        rollout = rollouts.open_rollout(session, name)
        kept = {kind: owner_reports.is_kept(session, name, kind, subjects[kind]) for kind in _NOTES}
        announced = owner_reports.newest_owner_report(session, name, Kind.READY)
    challengers = [each for each in known if _is_tried(each)]
    if active is None or not (challengers or rollout):
        return
    facts = _strategy_facts(engine, name, rollout, now, clock)
    ready = [_ready_facts(engine, facts, each) for each in facts.versions if each.reading in _READY]
    yield from filter(None, ready)
    is_enough = any(ready) or (announced is not None and announced.created_at >= day[1])  # one note a day
    is_weekly = not kept[Kind.WEEKLY] and any(live_since(each, active) <= week[0] for each in challengers)
    if is_weekly:
        yield _note(engine, facts, Kind.WEEKLY, subjects[Kind.WEEKLY], week)
    elif not kept[Kind.MORNING] and not is_enough:
        note = _note(engine, facts, Kind.MORNING, subjects[Kind.MORNING], day)
        if note.news:
            yield note


def _note(
    engine: Engine, facts: ReportFacts, kind: Kind, subject: str, period: tuple[datetime, datetime]
) -> ReportFacts:
    """Return the facts of a note with what has changed since the last one. A week counts from the last week's."""
    with reading(engine) as session:
        of_kinds = [
            owner_reports.newest_owner_report(session, facts.strategy_name, each)
            for each in ((Kind.WEEKLY,) if kind is Kind.WEEKLY else _NOTES)
        ]
    last = max((each for each in of_kinds if each is not None), key=lambda each: each.created_at, default=None)
    before = None if last is None else last.facts.get("state", {})
    about = {"kind": kind, "subject": subject, "period_start": period[0], "period_end": period[1]}
    return facts.model_copy(update={**about, "news": tuple(news(before, facts.state))})


def _ready_facts(engine: Engine, facts: ReportFacts, one: VersionFacts) -> ReportFacts | None:
    """Return the facts of a ready note, unless there has been one about this version, this reading and this active."""
    subject = f"{one.version} against {facts.active}: {one.reading}"
    with reading(engine) as session:
        if owner_reports.is_kept(session, facts.strategy_name, Kind.READY, subject):
            return None
    return facts.model_copy(
        update={
            "kind": Kind.READY,
            "subject": subject,
            "period_start": one.compared_from or facts.period_start,
            "period_end": facts.at,
            "sentence": in_one_sentence(one.text, one.next_step),
            "versions": (one,),
            "rollout": None,
        }
    )


def _strategy_facts(
    engine: Engine, name: str, rollout: Rollout | None, now: datetime, clock: ClockCheck
) -> ReportFacts:
    """Return where a strategy stands, with every version that is compared with the active one."""
    report = None if rollout is None else read_report(engine, rollout.id, now=now, clock=clock)[0]
    with snapshot(engine) as session:
        known = versions.list_versions(session, name)
        active = versions.active_version(session, name)
        risk_fraction = ScoringRule.model_validate(versions.get_strategy(session, name).scoring).risk_fraction
        dropped = _dropped(session, known, active)
        challengers = [each for each in known if _is_tried(each) and shared_symbols(each, active)]
        tried = len(challengers) + len(dropped)
        confidence = 1 - ALPHA / max(1, tried)
        found = [_version_facts(session, each, active, confidence, risk_fraction, rollout, now) for each in challengers]
        state = _state_of(session, name, known, found, report)
    standing = None if report is None else _rollout_facts(report, active.version)
    found.sort(key=lambda each: (each.status != Status.CANARY, _urgency(each.reading), each.version))
    sentence = _lead(active.version, standing, found, state["percent"])
    start, end = day_before(now)
    return ReportFacts(
        kind=Kind.MORNING,
        subject="",
        strategy_name=name,
        active=active.version,
        at=now,
        period_start=start,
        period_end=end,
        sentence=sentence,
        versions=tuple(found),
        dropped=tuple(dropped),
        tried=tried,
        confidence=confidence,
        rollout=standing,
        risk_fraction=risk_fraction,
        state=state,
    )


def _is_tried(version: StrategyVersion) -> bool:
    """Return whether a version is to replace the active one: not rolled back from it, and not its predecessor."""
    waits = version.status == Status.SHADOW and version.quarantined_at is None and version.activated_at is None
    return waits or version.status == Status.CANARY


def _urgency(reading: str) -> int:
    return list(Reading).index(Reading(reading)) if reading else -1


def _dropped(session: Session, known: Sequence[StrategyVersion], active: StrategyVersion) -> list[DroppedVersion]:
    """Return the versions that were tried since the active one became active, and are not any more."""
    since = active.activated_at or active.created_at
    found = []
    for each in known:
        rolled_back, retired = each.quarantined_at, each.retired_at if each.status == Status.RETIRED else None
        if each.id == active.id or (rolled_back is None and each.activated_at is not None):
            continue
        if rolled_back is not None and rolled_back >= since:
            mine = (one for one in rollouts.list_rollouts(session, each.strategy_name) if one.version == each.version)
            reason = next((one.reason for one in mine if one.state == State.ROLLED_BACK), "")
            why = f"rolled back: {reason}" if reason else "rolled back"
            found.append(DroppedVersion(version=each.version, why=why, at=rolled_back))
        elif retired is not None and retired >= since:
            found.append(DroppedVersion(version=each.version, why="retired from shadow", at=retired))
    return found


def _version_facts(
    session: Session,
    version: StrategyVersion,
    active: StrategyVersion,
    confidence: float,
    risk_fraction: float,
    rollout: Rollout | None,
    now: datetime,
) -> VersionFacts:
    nightly = outcomes.newest_report(session, version.strategy_name, version.version, active.version)
    curves = None if nightly is None else comparison_curves(session, nightly)
    days = () if curves is None else curves.days
    verdict = None
    if version.status == Status.SHADOW:
        shadow = read_shadow(session, version, active, now)
        verdict = judge_shadow(
            Plan(),
            version.version,
            active.version,
            slots=shadow.slots,
            history=shadow.history,
            risk_fraction=risk_fraction,
            shadow_days=LOOK_BACK / timedelta(days=1),
        )
        if rollout is not None and verdict.reading is Reading.READY:
            verdict = replace(verdict, next_step=f"preview its rollout once that of {rollout.version} has ended")
    return VersionFacts(
        version=version.version,
        status=version.status,
        difference=_difference(days, confidence),
        comparison=None if nightly is None else Comparison.model_validate(nightly.report),
        equity=None if curves is None else _thinned(curves.equity),
        days=days,
        compared_from=None if nightly is None else nightly.period_start,
        compared_to=None if nightly is None else nightly.period_end,
        **_words(verdict),
    )


def _words(verdict: ShadowVerdict | None) -> dict[str, str]:
    if verdict is None:
        return {"reading": "", "text": "", "next_step": ""}
    return {"reading": verdict.reading.value, "text": verdict.text, "next_step": verdict.next_step}


def _difference(days: Sequence[Day], confidence: float) -> Interval:
    """Return the difference in R per slot over all days, with its day-cluster interval."""
    counts = np.array([day.slots for day in days], dtype=np.int64)
    sums = np.array([day.canary_r - day.control_r for day in days], dtype=np.float64)
    return day_cluster_interval(counts, sums, confidence)


def _thinned(equity: Equity) -> Equity:
    """Return at most some _POINTS points, the first and the newest among them."""
    step = max(1, -(-len(equity.at) // _POINTS))
    chosen = sorted({*range(0, len(equity.at), step), len(equity.at) - 1})
    return Equity(*(tuple(each[at] for at in chosen) for each in (equity.at, equity.canary, equity.control)))


def _state_of(
    session: Session,
    name: str,
    known: Sequence[StrategyVersion],
    found: Sequence[VersionFacts],
    report: RolloutReport | None,
) -> dict[str, Any]:
    """Return what the next note compares itself with."""
    standing = strategy_state(session, name)
    rollout = None if report is None else report.progress.status.rollout
    using = [each for each in known if each.status != Status.RETIRED]
    closed = {each.version: outcomes.newest_closed(session, name, each.version) for each in using}
    return {
        "active": standing["active"],
        "percent": standing["percent"],
        "versions": {each.version: each.status for each in known},
        "rollout": None
        if rollout is None
        else {
            "id": str(rollout.id),
            "version": rollout.version,
            "state": rollout.state,
            "verdict": report.progress.status.verdict.kind if report else "",
            "percent": report.progress.percent if report else 0.0,
            "excluded": standing.get("excluded", []),
        },
        "gates": {} if report is None else {row.gate: row.verdict for row in report.progress.status.verdicts},
        "readings": {each.version: each.reading for each in found if each.reading},
        "closed": {version: at.isoformat() for version, at in closed.items() if at is not None},
    }


def _lead(active: str, rollout: RolloutFacts | None, found: Sequence[VersionFacts], percent: float) -> str:
    """Return the first line of a note: the verdict on what needs the owner most, its figures, and the next step."""
    shadows = [each for each in found if each.reading]
    if rollout is not None:
        return _rollout_sentence(rollout) + _also(shadows)
    canary = next((each for each in found if each.status == Status.CANARY), None)
    if canary is not None:  # set by hand
        mean, n = canary.difference.mean or 0.0, canary.difference.n
        text = f"{canary.version} serves {percent:g} % of users without gates, {mean:+.3f} R a slot in {n:,} slots"
        return in_one_sentence(f"{text} against {active}", "start its rollout, or roll it back") + _also(shadows)
    first, *rest = shadows
    return in_one_sentence(first.text, first.next_step) + _also(rest)


def _also(shadows: Sequence[VersionFacts]) -> str:
    if not shadows:
        return ""
    return f" Also in shadow: {', '.join(f'{each.version} ({each.reading})' for each in shadows)}."


# Rollouts


def _rollout_sentence(rollout: RolloutFacts) -> str:
    """Return the verdict on an open rollout, with its figures and the next step."""
    cost = rollout.cost
    figures = f"{format_r(cost.canary_r - cost.control_r)} against {rollout.control_version} in {cost.slots:,} slots"
    at = f"at {rollout.percent:g} % of users"
    where = f"A{at[1:]}" if rollout.verdict.startswith(f"{rollout.version} ") else f"{rollout.version} {at}"
    return in_one_sentence(f"{where}: {rollout.verdict} ({figures})", rollout.next_step)


def _rollout_facts(report: RolloutReport, now_active: str | None) -> RolloutFacts:
    progress = report.progress
    rollout = progress.status.rollout
    return RolloutFacts(
        id=rollout.id,
        version=rollout.version,
        control_version=rollout.control_version,
        state=rollout.state,
        stage_index=rollout.stage_index,
        stages=progress.status.stages,
        percent=progress.percent,
        users=progress.users,
        directory=progress.directory,
        started_at=rollout.started_at,
        started_by=progress.started_by,
        promoted_at=rollout.promoted_at,
        ended_at=rollout.ended_at,
        reason=rollout.reason,
        verdict=as_clause(progress.status.verdict.sentence),
        next_step=progress.status.verdict.next_step,
        needs=progress.status.outlook.needs,
        gates=tuple(GateFacts.model_validate(each, from_attributes=True) for each in progress.status.readings),
        cost=report.cost,
        equity=_thinned(report.equity),
        days=tuple(report.days),
        usual_unlike=report.usual_unlike,
        harm=progress.harm,
        served=tuple(progress.served),
        now_active=now_active,
    )


def _final_facts(engine: Engine, rollout: Rollout, now: datetime, clock: ClockCheck) -> ReportFacts:
    """Return the facts of how a rollout has ended."""
    report, _ = read_report(engine, rollout.id, now=now, clock=clock)
    with reading(engine) as session:
        active = versions.with_status(session, rollout.strategy_name, Status.ACTIVE)
        scoring = versions.get_strategy(session, rollout.strategy_name).scoring
    found = _rollout_facts(report, active.version if active else None)
    return ReportFacts(
        kind=Kind.FINAL,
        subject=str(rollout.id),
        strategy_name=rollout.strategy_name,
        active=found.now_active,
        at=now,
        period_start=rollout.started_at,
        period_end=rollout.ended_at or now,
        sentence=_final_sentence(found),
        rollout=found,
        risk_fraction=ScoringRule.model_validate(scoring).risk_fraction,
    )


def _final_sentence(rollout: RolloutFacts) -> str:
    """Return how a rollout has ended, what it cost or gained, and the next step."""
    cost, ended = rollout.cost, rollout.ended_at or rollout.started_at
    lasted = format_duration(ended - rollout.started_at)
    most = max((span.percent for span in rollout.served), default=0.0)
    figures = (
        f"a user on it has {format_r(cost.canary_r - cost.control_r)} against {rollout.control_version} in "
        f"{cost.slots:,} slots"
    )
    version, active = rollout.version, rollout.now_active
    match State(rollout.state):
        case State.COMPLETED:
            text = f"{version} has replaced {rollout.control_version} after {lasted}: {figures}"
            return in_one_sentence(text, "nothing to do, and you may still roll it back")
        case State.ABORTED:
            text = f"The rollout of {version} was aborted after {lasted} and {most:g} % of users: {figures}"
            return in_one_sentence(text, f"start it again against {active or 'an active version'}, or retire it")
        case _:
            text = f"{version} was rolled back after {lasted} and at most {most:g} % of users: {figures}"
            return in_one_sentence(text, "read why in the report, and register the corrected version")
