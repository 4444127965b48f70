"""The candles of a server as one snapshot: fetched no further back than asked for, checked, and kept; never decided on.

What a snapshot has once told it tells again, whatever the server says meanwhile; the next snapshot asks anew, so that a
candle which the vendor has revised is seen by its window's hash, as it is in a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from time import sleep
from typing import Protocol, TypeVar

import numpy as np
import pandas as pd
import structlog

from strategy_core.domain.candles import PRICES, checked_candles, count_closed, timeframe_delta
from strategy_core.domain.errors import EvidenceUnavailable, FeedUnavailable, RolloutError, UnknownSymbol
from strategy_core.domain.lifecycle import utc
from strategy_core.market.calendars import Calendar
from strategy_core.market.source import log_repairs, window

T = TypeVar("T")

TRIES = 3
LONGEST_WAIT_S = 15.0  # runs come once a minute: one that waits longer only keeps the next one waiting


class TransientError(Exception):
    """There is no answer now, and the text says why; *after_s* is how long the server asks to be left alone."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


def ask_again(ask: Callable[[], T], *, feed: str, wait_s: float) -> T:
    """Return what *ask* does, which is tried again while it raises Passing.

    Args:
        feed: what the error is to name.
        wait_s: before the second try; twice that before the third.

    Raises:
        FeedUnavailable: the last try failed too, or the server asks for a longer wait than LONGEST_WAIT_S.
    """
    for tried in count(1):
        try:
            return ask()
        except TransientError as passing:
            wait = max(passing.after_s, wait_s * 2 ** (tried - 1))
            if tried == TRIES:
                raise FeedUnavailable(f"{feed}: {passing} (asked {tried} times)") from None
            if wait > LONGEST_WAIT_S:
                raise FeedUnavailable(f"{feed}: {passing} (it asks to wait {wait:g} s)") from None
        sleep(wait)
    raise AssertionError("count() ends never")


log = structlog.get_logger(__name__)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # on the grid of every timeframe
BEGINNING = datetime(1678, 1, 1, tzinfo=UTC)  # before which there can be no candle


@dataclass(frozen=True, slots=True)
class CandlePage:
    """Part of a history.

    Attributes:
        rows: as `checked_candles` takes them; some may be newer than asked for.
        since: all candles from then on are among the rows; None: as far back as the rows go.
    """

    rows: pd.DataFrame
    since: datetime | None = None


class Vendor(Protocol):
    """Who is asked for candles of one timeframe.

    Attributes:
        most: candles of one page.
    """

    @property
    def name(self) -> str: ...

    @property
    def timeframe(self) -> str: ...

    @property
    def most(self) -> int: ...

    def page(self, instrument: str, *, before: datetime, count: int) -> CandlePage:
        """Return the closed candles that opened in the last *count* slots, or are the last *count*, before *before*.

        *before* is the open time of a candle, and not in the future.

        Raises:
            FeedUnavailable: it gives no answer, whichever instrument it is asked for.
            EvidenceUnavailable: it gives none of this instrument.
        """
        ...


