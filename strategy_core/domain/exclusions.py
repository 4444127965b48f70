"""Symbols that are excluded from a canary, as they are stored: by symbol, the time since which it is excluded."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from strategy_core.domain.errors import EvidenceUnavailable

UNREADABLE = "unreadable"  # in place of the symbols


def read_excluded(stored: Any) -> dict[str, datetime]:
    """Return by symbol since when it is excluded.

    Raises:
        EvidenceUnavailable: other software wrote the value.
    """
    try:
        found = {str(symbol): datetime.fromisoformat(since) for symbol, since in stored.items()}
    except (AttributeError, TypeError, ValueError):
        found = None
    if found is None or any(since.tzinfo is None for since in found.values()):
        raise EvidenceUnavailable(f"the symbols that are excluded from the canary cannot be read: {stored!r:.100}")
    return found


def excluded_names(stored: Any) -> list[str]:
    """Return the excluded symbols, or UNREADABLE. It does not raise: a rollback records them too."""
    try:
        return sorted(read_excluded(stored))
    except EvidenceUnavailable:
        return [UNREADABLE]


def excluded_data(excluded: Mapping[str, datetime]) -> dict[str, str]:
    """Return what is stored."""
    return {symbol: stored_time(since) for symbol, since in excluded.items()}


def stored_time(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
