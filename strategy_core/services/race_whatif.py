"""What a race would have done on past candles: its days, nominations and rollouts, on replayed decisions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

import numpy as np
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.errors import InvalidRace, InvalidSetting, NotReplayed
from strategy_core.domain.plan import Plan
from strategy_core.domain.race import Standing
from strategy_core.domain.race_days import candles_of
from strategy_core.domain.race_simulation import USERS, Known, Market, race_by_ramp
from strategy_core.services.rollouts import check_comparable, check_not_active
from strategy_core.store import races, replays, versions
from strategy_core.store.engine import reading
from strategy_core.store.tables import REPLAYED, StrategyVersion

FEWEST_DAYS = 30
_AT_ONCE = timedelta(days=90)  # of one read
_DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class RaceEvent:
    """What happened to a version on a day of the race."""

    day: date
    version: str
    what: str


@dataclass(frozen=True, slots=True)
class RaceOnReplays:
    """A race on replayed decisions. R is what a user earned more than with the version that was active at the start.

    Attributes:
        start, end: of the race. The days of shadow come before it.
        slots: candles that all versions decided, shadow included.
        totals: R of each version during the race, if it had served everyone.
        standings: after the last day, against the version that was active then.
        gain, worst: R a user, the mean over all users and the worst one's.
        best_fixed: of the best version in hindsight, at least 0.
        switches: a user, on average.
    """

    start: date
    end: date
    shadow_days: int
    slots: int
    active: str
    totals: dict[str, float]
    standings: list[Standing]
    events: list[RaceEvent]
    gain: float
    worst: float
    best_fixed: float
    switches: float


def race_on_replays(
    engine: Engine,
    *,
    strategy_name: str,
    candidates: Sequence[str],
    plan: Plan,
    shadow_days: int = 60,
    start: datetime | None = None,
    end: datetime | None = None,
) -> RaceOnReplays:
    """Return how a race of *candidates* against the active version would have gone. Nothing is changed.

    Only candles that all of them decided count, and none on which one of them was trained. Rollouts are judged once a
    day, and owners approve at once. There are no live trades, so gates that need them do not count.

    Args:
        plan: of the rollouts.
        shadow_days: at the beginning of the period, which the race knows when it starts.
        start, end: only candles in [start, end). Default: all that every version has replayed.

    Raises:
        UnknownStrategy, UnknownVersion, NoActiveVersion, Incomparable
        InvalidRace: a candidate is named twice, or none is named.
        NotReplayed: a version is not replayed.
        InvalidSetting: fewer than 30 days are left for the race.
    """
    if not candidates or len(set(candidates)) != len(candidates):
        raise InvalidRace("name each candidate once")
    with reading(engine) as session:
        active = versions.active_version(session, strategy_name)
        chosen = [versions.get_version(session, strategy_name, name) for name in candidates]
        for each in chosen:
            check_not_active(each, active)
            check_comparable(each, active)
        first, last = _period(session, [active, *chosen], start, end)
        names = [active.version, *candidates]
        market = _market(session, strategy_name, names, first, last, shadow_days)
    if len(market.edges) < FEWEST_DAYS:
        raise InvalidSetting("shadow-days", shadow_days, f"so many that {FEWEST_DAYS} days are left for the race")
    places = (np.arange(USERS) + 0.5) / USERS
    served = race_by_ramp(Known(market, shadow_days, plan, places, np.random.default_rng(0), names))
    days = len(market.edges)
    sums = np.stack([market.of_day(day).r.sum(axis=0) for day in range(days)])
    ahead = sums - sums[:, :1]
    each_user = np.take_along_axis(ahead, served.versions, axis=1).sum(axis=0)
    before = np.vstack([np.zeros((1, USERS), np.int64), served.versions[:-1]])
    begins = (first + shadow_days * _DAY).date()
    return RaceOnReplays(
        start=begins,
        end=begins + days * _DAY,
        shadow_days=shadow_days,
        slots=len(market.day),
        active=active.version,
        totals=dict(zip(names, sums.sum(axis=0).tolist(), strict=True)),
        standings=[] if served.at_end is None else list(served.at_end.rows),
        events=[RaceEvent(begins + day * _DAY, names[version], what) for day, version, what in served.events],
        gain=float(each_user.mean()),
        worst=float(each_user.min()),
        best_fixed=max(0.0, float(ahead.sum(axis=0).max())),
        switches=float(np.mean(np.sum(served.versions != before, axis=0))),
    )


def _period(
    session: Session, all_versions: Sequence[StrategyVersion], start: datetime | None, end: datetime | None
) -> tuple[datetime, datetime]:
    """Return the first and the last whole day that all versions have replayed and on which none was trained."""
    firsts, lasts = [start] if start else [], [end] if end else []
    for each in all_versions:
        span = replays.replayed_span(session, each.strategy_name, each.version, each.symbols)
        if span is None:
            advice = f"rollout replay {each.strategy_name} {each.version} --from TIME --to TIME"
            raise NotReplayed(each.strategy_name, each.version, advice)
        firsts.append(max(span.first, each.trained_until or span.first))
        lasts.append(span.newest)
    begins = max(firsts)
    midnight = begins.replace(hour=0, minute=0, second=0, microsecond=0)
    return (midnight if midnight == begins else midnight + _DAY), min(lasts)


def _market(
    session: Session, strategy_name: str, names: Sequence[str], first: datetime, last: datetime, shadow_days: int
) -> Market:
    """Return the results on the candles that all versions decided, whose trades have closed."""
    parts, at = [], first
    while at < last:
        end = min(at + _AT_ONCE, last)
        decided = races.read_decided(session, strategy_name, names, start=at, end=end, tables=REPLAYED)
        parts.append(candles_of(decided, names))
        at = end
    candles = [candle for some, _ in parts for candle in some]
    empty = np.zeros((0, len(names)))
    r = np.concatenate([empty, *(part.r for _, part in parts)])
    signalled = np.concatenate([empty > 0, *(part.signalled for _, part in parts)])
    by_all = np.concatenate([np.zeros(0, np.bool_), *(part.decided.all(axis=1) for _, part in parts)])
    day = np.array([(candle - first) // _DAY for candle in candles], np.int64) - shadow_days
    days = max(0, (last - first) // _DAY - shadow_days)
    return Market(r[by_all], signalled[by_all], day[by_all], np.zeros((days, len(names))))
