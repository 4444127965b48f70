"""What an alert tells an owner at night: what happened, to whom, and the command that acts on it; it sends nothing."""

import re
from collections.abc import Callable, Mapping
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
from strategy_core.domain.parsing import Moment

CHANNEL_FAILED = "alerts.channel_failed"
TICK_OVERDUE = "rollout.tick_overdue"
TAMPERED = "version.tampered"
REFUSED = "version.refused"
BREACH = "shadow.isolation_breach"
STALE = "feed.stale"
SHADOW_OVERDUE = "shadow.overdue"

HEADLINES: Mapping[str, str] = {
    "rollout.started": "started",
    "rollout.advanced": "advanced to more users",
    "rollout.awaiting_approval": "waits for your approval",
    "rollout.approval_lapsed": "the approval has lapsed",
    "rollout.awaiting_decision": "waits for your decision",
    "rollout.promoted": "promoted, bakes now",
    "rollout.completed": "completed",
    "rollout.rolled_back": "rolled back",
    "rollout.frozen": "frozen: harm is likely, and not proven",
    "rollout.blind": "blind: there is no evidence",
    TICK_OVERDUE: "not ticked: nothing protects its users",
    TAMPERED: "not the build that was registered",
    REFUSED: "cannot be asked",
    BREACH: "tried to touch the outside",
    STALE: "the feed stands still",
    SHADOW_OVERDUE: "decides on no candle any more",
    "candles.absent": "has no candles",
    "candle.revised": "decided on a candle that was revised",
    CHANNEL_FAILED: "this alert channel has failed for too long",
}
LONGEST = 700  # characters of what a gate or a version says: some channels refuse long messages
WHY = '--reason "..."'
_BY_HAND = {TICK_OVERDUE: "rollout tick", SHADOW_OVERDUE: "rollout shadow"}


class Severity(StrEnum):
    """Declared from the least to the worst."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"  # told again and again until an owner acknowledges it

    @property
    def and_worse(self) -> list["Severity"]:
        return list(Severity)[list(Severity).index(self) :]


@dataclass(frozen=True, slots=True)
class Raised:
    """An alert as it was raised."""

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
class Message:
    """What is sent.

    Attributes:
        action: the command that acts on it first; empty where there is none.
        id: the same each time that it is tried, so that a receiver can drop what comes twice.
        raised: what it tells of; nothing, for a test.
    """

    title: str
    body: str
    action: str
    id: str
    raised: Raised | None = None


class Exposed(BaseModel):
    """Who gets a version: the canary's share of users, or the active version's, which is the rest."""

    role: str
    percent: float = Field(ge=0, le=100)
    since: AwareDatetime | None = None


class Facts(BaseModel):
    """What of an alert's facts is told; any of them may be absent."""

    model_config = ConfigDict(extra="ignore")

    version: str = ""
    control_version: str = ""
    exposed: Exposed | None = None  # from now on
    exposed_before: Exposed | None = None
    gate: str = ""
    verdict: str = ""
    value: float | None = None
    limit: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0
    channel: str = ""


Counted = Callable[[str, Exposed], int | None]


def uncounted(_strategy_name: str, _exposed: Exposed) -> None:
    """Say that nobody knows how many users a share is."""


def message(raised: Raised, *, number: int = 1, count: Counted = uncounted) -> Message:
    """Return what an owner is told.

    Args:
        raised: any alert, of this release or of an earlier one; facts that cannot be read are left out.
        number: the how-manieth time that it is told.
        count: how many users a share is; None where no directory is loaded.
    """
    facts = _read(raised.facts)
    acts = _acts(raised, facts)
    headline = HEADLINES.get(raised.kind) or raised.kind.replace("_", " ").replace(".", ", ")
    subject = " ".join(part for part in (raised.strategy_name, facts.version or facts.channel) if part)
    again = f", told {number} times" if number > 1 else ""
    message_id = f"{sha256(raised.dedupe_key.encode()).hexdigest()[:12]}-{number}"
    lines = [
        clipped(raised.text),
        _measured(facts),
        _users(raised, facts, count),
        *(f"{why}: {command}" for why, command in acts),
        f"alert {raised.id} of {raised.at:%Y-%m-%d %H:%M} UTC{again}; id {message_id}",
    ]
    title = clipped(f"[{raised.severity}] {subject}: {headline}")
    action = acts[0][1] if acts else ""
    body = "\n".join(line for line in lines if line)
    return Message(title=title, body=body, action=action, id=message_id, raised=raised)


