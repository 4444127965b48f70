"""Incidents and alert delivery: raise one alert per incident, send the outbox to each channel, acknowledge alerts."""

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from time import monotonic
from typing import Any, Protocol
from uuid import uuid4

import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import (
    AWAITING_APPROVAL,
    AWAITING_DECISION,
    CHANNEL_FAILED,
    ENDED,
    PROPOSAL_WAITING,
    QUIET,
    REFUSED,
    WATCH_HARM,
    WATCH_LIKELY_HARM,
    AttachedPage,
    CountUsers,
    DeliveryPace,
    Fault,
    Message,
    Raised,
    Severity,
    affected_facts,
    ended_text,
    message,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import UnknownChannel
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.links import Links
from strategy_core.domain.ramp import State
from strategy_core.services.users import counted
from strategy_core.store import agents, alerts, decisions, rollouts, versions
from strategy_core.store.alerts import ChannelState
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import AlertDelivery, AlertOutbox, Incident, StrategyVersion

FEED, SHADOW, TICK, CHANNEL = "feed", "shadow", "tick", "channel"  # topics of incidents
BLINDNESS, REVISIONS, HOST, REFUSAL = "blind", "revisions", "host", "refused"
GROWN_AFTER = 6  # times the quiet time, until an incident that has doubled is alerted again
_WAITING = {AWAITING_APPROVAL: State.AWAITING_APPROVAL, AWAITING_DECISION: State.AWAITING_DECISION}
PASS_S = 45.0  # real seconds until a pass stops claiming messages: well within a lease and within a minute
log = structlog.get_logger()


class AlertChannel(Protocol):
    """A destination of alerts. The real ones are in `observe.channels`."""

    name: str
    at_least: Severity
    repeats: bool  # whether critical alerts are sent again until they are acknowledged

    def takes(self, kind: str) -> bool:
        """Return whether alerts of this kind go to this channel."""
        ...

    def prepare(self) -> None:
        """Get ready to send. May be slow, and raises nothing: `send` reports a channel that is not ready."""
        ...

    def send(self, message: Message, severity: Severity) -> str:
        """Send the message and return "" on success, else the problem."""
        ...


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt to send a message to a channel. *problem* is "" on success."""

    alert_id: int
    channel: str
    number: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AlertStatus:
    """An alert and its deliveries, one for each channel it was given to."""

    alert: AlertOutbox
    deliveries: Sequence[AlertDelivery]


@dataclass(frozen=True, slots=True)
class _Pass:
    """State shared by the channels of one delivery pass."""

    engine: Engine
    now: datetime
    pace: DeliveryPace
    jitter: Callable[[], float]
    count: CountUsers
    page_of: "PageOf"
    links: Callable[[], Links]


PageOf = Callable[[Raised], AttachedPage | None]  # the page that belongs to an alert, if there is one


def no_page(_raised: Raised) -> None:
    """Attach no page to any alert."""


def report_faults(
    engine: Engine,
    topic: str,
    faults: Sequence[Fault],
    *,
    now: datetime,
    quiet: timedelta = QUIET,
    is_news: Callable[[Session, Incident], bool] = lambda *_: True,
    partly: bool = False,
) -> None:
    """Open, extend or end the incidents of a topic.

    An incident is one alert when it begins, one if it becomes more severe, and one when it is over.
    It runs in a transaction that holds no row of a strategy, so that no rollback waits for an incident.

    Args:
        faults: all faults of this topic that are seen now, at most one per cause.
        quiet: how long a fault must be gone until its incident is over. A fault that comes and goes is one incident.
        is_news: whether the end of an incident is alerted. Else it is only closed.
        partly: only a part was looked at, so that a missing fault does not end its incident.
    """
    with reading(engine) as session:
        seen = {fault.cause for fault in faults}
        gone = [each for each in alerts.open_incidents(session, topic) if each.cause not in seen]
    over = [] if partly else [each for each in gone if abs(now - each.seen_at) >= quiet]  # or of a clock far ahead
    if faults or over:
        _write_incidents(engine, topic, faults, over, now=now, quiet=quiet, is_news=is_news)


@retry_transient()
def _write_incidents(
    engine: Engine,
    topic: str,
    faults: Sequence[Fault],
    over: Sequence[Incident],
    *,
    now: datetime,
    quiet: timedelta,
    is_news: Callable[[Session, Incident], bool],
) -> None:
    with transaction(engine) as session:
        known = {each.cause: each for each in alerts.open_incidents(session, topic)}
        for fault in sorted(faults, key=lambda fault: fault.cause):
            if fault.cause in known:
                alerts.note_fault(session, known[fault.cause], fault, now, repeat_after=GROWN_AFTER * quiet)
            else:
                alerts.open_incident(session, fault, now)
        for each in over:
            incident = known.get(each.cause)
            if incident is None or incident.seen_at != each.seen_at or not alerts.end_incident(session, incident, now):
                continue  # another process has seen the fault again, or ended it
            if is_news(session, incident):
                _raise_end(session, incident, now)


def _raise_end(session: Session, incident: Incident, now: datetime) -> None:
    strategies, symbols = incident.affected["strategies"], incident.affected["symbols"]
    topic, _, name = incident.cause.partition(" ")
    version = _refused_version(incident)[1] if topic == REFUSAL else ""
    alerts.raise_alert(
        session,
        ENDED,
        ended_text(incident.kind, abs(incident.seen_at - incident.started_at), strategies, symbols, version=version),
        severity=Severity.INFO.value,
        strategy_name=strategies[0] if len(strategies) == 1 else "",
        dedupe_key=f"{incident.cause} since {incident.started_at.isoformat()}, over",
        facts={
            "incident": incident.kind,
            "started_at": incident.started_at.isoformat(),
            "seen_at": incident.seen_at.isoformat(),
            **affected_facts(strategies, symbols),
            **({"channel": name} if topic == CHANNEL else {}),
            **({"version": version} if version else {}),
        },
        now=now,
    )


def open_incidents(engine: Engine, *topics: str) -> list[Incident]:
    """Return the open incidents of these topics."""
    with reading(engine) as session:
        return alerts.open_incidents(session, *topics)


@retry_transient()
def note_refused(engine: Engine, refused: Sequence[StrategyVersion], *, now: datetime) -> None:
    """Note for each version that it could not be run, so that a delivery alerts once it decides again.

    The alert is raised with the log of its run, and the incident in a transaction that holds no row of a strategy.
    """
    if not refused:
        return
    with transaction(engine) as session:
        for each in refused:
            cause = f"{REFUSAL} {each.strategy_name} {each.version}"
            alerts.keep_open(
                session, Fault(cause, REFUSED, Severity.CRITICAL, text="", strategies=[each.strategy_name]), now
            )


@retry_transient()
def close_resolved(engine: Engine, *, now: datetime) -> None:
    """Acknowledge alerts whose cause is over.

    A question is answered, a refused version decides again or is retired, a harmful one is no longer active.
    """
    with reading(engine) as session:
        over = [
            alert.id or 0 for alert in alerts.open_alerts(session, list(_OVER)) if _OVER[alert.kind](session, alert)
        ]
    if not over:
        return
    with transaction(engine) as session:
        alerts.resolve(session, over, now)


def _end_refusals(engine: Engine, now: datetime, quiet: timedelta) -> None:
    """Alert that versions decide again, once they have not been refused for *quiet*."""
    with reading(engine) as session:
        over = [
            incident
            for incident in alerts.open_incidents(session, REFUSAL)
            if abs(now - incident.seen_at) >= quiet
            and (
                _decided_after(session, *_refused_version(incident), incident.seen_at)
                or not _is_used(session, incident)
            )
        ]
    if over:
        _write_incidents(engine, REFUSAL, [], over, now=now, quiet=quiet, is_news=_is_used)


def _is_used(session: Session, incident: Incident) -> bool:
    return versions.get_version(session, *_refused_version(incident)).status != Status.RETIRED


def _refused_version(incident: Incident) -> tuple[str, str]:
    (name,) = incident.affected["strategies"]
    return name, incident.cause.removeprefix(f"{REFUSAL} {name} ")


def _is_answered(session: Session, alert: AlertOutbox) -> bool:
    if alert.rollout_id is None:
        return False
    return rollouts.get_rollout(session, alert.rollout_id).state != _WAITING[alert.kind]


def _cannot_be_approved(session: Session, alert: AlertOutbox) -> bool:
    """Return whether a proposal is decided, or its strategy has changed since."""
    generation = versions.get_strategy(session, alert.strategy_name).generation
    waiting = agents.open_proposals(session, alert.strategy_name, generation)
    return alert.facts.get("proposal") not in {str(each.id) for each in waiting}


def _is_replaced(session: Session, alert: AlertOutbox) -> bool:
    active = versions.with_status(session, alert.strategy_name, Status.ACTIVE)
    return active is None or active.version != alert.facts.get("version")


def _runs_again(session: Session, alert: AlertOutbox) -> bool:
    name, version = alert.strategy_name, str(alert.facts.get("version", ""))
    known = {each.version: each.status for each in versions.list_versions(session, name)}
    if known.get(version, Status.RETIRED) == Status.RETIRED:
        return True
    if alert.facts.get("partly"):  # another machine decides, which tells nothing about the one that refuses
        return False
    return _decided_after(session, name, version, alert.at)


def _decided_after(session: Session, name: str, version: str, moment: datetime) -> bool:
    return any(row.logged_at > moment for row in decisions.find_decisions(session, name, version, limit=1))


_OVER: Mapping[str, Callable[[Session, AlertOutbox], bool]] = {
    **dict.fromkeys(_WAITING, _is_answered),
    REFUSED: _runs_again,
    PROPOSAL_WAITING: _cannot_be_approved,
    **dict.fromkeys((WATCH_HARM, WATCH_LIKELY_HARM), _is_replaced),
}


def deliver(
    engine: Engine,
    channels: Sequence[AlertChannel],
    *,
    now: datetime,
    pace: DeliveryPace = DeliveryPace(),  # noqa: B008  frozen
    jitter: Callable[[], float] = random.random,
    page_of: PageOf = no_page,
    links: Callable[[], Links] = Links,
) -> list[Tried]:
    """Send all due messages to each channel, the most severe first, then the oldest.

    Alerts whose cause is over are acknowledged first. Channels are independent of each other. Delivery is at least
    once: if a process dies between a send and its mark, the message is sent again under the same id when its lease
    expires. A channel that refuses a message is not tried again in this pass.

    Args:
        page_of: returns the page to attach to the message about an alert.
        links: finds the addresses of the console and of forms, for each message. Raises nothing.
    """
    now = utc(now, "now")
    close_resolved(engine, now=now)
    _end_refusals(engine, now, pace.quiet)
    if not channels:
        return []
    shared = _Pass(engine, now, pace, jitter, counted(engine, now), page_of, links)
    with ThreadPoolExecutor(len(channels), thread_name_prefix="alerts") as threads:
        passes = [threads.submit(_drain, shared, channel) for channel in channels]
    tried = [each for one in passes for each in one.result()]
    _alert_failed_channels(engine, channels, now, pace.quiet)
    return tried


@retry_transient()
def acknowledge(engine: Engine, command: Command, alert_ids: Sequence[int]) -> list[AlertOutbox]:
    """Acknowledge alerts, so that they are not sent again. The first acknowledgement is kept.

    Raises:
        UnknownAlert: an id does not exist. No alert is acknowledged then.
    """
    by, because, now = command.actor.shown, command.reason, utc(command.now, "now")
    with transaction(engine) as session:
        return [alerts.acknowledge(session, alert_id, by=by, because=because, now=now) for alert_id in alert_ids]


def read_alerts(engine: Engine, strategy_name: str | None = None, *, limit: int | None = None) -> list[AlertStatus]:
    """Return alerts with their deliveries, oldest first. With *limit*, only the newest."""
    with reading(engine) as session:
        found = alerts.find_alerts(session, strategy_name, limit=limit)
        sent = alerts.of_alerts(session, [alert.id or 0 for alert in found])
    return [AlertStatus(alert, [each for each in sent if each.alert_id == alert.id]) for alert in found]


def read_channel_states(engine: Engine, channels: Sequence[AlertChannel]) -> list[ChannelState]:
    """Return the state of each channel, including channels of earlier settings."""
    with reading(engine) as session:
        return list(alerts.channel_states(session, [channel.name for channel in channels]).values())


def send_test(channels: Sequence[AlertChannel], wanted: str | None, *, now: datetime) -> list[Tried]:
    """Send a test message to the channels of this name or scheme, or to all. It is not stored.

    Raises:
        UnknownChannel
    """
    chosen = [each for each in channels if wanted in (None, each.name, each.name.rpartition("-")[0])]
    if not chosen:
        raise UnknownChannel(wanted, [channel.name for channel in channels])
    return [Tried(0, each.name, 1, each.send(_test_message(each.name, now), Severity.INFO)) for each in chosen]


def alert_message(alert: AlertOutbox, *, number: int = 1, **options: Any) -> Message:
    """Return the message of an alert."""
    raised = Raised(
        id=alert.id or 0,
        at=alert.at,
        severity=Severity(alert.severity),
        kind=alert.kind,
        strategy_name=alert.strategy_name,
        text=alert.text,
        dedupe_key=alert.dedupe_key,
        facts=alert.facts,
        rollout_id=alert.rollout_id,
    )
    return message(raised, number=number, **options)


def _drain(shared: _Pass, channel: AlertChannel) -> list[Tried]:
    """Send the due messages of one channel until no message is left, one is refused, or the pass has lasted PASS_S."""
    engine, now, claimant = shared.engine, shared.now, uuid4().hex
    until = monotonic() + PASS_S
    with reading(engine) as session:  # read first: most passes find no message, and SQLite has one writer
        found = alerts.unlisted(session, channel.name, channel.at_least.and_worse, since=now - shared.pace.news)
        new = [alert for alert in found if channel.takes(alert.kind)]
        if not new and not alerts.any_due(session, channel.name, now=now, longest=shared.pace.longest):
            return []
    if new:
        _enlist(engine, channel, new, now)
    channel.prepare()  # before a message is claimed: its lease and its time limit begin then
    tried: list[Tried] = []
    while monotonic() < until and not (tried and tried[-1].problem):
        claimed = _claim(shared, channel, claimant)
        if claimed is None:
            break
        tried.append(_send(shared, channel, *claimed))
    return tried


@retry_transient()
def _enlist(engine: Engine, channel: AlertChannel, new: Sequence[AlertOutbox], now: datetime) -> None:
    with transaction(engine) as session:
        alerts.enlist(session, channel.name, new, now=now)


@retry_transient()
def _claim(shared: _Pass, channel: AlertChannel, claimant: str) -> tuple[AlertOutbox, AlertDelivery] | None:
    with transaction(shared.engine) as session:
        pace = shared.pace
        return alerts.claim(
            session, channel.name, now=shared.now, lease=pace.lease, longest=pace.longest, claimant=claimant
        )


@retry_transient()
def _mark(engine: Engine, delivery: AlertDelivery, changes: dict[str, Any]) -> None:
    with transaction(engine) as session:
        alerts.mark(session, delivery, changes)


def _send(shared: _Pass, channel: AlertChannel, alert: AlertOutbox, delivery: AlertDelivery) -> Tried:
    about = {"alert": alert.id, "kind": alert.kind, "channel": channel.name, "attempts": delivery.attempts}
    try:
        sent = alert_message(alert, number=delivery.number, count=shared.count, links=shared.links())
        problem = channel.send(_with_page(sent, shared.page_of), Severity(alert.severity))
    except Exception as error:  # noqa: BLE001  a channel must not block the others. The text may hold a secret
        problem = f"failed: {type(error).__name__}"
    changes = (
        _changes_after_failure(shared, alert, delivery, problem)
        if problem
        else _changes_after_success(shared, channel, alert, delivery)
    )
    _mark(shared.engine, delivery, changes)
    if not problem:
        log.info("alert.sent", **about)
    else:
        log.warning("alert.not_sent", problem=problem, **about)
    if "given_up_at" in changes and changes["given_up_at"] is not None:
        log.error("alert.given_up", since=delivery.due_at.isoformat(), problem=problem, **about)
    return Tried(delivery.alert_id, channel.name, delivery.number, problem)


def _with_page(sent: Message, page_of: PageOf) -> Message:
    """Attach the page. Without it, because it cannot be rendered, the message still names its command."""
    try:
        return replace(sent, page=page_of(sent.raised) if sent.raised else None)
    except Exception as error:  # noqa: BLE001  as in `_send`
        log.warning("alert.without_page", error=type(error).__name__, id=sent.id)
        return sent


def _changes_after_success(
    shared: _Pass, channel: AlertChannel, alert: AlertOutbox, delivery: AlertDelivery
) -> dict[str, Any]:
    repeated = channel.repeats and alert.severity == Severity.CRITICAL
    again = shared.now + shared.pace.repeat_after if repeated else None
    return {
        "number": delivery.number + 1 if again else delivery.number,
        "due_at": again or delivery.due_at,
        "next_try_at": again,
        "failures": 0,
        "sent_at": shared.now,
        "given_up_at": None,
    }


def _changes_after_failure(shared: _Pass, alert: AlertOutbox, delivery: AlertDelivery, problem: str) -> dict[str, Any]:
    failures = delivery.failures + 1
    changes: dict[str, Any] = {
        "failures": failures,
        "failed_at": shared.now,
        "last_error": problem,
        "next_try_at": shared.now + shared.pace.retry_after(failures, shared.jitter()),
    }
    if shared.pace.over(delivery.due_at, shared.now) and delivery.given_up_at is None:
        changes["given_up_at"] = shared.now
        if alert.severity != Severity.CRITICAL:  # a critical alert is retried indefinitely
            changes["next_try_at"] = None
    return changes


def _alert_failed_channels(engine: Engine, channels: Sequence[AlertChannel], now: datetime, quiet: timedelta) -> None:
    """Alert once per incident for each failed channel, if another channel works."""
    names = {channel.name for channel in channels}
    with reading(engine) as session:
        states = [each for name, each in alerts.channel_states(session, names).items() if name in names]
    all_fail = all(state.failing for state in states)
    failed = [_channel_fault(state) for state in states if state.given_up]
    report_faults(engine, CHANNEL, [] if all_fail else failed, now=now, quiet=quiet, partly=all_fail)


def _channel_fault(state: ChannelState) -> Fault:
    since = f"{state.sent_at:%Y-%m-%d %H:%M} UTC" if state.sent_at else "it was set"
    return Fault(
        cause=f"{CHANNEL} {state.channel}",
        kind=CHANNEL_FAILED,
        severity=Severity.WARNING,
        text=f"{state.channel} has taken no alert since {since}; {state.waiting} wait for it",
        facts={"channel": state.channel, "waiting": state.waiting},
    )


def _test_message(channel: str, now: datetime) -> Message:
    body = f"This is a test of {channel}, sent at {now:%Y-%m-%d %H:%M} UTC. Nothing has happened."
    return Message(title="[info] a test of rollout's alerts", body=body, action="", id=f"test-{now.isoformat()}")
