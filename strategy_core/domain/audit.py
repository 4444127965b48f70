"""The audit trail: actors, the hash chain of each strategy, what rows follow from it, and the export as JSON or CSV."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, TypeAlias
from uuid import UUID

from strategy_core.domain.errors import InvalidExport
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.parsing import check_owner_name

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # characters that databases cannot store as text, nor look for


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or process behind a change, and the request that carried it.

    Attributes:
        name: a user's id, or the name of the flow.
        role: owner, admin, system, or agent (an assistant with an owner's token).
        source: where the request came in: sdk, cli, api, console, mcp, flow (a schedule), form, or an unverified form.
        request_id: of the call or flow run, the same as in logs.
        idempotency_key: chosen by the client. With one key, a change by an actor is made only once.
    """

    name: str
    role: str = "owner"
    source: str = "sdk"
    request_id: str = ""
    idempotency_key: str | None = None

    def __post_init__(self) -> None:
        """Raise InvalidName unless the name is fit for the audit trail."""
        check_owner_name(self.name)

    @property
    def shown(self) -> str:
        """The name for people, with a mark if nobody has verified it."""
        return shown_actor(self.name, self.source)


def shown_actor(name: str, source: str) -> str:
    """Return an actor's name for people, with a mark if it is only what was typed in a form."""
    return f"{name} (unverified)" if source == UNVERIFIED_FORM else name


FORM = "form"
UNVERIFIED_FORM = "form, unverified"  # an owner's name as typed in a form. Part of the event's hash, as every source
# type of the creator of a run of Prefect. A server sets it, Prefect's own only for automations, and no client can
SIGNED_IN = "USER"
AGENT = "agent"  # role of an assistant
RAMP = Actor("ramp", role="system", source="flow")
DRAIN = Actor("drain", role="system", source="flow")
RACE = Actor("race", role="system", source="flow")


def storable(text: str) -> str:
    """Replace NUL and lone surrogates by U+FFFD, so that no text in a reason can prevent a rollback."""
    return UNSTORABLE.sub("\ufffd", text)