def clipped(text: str) -> str:
    """Return *text* as one line that every channel takes: a version's error may hold anything, and be of any length."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"


def _read(facts: Mapping[str, Any]) -> Facts:
    try:
        return Facts.model_validate({name: value for name, value in facts.items() if value is not None})
    except ValidationError:
        return Facts()


def _measured(facts: Facts) -> str:
    if facts.value is None:
        return ""
    limit = "" if facts.limit is None else f" against limit {facts.limit:.6g}"
    interval = "" if facts.low is None or facts.high is None else f" ({facts.low:.4g} to {facts.high:.4g})"
    return f"gate {facts.gate}: {facts.verdict}, value {facts.value:.6g}{interval}{limit}, n {facts.n}"


def _users(raised: Raised, facts: Facts, count: Counted) -> str:
    now, before = facts.exposed, facts.exposed_before
    if now is None:
        return ""
    times = [each.since for each in (now, before) if each is not None and each.percent and each.since is not None]
    since = f"; for {format_duration(raised.at - min(times))}, since {min(times):%Y-%m-%d %H:%M} UTC" if times else ""
    share = _share(raised.strategy_name, now, count)
    if before is not None and before.percent != now.percent:
        return f"users: {share} now, {_share(raised.strategy_name, before, count)} before{since}"
    return f"users: {share} get it{since}" if now.percent else "users: nobody gets it"


def _share(strategy_name: str, exposed: Exposed, count: Counted) -> str:
    users = count(strategy_name, exposed) if exposed.percent else None
    return f"{exposed.percent:g} %" + ("" if users is None else f" ({users:,})")


def _acts(raised: Raised, facts: Facts) -> list[tuple[str, str]]:
    """Return what an owner may do, each with its command, the likeliest first."""
    strategy, version = quote(raised.strategy_name), quote(facts.version)
    undo = f"rollout rollback {strategy} {WHY}"
    status = ("look", f"rollout status {strategy}")
    acknowledge = [("then", f"rollout alerts ack {raised.id} {WHY}")] if raised.severity is Severity.CRITICAL else []
    match raised.kind:
        case "rollout.started" | "rollout.advanced":
            return [("to undo", undo)]
        case "rollout.awaiting_approval":
            return [("to go on", f"rollout approve {strategy} {WHY}"), ("or", undo)]
        case "rollout.awaiting_decision":
            decide = f"rollout decide {strategy}"
            return [("answer", f"{decide} extend {WHY}"), ("or", f"{decide} advance {WHY}"), ("or", undo)]
        case "rollout.promoted":
            return [(f"to have {facts.control_version or 'its predecessor'} again", undo), status]
        case "rollout.completed":
            return [("to undo", f"rollout rollback {strategy} --version {version} {WHY}")]
        case "rollout.rolled_back":
            return [("look", f"rollout verdicts {strategy}"), *acknowledge]
        case "rollout.frozen":
            return [("look", f"rollout verdicts {strategy} --gate {quote(facts.gate)}"), ("to undo", undo)]
        case "rollout.blind" | "candles.absent" | "feed.stale":
            return [status, *([("to undo", undo)] if _is_canary(facts) else []), *acknowledge]
        case "rollout.tick_overdue" | "shadow.overdue":
            undone = [("or", undo)] if raised.kind == TICK_OVERDUE or _is_canary(facts) else []
            return [("by hand", _BY_HAND[raised.kind]), *undone, *acknowledge]
        case "version.tampered" | "version.refused" | "shadow.isolation_breach":
            return [_away(facts, strategy, version, undo), *acknowledge]
        case "alerts.channel_failed":
            return [("try it", f"rollout alerts test {quote(facts.channel)}")]
        case _:
            return [status, *acknowledge]


def _away(facts: Facts, strategy: str, version: str, undo: str) -> tuple[str, str]:
    """Return how users, or the log, are rid of a version that cannot be trusted."""
    role = facts.exposed.role if facts.exposed else ""
    if role == "active":
        return ("to undo", f"rollout rollback {strategy} --version {version} {WHY}")
    return ("to undo", undo) if role == "canary" else ("to be rid of it", f"rollout retire {strategy} {version} {WHY}")


def _is_canary(facts: Facts) -> bool:
    return facts.exposed is not None and facts.exposed.role == "canary"


@dataclass(frozen=True, slots=True)
class DeliveryPace:
    """How delivery goes on.

    Attributes:
        first_retry, longest_retry: the wait after the first failure, which doubles with each, and where that ends.
        give_up_after: how long an alert is tried, from when it fell due; a critical one is tried on, and said aloud.
        repeat_after: how soon a critical alert that nobody has acknowledged is told again.
        lease: how long a process that took an alert has it for itself; longer than a pass lasts.
        news: how old an alert may be for a channel that is new; a critical one that nobody has acknowledged is no
            older than now.
    """

    first_retry: timedelta = timedelta(minutes=1)
    longest_retry: timedelta = timedelta(minutes=30)
    give_up_after: timedelta = timedelta(hours=24)
    repeat_after: timedelta = timedelta(minutes=30)
    lease: timedelta = timedelta(minutes=5)
    news: timedelta = timedelta(hours=24)

    @property
    def longest(self) -> timedelta:
        """The longest that anything is put off."""
        return max(self.longest_retry, self.repeat_after, self.lease)

    def at_speed(self, speed: float) -> Self:
        """Return the same pace on a clock that runs *speed* times as fast, as a replay's does."""
        return type(self)(**{each.name: getattr(self, each.name) * speed for each in fields(self)})

    def retry_after(self, failures: int, jitter: float) -> timedelta:
        """Return the wait after *failures* in a row.

        Args:
            failures: at least 1.
            jitter: within [0, 1): takes off up to half, so that what failed together does not come again together.
        """
        doubled = min(failures - 1, 30)  # more would overflow, and is past the longest anyway
        wait: timedelta = self.first_retry * 2**doubled
        return min(self.longest_retry, wait) * (1 - jitter / 2)

    def over(self, due: datetime, now: datetime) -> bool:
        """Say whether an alert that fell due then has been tried for long enough."""
        return now - due >= self.give_up_after


