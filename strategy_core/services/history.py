"""Curves, days, served shares and verdicts over time, as reports show them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from math import ceil, isnan
from types import MappingProxyType
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.comparison import Cell, Daily, DaySums, by_day
from strategy_core.domain.errors import InvalidName, InvalidPlan, UnknownRollout
from strategy_core.domain.gates.base import Finding, Freshness, Gate
from strategy_core.domain.live_trades import Serving, serving_at
from strategy_core.domain.plan import load_plan
from strategy_core.domain.readings import GateReading, gates_of, read_findings
from strategy_core.domain.routing import BUCKETS, as_percent
from strategy_core.domain.scoring import ScoringRule
from strategy_core.services.evidence import live_since
from strategy_core.store import audit, outcomes, replays, rollouts, versions
from strategy_core.store import users as user_store
from strategy_core.store.comparison import ComparedPair, MarkedSpan, marked_spans, not_held
from strategy_core.store.engine import reading
from strategy_core.store.served_users import read_served_users
from strategy_core.store.tables import REPLAYED, ComparisonReport, GateVerdict, Rollout

MOST_POINTS = 400  # points per curve: about two pixels each
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Equity:
    """Cumulative R of both versions on their shared symbols, marked to market, open trades included.

    Attributes:
        at: the start, then candle opening times, ascending. At most MOST_POINTS, including the newest.
        canary, control: R since the start, at each of *at*.
    """

    at: tuple[datetime, ...]
    canary: tuple[float, ...]
    control: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Day:
    """The closed slots of one UTC day.

    Attributes:
        unlike: slots on which the two versions decided differently.
        mean, low, high: difference in R per slot up to the end of that day, with its interval.
            *low* and *high* need two days.
    """

    day: datetime
    slots: int
    unlike: int
    canary_r: float
    control_r: float
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ComparisonCurves:
    """A comparison report with its equity curves and days."""

    report: ComparisonReport
    equity: Equity
    days: tuple[Day, ...]


def comparison_curves(session: Session, report: ComparisonReport) -> ComparisonCurves:
    """Return a report with its curves. The days hold slots that have closed since, in all symbols of the report."""
    name, shadow, active = report.strategy_name, report.shadow_version, report.active_version
    symbols = [report.symbol] if report.symbol else _shared(session, name, shadow, active)
    pair = ComparedPair(name, shadow, active, symbols, report.period_start, report.period_end)
    pairs = [pair]
    if report.report.get("candles_replayed"):
        both = (versions.get_version(session, name, each) for each in (shadow, active))
        pairs = split_pair(session, pair, live_since(*both))
    if (trained := report.report.get("trained_until")) is not None:
        pairs = split_sample(pairs, datetime.fromisoformat(trained))[1] or [replace(pair, start=pair.end)]
    cells = chain.from_iterable(not_held(session, each) for each in pairs)
    decided = (cell for _, cell in cells if cell.shadow is not None and cell.active is not None)
    days = days_of([_day_sums(cell) for cell in decided if cell.closed])
    rule = ScoringRule.model_validate(versions.get_strategy(session, name).scoring)
    marked = [(each, marked_spans(session, each, rule.horizon)) for each in pairs]
    return ComparisonCurves(report, _read_equity(session, marked), days)


def split_pair(session: Session, pair: ComparedPair, since: datetime) -> list[ComparedPair]:
    """Return the pair in parts: replayed before *since*, where the shadow version was replayed, and live from then on.

    Args:
        since: when both versions began to decide on live candles.
    """
    end = min(pair.end, since)
    span = replays.replayed_span(session, pair.strategy_name, pair.shadow, pair.symbols)
    if span is None or span.first >= end or span.newest < pair.start:
        return [pair]
    replayed = replace(pair, end=end, tables=REPLAYED)
    return [replayed, replace(pair, start=since)] if since < pair.end else [replayed]


def split_sample(
    pairs: Sequence[ComparedPair], until: datetime | None
) -> tuple[list[ComparedPair], list[ComparedPair]]:
    """Return the parts of the pairs before *until*, on which a version was trained, and those from then on."""
    if until is None:
        return [], list(pairs)
    inside = [replace(each, end=min(each.end, until)) for each in pairs if each.start < until]
    return inside, [replace(each, start=max(each.start, until)) for each in pairs if each.end > until]


def read_curves(engine: Engine, reports: Sequence[ComparisonReport]) -> list[ComparisonCurves]:
    """Return reports with their curves, in the same order."""
    with reading(engine) as session:
        return [comparison_curves(session, report) for report in reports]


def read_equity(
    session: Session,
    strategy_name: str,
    canary: str,
    control: str,
    *,
    start: datetime,
    end: datetime,
    left_out: Mapping[str, datetime] = MappingProxyType({}),
) -> Equity:
    """Return the equity of both versions over [start, end), from 0 at the start.

    Args:
        left_out: by symbol, the first candle from which neither version's results on it count.
    """
    symbols = _shared(session, strategy_name, canary, control)
    pair = ComparedPair(strategy_name, canary, control, symbols, start, end)
    return _read_equity(session, [(pair, [MarkedSpan(tuple(symbols), start, end)])], left_out)


def _read_equity(
    session: Session,
    marked: Sequence[tuple[ComparedPair, Sequence[MarkedSpan]]],
    left_out: Mapping[str, datetime] = MappingProxyType({}),
) -> Equity:
    """Return the equity over the periods of the pairs, which follow each other, from their *marked* candles."""
    first, start, end = marked[0][0], marked[0][0].start, marked[-1][0].end
    timeframe = timeframe_delta(versions.get_version(session, first.strategy_name, first.shadow).timeframe)
    stretch = max(timeframe, timedelta(seconds=ceil((end - start).total_seconds() / (MOST_POINTS - 1))))
    points = {start: (0.0, 0.0)}
    so_far = (0.0, 0.0)
    for pair, spans in marked:
        over: dict[str, Any] = {"stretch": stretch, "origin": start, "tables": pair.tables, "left_out": left_out}
        ours, theirs = (_marks_by_stretch(session, pair, spans, name, over) for name in (pair.shadow, pair.active))
        absent = (pair.start, 0.0)
        for place in sorted(ours.keys() | theirs.keys()):
            (our_newest, our_r), (their_newest, their_r) = ours.get(place, absent), theirs.get(place, absent)
            so_far = (so_far[0] + our_r, so_far[1] + their_r)
            points[max(our_newest, their_newest)] = so_far
    return Equity(tuple(points), *zip(*points.values(), strict=True))


def _marks_by_stretch(
    session: Session, pair: ComparedPair, spans: Sequence[MarkedSpan], version: str, over: Mapping[str, Any]
) -> dict[int, tuple[datetime, float]]:
    """Return (newest candle, change of marked-to-market R) by stretch, from the candles of the *spans*."""
    found: dict[int, tuple[datetime, float]] = {}
    for span in spans:
        end = min(pair.end, span.end + timedelta(microseconds=1))
        of = outcomes.marks_by_stretch(
            session, pair.strategy_name, version, span.symbols, start=span.start, end=end, **over
        )
        for place, (newest, r) in of.items():
            before = found.get(place, (newest, 0.0))
            found[place] = (max(newest, before[0]), before[1] + r)
    return found


def days_of(sums: Sequence[DaySums]) -> tuple[Day, ...]:
    """Return the slots by day."""
    return tuple(_days(by_day(sums)))


def _day_sums(cell: Cell) -> DaySums:
    unlike = cell.closed if cell.shadow is not cell.active else 0
    return DaySums(cell.day, cell.closed, unlike, cell.shadow_trades.r, cell.active_trades.r)


def _shared(session: Session, strategy_name: str, one: str, other: str) -> list[str]:
    """Return the symbols that both versions decide on."""
    ours, theirs = (set(versions.get_version(session, strategy_name, name).symbols) for name in (one, other))
    return sorted(ours & theirs)


def _days(daily: Daily) -> list[Day]:
    columns = (
        daily.day,
        daily.slots,
        daily.unlike,
        daily.canary_r,
        daily.active_r,
        daily.mean,
        daily.low,
        daily.high,
    )
    return [
        Day(_EPOCH + timedelta(days=day), n, unlike, ours, theirs, mean, _number_or_none(low), _number_or_none(high))
        for day, n, unlike, ours, theirs, mean, low, high in zip(*(each.tolist() for each in columns), strict=True)
    ]


def _number_or_none(value: float) -> float | None:
    return None if isnan(value) else value


@dataclass(frozen=True, slots=True)
class ServedSpan:
    """A version's share of users over one span of time.

    Attributes:
        until: when the share changed, or the moment of the query.
        users: the number of directory users, if a directory is loaded.
    """

    since: datetime
    until: datetime
    percent: float
    users: int | None = None


def count_users(session: Session, strategy_name: str) -> int | None:
    """Return the number of directory users, or None if no directory is loaded."""
    salt = versions.get_strategy(session, strategy_name).salt
    below = user_store.users_below(session, salt, [BUCKETS])
    return None if below is None else below[BUCKETS]


def served(
    session: Session, strategy_name: str, version: str, *, since: datetime | None, until: datetime
) -> list[ServedSpan]:
    """Return the spans in which a version served users up to *until*, oldest first.

    Args:
        since: the start of the spans. The default is the start of the last uninterrupted service.
    """
    history = [one for one in audit.serving_history(session, strategy_name) if one.since < until]
    spans = list(_spans(history, version, until, _user_count(session, strategy_name, version, history, until)))
    if since is not None:
        return [replace(one, since=max(one.since, since)) for one in spans if one.until > since]
    begun = len(spans)
    while begun > 0 and (begun == len(spans) or spans[begun - 1].until == spans[begun].since):
        begun -= 1
    return spans[begun:]


def share_at(
    session: Session, strategy_name: str, version: str, moment: datetime
) -> tuple[tuple[int, int], int | None]:
    """Return the buckets that got the version at a moment, as [first, end), and the number of directory users."""
    serving = serving_at(audit.serving_history(session, strategy_name), moment)
    if serving is None:
        return (0, 0), 0
    count = _user_count(session, strategy_name, version, [serving], moment)
    return _share(serving, version), count(serving, moment)


_Count: TypeAlias = Callable[[Serving, datetime], int | None]


def _user_count(
    session: Session, strategy_name: str, version: str, history: Sequence[Serving], until: datetime
) -> _Count:
    """Return a function that counts the directory users of the version, by what served them and the moment."""
    salt = versions.get_strategy(session, strategy_name).salt
    shares = {one.canary_bp for one in history}
    since = history[0].since if history else until
    known = read_served_users(session, strategy_name, salt, shares, since=since, until=until)

    def count(serving: Serving, at: datetime) -> int | None:
        if known is None:
            return None
        on_canary = 0 if serving.canary is None else known.on_canary(serving.canary_bp, at)
        if serving.canary == version:
            return on_canary
        return known.everyone - on_canary if serving.active == version else 0

    return count


def _spans(history: Sequence[Serving], version: str, until: datetime, count: _Count) -> Iterator[ServedSpan]:
    """Yield the spans. Their users are those of the last moment of each."""
    ends = [*(one.since for one in history[1:]), *([until] if history else [])]
    last: tuple[datetime, datetime, tuple[int, int], Serving] | None = None
    for one, end in zip(history, ends, strict=True):
        share = _share(one, version)
        if last is not None and last[1] == one.since and last[2] == share:
            last = (last[0], end, share, one)
            continue
        if last is not None:
            yield _served_span(*last, count)
        last = (one.since, end, share, one) if share[1] > share[0] and end > one.since else None
    if last is not None:
        yield _served_span(*last, count)


def _share(serving: Serving, version: str) -> tuple[int, int]:
    """Return the buckets that get the version, as [first, end)."""
    if serving.canary == version:
        return 0, serving.canary_bp
    if serving.active == version:
        return (serving.canary_bp if serving.canary is not None else 0), BUCKETS
    return 0, 0


def _served_span(
    since: datetime, until: datetime, share: tuple[int, int], serving: Serving, count: _Count
) -> ServedSpan:
    users = count(serving, until - timedelta(microseconds=1))  # the change that ends it may release users
    return ServedSpan(since, until, as_percent(share[1] - share[0]), users)


@dataclass(frozen=True, slots=True)
class VerdictHistory:
    """The verdicts of one rollout, oldest first.

    Attributes:
        verdicts: one row for each change of a gate's verdict.
        readings: the verdicts as owners read them, in the same order.
        values: values of the requested gate over the whole rollout. *limit* does not apply to them.
    """

    rollout: Rollout
    verdicts: Sequence[GateVerdict]
    readings: Sequence[GateReading]
    values: Sequence[tuple[datetime, float]]


def read_verdicts(
    engine: Engine,
    strategy_name: str,
    *,
    gate: str | None = None,
    rollout_id: UUID | None = None,
    limit: int | None = None,
) -> VerdictHistory:
    """Return the verdicts of the strategy's newest rollout, or of the rollout with this id.

    Raises:
        UnknownStrategy
        UnknownRollout: the strategy has no rollout, or not this one.
        InvalidName: the rollout has no gate named *gate*.
    """
    with reading(engine) as session:
        versions.get_strategy(session, strategy_name)
        rollout = _rollout(session, strategy_name, rollout_id)
        if gate is not None:
            names = [Freshness().name, *(each.name for each in load_plan(rollout.plan).gates)]
            if gate not in names:
                raise InvalidName("gate of this rollout", gate, ", ".join(names))
        gates: dict[str, Gate] = {}
        with suppress(InvalidPlan):  # of an earlier release
            gates = gates_of(load_plan(rollout.plan))
        rows = rollouts.verdict_history(session, rollout.id, gate=gate, limit=limit)
        fields = set(Finding.model_fields)
        return VerdictHistory(
            rollout=rollout,
            verdicts=rows,
            readings=read_findings(gates, (Finding.model_validate(row.model_dump(include=fields)) for row in rows)),
            values=rollouts.value_history(session, rollout.id, gate) if gate is not None else [],
        )


def _rollout(session: Session, strategy_name: str, rollout_id: UUID | None) -> Rollout:
    known = rollouts.list_rollouts(session, strategy_name)
    wanted = [rollout for rollout in known if rollout_id in (None, rollout.id)]
    if not wanted:
        raise UnknownRollout(f"of {strategy_name!r}" if rollout_id is None else f"{rollout_id} of {strategy_name!r}")
    return wanted[0]
