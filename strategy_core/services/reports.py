"""All that is told of one rollout: how it goes, what it came to, why it was rolled back; read only, never judged."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from math import log10
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.errors import InvalidPlan, UnknownRollout
from strategy_core.domain.gates.base import SEVERITY, Verdict
from strategy_core.domain.gates.on_slots import Harm
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.pair_noise import History
from strategy_core.domain.plan import read_plan
from strategy_core.domain.routing import as_percent
from strategy_core.services.history import (
    Census,
    ComparisonCurves,
    Day,
    Equity,
    ServedSpan,
    comparison_curves,
    days_of,
    read_equity,
    served,
    share_at,
)
from strategy_core.services.status import RolloutStatus, rollout_status
from strategy_core.services.transitions import strategy_state
from strategy_core.store import audit, decisions, evidence, outcomes, pagination, rollouts, versions
from strategy_core.store.engine import snapshot
from strategy_core.store.tables import AuditEvent, BookedSlot, GateVerdict, Rollout, ShadowDecisionLog

COUNTED_AT_A_TICK = 100_000  # users: a larger directory is counted for whole reports alone
_POINTS = 300  # of the e-process
_MOST_CHANGES = 200
_NEWEST_ROWS = 10
_UNDOING = "roll_back"


@dataclass(frozen=True, slots=True)
class HarmPath:
    """The e-process of harm over time, as log10 E.

    Attributes:
        at, log_e: moments, and the highest value since the one before; each stands until the next.
        limit: it is rolled back from there on; *freeze_at*: held from there on.
    """

    at: tuple[datetime, ...]
    log_e: tuple[float, ...]
    limit: float
    freeze_at: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How a rollout goes.

    Attributes:
        at: the moment of the report; of the end, if it has ended.
        started_by: None where no trail says so.
        percent: of users who get its version at that moment; *users* are those of the *directory*'s, None where none is
            loaded.
        harm: None where no gate of the plan tells it, or none has yet.
    """

    status: RolloutStatus
    at: datetime
    started_by: str | None
    percent: float
    users: int | None
    directory: int | None
    served: Sequence[ServedSpan]
    harm: HarmPath | None


@dataclass(frozen=True, slots=True)
class RollbackCost:
    """What the booked slots came to: R of a user who copied every signal of one version, or of the other."""

    slots: int
    canary_r: float
    control_r: float


@dataclass(frozen=True, slots=True)
class RollbackFacts:
    """Why users were taken off a version, on which rows that rests, and whom it had reached.

    Attributes:
        event: the change itself.
        gate: the verdict that decided; None when a person did.
        verdicts: what every gate said, the worst first; the rows that the event names, where it names any.
        slots: that were booked last, newest first; *decisions* of the version before that moment, newest first.
        now_active: who serves users since.
        cost: None where no rollout was, whose slots are booked.
    """

    event: AuditEvent
    gate: GateVerdict | None
    verdicts: Sequence[GateVerdict]
    slots: Sequence[BookedSlot]
    decisions: Sequence[ShadowDecisionLog]
    served: Sequence[ServedSpan]
    directory: int | None
    now_active: str | None
    cost: RollbackCost | None


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """Everything about one rollout.

    Attributes:
        usual_unlike: share of slots on which the two differed in shadow.
        comparison: the newest nightly one of the two, with its curves; None before the first.
        changes: the newest of its audit events, oldest first.
    """

    progress: Progress
    cost: RollbackCost
    equity: Equity
    days: Sequence[Day]
    usual_unlike: float | None
    comparison: ComparisonCurves | None
    changes: Sequence[AuditEvent]
    rolled_back: RollbackFacts | None


def read_report(engine: Engine, rollout_id: UUID, *, now: datetime) -> tuple[RolloutReport, int]:
    """Return the report of a rollout, open or ended, and the generation of its strategy that it was read at.

    Raises:
        UnknownRollout
    """
    now = utc(now, "now")
    with snapshot(engine) as session:
        rollout, generation = pagination.rollout_at(session, rollout_id)
        census = Census(session)
        progress = _progress(session, rollout, census, now, with_live_trades=True)
        pair = (rollout.strategy_name, rollout.version, rollout.control_version)
        nightly = outcomes.newest_report(session, *pair)
        undone = _undoing(session, rollout)
        report = RolloutReport(
            progress=progress,
            cost=_cost(session, rollout),
            equity=read_equity(session, *pair, start=rollout.started_at, end=progress.at),
            days=days_of(evidence.booked_by_day(session, rollout_id)),
            usual_unlike=_usual_unlike(session, rollout),
            comparison=None if nightly is None else comparison_curves(session, nightly),
            changes=audit.find_events(session, limit=_MOST_CHANGES, newest=True, rollout_id=rollout_id),
            rolled_back=None if undone is None else _rolled_back(session, undone, rollout, census),
        )
        return report, generation


