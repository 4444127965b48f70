"""Who acts, and the words they leave; never what they may do."""

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

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # what no database can hold as text


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or process behind a change, and the request that carried it.

    Attributes:
        name: a user's id, or the name of the flow.
        role: owner, admin or system.
        source: where the wish came in: sdk, cli, api or flow.
        request_id: of the call or flow run, as logs name it too.
        idempotency_key: the client's own name for the wish; under one key an actor's change is made once.
    """

    name: str
    role: str = "owner"
    source: str = "sdk"
    request_id: str = ""
    idempotency_key: str | None = None


RAMP = Actor("ramp", role="system", source="flow")


def storable(text: str) -> str:
    """Return *text* with U+FFFD for what no database can hold: NUL, and half of a pair. No reason stops a rollback."""
    return UNSTORABLE.sub("\ufffd", text)


BEFORE_THE_FIRST = "0" * 64
_EXACT = 2**53  # from here on not every whole number is a float


@dataclass(frozen=True, slots=True)
class Link:
    """An audit event as it stands in the trail; *facts* are all of its columns that the hash covers."""

    position: int
    previous_hash: str
    hash: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """Where a chain does not hold: at which position of the trail, and what is wrong there."""

    position: int
    problem: str


@dataclass(slots=True)
class Chain:
    """The chain of one strategy as far as it was followed.

    Attributes:
        count: how many events were seen.
        position, head: of the last one, its place and its hash.
        breaks: where it did not hold so far.
    """

    count: int = 0
    position: int = 0
    head: str = BEFORE_THE_FIRST
    breaks: list[ChainBreak] = field(default_factory=list)
    _left: Any = None  # how the last event left the strategy

    def follow(self, link: Link) -> None:
        """Go on to the event that was stored next."""
        if link.position != self.position + 1:
            self._break(link, f"follows position {self.position}: an event was removed, added or moved")
        elif link.previous_hash != self.head:
            self._break(link, "does not carry the hash of the event before it")
        elif changed := _untold(self._left, link.facts):
            self._break(
                link, f"begins with another {', '.join(changed)} than the event before it left: a change untold"
            )
        if link.hash != event_hash(link.previous_hash, link.facts):
            self._break(link, "was changed: its hash is not that of its facts")
        self.count, self.position, self.head = self.count + 1, link.position, link.hash
        self._left = link.facts.get("after")

    def end(self, *, generation: int, head: str, standing: Mapping[str, Any] | None = None) -> list[ChainBreak]:
        """Hold the end of the chain against the strategy's own row, and return all breaks.

        Args:
            generation, head: what the row says of the newest event: its position and its hash.
            standing: who serves whom now, to be held against how the newest event left it; not, unless given.
        """
        if (self.position, self.head) != (generation, head or BEFORE_THE_FIRST):
            self.breaks.append(
                ChainBreak(
                    generation, f"should be the newest event, but the trail ends at {self.position}, or otherwise"
                )
            )
        elif changed := _differing(self._left, standing):
            self.breaks.append(
                ChainBreak(generation, f"left another {', '.join(changed)} than stands now: a change untold")
            )
        return self.breaks

    def _break(self, link: Link, problem: str) -> None:
        self.breaks.append(ChainBreak(link.position, problem))


def event_hash(previous_hash: str, facts: Mapping[str, Any]) -> str:
    """Return the sha256 of the hash before, a line break, and *facts* as JSON with sorted keys, in hexadecimal.

    Times are ISO 8601 in UTC to the microsecond. A whole number is one number, whether a database returns 5 or 5.0.
    """
    text = json.dumps(plain_values(facts), sort_keys=True, separators=(",", ":"))
    return sha256(f"{previous_hash}\n{text}".encode()).hexdigest()


def verify_chain(links: Iterable[Link], *, generation: int, head: str) -> list[ChainBreak]:
    """Return where the chain of one strategy breaks; nothing when it holds.

    Args:
        links: in the order in which they were stored.
        generation, head: what the strategy's own row says of its newest event: its position and its hash.
    """
    chain = Chain()
    for link in links:
        chain.follow(link)
    return chain.end(generation=generation, head=head)


def plain_values(value: Any) -> Any:
    """Return *value* as JSON can hold it, the same whichever database or file it was read from."""
    match value:
        case str() | bool() | None:  # most are: a trail of a million events has tens of millions
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
        return float(value)  # PostgreSQL returns a float such as 1e300 as the whole number of its digits
    except OverflowError:  # no float was ever that large
        return value


def _untold(left: Any, facts: Mapping[str, Any]) -> list[str]:
    changed = _differing(left, facts.get("before"))
    if facts.get("action") == "resume" and changed == ["percent"]:
        return []  # releases before the chain told the percent of a resume as it stood after
    return changed


def _differing(left: Any, found: Any) -> list[str]:
    """Return what both tell of, and differently; events of an intruder may be no mappings at all."""
    if not isinstance(left, Mapping) or not isinstance(found, Mapping):
        return []
    return sorted(name for name in left.keys() & found.keys() if left[name] != found[name])


_SOURCE = "the export"
_NOT_HASHED = frozenset({"id", "previous_hash", "hash"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what spreadsheets may take for the beginning of one


def as_json(columns: Mapping[str, Any]) -> str:
    """Return an event as one line of JSON, in ASCII: no character of a reason can break the line."""
    return json.dumps(plain_values(columns), separators=(",", ":")) + "\n"


def as_csv(cells: Iterable[Any]) -> str:
    """Return one line of CSV; what is no text stands as JSON.

    A text that a spreadsheet could take for a formula gets a `'` before it, which spreadsheets hide: a reason may come
    from anybody. So a CSV is for people; what shall be verified is exported as JSON.
    """
    line = io.StringIO()
    csv.writer(line).writerow([_cell(each) for each in cells])
    return line.getvalue()


def links(lines: Iterable[str]) -> Iterator[tuple[str, Link]]:
    """Yield the events of an export as JSON, each with its strategy's name.

    Raises:
        InvalidExport: a line is no event.
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
            raise InvalidExport(_SOURCE, "is no event of an audit trail", number) from None
        if not isinstance(link.position, int) or not all(_is_ascii(each) for each in (link.previous_hash, link.hash)):
            raise InvalidExport(_SOURCE, "is no event of an audit trail", number)


