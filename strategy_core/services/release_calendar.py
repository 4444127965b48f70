"""The calendar of one month: freezes, release windows and scheduled starts, by day."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import Engine

from strategy_core.domain.lifecycle import utc
from strategy_core.domain.plan import load_plan
from strategy_core.domain.release_times import DAYS, ReleaseWindow
from strategy_core.services.queries import Scope
from strategy_core.services.release_times import load_times
from strategy_core.store import release_times, rollouts, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import FreezeRow, ScheduledStart


@dataclass(frozen=True, slots=True)
class WindowEntry:
    """The release windows of an open rollout, or of one that is scheduled.

    Attributes:
        closed: why no stage may be entered now, or an empty text.
    """

    strategy_name: str
    version: str
    windows: Sequence[ReleaseWindow]
    closed: str

    @property
    def lines(self) -> list[str]:
        """The windows in words, one each."""
        return [_window_line(window) for window in self.windows]


@dataclass(slots=True)
class CalendarDay:
    """One day in UTC.

    Attributes:
        freezes: that last at some time of the day.
        open: strategies that have a release window on this weekday, with its hours.
        starts: scheduled for the day.
    """

    day: date
    in_month: bool
    is_today: bool
    freezes: list[FreezeRow] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    starts: list[ScheduledStart] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        return not (self.freezes or self.open or self.starts)


@dataclass(frozen=True, slots=True)
class ReleaseCalendar:
    """A month in whole weeks, and what is in it.

    Attributes:
        month: its first day.
        freezes: that have not ended, and those of the month, lifted ones included.
        strategies: whose freezes may be set: all that the scope covers.
    """

    month: date
    weeks: Sequence[Sequence[CalendarDay]]
    freezes: Sequence[FreezeRow]
    windows: Sequence[WindowEntry]
    starts: Sequence[ScheduledStart]
    strategies: Sequence[str]

    @property
    def previous(self) -> date:
        return (self.month - timedelta(days=1)).replace(day=1)

    @property
    def following(self) -> date:
        return (self.month + timedelta(days=32)).replace(day=1)


def read_calendar(engine: Engine, scope: Scope, *, month: date, now: datetime) -> ReleaseCalendar:
    """Return the calendar of the month that begins on *month*, for the strategies of *scope*."""
    now = utc(now, "now")
    first = month - timedelta(days=month.weekday())
    last = month
    while (last.year, last.month) == (month.year, month.month) or last.weekday() != 0:
        last += timedelta(days=1)
    since, until = (datetime.combine(day, time(), UTC) for day in (first, last))
    with reading(engine) as session:
        known = versions.strategy_names(session)
        names = [name for name in known if scope.names is None or name in scope.names]
        rows = release_times.list_freezes(session, names, since=min(since, now))
        starts = [each for each in release_times.pending_starts(session) if each.strategy_name in names]
        plans = [(each.strategy_name, each.version, each.plan) for each in rollouts.open_rollouts(session)]
        plans += [(each.strategy_name, each.version, each.plan) for each in starts]
        windows = []
        for name, version, plan in plans:
            if name in names and (own := load_plan(plan).advance_windows):
                closed = load_times(session, name, now).closed(own, now)
                windows.append(WindowEntry(name, version, own, closed))
    days = [_day(first + timedelta(days=number), month, now) for number in range((last - first).days)]
    for each in days:
        start = datetime.combine(each.day, time(), UTC)
        end = start + timedelta(days=1)
        each.freezes = [row for row in rows if row.starts_at < end and row.until > max(start, row.starts_at)]
        each.starts = [start_ for start_ in starts if start <= start_.start_at < end]
        each.open = [
            f"{entry.strategy_name} {window.opens}–{window.closes} {window.time_zone}"
            for entry in windows
            for window in entry.windows
            if DAYS[each.day.weekday()] in window.days
        ]
    weeks = [days[number : number + 7] for number in range(0, len(days), 7)]
    listed = [row for row in rows if row.until > now or row.starts_at < until]
    return ReleaseCalendar(month, weeks, listed, windows, starts, names)


def _day(day: date, month: date, now: datetime) -> CalendarDay:
    return CalendarDay(day, in_month=(day.year, day.month) == (month.year, month.month), is_today=day == now.date())


def _window_line(window: ReleaseWindow) -> str:
    days = ", ".join(day.title() for day in DAYS if day in window.days)
    market = f", while the market of {window.market_open} is open" if window.market_open else ""
    return f"{days} {window.opens} to {window.closes} {window.time_zone}{market}"