ACTION, ROLLBACK = "rollout_action", "rollback"  # the label without which an alert rolls nothing back, and its value
FIRING = "firing"
CLOCKS_DIFFER = timedelta(seconds=60)  # those of the monitoring and of the platform, at most

_LONGEST = 250  # characters of each part of a reason
_FINGERPRINT = re.compile(r"[0-9a-f]{1,64}")


def _texts(given: Any) -> Any:
    """Return a mapping of texts, whatever stands in it: a strange annotation must not keep users on a version."""
    return (
        {storable(str(name)): storable(str(value)) for name, value in given.items()} if isinstance(given, dict) else {}
    )


Texts = Annotated[dict[str, str], BeforeValidator(_texts)]
Text = Annotated[str, BeforeValidator(lambda given: storable(str(given)))]


class FiringAlert(BaseModel):
    """One alert of a notification, of which all but the labels may be absent or strange."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    status: Text = Field(default="", description="Only `firing` asks for anything.")
    labels: Texts = Field(default={}, description="`strategy`, `version` if one is meant, and `rollout_action`.")
    annotations: Texts = {}
    starts_at: Any = Field(default=None, alias="startsAt", description="Since when it fires.")
    generator_url: Text = Field(default="", alias="generatorURL")
    fingerprint: Text = Field(default="", description="Of the labels.")

    @property
    def name(self) -> str:
        return _short(self.labels.get("alertname", ""))

    @property
    def asks(self) -> bool:
        """Whether it fires, and somebody has meant it to roll back."""
        return self.status == FIRING and self.labels.get(ACTION) == ROLLBACK

    @property
    def identity(self) -> str:
        """Its fingerprint; without one, a digest of its labels."""
        if _FINGERPRINT.fullmatch(self.fingerprint):
            return self.fingerprint
        return sha256(repr(sorted(self.labels.items())).encode()).hexdigest()[:16]


class _Since(BaseModel):
    at: Moment


@dataclass(frozen=True, slots=True)
class RollbackRequest:
    """What an alert that fires asks for.

    Attributes:
        version: that users shall be taken off; None: whichever is on its way.
        since: when it began to fire, by the monitoring's clock.
        key: tells this firing from every other, and is the same each time that it is told.
        reason: for the audit trail.
    """

    strategy_name: str
    version: str | None
    since: datetime
    key: str
    reason: str


def read_firing_alert(given: Any) -> FiringAlert:
    """Return an alert as it was sent, whatever was; one that is none asks for nothing."""
    return FiringAlert.model_validate(given if isinstance(given, Mapping) else {})


def read_rollback_request(alert: FiringAlert) -> RollbackRequest:
    """Return what *alert* asks for.

    Raises:
        InvalidName: it names no strategy, or no time since when it fires.
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
        strategy_name=strategy_name[:_LONGEST],
        version=alert.labels.get("version", "")[:_LONGEST] or None,
        since=since,
        key=f"alert:{alert.identity}:{strategy_name[:_LONGEST]}:{since.isoformat()}",
        reason=f"{about}{f': {summary}' if summary else ''} ({origin})",
    )


def _short(text: str) -> str:
    line = clipped(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