class LiveSource:
    """What a vendor knew of some instruments when the source was opened.

    A tick asks only what is expected, and that the calendar answers: no rollback ever waits for a vendor's server.
    Once the server has failed as a whole it is not asked again: what cannot be had now is had by the next snapshot,
    and a run over many symbols does not wait for each of them.
    """

    def __init__(self, vendor: Vendor, instruments: Mapping[str, str], *, now: datetime, calendar: Calendar) -> None:
        """Open a snapshot; nothing is fetched yet.

        Args:
            vendor: who is asked.
            instruments: the vendor's names, by symbol.
            now: the moment of opening; no candle that closes later is served.
            calendar: of the market: when candles are expected.
        """
        self.name = vendor.name
        self.timeframe = vendor.timeframe
        self._vendor = vendor
        self._instruments = dict(instruments)
        self._now = utc(now, "now")
        self._calendar = calendar
        self._delta = timeframe_delta(vendor.timeframe)
        self._in_the_making = (
            _EPOCH + (self._now - _EPOCH) // self._delta * self._delta
        )  # candles before it have closed
        self._held: dict[str, _Held] = {}
        self._failed: dict[str, RolloutError] = {}
        self._down: FeedUnavailable | None = None

    def symbols(self) -> tuple[str, ...]:
        return tuple(self._instruments)

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        known_by = min(utc(closed_by, "closed_by"), self._now)
        since = None if since is None else utc(since, "since")
        held = self._reaching(symbol, known_by, since, bars)
        if bars != 0:
            self._check_silence(symbol, held, since or BEGINNING)
        return window(held.candles, self.timeframe, closed_by=known_by, since=since, bars=bars)

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        self._instrument(symbol)
        return self._calendar.last_open_candle(now, self._delta)

    def _instrument(self, symbol: str) -> str:
        if symbol not in self._instruments:
            raise UnknownSymbol(symbol, self._instruments)
        return self._instruments[symbol]

    def _reaching(self, symbol: str, known_by: datetime, since: datetime | None, bars: int | None) -> "_Held":
        """Return what is held of *symbol*, after fetching what is missing of the question."""
        instrument = self._instrument(symbol)
        held = self._held.get(symbol) or _Held(_nothing(), self._in_the_making)
        while missing := self._missing(held, known_by, since, bars):
            if problem := self._down or self._failed.get(symbol):
                raise problem
            try:
                held = self._further(instrument, held, min(missing, self._vendor.most))
            except FeedUnavailable as error:
                self._down = error
                raise
            except RolloutError as error:
                self._failed[symbol] = error
                raise
            self._held[symbol] = held
        return held

    def _missing(self, held: "_Held", known_by: datetime, since: datetime | None, bars: int | None) -> int:
        """Return how many candles before the oldest that is held are still needed, at most."""
        if held.since <= (since or BEGINNING):
            return 0
        most = self._vendor.most if since is None else -((since - held.since) // self._delta)
        if bars is None:
            return most
        needed = bars - count_closed(held.candles, known_by, self.timeframe)
        if needed <= 0:
            return 0
        needed += max(timedelta(0), held.since - known_by) // self._delta  # what lies between is not asked for
        return needed if since is None else min(most, needed)

    def _further(self, instrument: str, held: "_Held", count: int) -> "_Held":
        page = self._vendor.page(instrument, before=held.since, count=count)
        source = f"{self.name} {instrument}"
        older = _nothing()
        if not page.rows.empty:
            checked = checked_candles(page.rows, timeframe=self.timeframe, source=source, now=self._now, sparse=True)
            log_repairs(source, checked.repairs)
            older = checked.candles[checked.candles.index < pd.Timestamp(held.since)]  # what was told stays as told
        log.debug("candles.fetched", source=source, candles=len(older), asked=count)
        if page.since is not None:
            since = page.since
        elif len(older):
            since = pd.DatetimeIndex(older.index)[0].to_pydatetime()
        elif len(page.rows) <= 1:  # the edge may be told twice
            since = BEGINNING
        else:
            raise EvidenceUnavailable(f"{source}: asked for candles before {held.since}, it told later ones alone")
        together = [part for part in (older, held.candles) if not part.empty]
        return _Held(pd.concat(together) if together else held.candles, since)

    def _check_silence(self, symbol: str, held: "_Held", since: datetime) -> None:
        """Refuse to say that there were no candles, when none at all is known and the market was open."""
        if held.candles.empty and self._calendar.last_open_candle(self._now - self._delta, self._delta) >= since:
            raise EvidenceUnavailable(
                f"{self.name}: no candles of {symbol} ({self._instruments[symbol]}), although its market was open"
            )


@dataclass(frozen=True, slots=True)
class _Held:
    """All candles that opened from *since* on and had closed when the snapshot was opened."""

    candles: pd.DataFrame
    since: datetime


def _nothing() -> pd.DataFrame:
    times = pd.DatetimeIndex([], dtype="datetime64[ns, UTC]", name="timestamp")
    return pd.DataFrame({name: np.empty(0) for name in (*PRICES, "volume")}, index=times)
