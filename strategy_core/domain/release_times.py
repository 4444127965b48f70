"""When stages may be entered: the release windows of a plan, and freezes."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from types import MappingProxyType
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

ALL_STRATEGIES = "*"
LONGEST_FREEZE = timedelta(days=366)
FARTHEST_FREEZE = timedelta(days=366)  # until its start
Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MIDNIGHT = "24:00"
_CLOCK = re.compile(r"([01]\d|2[0-3]):[0-5]\d|24:00")
_LOOK_AHEAD = 15  # days: every window opens each week, and no market is closed as long
_STEPS = 1_000  # alternations of freezes and windows


def _clock(value: str) -> str:
    if not _CLOCK.fullmatch(value):
        raise ValueError("a time is HH:MM, 00:00 to 24:00")
    return value


def _zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (LookupError, OSError, ValueError):
        raise ValueError(f"unknown time zone {value!r}; a name such as Europe/Berlin is needed") from None
    return value


Clock = Annotated[str, AfterValidator(_clock)]


class ReleaseWindow(BaseModel):
    """Days and hours in which stages may be entered, by the clock of a time zone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    days: tuple[Day, ...] = Field(default=DAYS[:5], min_length=1, description="days of the week")
    opens: Clock = Field(default="09:00", description="time of day from which stages may be entered, HH:MM")
    closes: Clock = Field(default="17:00", description="time of day from which they may not, HH:MM, at most 24:00")
    time_zone: Annotated[str, AfterValidator(_zone)] = Field(
        default="UTC", description="time zone of the hours, such as Europe/Berlin"
    )
    market_open: Literal["metals"] | None = Field(
        default=None, description="the market that must be open too, by its calendar with holidays. Empty: none"
    )

    @model_validator(mode="after")
    def _opens_first(self) -> Self:
        if self.opens >= self.closes:
            raise ValueError(f"a window opens before it closes, got {self.opens} to {self.closes}: use two windows")
        return self

    def covers(self, moment: datetime, is_open: "MarketHours") -> bool:
        """Return whether stages may be entered at *moment*."""
        local = moment.astimezone(ZoneInfo(self.time_zone))
        if DAYS[local.weekday()] not in self.days or not self.opens <= f"{local:%H:%M}" < self.closes:
            return False
        return self.market_open is None or is_open[self.market_open](moment)

    def next_opening(self, moment: datetime, is_open: "MarketHours") -> datetime | None:
        """Return the first moment from *moment* on at which stages may be entered, if there is one within 15 days.

        A market is asked at the window's start and at each whole hour after it.
        """
        if self.covers(moment, is_open):
            return moment
        today = moment.astimezone(ZoneInfo(self.time_zone)).date()
        for number in range(_LOOK_AHEAD):
            for candidate in self._candidates(today + timedelta(days=number)):
                if candidate > moment and self.covers(candidate, is_open):
                    return candidate
        return None

    def _candidates(self, day: date) -> Iterator[datetime]:
        """Yield the moments of a day at which the window, or the market within it, may open."""
        zone = ZoneInfo(self.time_zone)
        start = datetime.combine(day, time.fromisoformat(self.opens), zone).astimezone(UTC)
        yield start
        if self.market_open is not None:
            hour = start.replace(minute=0)
            yield from (hour + timedelta(hours=number) for number in range(1, 25))


MarketHours = Mapping[str, Callable[[datetime], bool]]  # by market: whether it is open at a moment


@dataclass(frozen=True, slots=True)
class Freeze:
    """A time in which no stage is entered: [starts_at, ends_at).

    Attributes:
        by: the owner who set it.
        strategy_name: or `*` for all strategies.
        at_once: whether it was set without a later start. It then holds a late tick too, whose time is before the
            moment at which the owner set it.
    """

    starts_at: datetime
    ends_at: datetime
    by: str
    reason: str
    strategy_name: str = ALL_STRATEGIES
    at_once: bool = False

    def covers(self, moment: datetime) -> bool:
        return (self.at_once or self.starts_at <= moment) and moment < self.ends_at

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"frozen until {self.ends_at:%Y-%m-%d %H:%M} UTC by {self.by}{reason}"


