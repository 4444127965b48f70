"""Scheduled starts: rollouts that begin at a later time, by the tick. Until then the version stays in shadow."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import START_REFUSED, Severity
from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import (
    Invalid,
    InvalidStartTime,
    NotAwaiting,
    NotFound,
    Refused,
    RolloutError,
    UnknownStart,
    reason_of,
)
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.release_times import FARTHEST_FREEZE
from strategy_core.services.release_times import closed_now
from strategy_core.services.rollouts import check_nothing_scheduled, check_start, open_new_rollout
from strategy_core.services.transitions import ChangeAlert, recorded_change
from strategy_core.store import release_times, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import ScheduledStart

FARTHEST = FARTHEST_FREEZE
STARTED, REFUSED, CANCELLED = "started", "refused", "cancelled"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class DueStart:
    """What a tick did about a scheduled start whose time has come.

    Attributes:
        outcome: `started`, `refused`, or `waits` for the end of a freeze or for a release window.
    """

    strategy_name: str
    version: str
    outcome: str
    reason: str

    @property
    def summary(self) -> str:
        return f"{self.strategy_name} {self.version}: scheduled start {self.outcome}, {self.reason}"


@retry_transient()
def schedule_start(
    engine: Engine, command: Command, *, strategy_name: str, version: str, plan: Plan, start_at: datetime
) -> ScheduledStart:
    """Schedule the start of a rollout: the first tick at or after *start_at* starts it, if it still may start then.

    All checks of a start are made now and again then, apart from freezes and release windows, which delay it. The
    version stays in shadow until then. The rollout counts as started by the command's actor.

    Raises:
        InvalidStartTime: *start_at* is not in the future, or more than 366 days away.
        StartScheduled: another start of the strategy is scheduled.
        The other errors of `start_rollout`.
    """
    now, start_at = utc(command.now, "now"), check_start_time(start_at, command.now)
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        check_nothing_scheduled(session, strategy_name)
        check_start(session, command, strategy_name=strategy_name, version=version, plan=plan)
        with recorded_change(session, command, "schedule_start", strategy_name, version) as change:
            kept = release_times.add_start(
                session,
                ScheduledStart(
                    strategy_name=strategy_name,
                    version=version,
                    plan=plan.model_dump(mode="json"),
                    start_at=start_at,
                    asked_at=now,
                    actor=command.actor.name,
                    role=command.actor.role,
                    source=command.actor.source,
                    reason=command.reason,
                    override_reason=command.override_reason,
                ),
            )
            change.after["scheduled"] = {"id": str(kept.id), "at": start_at.isoformat()}
        return kept


def check_start_time(start_at: datetime, now: datetime) -> datetime:
    """Return *start_at* in UTC. Raise InvalidStartTime if it is not in the future, or more than 366 days away."""
    now, start_at = utc(now, "now"), utc(start_at, "start_at")
    if not now < start_at <= now + FARTHEST:
        raise InvalidStartTime(start_at, now, FARTHEST.days)
    return start_at


@retry_transient()
def cancel_start(
    engine: Engine, command: Command, *, strategy_name: str, start_id: UUID | None = None
) -> ScheduledStart:
    """Cancel the scheduled start of a strategy.

    Args:
        start_id: the expected one, by default the pending one.

    Raises:
        UnknownStrategy
        UnknownStart: no start is scheduled.
        NotAwaiting: *start_id* has ended.
        LostRace: the command's generation is outdated.
    """
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name, command.if_generation)
        pending = release_times.pending_start(session, strategy_name)
        if start_id is not None and (pending is None or pending.id != start_id):
            ended = release_times.get_start(session, start_id)
            raise NotAwaiting("cancel its start", ended.outcome, ["the start is pending"])
        if pending is None:
            raise UnknownStart(f"of {strategy_name!r} is pending")
        _end(session, command, pending, "cancel_start", CANCELLED, f"by {command.actor.shown}")
        return pending


def list_starts(
    engine: Engine, strategy_name: str | None = None, *, strategies: Collection[str] | None = None
) -> Sequence[ScheduledStart]:
    """Return the pending scheduled starts, the earliest first, of one strategy, of those given, or of all.

    Raises:
        UnknownStrategy
    """
    with reading(engine) as session:
        if strategy_name is not None:
            versions.get_strategy(session, strategy_name)
            strategies = [strategy_name]
        found = release_times.pending_starts(session)
    return [each for each in found if strategies is None or each.strategy_name in strategies]


def find_start(engine: Engine, start_id: UUID) -> ScheduledStart:
    """Return a scheduled start, pending or ended. Raises UnknownStart."""
    with reading(engine) as session:
        return release_times.get_start(session, start_id)


def start_due(engine: Engine, *, now: datetime, in_replay: Callable[[Plan], Plan] | None = None) -> list[DueStart]:
    """Start the rollouts whose scheduled time has come. One that fails does not stop the others.

    A start waits for the end of a freeze and for its plan's release window. One that is refused for another reason ends
    with an alert.

    Args:
        in_replay: widens the limits of a plan for a replay.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        due = [
            (each.id, each.strategy_name, each.version) for each in release_times.pending_starts(session, due_by=now)
        ]
    found = []
    for start_id, strategy_name, version in due:
        try:
            done = _start_one(engine, start_id, strategy_name, now, in_replay)
        except Exception as error:  # noqa: BLE001  a tick goes on: the start stays pending, and the next tick tries again
            log.warning("start.failed", strategy=strategy_name, version=version, error=reason_of(error))
            done = DueStart(strategy_name, version, "waits", reason_of(error))
        if done is not None:
            found.append(done)
    return found


