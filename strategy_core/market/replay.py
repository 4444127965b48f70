"""The past as if it were now: a clock that any process can compute, and a source that ends where that clock stands."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import pandas as pd

from strategy_core.domain.errors import InvalidSetting, TimeOutOfRange
from strategy_core.domain.lifecycle import utc
from strategy_core.market.source import CandleSource


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
