"""Alerts: headlines, the message with the commands that act on it, the delivery pace, and Alertmanager requests."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256
from shlex import quote
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from strategy_core.domain.audit import storable
from strategy_core.domain.errors import InvalidName
from strategy_core.domain.gates.base import format_duration
from strategy_core.domain.links import Links
from strategy_core.domain.parsing import Moment

CHANNEL_FAILED = "alerts.channel_failed"
TICK_OVERDUE = "rollout.tick_overdue"
TAMPERED = "version.tampered"
REFUSED = "version.refused"
BREACH = "shadow.isolation_breach"
STALE = "feed.stale"
SHADOW_OVERDUE = "shadow.overdue"
AUDIT_BROKEN = "audit.broken"
REQUEST_WAITING = "owner.request_waiting"
CLOSED = "strategy.closed"
START_REFUSED = "rollout.start_refused"
ABSENT = "candles.absent"
REVISED = "candle.revised"
BLIND = "rollout.blind"
ROLLED_BACK = "rollout.rolled_back"
HOST_OVERLOADED = "host.overloaded"
AWAITING_APPROVAL = "rollout.awaiting_approval"
AWAITING_DECISION = "rollout.awaiting_decision"
ENDED = "incident.ended"
CLOCKS_DISAGREE = "clock.disagrees"
WATCH_HARM = "watch.harm"
WATCH_LIKELY_HARM = "watch.likely_harm"
REPORT_READY = "report.ready"
ORPHANED = "positions.orphaned"
POSITIONS_OVERDUE = "positions.overdue"
PROPOSAL_WAITING = "proposal.waiting"
LOSS_LIMIT = "user.loss_limit"
CAPITAL_EXCEEDED = "canary.capital_exceeded"
OPEN_RISK_EXCEEDED = "canary.open_risk_exceeded"
NOMINATED = "race.nominated"
LEAD_LOST = "race.lead_lost"

HEADLINES: Mapping[str, str] = {
    "rollout.started": "started",
    START_REFUSED: "the scheduled start was refused",
    "rollout.advanced": "advanced to more users",
    AWAITING_APPROVAL: "waits for your approval",
    "rollout.approval_lapsed": "the approval has lapsed",
    AWAITING_DECISION: "waits for your decision",
    "rollout.promoted": "promoted, baking",
    "rollout.completed": "completed",
    ROLLED_BACK: "rolled back",
    "rollout.frozen": "held: harm is likely but not proven",
    "rollout.symbol_excluded": "a symbol is excluded from the canary",
    CAPITAL_EXCEEDED: "holds more capital than its cap",
    OPEN_RISK_EXCEEDED: "the canary has more open risk than its limit",
    BLIND: "blind: no evidence",
    TICK_OVERDUE: "tick overdue: its users are not protected",
    TAMPERED: "not the build that was registered",
    REFUSED: "refused to run",
    BREACH: "isolation breach blocked",
    STALE: "the feed is stale",
    SHADOW_OVERDUE: "shadow run overdue: no new decisions",
    AUDIT_BROKEN: "the audit trail does not hold",
    CLOSED: "closed: no version serves its users",
    ABSENT: "has no candles",
    REVISED: "decided on a candle that was revised",
    REQUEST_WAITING: "an owner's request waits",
    CLOCKS_DISAGREE: "the clocks disagree: missing ticks cannot be seen",
    CHANNEL_FAILED: "this alert channel has failed for too long",
    HOST_OVERLOADED: "the host is too slow to run versions",
    WATCH_HARM: "earns less than its predecessor",
    WATCH_LIKELY_HARM: "seems to earn less than its predecessor",
    ENDED: "is over",
    REPORT_READY: "a report is ready",
    ORPHANED: "open positions have no manager that decides",
    POSITIONS_OVERDUE: "positions are open though they are to be left",
    PROPOSAL_WAITING: "an assistant's proposal waits for you",
    LOSS_LIMIT: "the loss limit of users is reached",
    NOMINATED: "leads its race",
    LEAD_LOST: "has lost the lead of its race",
}
REPORT_TITLES: Mapping[str, str] = {  # by kind of report
    "morning": "morning note",
    "weekly": "weekly report",
    "final": "final report",
    "ready": "ready note",
}
QUIET = timedelta(minutes=10)  # without the fault until an incident is over: a feed that comes and goes is one incident
FEW = 5  # names in a list, the others are counted
LISTED = 50  # symbols in the facts of an alert
LONGEST = 700  # characters of a gate's or a version's text: some channels refuse long messages
WHY = '--reason "..."'
_RUN_NOW = {TICK_OVERDUE: "rollout tick", SHADOW_OVERDUE: "rollout shadow"}
ACTION, ROLLBACK = "rollout_action", "rollback"  # only an alert with this label and value rolls back
FIRING = "firing"
CLOCKS_DIFFER = timedelta(seconds=60)  # at most, between the monitoring, the platform and its commands

_TIMES, _COUNTS = {"started_at", "seen_at", "ticked_at"}, {"symbol_count", "strategy_count"}
_NAMELESS = {"incident", "symbols", "host", "load_per_core", *_TIMES, *_COUNTS}  # facts that name no strategy
_LONGEST_PART = 250  # characters of each part of a reason
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}")


class Severity(StrEnum):
    """Declared from mild to severe."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"  # sent again until an owner acknowledges it

    @property
    def and_worse(self) -> list["Severity"]:
        return list(Severity)[list(Severity).index(self) :]


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert as stored."""

    id: int
    at: datetime
    severity: Severity
    kind: str
    strategy_name: str
    text: str
    dedupe_key: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    rollout_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that lasts, as it is seen now: one alert when it begins, and one when it is over.

    Attributes:
        cause: what is at fault: its topic, and a name if there may be several, such as `channel slack-1f2e3d4c`.
        kind, severity, text, rollout_id: of the alert.
        strategies, symbols: the names of what it affects now.
        facts: further facts of the alert.
    """

    cause: str
    kind: str
    severity: Severity
    text: str
    strategies: Sequence[str] = ()
    symbols: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    rollout_id: UUID | None = None

    @property
    def all_facts(self) -> dict[str, Any]:
        return {**self.facts, **affected_facts(self.strategies, self.symbols)}


