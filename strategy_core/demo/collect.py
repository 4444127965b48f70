"""From the database of a told story to its result: the audit trail is the timeline, verdicts are the reasons."""

from collections.abc import Sequence
from datetime import datetime

from sqlmodel import Session

from strategy_core.demo.result import (
    ComparisonResult,
    DemoResult,
    Event,
    PlanResult,
    RolloutResult,
    StageResult,
    VersionResult,
)
from strategy_core.demo.story import STRATEGY, Story
from strategy_core.domain.comparison import Comparison
from strategy_core.domain.gates import SEVERITY, Verdict
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import ENDED, Step
from strategy_core.store import audit, decisions, rollouts, slots, versions
from strategy_core.store.engine import reading
from strategy_core.store.rollout_tables import AuditEvent, Rollout
from strategy_core.store.tables import ERROR, SIGNALS

_LEAVES_STAGE = (Step.ADVANCE, Step.PROMOTE)


def collect(story: Story, feed: str, started_at: datetime) -> DemoResult:
    """Return what the story came to, read back from what it left in the database."""
    with reading(story.engine) as session:
        events = audit.events(session, STRATEGY)
        journeys = [_rollout(session, story.plan, one, events) for one in rollouts.list_rollouts(session, STRATEGY)]
        present = _versions(session)
    candles = sum(
        len(story.source.candles(symbol, closed_by=story.now, since=started_at)) for symbol in story.source.symbols()
    )
    return DemoResult(
        feed=feed,
        symbols=list(story.source.symbols()),
        started_at=started_at,
        ended_at=story.now,
        candles=candles,
        versions=present,
        comparisons=[_comparison(*each) for each in story.comparisons],
        plans=[
            PlanResult(
                version=version,
                slots_per_day=told.slots_per_day,
                underpowered=told.underpowered,
                verdict=told.verdict,
            )
            for version, told in story.previews
        ],
        rollouts=journeys[::-1],
        timeline=[_event(event) for event in events],
        ending=_ending(journeys[::-1]),
    )


def _event(event: AuditEvent) -> Event:
    return Event(
        at=event.at,
        actor=event.actor,
        action=event.action,
        version=event.version,
        percent=event.after["percent"],
        reason=event.reason,
    )


def _rollout(session: Session, plan: Plan, rollout: Rollout, events: Sequence[AuditEvent]) -> RolloutResult:
    closed, _ = slots.read_slots(
        session, STRATEGY, rollout.version, rollout.control_version, start=rollout.started_at, end=rollout.ended_at
    )
    stages: list[StageResult] = []
    entered_at = rollout.started_at
    mine = [event for event in events if event.rollout_id == rollout.id]
    for event in mine:
        if event.action in _LEAVES_STAGE:
            percent = plan.stages[len(stages)].percent
            stages.append(
                StageResult(
                    percent=percent, entered_at=entered_at, left_at=event.at, verdict="pass", reason=event.reason
                )
            )
            entered_at = event.at
    if rollout.promoted_at is None:
        worst = min(
            rollouts.last_verdicts(session, rollout.id).values(),
            key=lambda row: SEVERITY[Verdict(row.verdict)],
            default=None,
        )
        stages.append(
            StageResult(
                percent=plan.stages[rollout.stage_index].percent,
                entered_at=entered_at,
                left_at=rollout.ended_at,
                verdict=worst.verdict if worst else "insufficient",
                reason=rollout.reason if rollout.state in ENDED or worst is None else f"{worst.gate}: {worst.reason}",
            )
        )
    return RolloutResult(
        version=rollout.version,
        control_version=rollout.control_version,
        state=rollout.state,
        started_at=rollout.started_at,
        ended_at=rollout.ended_at,
        slots=len(closed),
        reason=rollout.reason,
        stages=stages,
    )


def _comparison(shadow: str, active: str, days: float, found: Comparison) -> ComparisonResult:
    return ComparisonResult(
        shadow_version=shadow,
        active_version=active,
        days=days,
        shadow_signal_count=found.shadow_signal_count,
        active_signal_count=found.active_signal_count,
        divergence_rate=found.divergence_rate,
        shadow_win_rate=found.shadow.win_rate,
        active_win_rate=found.active.win_rate,
        difference=found.difference.mean,
        low=found.difference.low,
        high=found.difference.high,
        slots=found.difference.n,
    )


def _versions(session: Session) -> list[VersionResult]:
    counts = decisions.decisions_by_kind(session, STRATEGY)

    def count(version: str, *said: str) -> int:
        return sum(n for (of, decision), n in counts.items() if of == version and (not said or decision in said))

    return [
        VersionResult(
            version=version.version,
            entry_point=version.entry_point,
            config=version.config,
            status=version.status,
            quarantined=version.quarantined_at is not None,
            decisions=count(version.version),
            signals=count(version.version, *SIGNALS),
            errors=count(version.version, ERROR),
        )
        for version in versions.list_versions(session, STRATEGY)
    ]


def _ending(journeys: Sequence[RolloutResult]) -> str:
    """Return the story in a sentence a rollout, as an owner would tell it."""
    told = []
    for one in journeys:
        if one.state == "completed":
            told.append(
                f"{one.version} proved not worse than {one.control_version} on {one.slots} slots and replaced it."
            )
        elif one.state == "rolled_back":
            told.append(f"{one.version} was rolled back: {one.reason}.")
        else:
            told.append(f"{one.version} is {one.state.replace('_', ' ')}: no answer on {one.slots} slots yet.")
    return " ".join(told)
