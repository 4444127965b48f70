"""Live feeds: a snapshot of a server's candles, fetched page by page and kept in memory.

Candles that a snapshot has returned do not change while it is open. The next snapshot fetches them again, so that a
candle which the vendor has revised shows up in the hash of its window, as with a file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol, TypeVar

import numpy as np
import pandas as pd
import structlog
from tenacity import RetryCallState, Retrying, retry_if_exception_type

from strategy_core.domain.candles import GRID, PRICES, checked_candles, count_closed, timeframe_delta
from strategy_core.domain.errors import EvidenceUnavailable, FeedUnavailable, RolloutError, UnknownSymbol
from strategy_core.domain.lifecycle import utc
from strategy_core.market.calendars import Calendar, last_session_candle
from strategy_core.market.source import log_repairs, window

T = TypeVar("T")

TRIES = 3
LONGEST_WAIT_S = 15.0  # candle runs start once a minute, so a longer wait would only delay the next run
BEGINNING = datetime(1678, 1, 1, tzinfo=UTC)  # pandas has no earlier candles

log = structlog.get_logger(__name__)


class TransientError(Exception):
    """A request failed for now. *after_s* is the wait that the server asks for, in seconds."""

    def __init__(self, why: str, after_s: float = 0.0) -> None:
        super().__init__(why)
        self.after_s = after_s


def ask_with_retries(ask: Callable[[], T], *, feed: str, wait_s: float) -> T:
    """Return the result of *ask*, which is called again after a TransientError.

    Args:
        feed: name of the feed for the error message.
        wait_s: seconds before the second try, and half of the wait before the third.

    Raises:
        FeedUnavailable: the last try failed, or the server asks for a longer wait than LONGEST_WAIT_S.
    """

    def wait(state: RetryCallState) -> float:
        growing: float = wait_s * 2 ** (state.attempt_number - 1)
        return max(_transient(state).after_s, growing)

    def stop(state: RetryCallState) -> bool:
        return state.attempt_number >= TRIES or state.upcoming_sleep > LONGEST_WAIT_S

    def give_up(state: RetryCallState) -> NoReturn:
        tried = state.attempt_number
        why = f"asked {tried} times" if tried == TRIES else f"it asks to wait {state.upcoming_sleep:g} s"
        raise FeedUnavailable(f"{feed}: {_transient(state)} ({why})") from None

    retrying = Retrying(
        retry=retry_if_exception_type(TransientError),
        stop=stop,
        wait=wait,
        retry_error_callback=give_up,
    )
    return retrying(ask)


def _transient(state: RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(error, TransientError)
    return error


@dataclass(frozen=True, slots=True)
class CandlePage:
    """One page of an instrument's history.

    Attributes:
        rows: input for `checked_candles`. Some may be newer than requested.
        since: the rows are complete from this time on. Default: from the oldest row on.
    """

    rows: pd.DataFrame
    since: datetime | None = None


class Vendor(Protocol):
    """A server with candles of one timeframe.

    Attributes:
        most: largest number of candles on a page.
    """

    @property
    def name(self) -> str: ...

    @property
    def timeframe(self) -> str: ...

    @property
    def most(self) -> int: ...

    def page(self, instrument: str, *, before: datetime, count: int) -> CandlePage:
        """Return closed candles before *before*: the last *count*, or those of the last *count* slots.

        *before* is the open time of a candle, and not in the future.

        Raises:
            FeedUnavailable: the server does not answer, for any instrument.
            EvidenceUnavailable: the server has no answer for this instrument.
        """
        ...


class LiveSource:
    """A vendor's candles of some instruments at the time of opening.

    A tick only needs `expected_at`, which the calendar answers, so a rollback does not wait for a vendor's server.
    After the server has failed as a whole, this snapshot does not ask it again, so that a run over many symbols does
    not wait once per symbol. The next snapshot tries again.
    """

    def __init__(
        self,
        vendor: Vendor,
        instruments: Mapping[str, str],
        *,
        now: datetime,
        calendar: Calendar,
        by_new_york: bool = False,
    ) -> None:
        """Open a snapshot. Candles are fetched later, when they are needed.

        Args:
            vendor: the server to ask.
            instruments: the vendor's names, by symbol.
            now: time of opening. Candles that close later are not returned.
            calendar: trading hours, which decide when candles are expected.
            by_new_york: candles open by the clock of New York, days at 17:00 and weeks on Friday.
        """
        self.name = vendor.name
        self.timeframe = vendor.timeframe
        self._vendor = vendor
        self._instruments = dict(instruments)
        self._now = utc(now, "now")
        self._calendar = calendar
        self._by_new_york = by_new_york
        self._delta = timeframe_delta(vendor.timeframe)
        self._open_candle = GRID + (self._now - GRID) // self._delta * self._delta  # earlier candles have closed
        self._fetched: dict[str, _Fetched] = {}
        self._failed: dict[str, RolloutError] = {}
        self._down: FeedUnavailable | None = None

    def symbols(self) -> tuple[str, ...]:
        return tuple(self._instruments)

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        known_by = min(utc(closed_by, "closed_by"), self._now)
        since = None if since is None else utc(since, "since")
        fetched = self._fetch_for(symbol, known_by, since, bars)
        if bars != 0:
            self._check_silence(symbol, fetched, since or BEGINNING)
        return window(fetched.candles, self.timeframe, closed_by=known_by, since=since, bars=bars)

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        self._instrument(symbol)
        if self._by_new_york:
            return last_session_candle(self._calendar, now, self._delta)
        return self._calendar.last_open_candle(now, self._delta)

    def _instrument(self, symbol: str) -> str:
        if symbol not in self._instruments:
            raise UnknownSymbol(symbol, self._instruments)
        return self._instruments[symbol]

    def _fetch_for(self, symbol: str, known_by: datetime, since: datetime | None, bars: int | None) -> "_Fetched":
        """Return the candles of *symbol*, after fetching those that these arguments need."""
        instrument = self._instrument(symbol)
        fetched = self._fetched.get(symbol) or _Fetched(_no_candles(), self._open_candle)
        while missing := self._missing(fetched, known_by, since, bars):
            if problem := self._down or self._failed.get(symbol):
                raise problem
            try:
                fetched = self._fetch_page(instrument, fetched, min(missing, self._vendor.most))
            except FeedUnavailable as error:
                self._down = error
                raise
            except RolloutError as error:
                self._failed[symbol] = error
                raise
            self._fetched[symbol] = fetched
        return fetched

    def _missing(self, fetched: "_Fetched", known_by: datetime, since: datetime | None, bars: int | None) -> int:
        """Return the largest number of candles that are still needed before the oldest one."""
        if fetched.since <= (since or BEGINNING):
            return 0
        most = self._vendor.most if since is None else -((since - fetched.since) // self._delta)
        if bars is None:
            return most
        needed = bars - count_closed(fetched.candles, known_by, self.timeframe)
        if needed <= 0:
            return 0
        needed += max(timedelta(0), fetched.since - known_by) // self._delta  # candles in between do not count
        return needed if since is None else min(most, needed)

    def _fetch_page(self, instrument: str, fetched: "_Fetched", count: int) -> "_Fetched":
        page = self._vendor.page(instrument, before=fetched.since, count=count)
        source = f"{self.name} {instrument}"
        older = _no_candles()
        if not page.rows.empty:
            checked = checked_candles(page.rows, timeframe=self.timeframe, source=source, now=self._now, sparse=True)
            log_repairs(source, checked.repairs)
            older = checked.candles[checked.candles.index < pd.Timestamp(fetched.since)]  # keep known candles unchanged
        log.debug("candles.fetched", source=source, candles=len(older), asked=count)
        if page.since is not None:
            since = page.since
        elif len(older):
            since = pd.DatetimeIndex(older.index)[0].to_pydatetime()
        elif len(page.rows) <= 1:  # the vendor may repeat the oldest known candle
            since = BEGINNING
        else:
            raise EvidenceUnavailable(f"{source}: asked for candles before {fetched.since}, but got only later ones")
        parts = [part for part in (older, fetched.candles) if not part.empty]
        return _Fetched(pd.concat(parts) if parts else fetched.candles, since)

    def _check_silence(self, symbol: str, fetched: "_Fetched", since: datetime) -> None:
        """Raise EvidenceUnavailable if there are no candles at all although the market was open."""
        if fetched.candles.empty and self._calendar.last_open_candle(self._now - self._delta, self._delta) >= since:
            raise EvidenceUnavailable(
                f"{self.name}: no candles of {symbol} ({self._instruments[symbol]}), although its market was open"
            )


@dataclass(frozen=True, slots=True)
class _Fetched:
    """All candles that opened from *since* on and had closed when the snapshot was opened."""

    candles: pd.DataFrame
    since: datetime


def _no_candles() -> pd.DataFrame:
    times = pd.DatetimeIndex([], dtype="datetime64[ns, UTC]", name="timestamp")
    return pd.DataFrame({name: np.empty(0) for name in (*PRICES, "volume")}, index=times)