def affected_facts(strategies: Sequence[str], symbols: Sequence[str]) -> dict[str, Any]:
    """Return the facts about what an incident affects. A long list of symbols is cut, with its length beside it."""
    return {
        "strategies": list(strategies),  # all of them: they decide who may see the alert
        "strategy_count": len(strategies),
        "symbols": list(symbols[:LISTED]),
        "symbol_count": len(symbols),
    }


def restricted(kind: str, facts: Mapping[str, Any], may_see: Collection[str]) -> tuple[str, dict[str, Any]] | None:
    """Return text and facts of an alert about several strategies without the names of those outside *may_see*.

    Returns:
        None if the alert names no other strategy.
    """
    affected = facts.get("strategies", ())
    seen = [name for name in affected if name in may_see]
    if len(seen) == len(affected):
        return None
    others = len(affected) - len(seen)
    headline = f"over: {_headline(str(facts.get('incident', '')))}" if kind == ENDED else _headline(kind)
    text = f"{headline}, affects {few_of(seen)} and {others:,} other {'strategy' if others == 1 else 'strategies'}"
    return text, {name: value for name, value in facts.items() if name in _NAMELESS} | {"strategies": seen}


def few_of(names: Sequence[str]) -> str:
    """Return the first names, and the number of the others."""
    shown = ", ".join(names[:FEW])
    return f"{shown} and {len(names) - FEW:,} more" if len(names) > FEW else shown


def affected_text(strategies: Sequence[str], symbols: Sequence[str]) -> str:
    """Return what an incident affects, such as `2 symbols (GOLD, SILVER) of 1 strategy (fib_rsi)`."""
    parts = [
        f"{len(names):,} {one if len(names) == 1 else many} ({few_of(names)})"
        for names, one, many in ((symbols, "symbol", "symbols"), (strategies, "strategy", "strategies"))
        if names
    ]
    return " of ".join(parts)


def ended_text(
    kind: str, lasted: timedelta, strategies: Sequence[str], symbols: Sequence[str], *, version: str = ""
) -> str:
    """Return the text of the alert that an incident is over.

    Args:
        version: of the one strategy, if the incident affects only that.
    """
    about = f"{HEADLINES.get(kind, kind)}: over after {format_duration(lasted)}"
    if version:
        return f"{strategies[0]} {version} {about}"
    affected = affected_text(strategies, symbols)
    return f"{about}, affected {affected}" if affected else about


