"""Book the slots that have closed since a rollout's last tick; what was booked before is read as totals alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby

from sqlmodel import Session

from strategy_core.domain.book import Book, Totals, book, open_book, read_book
from strategy_core.domain.candles import LATE_CANDLES
from strategy_core.domain.history import History
from strategy_core.store import evidence, slots
from strategy_core.store.rollout_tables import Rollout, RolloutBook


@dataclass(frozen=True, slots=True)
class Booking:
    """A rollout's book as it is now, and what a tick has to write so that it stays so.

    Attributes:
        new: slots that have closed and are not booked yet, in order.
        pending: signals whose trades are still open.
        spoken: by version and symbol, the newest candle that it has decided.
        settled: by symbol that both decide on, the newest candle that both have decided; None before the first.
    """

    row: RolloutBook
    history: History
    book: Book
    new: Sequence[slots.Closed]
    pending: Sequence[slots.Pending]
    spoken: Mapping[str, Mapping[str, datetime]]
    settled: Mapping[str, datetime | None]


def look(session: Session, rollout: Rollout, symbols: Sequence[str]) -> Booking:
    """Return the rollout's book with all slots that have closed by now; it writes nothing.

    Args:
        symbols: that both versions decide on.
    """
    row = slots.get_book(session, rollout.id)
    history = History.model_validate(row.history)
    before = read_book(row.totals.get("book", {})) or _rebook(session, rollout, history)
    strategy_name, canary, active = rollout.strategy_name, rollout.version, rollout.control_version
    since = _unsettled_from(row, rollout)
    closed, pending = slots.read_slots(session, strategy_name, canary, active, start=since)
    spoken = evidence.newest_spoken(session, strategy_name, (canary, active), since)
    new = slots.not_booked(session, rollout.id, closed)
    after, _ = book(before, slots.as_slots(new), history)
    settled = {symbol: _earlier(spoken[canary].get(symbol), spoken[active].get(symbol)) for symbol in symbols}
    return Booking(row, history, after, new, pending, spoken, settled)


def keep(
    session: Session, rollout: Rollout, booking: Booking, *, now: datetime, concordance: float | None = None
) -> None:
    """Write what `look` has found, and from where the next one has to look; *concordance* is kept to be told of.

    Before the settled candles no slot can come any more but those that are pending, and those on candles that the
    vendor delivers late: so the newest LATE_CANDLES beginnings are kept, and the oldest of them is where to look.
    """
    row = booking.row
    settled = [candle or rollout.started_at for candle in booking.settled.values()]
    slots.book_slots(session, rollout.id, booking.new, first=row.slots, now=now)
    open_from = min([*settled, *(one.timestamp for one in booking.pending)], default=rollout.started_at)
    row.slots += len(booking.new)
    was = row.totals.get("unsettled_from", [])
    now_from = open_from.isoformat()
    unsettled = was if was[-1:] == [now_from] else [*was, now_from][-LATE_CANDLES:]
    row.totals = {"book": booking.book.as_data(), "unsettled_from": unsettled, "concordance": concordance}
    session.add(row)
    session.flush()


def recompute(session: Session, rollout: Rollout, *, first: int | None = None) -> Totals:
    """Return the totals that follow from the rollout's booked rows alone: all, or the first so many."""
    history = History.model_validate(slots.get_book(session, rollout.id).history)
    return _rebook(session, rollout, history, first=first).totals


def _rebook(session: Session, rollout: Rollout, history: History, *, first: int | None = None) -> Book:
    """Book the rows as they were booked, tick by tick: sums in another order would round otherwise."""
    found = open_book(history)
    for _, together in groupby(slots.booked(session, rollout.id, first=first), key=lambda row: row.booked_at):
        found, _ = book(found, slots.as_slots(list(together)), history)
    return found


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return None if one is None or other is None else min(one, other)


def _unsettled_from(row: RolloutBook, rollout: Rollout) -> datetime:
    """Return the candle from which on slots may still come."""
    noted = row.totals.get("unsettled_from", [])
    return rollout.started_at if len(noted) < LATE_CANDLES else datetime.fromisoformat(noted[0])
