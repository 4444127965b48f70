"""What the rollout asks of a source of candles; never how one reads or makes them."""

from datetime import datetime
from typing import Protocol

import pandas as pd
import structlog

from strategy_core.domain.candles import Repairs, count_closed
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
