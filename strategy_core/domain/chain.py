"""The chain of a strategy's audit events: each carries the hash of the one before it; nothing is stored here.

`event_hash` stands in every row of every audit trail: golden values pin it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

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
class Break:
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
    breaks: list[Break] = field(default_factory=list)
    _left: Any = None  # how the last event left the strategy

    def follow(self, link: Link) -> None:
        """Go on to the event that was stored next."""
        if link.position != self.position + 1:
            self._break(link, f"follows position {self.position}: an event was removed, added or moved")
        elif link.previous_hash != self.head:
            self._break(link, "does not carry the hash of the event before it")
        elif changed := _differing(self._left, link.facts.get("before")):
            self._break(
                link, f"begins with another {', '.join(changed)} than the event before it left: a change untold"
            )
        if link.hash != event_hash(link.previous_hash, link.facts):
            self._break(link, "was changed: its hash is not that of its facts")
        self.count, self.position, self.head = self.count + 1, link.position, link.hash
        self._left = link.facts.get("after")

    def end(self, *, generation: int, head: str, standing: Mapping[str, Any] | None = None) -> list[Break]:
        """Hold the end of the chain against the strategy's own row, and return all breaks.

        Args:
            generation, head: what the row says of the newest event: its position and its hash.
            standing: who serves whom now, to be held against how the newest event left it; not, unless given.
        """
        if (self.position, self.head) != (generation, head or BEFORE_THE_FIRST):
            self.breaks.append(
                Break(generation, f"should be the newest event, but the trail ends at {self.position}, or otherwise")
            )
        elif changed := _differing(self._left, standing):
            self.breaks.append(Break(generation, f"left another {', '.join(changed)} than stands now: a change untold"))
        return self.breaks

    def _break(self, link: Link, problem: str) -> None:
        self.breaks.append(Break(link.position, problem))


def event_hash(previous_hash: str, facts: Mapping[str, Any]) -> str:
    """Return the sha256 of the hash before, a line break, and *facts* as JSON with sorted keys, in hexadecimal.

    Times are ISO 8601 in UTC to the microsecond. A whole number is one number, whether a database returns 5 or 5.0.
    """
    text = json.dumps(plain(facts), sort_keys=True, separators=(",", ":"))
    return sha256(f"{previous_hash}\n{text}".encode()).hexdigest()


def verify(links: Iterable[Link], *, generation: int, head: str) -> list[Break]:
    """Return where the chain of one strategy breaks; nothing when it holds.

    Args:
        links: in the order in which they were stored.
        generation, head: what the strategy's own row says of its newest event: its position and its hash.
    """
    chain = Chain()
    for link in links:
        chain.follow(link)
    return chain.end(generation=generation, head=head)


def plain(value: Any) -> Any:
    """Return *value* as JSON can hold it, the same whichever database or file it was read from."""
    match value:
        case Mapping():
            return {str(key): plain(each) for key, each in value.items()}
        case list() | tuple():
            return [plain(each) for each in value]
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case UUID():
            return str(value)
        case bool():
            return value
        case int() | float():
            return _number(value)
        case _:
            return value


def _number(value: float) -> float:
    if abs(value) < _EXACT:
        return int(value) if value == int(value) else value
    try:
        return float(value)  # PostgreSQL returns a float such as 1e300 as the whole number of its digits
    except OverflowError:  # no float was ever that large
        return value


def _differing(left: Any, found: Any) -> list[str]:
    """Return what both tell of, and differently; events of an intruder may be no mappings at all."""
    if not isinstance(left, Mapping) or not isinstance(found, Mapping):
        return []
    return sorted(name for name in left.keys() & found.keys() if left[name] != found[name])