@dataclass(frozen=True, slots=True)
class AttachedPage:
    """A page that belongs to a message: attached where the channel takes files, and linked elsewhere.

    Attributes:
        name: of the file.
        html: the page, complete in itself.
        url: where owners find it, or an empty text.
    """

    name: str
    html: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """What a channel sends.

    Attributes:
        action: the most likely command to act on it, or an empty text.
        id: stays the same when a delivery is retried, so that a receiver can drop duplicates.
        raised: the alert. None for a test message.
        page: what belongs to it, if anything.
    """

    title: str
    body: str
    action: str
    id: str
    raised: Raised | None = None
    page: AttachedPage | None = None


class Exposed(BaseModel):
    """The share of users on a version: the canary's percent, or the rest for the active version."""

    role: str
    percent: float = Field(ge=0, le=100)
    since: AwareDatetime | None = None


class ShownGate(BaseModel):
    """What a gate found, as texts for owners (see `readings.GateReading`)."""

    title: str
    value: str
    limit: str
    count: str

    def line(self, verdict: str) -> str:
        """Return the finding in a line, without the parts that the gate does not have."""
        against = "" if self.limit == "—" else f" against limit {self.limit}"
        parts = [
            verdict,
            "" if self.value == "—" else f"{self.value}{against}",
            "" if self.count == "—" else self.count,
        ]
        return f"{self.title}: {', '.join(part for part in parts if part)}"


class Facts(BaseModel):
    """The facts of an alert that a message shows. Any of them may be absent."""

    model_config = ConfigDict(extra="ignore")

    version: str = ""
    control_version: str = ""
    exposed: Exposed | None = None  # since the alert
    exposed_before: Exposed | None = None
    gate: str = ""
    verdict: str = ""
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    shown: ShownGate | None = None  # not in alerts of earlier releases
    channel: str = ""
    incident: str = ""  # the kind of the alert at its start
    strategy_count: int = 0
    report: str = ""  # id of the report that is ready
    report_kind: str = ""
    proposal: str = ""  # id of the proposal that waits


CountUsers = Callable[[str, Exposed], int | None]  # (strategy name, share) -> users, None without a user list


def count_unknown(_strategy_name: str, _exposed: Exposed) -> None:
    """Count users where no user list is loaded."""


NO_LINKS = Links()


def message(raised: Raised, *, number: int = 1, count: CountUsers = count_unknown, links: Links = NO_LINKS) -> Message:
    """Return the message about an alert.

    Args:
        raised: an alert of this or an earlier release. Facts that cannot be read are left out.
        number: 1 for the first message about this alert, 2 for the first repetition, and so on.
        count: returns the number of users in a share.
        links: to the console and to Prefect's forms, as far as they are known.
    """
    facts = _read_facts(raised.facts)
    commands = _suggested_commands(raised, facts)
    headline = _headline_of(raised, facts)
    many = f"{facts.strategy_count:,} strategies" if facts.strategy_count and not raised.strategy_name else ""
    subject = " ".join(part for part in (raised.strategy_name or many, facts.version or facts.channel) if part)
    again = f", sent {number} times" if number > 1 else ""
    message_id = f"{sha256(raised.dedupe_key.encode()).hexdigest()[:12]}-{number}"
    lines = [
        clipped(raised.text),
        _users_line(raised, facts, count),
        _gate_line(facts),
        *(f"{why}: {command}" for why, command in commands),
        *_link_lines(raised, facts, links, commands),
        f"alert {raised.id} of {raised.at:%Y-%m-%d %H:%M} UTC{again}; id {message_id}",
    ]
    title = clipped(f"[{raised.severity}] {f'{subject}: ' if subject else ''}{headline}")
    action = commands[0][1] if commands else ""
    body = "\n".join(line for line in lines if line)
    return Message(title=title, body=body, action=action, id=message_id, raised=raised)