def resolve_rollout(engine: Engine, named: str) -> UUID:
    """Return the id that *named* is, or that of the newest rollout of the strategy it names.

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


def read_progress(engine: Engine, rollout_ids: Sequence[UUID], *, now: datetime) -> Iterator[Progress]:
    """Yield how each of these rollouts goes, without what takes long: users' trades, and a large directory's users.

    One whose plan cannot be read is passed over: the others are told of all the same.
    """
    now = utc(now, "now")
    with snapshot(engine) as session:
        census = Census(session, most=COUNTED_AT_A_TICK)
        for rollout_id in rollout_ids:
            rollout = rollouts.get_rollout(session, rollout_id)
            with suppress(InvalidPlan):
                yield _progress(session, rollout, census, now, with_live_trades=False)


def read_rollback(engine: Engine, *, rollout_id: UUID | None = None, event: AuditEvent | None = None) -> RollbackFacts:
    """Return why users were taken off, of a rollout that was rolled back, or of any rollback by its *event*.

    Raises:
        UnknownRollout: no such rollout, or it was not rolled back.
    """
    with snapshot(engine) as session:
        of = rollout_id if event is None else event.rollout_id
        rollout = None if of is None else rollouts.get_rollout(session, of)
        undone = event or (_undoing(session, rollout) if rollout else None)
        if undone is None:
            raise UnknownRollout(f"{rollout_id} that was rolled back")
        return _rolled_back(session, undone, rollout, Census(session))


def _progress(session: Session, rollout: Rollout, census: Census, now: datetime, *, with_live_trades: bool) -> Progress:
    at = rollout.ended_at or max(now, rollout.started_at)
    shares = served(session, rollout.strategy_name, rollout.version, census, since=rollout.started_at, until=at)
    first, beyond = share_at(session, rollout.strategy_name, rollout.version, at)
    return Progress(
        status=rollout_status(session, rollout, at, with_live_trades=with_live_trades),
        at=at,
        started_by=audit.starter(session, rollout.id),
        percent=as_percent(beyond - first),
        users=census.users(rollout.strategy_name, first, beyond),
        directory=census.users(rollout.strategy_name),
        served=shares,
        harm=_harm(session, rollout),
    )


def _harm(session: Session, rollout: Rollout) -> HarmPath | None:
    gate = next((gate for gate in read_plan(rollout.plan).gates if isinstance(gate, Harm)), None)
    told = rollouts.value_peaks(session, rollout.id, gate.name, most=_POINTS) if gate else []
    if gate is None or not told:
        return None
    at, values = zip(*told, strict=True)
    return HarmPath(tuple(at), tuple(values), limit=-log10(gate.alpha), freeze_at=log10(gate.freeze_at))


def _cost(session: Session, rollout: Rollout) -> RollbackCost:
    return RollbackCost(*evidence.booked_r(session, rollout.id))


def _usual_unlike(session: Session, rollout: Rollout) -> float | None:
    history = evidence.get_book(session, rollout.id).history
    return History.model_validate(history).unlike_share if history else None


def _undoing(session: Session, rollout: Rollout) -> AuditEvent | None:
    return next(iter(audit.find_events(session, limit=1, newest=True, rollout_id=rollout.id, action=_UNDOING)), None)


def _rolled_back(session: Session, event: AuditEvent, rollout: Rollout | None, census: Census) -> RollbackFacts:
    said = _verdicts(session, event, rollout)
    symbols = versions.get_version(session, event.strategy_name, event.version).symbols
    newest = (
        row
        for symbol in symbols
        for row in decisions.find_decisions(
            session, event.strategy_name, event.version, symbol, end=event.at, limit=_NEWEST_ROWS
        )
        if row.logged_at <= event.at  # it decides on in shadow, and on the candle that was open then
    )
    return RollbackFacts(
        event=event,
        gate=_decided(event, said),
        verdicts=said,
        slots=[] if rollout is None else evidence.newest_booked(session, rollout.id, _NEWEST_ROWS),
        decisions=sorted(newest, key=lambda row: (row.timestamp, row.symbol), reverse=True)[:_NEWEST_ROWS],
        served=served(
            session,
            event.strategy_name,
            event.version,
            census,
            since=rollout.started_at if rollout else None,
            until=event.at,
        ),
        directory=census.users(event.strategy_name),
        now_active=strategy_state(session, event.strategy_name)["active"],
        cost=None if rollout is None else _cost(session, rollout),
    )


def _verdicts(session: Session, event: AuditEvent, rollout: Rollout | None) -> list[GateVerdict]:
    """Return the verdicts that the event rests on; of a person's, those that stood."""
    if event.evidence:
        found = rollouts.find_verdicts(session, [UUID(each) for each in event.evidence])
    else:
        found = [] if rollout is None else list(rollouts.last_verdicts(session, rollout.id).values())
    return sorted(found, key=lambda row: (not row.armed, SEVERITY[Verdict(row.verdict)], row.gate))


def _decided(event: AuditEvent, said: Sequence[GateVerdict]) -> GateVerdict | None:
    """Return the verdict that a tick's ruling was made on, which its reason quotes; a person's rests on none."""
    if not event.evidence or not said:
        return None
    return next((row for row in said if f"{row.gate}: {row.reason}" in event.reason), said[0])
