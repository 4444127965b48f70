"""A rollout as the console shows it: its stages over time, its evidence, and what an owner can do now."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import SURE, ClockCheck, Severity
from strategy_core.domain.capital import Reach
from strategy_core.domain.errors import UnknownRollout
from strategy_core.domain.gates.base import Freshness, Verdict
from strategy_core.domain.gates.on_slots import NotWorse
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.parsing import same_owner
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.ramp import ENDED, State
from strategy_core.services.evidence import own_slots
from strategy_core.services.history import MOST_POINTS, Day, days_of
from strategy_core.services.positions import Draining, read_draining
from strategy_core.services.reports import HarmPath, RollbackCost, cost_of, harm_path
from strategy_core.services.rollout_reach import RolloutReach, reach_of
from strategy_core.services.status import RolloutStatus, rollout_status
from strategy_core.services.whatif import BoundPath
from strategy_core.store import alerts, audit, evidence, pagination, release_times, rollouts, versions
from strategy_core.store.canary_reach import read_canary_reach
from strategy_core.store.engine import snapshot
from strategy_core.store.tables import AlertOutbox, AuditEvent, Rollout, ScheduledStart

_EVENTS_READ = 200  # the newest of the rollout
_ALERTS_READ = 100  # the newest of the strategy


class OwnerChoice(StrEnum):
    """What an owner can do to a rollout, the most likely first."""

    APPROVE = "approve"
    EXTEND = "extend"
    ADVANCE = "advance"
    RESUME = "resume"
    PAUSE = "pause"
    EXCLUDE = "exclude"
    ACKNOWLEDGE = "acknowledge"
    ROLL_BACK = "rollback"


class Standing(StrEnum):
    """Where a stage stands."""

    DONE = "done"
    NOW = "now"
    AHEAD = "ahead"
    ENDED = "ended here"
    NOT_REACHED = "not reached"  # the rollout ended before


@dataclass(frozen=True, slots=True)
class StagePassage:
    """A stage of a rollout, or its bake as the last one.

    Attributes:
        percent: share of users. None for the bake.
        users: that this share is, if a directory is loaded.
        served: the share that the canary got when it entered, where the cap on capital made it smaller. Else None.
        entered: when the stage began.
        expected: when it should begin, for a version as good as the active one. None if it cannot be expected.
        needs_approval: an owner must approve it first, and has not yet.
        approved: the event of the approval.
        ended: the event with which the rollout ended at this stage.
    """

    percent: float | None
    users: int | None
    served: float | None
    standing: Standing
    entered: datetime | None
    expected: datetime | None
    needs_approval: bool
    approved: AuditEvent | None
    ended: AuditEvent | None


@dataclass(frozen=True, slots=True)
class RolloutPage:
    """What the console's page on a rollout shows at once.

    Attributes:
        canary: the users that the canary serves now, and their capital. None if the rollout has ended or is promoted.
        at: the moment of the page, or the end of the rollout.
        started_by: the actor, if the trail has one.
        harm: the path of the plan's harm gate, if it has one with values.
        bound: the difference and its bound as the gate `not_worse` measured them, if it has.
        days: the booked slots by day.
        cost: of the booked slots.
        events: the newest audit events of the rollout, newest first.
        alerts: of the rollout, not acknowledged, newest first.
        scheduled: a start of the strategy that waits for its time.
        draining: positions of its versions that serve no users any more.
    """

    status: RolloutStatus
    reach: RolloutReach
    canary: Reach | None
    at: datetime
    started_by: str | None
    passages: tuple[StagePassage, ...]
    harm: HarmPath | None
    bound: BoundPath | None
    days: Sequence[Day]
    cost: RollbackCost
    events: Sequence[AuditEvent]
    alerts: Sequence[AlertOutbox]
    scheduled: ScheduledStart | None
    draining: Sequence[Draining]

    @property
    def ended_by(self) -> AuditEvent | None:
        """The event with which the rollout ended, if it has."""
        return next((each.ended for each in self.passages if each.ended is not None), None)


def newest_rollout(engine: Engine, strategy_name: str) -> UUID:
    """Return the id of the strategy's open rollout, or of its newest one.

    Raises:
        UnknownStrategy
        UnknownRollout: it has none.
    """
    with snapshot(engine) as session:
        versions.get_strategy(session, strategy_name)
        found = rollouts.open_rollout(session, strategy_name) or next(
            iter(pagination.page_rollouts(session, strategies=[strategy_name], after=None, limit=1)), None
        )
        if found is None:
            raise UnknownRollout(f"of {strategy_name!r}")
        return found.id


def read_rollout_page(
    engine: Engine, strategy_name: str, rollout_id: UUID, *, now: datetime, clock: ClockCheck = SURE
) -> RolloutPage:
    """Return what the page on an open or ended rollout shows at once.

    Raises:
        UnknownRollout: there is none with this id, or it is of another strategy.
    """
    now = utc(now, "now")
    with snapshot(engine) as session:
        rollout, generation = pagination.rollout_at(session, rollout_id)
        if rollout.strategy_name != strategy_name:
            raise UnknownRollout(f"{rollout_id} of {strategy_name!r}")
        at = rollout.ended_at or max(now, rollout.started_at)
        plan = load_plan(rollout.plan)
        events = audit.find_events(session, limit=_EVENTS_READ, newest=True, rollout_id=rollout_id)
        reach = reach_of(session, rollout, generation, now=now)
        status = rollout_status(session, rollout, at, clock, with_live_trades=False)
        return RolloutPage(
            status=status,
            reach=reach,
            canary=_canary_reach(session, rollout, now),
            at=at,
            started_by=audit.starter(session, rollout_id),
            passages=tuple(_passages(rollout, plan, reach, status, events)),
            harm=harm_path(session, rollout),
            bound=_bound_path(session, rollout, plan),
            days=days_of(evidence.booked_by_day(session, rollout_id, first=own_slots(session, rollout))),
            cost=cost_of(session, rollout),
            events=events[::-1],
            alerts=open_alerts(session, rollout),
            scheduled=release_times.pending_start(session, strategy_name),
            draining=_draining(session, rollout, now),
        )


def _draining(session: Session, rollout: Rollout, now: datetime) -> list[Draining]:
    """Return what drains after the rollout. While its canary serves users nothing does, and nothing is read."""
    if rollout.ended_at is None and rollout.promoted_at is None:
        return []
    mine = (rollout.version, rollout.control_version)
    return [each for each in read_draining(session, rollout.strategy_name, now) if each.version in mine]


def _canary_reach(session: Session, rollout: Rollout, now: datetime) -> Reach | None:
    if rollout.ended_at is not None or rollout.promoted_at is not None:
        return None
    return read_canary_reach(session, [rollout.strategy_name], now).get(rollout.strategy_name)


def read_open_alerts(engine: Engine, strategy_name: str, rollout_id: UUID) -> list[AlertOutbox]:
    """Return the newest warnings and critical alerts of a rollout that are not acknowledged, newest first.

    Raises:
        UnknownRollout: there is none with this id, or it is of another strategy.
    """
    with snapshot(engine) as session:
        rollout = rollouts.get_rollout(session, rollout_id)
        if rollout.strategy_name != strategy_name:
            raise UnknownRollout(f"{rollout_id} of {strategy_name!r}")
        return open_alerts(session, rollout)


def open_alerts(session: Session, rollout: Rollout) -> list[AlertOutbox]:
    """Return `read_open_alerts` within the open transaction."""
    newest = alerts.find_alerts(session, rollout.strategy_name, limit=_ALERTS_READ)
    return [
        each
        for each in newest[::-1]
        if each.rollout_id == rollout.id and each.acknowledged_at is None and each.severity != Severity.INFO
    ]


def possible_choices(
    page: RolloutPage, *, owner: str, four_eyes: bool, routes_by_symbol: bool
) -> dict[OwnerChoice, str]:
    """Return what applies to the rollout now, each with why it would be refused, or an empty text.

    Args:
        owner: the name of the person who asks.
        four_eyes: whether the owner who started a rollout may not approve or advance it.
        routes_by_symbol: whether the platform gives the symbol with each question for a version.
    """
    rollout, state = page.status.rollout, State(page.status.rollout.state)
    found: dict[OwnerChoice, str] = {}
    second = ""
    if four_eyes and same_owner(page.started_by, owner):
        second = "You started this rollout: another owner must do this."
    if state is State.AWAITING_APPROVAL:
        found[OwnerChoice.APPROVE] = _not_passing(page) or second
    if state is State.AWAITING_DECISION:
        found[OwnerChoice.EXTEND] = ""
        found[OwnerChoice.ADVANCE] = second
    if state is State.PAUSED:
        found[OwnerChoice.RESUME] = ""
    if state in (State.RUNNING, State.AWAITING_APPROVAL, State.AWAITING_DECISION) and rollout.promoted_at is None:
        found[OwnerChoice.PAUSE] = ""
    if state not in ENDED and rollout.promoted_at is None and routes_by_symbol and len(page.reach.serves) > 1:
        found[OwnerChoice.EXCLUDE] = ""
    if page.alerts:
        found[OwnerChoice.ACKNOWLEDGE] = ""
    if page.reach.previous is not None:
        found[OwnerChoice.ROLL_BACK] = ""
    return found


def _not_passing(page: RolloutPage) -> str:
    """Return why an approval is refused now: an armed gate does not pass, or the rollout is blind."""
    rollout = page.status.rollout
    armed = {gate.name for gate in load_plan(rollout.plan).gates if not gate.dry_run} | {Freshness().name}
    rows = zip(page.status.verdicts, page.status.readings, strict=True)
    failing = [
        f"{reading.title} is {reading.verdict}"
        for row, reading in rows
        if row.gate in armed and row.verdict != Verdict.PASS
    ]
    if failing or rollout.blind_since is not None:
        return f"Not possible now: {', '.join(failing) or 'evidence is missing'}. Every gate must pass."
    return ""


def _passages(
    rollout: Rollout, plan: Plan, reach: RolloutReach, status: RolloutStatus, events: Sequence[AuditEvent]
) -> Iterator[StagePassage]:
    """Yield the stages and the bake, from the plan and the rollout's events, oldest first."""
    entered = {0: rollout.started_at} | {
        int(event.after["rollout"]["stage"]): event.at for event in events if event.action == "advance"
    }
    entered.setdefault(rollout.stage_index, rollout.stage_entered_at)
    approved = {int(event.after["rollout"]["stage"]) + 1: event for event in events if event.action == "approve"}
    narrowed = {
        int(event.after["rollout"]["stage"]): float(event.after["percent"])
        for event in events
        if event.action in ("start_rollout", "advance") and event.after.get("asked")
    }
    ended = None
    if rollout.ended_at is not None:
        ended = next((event for event in reversed(events) if event.after.get("rollout") is None), None)
    baking = len(plan.stages)
    current = baking if rollout.promoted_at is not None else rollout.stage_index
    for number, stage in enumerate(plan.stages):
        began = entered.get(number) if number <= current else None
        holds = rollout.approved_stage == number or number <= current
        yield StagePassage(
            percent=stage.percent,
            users=reach.users(stage.percent),
            served=narrowed.get(number) if number <= current else None,
            standing=_standing(rollout, number, current),
            entered=began,
            expected=status.verdict.entries.get(number) if number > current else None,
            needs_approval=plan.needs_approval(number) and not holds and rollout.ended_at is None,
            approved=approved.get(number) if holds else None,
            ended=ended if number == current else None,
        )
    yield StagePassage(
        percent=None,
        users=reach.everyone,
        served=None,
        standing=_standing(rollout, baking, current),
        entered=rollout.promoted_at,
        expected=status.verdict.entries.get(baking) if current < baking else None,
        needs_approval=False,
        approved=None,
        ended=ended if current == baking else None,
    )


def _standing(rollout: Rollout, number: int, current: int) -> Standing:
    if number < current:
        return Standing.DONE
    if rollout.ended_at is not None:
        if number > current:
            return Standing.NOT_REACHED
        return Standing.DONE if rollout.state == State.COMPLETED else Standing.ENDED
    return Standing.NOW if number == current else Standing.AHEAD


def _bound_path(session: Session, rollout: Rollout, plan: Plan) -> BoundPath | None:
    gate = next((each for each in plan.gates if isinstance(each, NotWorse)), None)
    found = rollouts.interval_path(session, rollout.id, gate.name, most=MOST_POINTS) if gate else []
    rows = [row for row in found if row[3] < 0]  # two versions that did the same have no margin
    if len(rows) < 2:
        return None
    at, mean, low, limit = zip(*rows, strict=True)
    return BoundPath(at, mean, low, limit, with_shadow=False)
