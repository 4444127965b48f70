"""What the rollout asks of a source of candles; never how one reads or makes them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn, Protocol

import pandas as pd
import structlog

from strategy_core.domain.candles import Repairs, count_closed
from strategy_core.domain.errors import InvalidSetting, RolloutError, TimeOutOfRange
from strategy_core.domain.lifecycle import utc

log = structlog.get_logger(__name__)


class CandleSource(Protocol):
    """Candles of one timeframe for some symbols, as `domain.candles` describes them.

    A source is a snapshot: the same question gets the same candles for as long as it is open. What it knows beyond
    `closed_by` it keeps to itself. The frames are the caller's own.
    """

    @property
    def name(self) -> str: ...

    @property
    def timeframe(self) -> str: ...

    def symbols(self) -> tuple[str, ...]: ...

    def candles(
        self, symbol: str, *, closed_by: datetime, since: datetime | None = None, bars: int | None = None
    ) -> pd.DataFrame:
        """Return the candles that closed by *closed_by*, in time order; none is an empty frame.

        Args:
            symbol: one of `symbols()`; else UnknownSymbol.
            closed_by: the last moment known.
            since: leave out candles that opened earlier.
            bars: the last so many of these.
        """
        ...

    def expected_at(self, symbol: str, now: datetime) -> datetime | None:
        """Return the open time of the newest candle that should be there by *now*; None before the first."""
        ...


def window(
    candles: pd.DataFrame, timeframe: str, *, closed_by: datetime, since: datetime | None, bars: int | None
) -> pd.DataFrame:
    """Return a copy of the part of *candles* that `CandleSource.candles` is asked for."""
    stop = count_closed(candles, closed_by, timeframe)
    start = 0 if since is None else int(candles.index.searchsorted(pd.Timestamp(utc(since, "since"))))
    if bars is not None:
        start = max(start, stop - bars)
    return candles.iloc[start:stop].copy()


def newest_open(candles: pd.DataFrame, timeframe: str, now: datetime) -> datetime | None:
    """Return when the newest of *candles* that has closed by *now* opened; None when none has."""
    closed = count_closed(candles, now, timeframe)
    return pd.DatetimeIndex(candles.index)[closed - 1].to_pydatetime() if closed else None


def log_repairs(source: str, repairs: Repairs) -> None:
    if repairs:
        log.warning(
            "candles.repaired",
            source=source,
            duplicates=repairs.duplicates,
            moved=repairs.moved,
            unclosed=repairs.unclosed,
        )


class AbsentSource:
    """Stands for a feed that could not be opened. To a rollout it is blindness, which ends in a rollback, not a pass.

    Args:
        why: raised at every question.
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
    """Simulated time as a pure function of real time: every process that has these three facts tells the same time.

    Attributes:
        started_at: the real moment at which the replay began.
        replay_from: what the simulated clock showed at that moment.
        speed: simulated seconds in a real second; 3600 plays an hourly candle a second.
    """

    started_at: datetime
    replay_from: datetime
    speed: float = 1.0

    def __post_init__(self) -> None:
        utc(self.started_at, "started_at")
        utc(self.replay_from, "replay_from")
        if not 0 < self.speed <= 1_000_000:  # NaN fails the comparison too
            raise InvalidSetting("speed", self.speed, "above 0, at most 1000000")

    def now(self, real_now: datetime) -> datetime:
        """Return the simulated time at *real_now*; before the start it stands still.

        Raises:
            InvalidSetting: the speed has led beyond the times that candles can have.
        """
        elapsed = max(utc(real_now, "real_now") - utc(self.started_at), timedelta(0))
        try:
            return utc(utc(self.replay_from) + elapsed * self.speed)
        except (OverflowError, TimeOutOfRange):
            allowed = f"one at which {elapsed} after {self.replay_from.isoformat()} is not out of range"
            raise InvalidSetting("replay_speed", self.speed, allowed) from None


class ReplaySource:
    """Another source's candles, of which none is shown that closes after *now*, whatever is asked.

    Past the end of the other source it expects what that source expects: of a file opened without a calendar, as for a
    replay it should be, the last row.
    """

    def __init__(self, source: CandleSource, now: datetime) -> None:
        """Stop *source* at the simulated time *now*, such as `clock.now(real_now)`."""
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
