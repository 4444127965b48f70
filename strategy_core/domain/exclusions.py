"""Symbols that a canary does not serve, and the times between which they are excluded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A symbol that the canary does not serve from *since* until *until* (None: it is still excluded)."""

    symbol: str
    since: datetime
    until: datetime | None = None

    def covers(self, symbol: str, moment: datetime) -> bool:
        return symbol == self.symbol and self.since <= moment and (self.until is None or moment < self.until)

    def as_data(self) -> dict[str, str | None]:
        until = None if self.until is None else _stored_time(self.until)
        return {"symbol": self.symbol, "since": _stored_time(self.since), "until": until}


def read_exclusions(stored: Sequence[Mapping[str, Any]]) -> list[Exclusion]:
    """Return the exclusions of a canary from their stored form."""
    return [
        Exclusion(
            one["symbol"], datetime.fromisoformat(one["since"]), one["until"] and datetime.fromisoformat(one["until"])
        )
        for one in stored
    ]


def excluded_now(exclusions: Sequence[Exclusion]) -> frozenset[str]:
    return frozenset(one.symbol for one in exclusions if one.until is None)


def exclude(exclusions: Sequence[Exclusion], symbol: str, at: datetime) -> list[Exclusion]:
    return [*exclusions, Exclusion(symbol, at)]


def include(exclusions: Sequence[Exclusion], symbol: str, at: datetime) -> list[Exclusion]:
    """End the exclusion of *symbol*."""
    return [
        Exclusion(one.symbol, one.since, max(at, one.since)) if one.symbol == symbol and one.until is None else one
        for one in exclusions
    ]


def _stored_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
