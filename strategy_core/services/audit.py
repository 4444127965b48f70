"""What the audit trail answers: who changed what, when and why, what stood at a moment, and whether it is whole.

It changes nothing, and takes no word for what stands in the trail: `verify_trail` computes every hash anew.
"""

from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain import audit as audit_domain
from strategy_core.domain.audit import Chain, ChainBreak
from strategy_core.domain.errors import NothingRecorded
from strategy_core.domain.lifecycle import utc
from strategy_core.services.transitions import strategy_state
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.alerts import find_alerts
from strategy_core.store.audit import EventFilter
from strategy_core.store.engine import reading, snapshot
from strategy_core.store.tables import AlertOutbox, AuditEvent, GateVerdict, Rollout

_FACTS = ("active", "canary", "percent", "rollout")


class ExportFormat(StrEnum):
    JSONL = "jsonl"  # exact: can be verified without the database
    CSV = "csv"  # for people and their spreadsheets


@dataclass(frozen=True, slots=True)
class StateAt:
    """Who served whom at a moment, from the trail alone.

    Attributes:
        at: the moment.
        rollout: the open rollout's state and the index of its stage.
        event: the newest change at that moment.
        made_by: by fact (active, canary, percent, rollout), the change that made it what it was; none, if no event
            tells.
    """

    strategy_name: str
    at: datetime
    active: str | None
    canary: str | None
    percent: float
    rollout: Mapping[str, Any] | None
    event: AuditEvent
    made_by: Mapping[str, AuditEvent]


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One thing that a rollout's records tell: a gate's verdict that turned, a change, or an alert."""

    at: datetime
    told: GateVerdict | AuditEvent | AlertOutbox


@dataclass(frozen=True, slots=True)
class Trail:
    """One strategy's part of the trail: how many events, the hash of the newest, and where it does not hold."""

    strategy_name: str
    count: int
    head: str
    breaks: Sequence[ChainBreak]


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify_trail` found; *missing* are hashes noted earlier that stand in no chain any more."""

    trails: Sequence[Trail]
    missing: Sequence[str]

    @property
    def holds(self) -> bool:
        return not self.missing and not any(each.breaks for each in self.trails)


def read_audit(engine: Engine, strategy_name: str | None = None, *, limit: int | None = None) -> Sequence[AuditEvent]:
    """Return what was changed, oldest first; with *limit* the newest so many of it.

    Raises:
        UnknownStrategy
    """
    return read_events(engine, strategy_name, limit=limit, newest=True)


def read_events(
    engine: Engine,
    strategy_name: str | None = None,
    *,
    rollout_id: UUID | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    after_id: int | None = None,
    strategies: Collection[str] | None = None,
    limit: int | None = None,
    newest: bool = False,
) -> Sequence[AuditEvent]:
    """Return the events that are wanted, oldest first.

    Args:
        since, until: of the events' times; the first is in, the second is out.
        after_id: the cursor: the id of the last event of the page before. Of one strategy no event ever comes late;
            of two, the one with the lower id may be committed last.
        strategies: of these alone.
        limit: the first so many; the last, if *newest*.

    Raises:
        UnknownStrategy, UnknownRollout
    """
    wanted = _wanted(strategy_name, rollout_id, actor, action, since, until, after_id)
    wanted["strategies"] = strategies
    with reading(engine) as session:
        _check_known(session, wanted)
        return audit.find_events(session, limit=limit, newest=newest, **wanted)


def state_at(engine: Engine, strategy_name: str, at: datetime) -> StateAt:
    """Return what stood at a moment, and which changes had made it so.

    Raises:
        UnknownStrategy
        NothingRecorded: the strategy's first event is later.
    """
    at = utc(at, "at")
    with snapshot(engine) as session:
        versions.get_strategy(session, strategy_name)
        event = audit.newest_at(session, strategy_name, at)
        if event is None:
            raise NothingRecorded(strategy_name, at)
        return StateAt(
            strategy_name=strategy_name,
            at=at,
            active=event.after.get("active"),
            canary=event.after.get("canary"),
            percent=event.after.get("percent", 0.0),
            rollout=event.after.get("rollout"),
            event=event,
            made_by={fact: made for fact in _FACTS if (made := audit.newest_change(session, event, fact))},
        )


def about_rollout(engine: Engine, rollout_id: UUID) -> tuple[Rollout, list[TimelineEntry]]:
    """Return a rollout and all that happened to it, in order of time: verdicts before the changes they led to.

    Raises:
        UnknownRollout
    """
    with snapshot(engine) as session:
        rollout = rollouts.get_rollout(session, rollout_id)
        verdicts = _turned(rollouts.verdict_history(session, rollout_id))
        changes = audit.find_events(session, limit=None, newest=False, rollout_id=rollout_id)
        alerts = find_alerts(session, rollout.strategy_name, rollout_id=rollout_id)
    happenings = [
        *(TimelineEntry(verdict.ticked_at, verdict) for verdict in verdicts),
        *(TimelineEntry(change.at, change) for change in changes),
        *(TimelineEntry(alert.at, alert) for alert in alerts),
    ]
    return rollout, sorted(happenings, key=lambda happening: happening.at)


def verify_trail(engine: Engine, strategy_name: str | None = None, known_heads: Iterable[str] = ()) -> Verification:
    """Compute every hash of the trail anew, and return where its chains do not hold, by strategy.

    A chain that was rewritten whole, by somebody who may drop triggers, holds: only a hash that was noted elsewhere
    tells. Events are read in batches; a change that is made meanwhile is not seen, and waits for nothing.

    Args:
        known_heads: hashes noted earlier, from an export or a log: each must stand in a chain still.

    Raises:
        UnknownStrategy
    """
    missing = dict.fromkeys(head.strip().lower() for head in known_heads)
    with snapshot(engine) as session:
        if strategy_name is None:
            names = sorted({*versions.strategy_names(session), *audit.strategies_with_events(session)})
        else:
            versions.get_strategy(session, strategy_name)
            names = [strategy_name]
        trails = [_verified(session, name, missing) for name in names]
    return Verification(trails, tuple(missing))


def export(
    engine: Engine,
    form: ExportFormat = ExportFormat.JSONL,
    strategy_name: str | None = None,
    *,
    rollout_id: UUID | None = None,
    actor: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Generator[str]:
    """Yield the events that are wanted as lines with every column, oldest first, all as of one moment.

    Raises:
        UnknownStrategy, UnknownRollout: when the first line is asked for.
    """
    wanted = _wanted(strategy_name, rollout_id, actor, action, since, until, None)
    with snapshot(engine) as session:
        _check_known(session, wanted)
        if form is ExportFormat.CSV:
            yield audit_domain.as_csv(AuditEvent.model_fields)
        for row in audit.stream_events(session, **wanted):
            yield audit_domain.as_csv(row) if form is ExportFormat.CSV else audit_domain.as_json(row._asdict())


def verify_export(lines: Iterable[str]) -> list[Trail]:
    """Return what `verify_trail` does of an export as JSON, without its database: whole trails alone can hold.

    Raises:
        InvalidExport: a line is no event.
    """
    chains = audit_domain.follow(lines)
    return [Trail(name, chain.count, chain.head, chain.breaks) for name, chain in sorted(chains.items())]


def _verified(session: Session, strategy_name: str, missing: dict[str, None]) -> Trail:
    """Follow one strategy's chain to its end, and take the hashes that stand in it out of *missing*."""
    chain = Chain()
    try:
        for event in audit.stream_events(session, strategy_name=strategy_name):
            chain.follow(audit.link_of(event))
            missing.pop(chain.head, None)
    except (ValueError, TypeError) as error:  # no JSON, no time: a hand other than this software's wrote it
        broken = ChainBreak(chain.position + 1, f"cannot be read: {error}")
        return Trail(strategy_name, chain.count, chain.head, [*chain.breaks, broken])
    if strategy_name not in versions.strategy_names(session):
        unknown = ChainBreak(chain.position, "no such strategy is known")
        return Trail(strategy_name, chain.count, chain.head, [*chain.breaks, unknown])
    row = versions.get_strategy(session, strategy_name)
    now = strategy_state(session, strategy_name)
    breaks = chain.end(generation=row.generation, head=row.audit_head, standing=now)
    return Trail(strategy_name, chain.count, chain.head, breaks)


def _turned(verdicts: Iterable[GateVerdict]) -> Iterator[GateVerdict]:
    """Yield the verdicts that are not what their gate had said before."""
    last: dict[str, str] = {}
    for verdict in verdicts:
        if last.get(verdict.gate) != verdict.verdict:
            yield verdict
        last[verdict.gate] = verdict.verdict


def _wanted(
    strategy_name: str | None,
    rollout_id: UUID | None,
    actor: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
    after_id: int | None,
) -> EventFilter:
    return {
        "strategy_name": strategy_name,
        "rollout_id": rollout_id,
        "actor": actor,
        "action": action,
        "since": None if since is None else utc(since, "since"),
        "until": None if until is None else utc(until, "until"),
        "after_id": after_id,
    }


def _check_known(session: Session, wanted: EventFilter) -> None:
    strategy_name, rollout_id = wanted.get("strategy_name"), wanted.get("rollout_id")
    if strategy_name is not None:
        versions.get_strategy(session, strategy_name)
    if rollout_id is not None:
        rollouts.get_rollout(session, rollout_id)