def clipped(text: str) -> str:
    """Return *text* as one short line of printable characters, which every channel accepts."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _headline_of(raised: Raised, facts: Facts) -> str:
    if raised.kind == ENDED:
        return f"over: {_headline(facts.incident)}"
    if raised.kind == REPORT_READY and facts.report_kind:
        return REPORT_TITLES.get(facts.report_kind, facts.report_kind)
    return _headline(raised.kind)


def _headline(kind: str) -> str:
    return HEADLINES.get(kind) or kind.replace("_", " ").replace(".", ", ")


def _read_facts(facts: Mapping[str, Any]) -> Facts:
    try:
        return Facts.model_validate({name: value for name, value in facts.items() if value is not None})
    except ValidationError:
        return Facts()


def _gate_line(facts: Facts) -> str:
    if facts.shown is not None:
        return facts.shown.line(facts.verdict)
    if facts.value is None:
        return ""
    limit = "" if facts.limit is None else f" against limit {facts.limit:.6g}"
    interval = "" if facts.low is None or facts.high is None else f" ({facts.low:.4g} to {facts.high:.4g})"
    return f"gate {facts.gate}: {facts.verdict}, value {facts.value:.6g}{interval}{limit}, n {facts.n}"


def _users_line(raised: Raised, facts: Facts, count: CountUsers) -> str:
    now, before = facts.exposed, facts.exposed_before
    if now is None:
        return ""
    times = [each.since for each in (now, before) if each is not None and each.percent and each.since is not None]
    since = f"; for {format_duration(raised.at - min(times))}, since {min(times):%Y-%m-%d %H:%M} UTC" if times else ""
    share = _share(raised.strategy_name, now, count)
    if before is not None and before.percent != now.percent:
        return f"users: {share} now, {_share(raised.strategy_name, before, count)} before{since}"
    return f"users: {share} get it{since}" if now.percent else "users: none get it"


def _share(strategy_name: str, exposed: Exposed, count: CountUsers) -> str:
    users = count(strategy_name, exposed) if exposed.percent else None
    return f"{exposed.percent:g} %" + ("" if users is None else f" ({users:,})")


def _suggested_commands(raised: Raised, facts: Facts) -> list[tuple[str, str]]:
    """Return pairs of purpose and command, the most likely first."""
    strategy, version = quote(raised.strategy_name), quote(facts.version)
    undo = f"rollout rollback {strategy} {WHY}"
    reopen = ("to reopen", f"rollout activate {strategy} {version} {WHY}")
    status = reopen if raised.kind == CLOSED else ("details", _details(raised))
    critical = raised.severity is Severity.CRITICAL
    acknowledge = [("acknowledge", f"rollout alerts acknowledge {raised.id} {WHY}")] if critical else []
    match raised.kind:
        case "rollout.started" | "rollout.advanced":
            return [("to undo", undo)]
        case "rollout.awaiting_approval":
            return [("to continue", f"rollout approve {strategy} {WHY}"), ("or", undo)]
        case "rollout.awaiting_decision":
            decide = f"rollout decide {strategy}"
            return [("answer", f"{decide} extend {WHY}"), ("or", f"{decide} advance {WHY}"), ("or", undo)]
        case "rollout.promoted":
            return [(f"to reinstate {facts.control_version or 'its predecessor'}", undo), status]
        case "rollout.completed" | "watch.harm" | "watch.likely_harm":
            return [("to undo", f"rollout rollback {strategy} --version {version} {WHY}"), *acknowledge]
        case "rollout.rolled_back":
            return [("details", f"rollout verdicts {strategy}"), *acknowledge]
        case "rollout.frozen":
            return [("details", f"rollout verdicts {strategy} --gate {quote(facts.gate)}"), ("to undo", undo)]
        case "rollout.blind" | "candles.absent" | "feed.stale":
            return [status, *([("to undo", undo)] if _is_canary(facts) else []), *acknowledge]
        case "rollout.tick_overdue" | "shadow.overdue":
            undone = raised.strategy_name and (raised.kind == TICK_OVERDUE or _is_canary(facts))
            also = [("or", undo)] if undone else []
            return [("run now", _RUN_NOW[raised.kind]), *also, *acknowledge]
        case "version.tampered" | "version.refused" | "shadow.isolation_breach":
            return [_withdrawal(facts, strategy, version, undo), *acknowledge]
        case "alerts.channel_failed" | "proposal.waiting" | "race.nominated" | "race.lead_lost":
            return _answers(
                raised, facts, f"{strategy} {version}", f"rollout rollback {strategy} --version {version} {WHY}"
            )
        case _:
            return [status, *acknowledge]


def _link_lines(raised: Raised, facts: Facts, links: Links, commands: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield the console's page, and Prefect's filled-in form for each command that has one."""
    if page := links.page(raised.strategy_name, raised.rollout_id):
        yield f"console: {page}"
    about = {"strategy_name": raised.strategy_name}
    asked = " ".join(command for _, command in commands)
    if "rollout approve " in asked and (form := links.form("approve-stage", **about)):
        yield f"form to approve: {form}"
    versioned = about | ({"version": facts.version} if facts.version else {})
    if "rollout rollback " in asked and (form := links.form("rollback", **versioned)):
        yield f"form to roll back: {form}"