def follow(lines: Iterable[str]) -> dict[str, Chain]:
    """Return the chain of each strategy in an export as JSON, followed to its last event there.

    What filters left out is a break, as what somebody removed would be: only whole trails can be verified alone.
    """
    chains: dict[str, Chain] = {}
    for number, (strategy_name, link) in enumerate(links(lines), 1):
        with _of_no_depth(number):
            chains.setdefault(strategy_name, Chain()).follow(link)
    return chains


def noted_heads(lines: Iterable[str], only: str | None = None) -> Iterator[str]:
    """Yield the hashes of an export that vouch for all its others: the last of each run of events without a gap.

    Args:
        only: of this strategy; of all, unless given.

    Raises:
        InvalidExport: a line is no event, or was changed.
    """
    last: dict[str, Link] = {}
    for number, (strategy_name, link) in enumerate(links(lines), 1):
        with _of_no_depth(number):
            true = event_hash(link.previous_hash, link.facts)
        if link.hash != true:
            raise InvalidExport(_SOURCE, "was changed: its hash is not that of its facts", number)
        if only not in (None, strategy_name):
            continue
        before = last.get(strategy_name)
        if before is not None and before.hash != link.previous_hash:
            yield before.hash
        last[strategy_name] = link
    yield from (link.hash for link in last.values())


@contextmanager
def _of_no_depth(number: int) -> Iterator[None]:
    """Refuse what is nested so deeply that nobody can compute its hash."""
    try:
        yield
    except RecursionError:
        raise InvalidExport(_SOURCE, "is no event of an audit trail", number) from None


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