BEFORE_THE_FIRST = "0" * 64  # previous hash of the first event
_EXACT = 2**53  # larger whole numbers may not be exact as floats
_SOURCE = "the export"
_NOT_HASHED = frozenset({"id", "previous_hash", "hash"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a spreadsheet may read a text that starts so as a formula


@dataclass(frozen=True, slots=True)
class Link:
    """An audit event in the trail. *facts* are all of its columns that the hash covers."""

    position: int
    previous_hash: str
    hash: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """A position of the trail at which the chain does not verify, and the problem there."""

    position: int
    problem: str


@dataclass(slots=True)
class Chain:
    """The verified part of the chain of one strategy.

    Attributes:
        count: events so far.
        position, head: position and hash of the last event.
        breaks: problems found so far.
    """

    count: int = 0
    position: int = 0
    head: str = BEFORE_THE_FIRST
    breaks: list[ChainBreak] = field(default_factory=list)
    _left: Any = None  # what the last event left

    def follow(self, link: Link) -> None:
        """Verify the next stored event."""
        if link.position != self.position + 1:
            self._break(link, f"follows position {self.position}: an event was removed, added or moved")
        elif link.previous_hash != self.head:
            self._break(link, "does not carry the hash of the event before it")
        elif changed := _unrecorded(self._left, link.facts):
            self._break(
                link, f"begins with another {', '.join(changed)} than the event before it left: an unrecorded change"
            )
        if link.hash != event_hash(link.previous_hash, link.facts):
            self._break(link, "was changed: its hash is not that of its facts")
        self.count, self.position, self.head = self.count + 1, link.position, link.hash
        self._left = link.facts.get("after")

    def end(self, *, generation: int, head: str) -> list[ChainBreak]:
        """Compare the end of the chain with the row of the strategy, and return all breaks.

        Args:
            generation, head: position and hash of the newest event, from the row.
        """
        if (self.position, self.head) != (generation, head or BEFORE_THE_FIRST):
            self.breaks.append(
                ChainBreak(
                    generation,
                    f"should be the newest event, but the trail ends at {self.position} or with another hash",
                )
            )
        return self.breaks

    def _break(self, link: Link, problem: str) -> None:
        self.breaks.append(ChainBreak(link.position, problem))


TOGGLE = "toggle "  # before the name of a toggle, in the facts of an event
_CANARY_ALONE = (  # the rollout's row stays as it is
    *("update_canary_percent", "exclude_symbol"),
    "narrow_canary",
)
_MOVES = {"retire_version": Status.RETIRED, "return_to_shadow": Status.SHADOW}
_SETS_CANARY = ("start_rollout", "advance", *_CANARY_ALONE)

Columns: TypeAlias = dict[str, frozenset[Any]]  # column -> values that the events allow, mostly one


@dataclass(slots=True)
class Replay:
    """The columns of rows that follow from the events of one strategy, with the values that they allow.

    A column has several allowed values where a release recorded less than it stored. JSON columns are given by their
    `values_digest`. Memory grows with versions and rollouts, not with events.

    Attributes:
        strategy, canary, policy: columns of the row in `strategy`, `canary_config` and `strategy_policy`, empty if no
            event determines one.
        versions, rollouts: columns by version and by rollout id.
        toggles: `values_digest` of the rules of each toggle, as events show them. Without rules it has none.
    """

    strategy: Columns = field(default_factory=dict)
    canary: Columns = field(default_factory=dict)
    policy: Columns = field(default_factory=dict)
    toggles: dict[str, str] = field(default_factory=dict)
    versions: dict[str, Columns] = field(default_factory=dict)
    rollouts: dict[UUID, Columns] = field(default_factory=dict)
    _open: UUID | None = None
    _excluded: dict[str, Any] = field(default_factory=dict)
    _newest_activation: datetime | None = None

    def follow(self, facts: Mapping[str, Any]) -> None:
        """Apply the next event."""
        before, after = _Serving.of(facts["before"]), _Serving.of(facts["after"])
        action, version, at = facts["action"], facts["version"], facts["at"]
        if action == "register_version":
            self._register(version, at, facts["after"])
        own = self.rollouts.get(facts["rollout_id"], {})
        reinstates = action == "activate_version" and version in own.get("control_version", ()) and _baked(own)
        if after.active != before.active:
            if before.active is not None:
                of_rollout = action == "roll_back" and facts["rollout_id"] is not None
                kept = isinstance(facts["after"], Mapping) and facts["after"].get("outgoing") == Status.SHADOW
                stays = action == "promote" or reinstates or of_rollout or kept
                self._move(before.active, Status.SHADOW if stays else Status.RETIRED, at)
            if after.active is not None:
                self._move(after.active, Status.ACTIVE, at)
        if before.canary not in (None, after.canary, after.active):
            self._move(before.canary, Status.SHADOW, at)
        if after.canary not in (None, before.canary):
            self._move(after.canary, Status.CANARY, at)
        if action in _MOVES:
            self._move(version, _MOVES[action], at)
        if action in ("activate_version", "activate_canary", "start_rollout"):
            self._set(version, quarantined_at=None)
        if action == "roll_back":
            self._set(version, quarantined_at=at)
        elif reinstates:
            self._set(before.active, quarantined_at=at)
        if action == "set_policy" and isinstance(facts["after"], Mapping):
            self.policy["policy"] = frozenset({values_digest(facts["after"].get("policy"))})
        if action == "exclude_symbol" and isinstance(facts["after"], Mapping):
            self._excluded[str(facts["after"].get("symbol"))] = facts["after"].get("since")
        self._follow_toggles(action, facts["after"])
        self._follow_canary(action, at, before, after, promoted=_baked(own))
        self._follow_rollout(facts, before, after, reinstates=reinstates)

    def _register(self, version: str, at: datetime, after: Any) -> None:
        known = after if isinstance(after, Mapping) else {}
        status = _text(known.get("status"))  # not recorded by 0.2.0 and earlier
        retired_at = {None, at} if status is None else {at if status == Status.RETIRED else None}
        self.versions[version] = {
            "fingerprint": frozenset({str(known.get("fingerprint"))}),
            "status": frozenset({Status.SHADOW, Status.RETIRED} if status is None else {str(status)}),
            "created_at": frozenset({at}),
            "activated_at": frozenset({None}),
            "retired_at": frozenset(retired_at),
            "quarantined_at": frozenset({None}),
        }
        self.strategy |= {name: frozenset({str(known[name])}) for name in ("salt", "scoring") if name in known}

    def _follow_toggles(self, action: str, after: Any) -> None:
        for name, rules in after.items() if isinstance(after, Mapping) else ():
            if action == "set_toggle" and name.startswith(TOGGLE):
                self.toggles.pop(name.removeprefix(TOGGLE), None)
                if rules:
                    self.toggles[name.removeprefix(TOGGLE)] = values_digest(rules)

    def _move(self, version: str | None, status: Status, at: datetime) -> None:
        self._set(version, status=status.value)
        if status is Status.RETIRED:
            self._set(version, retired_at=at)
        if status is Status.ACTIVE:
            newest = self._newest_activation
            later = at if newest is None else max(at, newest + timedelta(microseconds=1))
            self._set(version, activated_at=at)
            if version in self.versions:  # 0.1.0 stored the time of a clock that was set back
                self.versions[version]["activated_at"] |= {later}
            self._newest_activation = later

    def _set(self, version: str | None, **columns: Any) -> None:
        if version in self.versions:
            self.versions[version] |= {name: frozenset({value}) for name, value in columns.items()}

    def _follow_canary(
        self, action: str, at: datetime, before: "_Serving", after: "_Serving", *, promoted: bool
    ) -> None:
        moved = after.canary != before.canary
        if after.canary is not None and moved:
            self.canary |= {"version": frozenset({after.canary}), "started_at": frozenset({at})}
            self._excluded = {}
        if not self.canary:
            return
        resumed = action == "resume" and not promoted
        if moved or resumed or action in _SETS_CANARY:
            self.canary["generation"] = frozenset({max(self.canary.get("generation", {0})) + 1})
        self.canary["excluded_symbols"] = frozenset({values_digest(self._excluded)})
        served = after.percent_bp if after.canary is not None else 0
        asked = after.asked_bp if after.canary is not None and after.asked_bp is not None else served
        self.canary |= {"rollout_bp": frozenset({served}), "asked_bp": frozenset({asked})}

    def _follow_rollout(
        self, facts: Mapping[str, Any], before: "_Serving", after: "_Serving", *, reinstates: bool
    ) -> None:
        action, at, rollout_id = facts["action"], facts["at"], facts["rollout_id"]
        if action == "start_rollout" and rollout_id is not None:
            self._open = rollout_id
            self.rollouts[rollout_id] = {
                "version": frozenset({facts["version"]}),
                "control_version": frozenset({before.active}),
                "started_at": frozenset({at}),
                "generation": frozenset({1}),
                "promoted_at": frozenset({None}),
                "ended_at": frozenset({None}),
            }
            if isinstance(facts["after"], Mapping) and "plan" in facts["after"]:
                self.rollouts[rollout_id]["plan"] = frozenset({str(facts["after"]["plan"])})
        rollout = None if self._open is None else self.rollouts[self._open]
        if rollout is None:
            return
        if after.state is None:
            rollout["state"] = frozenset({_end_state(facts, rollout, reinstates=reinstates)})
            rollout["ended_at"] = frozenset({at})
            if action == "complete":
                self._retire_predecessors(facts["after"], rollout, at)
        elif rollout_id == self._open:
            rollout |= _stage_columns(rollout, action, at, after)
        counts = action not in ("start_rollout", *_CANARY_ALONE)
        if counts and (after.state is None or rollout_id == self._open):
            rollout["generation"] = frozenset({max(rollout["generation"]) + 1})
        if after.state is None:
            self._open = None

    def _retire_predecessors(self, after: Any, rollout: Columns, at: datetime) -> None:
        """Retire the versions that the event names. Releases before the standing watch retired the control."""
        named = after.get("retired") if isinstance(after, Mapping) else None
        for version in named if isinstance(named, list) else rollout["control_version"]:
            self._move(_text(version), Status.RETIRED, at)


@dataclass(frozen=True, slots=True)
class _Serving:
    """The facts of an event before or after its change. A forged event may hold anything else."""

    active: str | None
    canary: str | None
    percent_bp: int | None
    asked_bp: int | None
    state: str | None
    stage: int

    @classmethod
    def of(cls, facts: Any) -> "_Serving":
        known = facts if isinstance(facts, Mapping) else {}
        rollout = known.get("rollout")
        rollout = rollout if isinstance(rollout, Mapping) else {}
        percent, asked, stage = known.get("percent"), known.get("asked"), rollout.get("stage")
        return cls(
            active=_text(known.get("active")),
            canary=_text(known.get("canary")),
            percent_bp=round(percent * 100) if isinstance(percent, int | float) else None,
            asked_bp=round(asked * 100) if isinstance(asked, int | float) else None,
            state=_text(rollout.get("state")),
            stage=stage if isinstance(stage, int) else 0,
        )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _baked(rollout: Columns) -> bool:
    return rollout.get("promoted_at", frozenset({None})) != {None}


def _stage_columns(rollout: Columns, action: str, at: datetime, after: _Serving) -> Columns:
    """Return the columns of an open rollout that the event sets."""
    columns: Columns = {"state": frozenset({after.state}), "stage_index": frozenset({after.stage})}
    harmless = frozenset({None, *range(min(after.stage, 1_000) + 1)})  # approvals of stages that were entered
    now = frozenset({at})
    if action in ("start_rollout", "advance", "promote"):
        columns |= {"stage_entered_at": now, "stage_extended_at": now}
    if action == "resume":  # 0.1.0 left the times as they were
        columns |= {name: rollout.get(name, now) | now for name in ("stage_entered_at", "stage_extended_at")}
    if action == "extend":
        columns["stage_extended_at"] = now
    if action == "promote":
        columns["promoted_at"] = now
    pending = rollout.get("approved_stage", harmless) if action in _CANARY_ALONE else harmless
    columns["approved_stage"] = harmless | {after.stage + 1} if action == "approve" else pending
    return columns


def _end_state(facts: Mapping[str, Any], rollout: Columns, *, reinstates: bool) -> str:
    action = facts["action"]
    if action == "complete" or (action == "activate_version" and facts["version"] in rollout["version"]):
        return "completed"
    return "rolled_back" if reinstates or (action == "roll_back" and facts["rollout_id"] is not None) else "aborted"


def values_digest(values: Any) -> str:
    """Return the sha256 of JSON values in hexadecimal, the same for every database. It is stored in audit events."""
    return sha256(json.dumps(plain_values(values), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def event_hash(previous_hash: str, facts: Mapping[str, Any]) -> str:
    """Return the sha256 of the previous hash, a line break, and *facts* as JSON with sorted keys, in hexadecimal.

    Times are ISO 8601 in UTC with microseconds. The numbers 5 and 5.0 have the same text, since databases differ.
    """
    text = json.dumps(plain_values(facts), sort_keys=True, separators=(",", ":"))
    return sha256(f"{previous_hash}\n{text}".encode()).hexdigest()


def verify_chain(links: Iterable[Link], *, generation: int, head: str) -> list[ChainBreak]:
    """Return the breaks in the chain of one strategy. An empty list means that it verifies.

    Args:
        links: in the order in which they were stored.
        generation, head: position and hash of the newest event, from the row of the strategy.
    """
    chain = Chain()
    for link in links:
        chain.follow(link)
    return chain.end(generation=generation, head=head)


def plain_values(value: Any) -> Any:
    """Convert *value* to JSON types. The result is the same for every database or file that it was read from."""
    match value:
        case str() | bool() | None:  # first, because most values are: tens of millions in a trail of a million events
            return value
        case dict() | Mapping():
            return {str(key): plain_values(each) for key, each in value.items()}
        case int() | float():
            return _number(value)
        case list() | tuple():
            return [plain_values(each) for each in value]
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case _:
            return str(value)  # a UUID


def _number(value: float) -> float:
    if abs(value) < _EXACT:
        return int(value) if value == int(value) else value
    try:
        return float(value)  # PostgreSQL returns a float such as 1e300 as a whole number
    except OverflowError:  # it was stored as a whole number
        return value


def _unrecorded(left: Any, facts: Mapping[str, Any]) -> list[str]:
    changed = _differing(left, facts.get("before"))
    if facts.get("action") == "resume" and changed == ["percent"]:
        return []  # before the chain existed, releases recorded the percent of a resume after the change
    return changed


def _differing(left: Any, found: Any) -> list[str]:
    """Return the names that both have with different values. A forged event may hold no mappings."""
    if not isinstance(left, Mapping) or not isinstance(found, Mapping):
        return []
    return sorted(name for name in left.keys() & found.keys() if left[name] != found[name])


def as_json(columns: Mapping[str, Any]) -> str:
    """Return an event as one line of JSON in ASCII, so that no character of a reason breaks the line."""
    return json.dumps(plain_values(columns), separators=(",", ":")) + "\n"


def as_csv(cells: Iterable[Any]) -> str:
    """Return one line of CSV. Values other than text are written as JSON.

    Reasons are untrusted input, so a text that a spreadsheet could read as a formula is prefixed with `'`, which
    spreadsheets hide. Use CSV for people, and JSON for an export that will be verified.
    """
    line = io.StringIO()
    csv.writer(line).writerow([_cell(each) for each in cells])
    return line.getvalue()


def links(lines: Iterable[str]) -> Iterator[tuple[str, Link]]:
    """Yield the events of a JSON export, each with the name of its strategy.

    Raises:
        InvalidExport: a line is not an event.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
            facts = {name: value for name, value in event.items() if name not in _NOT_HASHED}
            link = Link(facts["position"], event["previous_hash"], event["hash"], facts)
            yield str(facts["strategy_name"]), link
        except (ValueError, KeyError, AttributeError, RecursionError):
            raise InvalidExport(_SOURCE, "is not an event of an audit trail", number) from None
        if not isinstance(link.position, int) or not all(_is_ascii(each) for each in (link.previous_hash, link.hash)):
            raise InvalidExport(_SOURCE, "is not an event of an audit trail", number)


def follow(lines: Iterable[str]) -> dict[str, Chain]:
    """Return the chain of each strategy in a JSON export, verified up to its last event.

    Events left out by a filter are breaks, like removed events, so export the whole trail to verify it.
    """
    chains: dict[str, Chain] = {}
    for number, (strategy_name, link) in enumerate(links(lines), 1):
        with _refuse_deep_nesting(number):
            chains.setdefault(strategy_name, Chain()).follow(link)
    return chains


def noted_heads(lines: Iterable[str], only: str | None = None) -> Iterator[str]:
    """Yield the hashes that verify all others of an export: the last of each run of events without a gap.

    Args:
        only: this strategy. None means all.

    Raises:
        InvalidExport: a line is not an event, or was changed.
    """
    last: dict[str, Link] = {}
    for number, (strategy_name, link) in enumerate(links(lines), 1):
        with _refuse_deep_nesting(number):
            computed = event_hash(link.previous_hash, link.facts)
        if link.hash != computed:
            raise InvalidExport(_SOURCE, "was changed: its hash is not that of its facts", number)
        if only not in (None, strategy_name):
            continue
        before = last.get(strategy_name)
        if before is not None and before.hash != link.previous_hash:
            yield before.hash
        last[strategy_name] = link
    yield from (link.hash for link in last.values())


@contextmanager
def _refuse_deep_nesting(number: int) -> Iterator[None]:
    """Raise InvalidExport for an event that is nested too deeply to hash."""
    try:
        yield
    except RecursionError:
        raise InvalidExport(_SOURCE, "is not an event of an audit trail", number) from None


def _is_ascii(value: Any) -> bool:
    return isinstance(value, str) and value.isascii()


def _cell(value: Any) -> str:
    found = plain_values(value)
    if isinstance(found, str):
        return f"'{found}" if found.startswith(_FORMULA) else found
    return "" if found is None else json.dumps(found, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Command:
    """Who asks for a change, when, why, and under which conditions. Built once, where the request comes in.

    Attributes:
        reason: the owner's words for the audit trail.
        override_reason: why a quarantined version may be used again; the trail keeps it in place of *reason*.
        if_generation: refuse the change if the strategy has another generation.
        four_eyes: refuse the change if the actor started the rollout and the change puts more users at risk.
    """

    actor: Actor
    now: datetime
    reason: str = ""
    override_reason: str = ""
    if_generation: int | None = None
    four_eyes: bool = False

    @property
    def stated_reason(self) -> str:
        """The reason that the audit trail keeps."""
        return self.override_reason or self.reason
