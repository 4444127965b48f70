"""When an alert is tried, tried again, repeated and given up: pure functions of counts and times; it sends nothing."""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Self


@dataclass(frozen=True, slots=True)
class Pace:
    """How delivery goes on.

    Attributes:
        first_retry, longest_retry: the wait after the first failure, which doubles with each, and where that ends.
        give_up_after: how long an alert is tried, from when it fell due; a critical one is tried on, and said aloud.
        repeat_after: how soon a critical alert that nobody has acknowledged is told again.
        lease: how long a process that took an alert has it for itself; longer than a pass lasts.
        news: how old an alert may be for a channel that is new; a critical one that nobody has acknowledged is no
            older than now.
    """

    first_retry: timedelta = timedelta(minutes=1)
    longest_retry: timedelta = timedelta(minutes=30)
    give_up_after: timedelta = timedelta(hours=24)
    repeat_after: timedelta = timedelta(minutes=30)
    lease: timedelta = timedelta(minutes=5)
    news: timedelta = timedelta(hours=24)

    @property
    def longest(self) -> timedelta:
        """The longest that anything is put off."""
        return max(self.longest_retry, self.repeat_after, self.lease)

    def at_speed(self, speed: float) -> Self:
        """Return the same pace on a clock that runs *speed* times as fast, as a replay's does."""
        return type(self)(**{each.name: getattr(self, each.name) * speed for each in fields(self)})

    def retry_after(self, failures: int, jitter: float) -> timedelta:
        """Return the wait after *failures* in a row.

        Args:
            failures: at least 1.
            jitter: within [0, 1): takes off up to half, so that what failed together does not come again together.
        """
        doubled = min(failures - 1, 30)  # more would overflow, and is past the longest anyway
        wait: timedelta = self.first_retry * 2**doubled
        return min(self.longest_retry, wait) * (1 - jitter / 2)

    def over(self, due: datetime, now: datetime) -> bool:
        """Say whether an alert that fell due then has been tried for long enough."""
        return now - due >= self.give_up_after
