"""Queries on the audit trail: events, the state at a moment, rollout timelines, verification and export."""

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
    """The versions that served users at a moment, as the trail records it.

    Attributes:
        rollout: the open rollout's state and stage index.
        event: the newest change at that moment.
        made_by: by fact (active, canary, percent, rollout), the change that set it, if the trail has one.
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
    """One entry of a rollout's timeline: a gate verdict that changed, a change, or an alert."""

    at: datetime
    told: GateVerdict | AuditEvent | AlertOutbox


@dataclass(frozen=True, slots=True)
class Trail:
    """One strategy's chain of audit events: their number, the hash of the newest, and the breaks."""

    strategy_name: str
    count: int
    head: str
    breaks: Sequence[ChainBreak]


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify_trail`. *missing* are known hashes that are no longer in any chain."""

    trails: Sequence[Trail]
    missing: Sequence[str]

    @property
    def holds(self) -> bool:
        return not self.missing and not any(each.breaks for each in self.trails)


def read_audit(engine: Engine, strategy_name: str | None = None, *, limit: int | None = None) -> Sequence[AuditEvent]:
    """Return audit events, oldest first. With *limit*, only the newest.

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
    """Return the matching events, oldest first.

    Args:
        since, until: limits of the event times, [since, until).
        after_id: cursor: the id of the last event on the previous page. Within one strategy ids follow commit order.
            Across strategies an event with a lower id may be committed later.
        strategies: only events of these strategies.
        limit: at most this many: the first ones, or with *newest* the last ones.

    Raises:
        UnknownStrategy, UnknownRollout
    """
    wanted = _event_filter(strategy_name, rollout_id, actor, action, since, until, after_id)
    wanted["strategies"] = strategies
    with reading(engine) as session:
        _check_known(session, wanted)
        return audit.find_events(session, limit=limit, newest=newest, **wanted)


def state_at(engine: Engine, strategy_name: str, at: datetime) -> StateAt:
    """Return the state of a strategy at a moment, and the changes that led to it.

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
    """Return a rollout and its timeline, oldest first. Verdicts come before the changes they led to.

    Raises:
        UnknownRollout
    """
    with snapshot(engine) as session:
        rollout = rollouts.get_rollout(session, rollout_id)
        verdicts = _changed_verdicts(rollouts.verdict_history(session, rollout_id))
        changes = audit.find_events(session, limit=None, newest=False, rollout_id=rollout_id)
        alerts = find_alerts(session, rollout.strategy_name, rollout_id=rollout_id)
    entries = [
        *(TimelineEntry(verdict.ticked_at, verdict) for verdict in verdicts),
        *(TimelineEntry(change.at, change) for change in changes),
        *(TimelineEntry(alert.at, alert) for alert in alerts),
    ]
    return rollout, sorted(entries, key=lambda entry: entry.at)


def verify_trail(engine: Engine, strategy_name: str | None = None, known_heads: Iterable[str] = ()) -> Verification:
    """Recompute every hash of the trail and return the breaks of each chain, by strategy.

    A chain that was rewritten as a whole is still consistent. Only a hash that was kept elsewhere reveals it. Events
    are read in batches from one snapshot, so later changes are not seen and not delayed.

    Args:
        known_heads: hashes kept earlier, from an export or a log. Each must still be in a chain.

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
        trails = [_verify_chain(session, name, missing) for name in names]
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
    """Yield the matching events as lines with every column, oldest first, from one snapshot.

    Raises:
        UnknownStrategy, UnknownRollout: when the first line is requested.
    """
    wanted = _event_filter(strategy_name, rollout_id, actor, action, since, until, None)
    with snapshot(engine) as session:
        _check_known(session, wanted)
        if form is ExportFormat.CSV:
            yield audit_domain.as_csv(AuditEvent.model_fields)
        for row in audit.stream_events(session, **wanted):
            yield audit_domain.as_csv(row) if form is ExportFormat.CSV else audit_domain.as_json(row._asdict())


def verify_export(lines: Iterable[str]) -> list[Trail]:
    """Verify a JSON export without its database, as `verify_trail` does. Filtered exports do not verify.

    Raises:
        InvalidExport: a line is not an event.
    """
    chains = audit_domain.follow(lines)
    return [Trail(name, chain.count, chain.head, chain.breaks) for name, chain in sorted(chains.items())]


def _verify_chain(session: Session, strategy_name: str, missing: dict[str, None]) -> Trail:
    """Follow one strategy's chain to its end and remove the hashes it contains from *missing*."""
    chain = Chain()
    try:
        for event in audit.stream_events(session, strategy_name=strategy_name):
            chain.follow(audit.link_of(event))
            missing.pop(chain.head, None)
    except (ValueError, TypeError) as error:  # not JSON or not a time: other software wrote it
        broken = ChainBreak(chain.position + 1, f"cannot be read: {error}")
        return Trail(strategy_name, chain.count, chain.head, [*chain.breaks, broken])
    if strategy_name not in versions.strategy_names(session):
        unknown = ChainBreak(chain.position, "no such strategy is known")
        return Trail(strategy_name, chain.count, chain.head, [*chain.breaks, unknown])
    row = versions.get_strategy(session, strategy_name)
    now = strategy_state(session, strategy_name)
    breaks = chain.end(generation=row.generation, head=row.audit_head, standing=now)
    return Trail(strategy_name, chain.count, chain.head, breaks)


def _changed_verdicts(verdicts: Iterable[GateVerdict]) -> Iterator[GateVerdict]:
    """Yield the verdicts that differ from the previous verdict of their gate."""
    last: dict[str, str] = {}
    for verdict in verdicts:
        if last.get(verdict.gate) != verdict.verdict:
            yield verdict
        last[verdict.gate] = verdict.verdict


def _event_filter(
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