@retry_transient()
def _start_one(
    engine: Engine, start_id: UUID, strategy_name: str, now: datetime, in_replay: Callable[[Plan], Plan] | None
) -> DueStart | None:
    """Start one rollout, or end its schedule as refused. Return None if it has ended meanwhile."""
    try:
        with transaction(engine) as session:
            versions.lock_strategy(session, strategy_name)
            pending = _still_pending(session, start_id, strategy_name)
            if pending is None:
                return None
            plan = load_plan(pending.plan)
            if closed := closed_now(session, strategy_name, now, plan.advance_windows):
                return DueStart(strategy_name, pending.version, "waits", closed)
            rollout = open_new_rollout(
                session,
                _command(session, pending, now),
                strategy_name=strategy_name,
                version=pending.version,
                plan=plan,
                in_replay=in_replay,
            )
            because = f"scheduled for {pending.start_at:%Y-%m-%d %H:%M} UTC"
            release_times.end_start(session, pending, STARTED, because=because, now=now, rollout_id=rollout.id)
            return DueStart(strategy_name, pending.version, STARTED, because)
    except RolloutError as error:
        if not isinstance(error, NotFound | Refused | Invalid):  # the others pass
            raise
        return _refuse(engine, start_id, strategy_name, reason_of(error), now)


def _refuse(engine: Engine, start_id: UUID, strategy_name: str, why: str, now: datetime) -> DueStart | None:
    with transaction(engine) as session:
        versions.lock_strategy(session, strategy_name)
        pending = _still_pending(session, start_id, strategy_name)
        if pending is None:
            return None
        _end(session, _command(session, pending, now), pending, "refuse_start", REFUSED, why)
        return DueStart(strategy_name, pending.version, REFUSED, why)


def _end(session: Session, command: Command, pending: ScheduledStart, action: str, outcome: str, because: str) -> None:
    name, version = pending.strategy_name, pending.version
    reason = because if outcome == REFUSED else command.stated_reason
    with recorded_change(session, command, action, name, version, reason=reason) as change:
        release_times.end_start(session, pending, outcome, because=because, now=command.now)
        change.after["scheduled"] = {"id": str(pending.id), "at": pending.start_at.isoformat()}
        if outcome == REFUSED:
            change.alert = ChangeAlert(
                START_REFUSED,
                f"the scheduled start of {name} {version} was refused: {because}",
                severity=Severity.WARNING.value,
                dedupe_key=f"{pending.id} refused",
            )


def _still_pending(session: Session, start_id: UUID, strategy_name: str) -> ScheduledStart | None:
    pending = release_times.pending_start(session, strategy_name)
    return pending if pending is not None and pending.id == start_id else None


def _command(session: Session, pending: ScheduledStart, now: datetime) -> Command:
    """Return the owner's command. Its override reason does not count for a rollback that came after it."""
    actor = Actor(pending.actor, role=pending.role, source=pending.source)
    quarantined_at = versions.get_version(session, pending.strategy_name, pending.version).quarantined_at
    outdated = quarantined_at is not None and quarantined_at >= pending.asked_at
    return Command(actor, now, pending.reason, override_reason="" if outdated else pending.override_reason)
