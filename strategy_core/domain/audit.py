"""The audit trail: actors, the hash chain of each strategy, and the export as JSON or CSV."""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from strategy_core.domain.errors import InvalidExport
from strategy_core.domain.parsing import check_owner_name

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # characters that databases cannot store as text


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or process behind a change, and the request that carried it.

    Attributes:
        name: a user's id, or the name of the flow.
        role: owner, admin or system.
        source: where the request came in: sdk, cli, api, flow (a schedule), form, or an unverified form.
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
RAMP = Actor("ramp", role="system", source="flow")


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
    _left: Any = None  # state of the strategy after the last event

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

    def end(self, *, generation: int, head: str, standing: Mapping[str, Any] | None = None) -> list[ChainBreak]:
        """Compare the end of the chain with the row of the strategy, and return all breaks.

        Args:
            generation, head: position and hash of the newest event, from the row.
            standing: the current state of the strategy, compared with the state after the newest event if given.
        """
        if (self.position, self.head) != (generation, head or BEFORE_THE_FIRST):
            self.breaks.append(
                ChainBreak(
                    generation,
                    f"should be the newest event, but the trail ends at {self.position} or with another hash",
                )
            )
        elif changed := _differing(self._left, standing):
            self.breaks.append(
                ChainBreak(generation, f"left another {', '.join(changed)} than the current one: an unrecorded change")
            )
        return self.breaks

    def _break(self, link: Link, problem: str) -> None:
        self.breaks.append(ChainBreak(link.position, problem))


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