@dataclass(frozen=True, slots=True)
class Closure:
    """Why no stage may be entered at a moment.

    Attributes:
        frozen: whether it is a freeze, and not a closed window.
    """

    reason: str
    frozen: bool


@dataclass(frozen=True, slots=True)
class ReleaseTimes:
    """When the stages of one strategy may be entered, apart from the windows of its plan.

    Attributes:
        freezes: of the strategy or of all strategies, in any order. They may overlap.
        is_open: the hours of the markets that windows may name.
        held: returns why no stage may be entered at the moment for another reason, or an empty text. It is asked only
            when a stage would be entered, so that nothing else waits for it.
    """

    freezes: Sequence[Freeze] = ()
    is_open: MarketHours = field(default_factory=lambda: MappingProxyType({}))
    held: Callable[[], str] = str

    def closure(self, windows: Sequence[ReleaseWindow], moment: datetime) -> Closure | None:
        """Return why no stage may be entered at *moment*, or None. Without windows any time will do."""
        frozen = [freeze for freeze in self.freezes if freeze.covers(moment)]
        if frozen:
            return Closure(str(max(frozen, key=lambda freeze: freeze.ends_at)), frozen=True)
        if held := self.held():
            return Closure(held, frozen=False)
        if not windows or any(window.covers(moment, self.is_open) for window in windows):
            return None
        opening = self._opening(windows, moment)
        if opening is None:
            return Closure("outside the release window", frozen=False)
        at, window = opening
        return Closure(f"outside the release window; opens {in_zone(at, window.time_zone)}", frozen=False)

    def closed(self, windows: Sequence[ReleaseWindow], moment: datetime) -> str:
        """Return the reason of `closure`, or an empty text."""
        closure = self.closure(windows, moment)
        return closure.reason if closure else ""

    def opens_at(self, windows: Sequence[ReleaseWindow], moment: datetime) -> datetime | None:
        """Return the first moment from *moment* on at which a stage may be entered, or None if none is known."""
        at = moment
        for _ in range(_STEPS):
            frozen = [freeze.ends_at for freeze in self.freezes if freeze.covers(at)]
            if frozen:
                at = max(frozen)
                continue
            opening = self._opening(windows, at) if windows else (at, None)
            if opening is None or opening[0] == at:
                return None if opening is None else at
            at = opening[0]
        return None

    def limit_end(self, since: datetime, limit: timedelta) -> datetime:
        """Return when *limit* has passed since *since*, without the time in which the strategy is frozen."""
        end = since + limit
        for start, until in _merged(self.freezes):
            if start < end and until > since:
                end += until - max(start, since)
        return end

    def _opening(self, windows: Iterable[ReleaseWindow], moment: datetime) -> tuple[datetime, ReleaseWindow] | None:
        openings = [(window.next_opening(moment, self.is_open), window) for window in windows]
        known = [(at, window) for at, window in openings if at is not None]
        return min(known, key=lambda opening: opening[0], default=None)


ANY_TIME = ReleaseTimes()


def in_zone(moment: datetime, time_zone: str) -> str:
    """Return a moment as a reader of that time zone expects it: `Mon 2026-12-07 09:00 Europe/Berlin`."""
    local = moment.astimezone(ZoneInfo(time_zone))
    return f"{DAYS[local.weekday()].title()} {local:%Y-%m-%d %H:%M} {time_zone}"


def _merged(freezes: Iterable[Freeze]) -> list[tuple[datetime, datetime]]:
    """Return the frozen spans without overlaps, ascending."""
    spans: list[tuple[datetime, datetime]] = []
    for freeze in sorted(freezes, key=lambda each: each.starts_at):
        if spans and freeze.starts_at <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(spans[-1][1], freeze.ends_at))
        else:
            spans.append((freeze.starts_at, freeze.ends_at))
    return spans
