"""Signals: the decisions of serving versions, as a platform copies them to its users."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from strategy_core.domain.errors import InvalidName
from strategy_core.domain.lifecycle import Status

Role = Literal["active", "canary", "withdrawn"]
_CURSOR = re.compile(r"(0|[1-9]\d{0,17})-([0-9a-f]{8})")


@dataclass(frozen=True, slots=True)
class SignalCursor:
    """A position in the feed: the number of a signal, and the start of its decision's id.

    The id shows that the feed still has that signal under that number. A database that was restored from a backup
    gives the same numbers to other signals.
    """

    number: int
    check: str

    @classmethod
    def of(cls, number: int, decision_id: UUID) -> "SignalCursor":
        return cls(number, decision_id.hex[:8])

    @classmethod
    def read(cls, text: str) -> "SignalCursor":
        """Raises InvalidName: *text* is not from this feed."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise InvalidName("since", text[:40], "the `cursor` of a signal or of an answer")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.number}-{self.check}"


START = SignalCursor(0, "0" * 8)  # before the first signal


@dataclass(frozen=True, slots=True)
class Signal:
    """The buy, sell or close of a version that served users when it decided.

    (strategy, symbol, candle, version) is its key: the feed has each key once.

    Attributes:
        cursor: position after this signal. Store it with what the signal has caused, and continue from there.
        candle: open time of the candle that was decided on.
        closed_at: close of that candle.
        valid_until: users must not enter from then on, see `entry_ends_at`.
        role: the version's role when the signal was read, not when it was decided: `withdrawn` if it serves no users
            any more, for example after a rollback.
        action: buy or sell with the intent open, hold with the intent close.
        intent: `open` enters a position, `close` leaves what is open on the symbol.
        risk_scale: multiply the size of the position by it, 0.5 to 1: see `risk.measure_risk`.
    """

    cursor: str
    strategy_name: str
    version: str
    symbol: str
    candle: datetime
    closed_at: datetime
    valid_until: datetime
    action: Literal["buy", "sell", "hold"]
    intent: Literal["open", "close"]
    confidence: float
    role: Role
    risk_scale: float = 1.0

    def may_enter(self, now: datetime) -> bool:
        """Return whether a user of this version may enter at *now*. Ask the Router at the same time who that is.

        There is no earliest time: the candle has closed when there is a signal, and a slow clock must not lose it.
        """
        return self.intent == "open" and self.role != "withdrawn" and now < self.valid_until


def role_of(status: str) -> Role:
    """Return the role in which the signals of a version with this status are handed out."""
    match status:
        case Status.ACTIVE:
            return "active"
        case Status.CANARY:
            return "canary"
    return "withdrawn"


def entry_ends_at(closed_at: datetime, timeframe: timedelta, role: Role) -> datetime:
    """Return when a signal stops being valid: at the close of the next candle, on which the version decides again.

    The scoring rule enters at the open of that candle. A withdrawn signal is not valid at any time, so it ends when it
    begins.
    """
    return closed_at if role == "withdrawn" else closed_at + timeframe
