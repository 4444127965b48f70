"""The CandleSource protocol, and sources that stand in for another: an absent feed and a replay."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn, Protocol, runtime_checkable

import pandas as pd
import structlog

from strategy_core.domain.candles import Repairs, count_closed, timeframe_delta
from strategy_core.domain.errors import InvalidSetting, RolloutError, TimeOutOfRange
from strategy_core.domain.lifecycle import utc

LONG_CLOSURE = timedelta(days=4)  # longer than any weekend
log = structlog.get_logger(__name__)


class CandleSource(Protocol):
    """Candles of one timeframe for some symbols, in the format of `domain.candles`.

    A source is a snapshot: while it is open, the same call returns the same candles. It does not return candles that
    close after `closed_by`. Callers may modify the returned frames.
    """

    @property
    def name(self) -> str: ...

    @property
    def timeframe(self) -> str: ...

    def symbols(self) -> tuple[str, ...]: ...

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        """Return the candles that closed by *closed_by*, oldest first. The frame may be empty.

        Args:
            symbol: one of `symbols()`. Others raise UnknownSymbol.
            closed_by: latest close time.
            since: earliest open time.
            bars: return only the last *bars* of these candles.
        """
        ...

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        """Return the open time of the newest candle that should exist by *now*, or None before the first one."""
        ...


@runtime_checkable
class HoldsBack(Protocol):
    """A source that may hold back an invalid newest candle, such as a file that is being written."""

    def held_back(self, symbol: str) -> str:
        """Return why the symbol's newest candle is held back, or an empty text."""
        ...


def why_held_back(source: object, symbol: str) -> str:
    """Return why *source* holds back the symbol's newest candle, or an empty text."""
    return source.held_back(symbol) if isinstance(source, HoldsBack) else ""


def window(
    candles: pd.DataFrame, timeframe: str, *, closed_by: datetime, since: datetime | None, bars: int | None
) -> pd.DataFrame:
    """Return a copy of the part of *candles* that `CandleSource.candles` has to return for these arguments."""
    stop = count_closed(candles, closed_by, timeframe)
    start = 0 if since is None else int(candles.index.searchsorted(pd.Timestamp(utc(since, "since"))))
    if bars is not None:
        start = max(start, stop - bars)
    return candles.iloc[start:stop].copy()


def newest_open(candles: pd.DataFrame, timeframe: str, now: datetime) -> datetime | None:
    """Return the open time of the newest of *candles* that has closed by *now*, if there is one."""
    closed = count_closed(candles, now, timeframe)
    return pd.DatetimeIndex(candles.index)[closed - 1].to_pydatetime() if closed else None


def long_ended(source: CandleSource, now: datetime) -> str:
    """Return since when *source* has no candles and what to do about it, or an empty text if it has new ones."""
    last = (source.candles(symbol, closed_by=now, bars=1).index for symbol in source.symbols())
    newest = max((index[-1].to_pydatetime() for index in last if len(index)), default=None)
    if newest is None or now - newest <= LONG_CLOSURE + 2 * timeframe_delta(source.timeframe):
        return ""
    return (
        f"the newest candle of {source.name} is of {newest:%Y-%m-%d %H:%M} UTC, {(now - newest).days:,} days ago: no "
        "version decides now. Append newer candles, or set ROLLOUT_FEED to a live feed. To decide on the past: "
        "rollout replay STRATEGY VERSION"
    )


def log_repairs(source: str, repairs: Repairs) -> None:
    """Log a warning if candles were repaired."""
    if repairs:
        log.warning(
            "candles.repaired",
            source=source,
            duplicates=repairs.duplicates,
            moved=repairs.moved,
            unclosed=repairs.unclosed,
            noise=repairs.noise,
        )


class AbsentSource:
    """Stands in for a feed that could not be opened, so that gates are blind and the rollout can still roll back.

    Args:
        why: the error that every method raises.
    """

    def __init__(self, name: str, timeframe: str, why: RolloutError) -> None:
        self.name = name
        self.timeframe = timeframe
        self._why = why

    def symbols(self) -> tuple[str, ...]:
        self._refuse()

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        self._refuse()

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise self._why


@dataclass(frozen=True, slots=True)
class ReplayClock:
    """Simulated time as a pure function of real time, so that all processes of a replay agree.

    Attributes:
        started_at: real time at which the replay began. None: the clock stands still.
        replay_from: simulated time at that moment.
        speed: simulated seconds per real second. With 3600, an hourly candle takes one second.
    """

    started_at: datetime | None
    replay_from: datetime
    speed: float = 1.0

    def __post_init__(self) -> None:
        if self.started_at is not None:
            utc(self.started_at, "started_at")
        utc(self.replay_from, "replay_from")
        if not 0 < self.speed <= 1_000_000:  # NaN fails the comparison too
            raise InvalidSetting("speed", self.speed, "above 0, at most 1000000")

    def now(self, real_now: datetime) -> datetime:
        """Return the simulated time at *real_now*. Before the start it is *replay_from*.

        Raises:
            InvalidSetting: the simulated time is outside the range that candles can have.
        """
        if self.started_at is None:
            return utc(self.replay_from)
        elapsed = max(utc(real_now, "real_now") - utc(self.started_at), timedelta(0))
        try:
            return utc(utc(self.replay_from) + elapsed * self.speed)
        except (OverflowError, TimeOutOfRange):
            allowed = f"a speed at which {elapsed} after {self.replay_from.isoformat()} is in range"
            raise InvalidSetting("replay_speed", self.speed, allowed) from None


class ReplaySource:
    """Another source's candles up to the simulated time *now*.

    Open a file for a replay without a calendar: then the last row is the newest expected candle.
    """

    def __init__(self, source: CandleSource, now: datetime) -> None:
        """Limit *source* to the simulated time *now*, such as `clock.now(real_now)`."""
        self.name = f"replay of {source.name}"
        self.timeframe = source.timeframe
        self._source = source
        self._now = utc(now, "now")

    def symbols(self) -> tuple[str, ...]:
        return self._source.symbols()

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        known = min(utc(closed_by, "closed_by"), self._now)
        return self._source.candles(symbol, closed_by=known, since=since, bars=bars)

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        return self._source.expected_at(symbol, min(utc(now, "now"), self._now))

    def held_back(self, symbol: str) -> str:
        return why_held_back(self._source, symbol)