def _details(raised: Raised) -> str:
    """Return the command that shows more about an alert."""
    if raised.kind == AUDIT_BROKEN:
        return "rollout audit verify"
    if raised.kind == CLOCKS_DISAGREE:
        return "rollout db clock"
    if raised.kind in (ORPHANED, POSITIONS_OVERDUE, OPEN_RISK_EXCEEDED) and raised.strategy_name:
        return f"rollout positions {quote(raised.strategy_name)}"
    if raised.kind in (NOMINATED, LEAD_LOST):
        return f"rollout race status {quote(raised.strategy_name)}"
    if raised.kind == REPORT_READY:
        return f"rollout report {quote(str(raised.facts.get('report') or raised.strategy_name))}"
    if raised.kind == LOSS_LIMIT:
        return f"rollout exclusions list {quote(raised.strategy_name)}"
    if raised.strategy_name:
        return f"rollout status {quote(raised.strategy_name)}"
    return "rollout alerts list" if raised.kind == ENDED else "rollout status"


def _answers(raised: Raised, facts: Facts, whose: str, undo: str) -> list[tuple[str, str]]:
    """Return the commands for a channel that fails, for a proposal that waits, or for a race."""
    if raised.kind in (NOMINATED, LEAD_LOST):
        return _of_race(raised, whose, undo)
    if raised.kind == CHANNEL_FAILED:
        return [("try it", f"rollout alerts test {quote(facts.channel)}")]
    approve, reject = (f"rollout proposals {word} {quote(facts.proposal)} {WHY}" for word in ("approve", "reject"))
    return [("to approve", approve), ("or", reject), ("details", _details(raised))]


def _of_race(raised: Raised, whose: str, undo: str) -> list[tuple[str, str]]:
    """Return the commands for a leader, and for a canary that leads no longer. A race may have acted on them itself."""
    details = ("details", _details(raised))
    if raised.kind == LEAD_LOST:
        return [details] if raised.facts.get("ended") else [details, ("to take its users off it", undo)]
    if raised.facts.get("started"):
        return [details, ("to undo", undo)]
    return [("to start its rollout", f"rollout start {whose}"), details]


def _withdrawal(facts: Facts, strategy: str, version: str, undo: str) -> tuple[str, str]:
    """Return the command that takes a version that cannot be trusted out of use."""
    role = facts.exposed.role if facts.exposed else ""
    if role == "active":
        return ("to undo", f"rollout rollback {strategy} --version {version} {WHY}")
    return ("to undo", undo) if role == "canary" else ("to retire it", f"rollout retire {strategy} {version} {WHY}")


def _is_canary(facts: Facts) -> bool:
    return facts.exposed is not None and facts.exposed.role == "canary"


@dataclass(frozen=True, slots=True)
class ClockCheck:
    """Whether a clock is right enough to judge what is late.

    Attributes:
        problem: why it is not, whatever the times are. Empty if it is.
        tolerance: how far times in the database may be ahead of the clock.
    """

    problem: str = ""
    tolerance: timedelta = CLOCKS_DIFFER

    def doubt(self, newest: datetime, now: datetime) -> str:
        """Return why nothing that depends on *newest* can be judged as late at *now*, or an empty text."""
        if self.problem or newest - now <= self.tolerance:
            return self.problem
        return (
            f"clock disagrees: the database has a time of {newest:%Y-%m-%d %H:%M} UTC, and this clock shows "
            f"{now:%Y-%m-%d %H:%M} UTC"
        )


SURE = ClockCheck()


@dataclass(frozen=True, slots=True)
class DeliveryPace:
    """When deliveries are retried, repeated and given up.

    Attributes:
        first_retry, longest_retry: the wait after the first failure. It doubles with each failure, up to the longest.
        give_up_after: how long an alert is tried after it fell due. Retries of a critical alert continue, and a warning
            about the channel is raised.
        repeat_after: when a critical alert without an acknowledgement is sent again.
        lease: how long the process that claimed an alert holds it. Longer than a delivery pass lasts.
        news: a new channel receives alerts up to this age, and all critical ones without an acknowledgement.
        quiet: how long a fault must be gone until its incident is over.
    """

    first_retry: timedelta = timedelta(minutes=1)
    longest_retry: timedelta = timedelta(minutes=30)
    give_up_after: timedelta = timedelta(hours=24)
    repeat_after: timedelta = timedelta(minutes=30)
    lease: timedelta = timedelta(minutes=5)
    news: timedelta = timedelta(hours=24)
    quiet: timedelta = QUIET

    @property
    def longest(self) -> timedelta:
        """The longest time for which a delivery is put off."""
        return max(self.longest_retry, self.repeat_after, self.lease)

    def at_speed(self, speed: float) -> Self:
        """Return the pace for a replay clock that runs *speed* times as fast."""
        return type(self)(**{each.name: getattr(self, each.name) * speed for each in fields(self)})

    def retry_after(self, failures: int, jitter: float) -> timedelta:
        """Return the wait after *failures* in a row.

        Args:
            failures: at least 1.
            jitter: within [0, 1). Shortens the wait by up to half, so that channels do not all retry at once.
        """
        doubled = min(failures - 1, 30)  # a larger exponent would overflow
        wait: timedelta = self.first_retry * 2**doubled
        return min(self.longest_retry, wait) * (1 - jitter / 2)

    def over(self, due: datetime, now: datetime) -> bool:
        """Return whether to give up on an alert that fell due at *due*."""
        return now - due >= self.give_up_after


