"""The chain of a strategy's audit events: each carries the hash of the one before it; nothing is stored here.

`event_hash` stands in every row of every audit trail: golden values pin it.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from uuid import UUID

BEFORE_THE_FIRST = "0" * 64


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


def event_hash(previous_hash: str, facts: Mapping[str, Any]) -> str:
    """Return the sha256 of the hash before, a line break, and *facts* as JSON with sorted keys, in hexadecimal.

    Times are ISO 8601 in UTC to the microsecond. A whole number is one number, whether a database returns 5 or 5.0.
    """
    text = json.dumps(_plain(facts), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(f"{previous_hash}\n{text}".encode()).hexdigest()


def verify(links: Iterable[Link], *, generation: int, head: str) -> list[Break]:
    """Return where the chain of one strategy breaks; nothing when it holds.

    Args:
        links: in the order in which they were stored.
        generation, head: what the strategy's own row says of its newest event: its position and its hash.
    """
    breaks: list[Break] = []
    position, previous = 0, BEFORE_THE_FIRST
    for link in links:
        if link.position != position + 1:
            breaks.append(Break(link.position, f"follows position {position}: an event was removed, added or moved"))
        elif link.previous_hash != previous:
            breaks.append(Break(link.position, "does not carry the hash of the event before it"))
        if link.hash != event_hash(link.previous_hash, link.facts):
            breaks.append(Break(link.position, "was changed: its hash is not that of its facts"))
        position, previous = link.position, link.hash
    if (position, previous) != (generation, head or BEFORE_THE_FIRST):
        breaks.append(Break(generation, f"should be the newest event, but the trail ends at {position}"))
    return breaks


def _plain(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _plain(each) for key, each in value.items()}
        case list() | tuple():
            return [_plain(each) for each in value]
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="microseconds")
        case UUID():
            return str(value)
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