def _texts(given: Any) -> Any:
    """Return a mapping of texts. A strange annotation must not prevent a rollback, so other values are converted."""
    return (
        {storable(str(name)): storable(str(value)) for name, value in given.items()} if isinstance(given, dict) else {}
    )


Texts = Annotated[dict[str, str], BeforeValidator(_texts)]
Text = Annotated[str, BeforeValidator(lambda given: storable(str(given)))]


class FiringAlert(BaseModel):
    """One alert of an Alertmanager notification. Every field but the labels may be absent or malformed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Text = Field(default="", description="Only `firing` alerts are acted on.")
    labels: Texts = Field(default={}, description="`strategy`, `rollout_action`, and optionally `version`.")
    annotations: Texts = {}
    starts_at: Any = Field(default=None, alias="startsAt", description="Start of the alert, ISO 8601 with an offset.")
    generator_url: Text = Field(default="", alias="generatorURL")
    fingerprint: Text = Field(default="", description="Hash of the labels.")

    @property
    def name(self) -> str:
        return _short(self.labels.get("alertname", ""))

    @property
    def asks(self) -> bool:
        """Whether it fires and is labelled to roll back."""
        return self.status == FIRING and self.labels.get(ACTION) == ROLLBACK

    @property
    def identity(self) -> str:
        """The fingerprint, or a digest of the labels without one."""
        if _FINGERPRINT.fullmatch(self.fingerprint):
            return self.fingerprint
        return sha256(repr(sorted(self.labels.items())).encode()).hexdigest()[:16]


class _Since(BaseModel):
    at: Moment


@dataclass(frozen=True, slots=True)
class RollbackRequest:
    """A rollback requested by a firing alert.

    Attributes:
        version: the version to roll back. None means the canary or the open rollout.
        since: when the alert began to fire, by the clock of the monitoring.
        key: idempotency key: one per firing, the same when the notification is repeated.
        reason: for the audit trail.
    """

    strategy_name: str
    version: str | None
    since: datetime
    key: str
    reason: str


def read_firing_alert(given: Any) -> FiringAlert:
    """Return an alert as it was sent. Malformed input becomes an alert that requests no rollback."""
    return FiringAlert.model_validate(given if isinstance(given, Mapping) else {})


def read_rollback_request(alert: FiringAlert) -> RollbackRequest:
    """Return the rollback that *alert* requests.

    Raises:
        InvalidName: the strategy or the start time is missing.
    """
    strategy_name = alert.labels.get("strategy", "")
    if not strategy_name:
        raise InvalidName("strategy name", "", "the name of a strategy, in the label `strategy` of the alert")
    try:
        since = _Since(at=alert.starts_at).at
    except ValidationError:
        raise InvalidName("startsAt", _short(str(alert.starts_at)), "ISO 8601 with its offset") from None
    about = f"alert {alert.name or 'without a name'}, firing since {since:%Y-%m-%d %H:%M:%S} UTC"
    summary = _short(alert.annotations.get("summary") or alert.annotations.get("description", ""))
    source = _short(alert.generator_url)
    origin = f"fingerprint {alert.identity}{f', {source}' if source else ''}"
    return RollbackRequest(
        strategy_name=strategy_name[:_LONGEST_PART],
        version=alert.labels.get("version", "")[:_LONGEST_PART] or None,
        since=since,
        key=f"alert:{alert.identity}:{strategy_name[:_LONGEST_PART]}:{since.isoformat()}",
        reason=f"{about}{f': {summary}' if summary else ''} ({origin})",
    )


def _short(text: str) -> str:
    line = clipped(text)
    return line if len(line) <= _LONGEST_PART else f"{line[:_LONGEST_PART]} …"
