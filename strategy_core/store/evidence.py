"""Read and book the evidence of a rollout: slots, decision records, equity marks and metric samples."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import BigInteger, bindparam, cast, exists, extract, func, text, true
from sqlalchemy import select as select_columns
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.comparison import DaySums
from strategy_core.domain.evidence import Record, Sample
from strategy_core.domain.slots import Slots, slots
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action
from strategy_core.store.engine import insert_if_new
from strategy_core.store.outcomes import is_of, marks_by_candle, not_left_out
from strategy_core.store.pagination import per_dialect
from strategy_core.store.tables import (
    ERROR,
    LIVE,
    SIGNALS,
    BookedSlot,
    EvidenceTables,
    FailedRun,
    MetricSample,
    RolloutBook,
    ShadowDecisionLog,
)

LOG = ShadowDecisionLog
_SIDES = {Action.BUY.value: 1, Action.SELL.value: -1, Action.HOLD.value: 0}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DAY_S = 86_400
_RECENT_ROWS = 20  # per symbol, enough to count consecutive errors at the newest end
_LATE = {"deadline", "overload"}  # kinds of errors for which the host may be at fault
_OTHERS_TOO = "other active versions missed time limits as well"
_MISSED = (col(LOG.decision) == ERROR, col(LOG.error_kind).in_(sorted(_LATE)))
_DECIDED = (col(LOG.decision) != ERROR, col(LOG.reason) != INSUFFICIENT_HISTORY)
_ONE = aliased(LOG)


def _since(rows: Any) -> Any:
    """Return the time bound of one table. Each table needs its own for PostgreSQL to skip its partitions."""
    return rows.timestamp >= bindparam("start")


@cache  # building it dominates the tick of many rollouts
def _slot_queries(tables: EvidenceTables) -> tuple[dict[str, Any], Any]:
    """Return the query for slots by dialect, and the canary's rows in it."""
    one, other = aliased(tables.log), aliased(tables.log)
    ours, theirs = aliased(tables.outcome), aliased(tables.outcome)
    query = (
        select(  # type: ignore[call-overload]
            one.timestamp,
            one.symbol,
            one.decision,
            other.decision,
            ours.r_multiple,
            ours.closed_at,
            theirs.r_multiple,
            theirs.closed_at,
        )
        .join(
            other,
            (other.strategy_name == one.strategy_name)
            & (other.version == bindparam("active"))
            & (other.symbol == one.symbol)
            & (other.timestamp == one.timestamp)
            & _since(other),
        )
        .outerjoin(ours, is_of(ours, one) & _since(ours))
        .outerjoin(theirs, is_of(theirs, other) & _since(theirs))
        .where(
            one.strategy_name == bindparam("strategy_name"),
            one.version == bindparam("canary"),
            _since(one),
            col(one.decision).in_(SIGNALS) | col(other.decision).in_(SIGNALS),
            one.decision != ERROR,
            other.decision != ERROR,
            one.reason != INSUFFICIENT_HISTORY,
            other.reason != INSUFFICIENT_HISTORY,
        )
    )
    return per_dialect(query, one, "canary"), one


# Slots


@dataclass(frozen=True, slots=True)
class PendingSlot:
    """A signal whose outcome is not booked yet."""

    version: str
    symbol: str
    timestamp: datetime


@dataclass(frozen=True, slots=True, order=True)
class ClosedSlot:
    """A slot whose trades have closed. Slots are booked in this sort order."""

    closed_at: datetime
    timestamp: datetime
    symbol: str
    canary_r: float
    active_r: float
    canary_side: int
    active_side: int


def as_slots(closed: Sequence[ClosedSlot | BookedSlot], symbols: Sequence[str]) -> Slots:
    """Return the slots of a pair that both decide on *symbols*."""
    positions = {symbol: position for position, symbol in enumerate(symbols)}
    return slots(
        [
            (
                (one.closed_at - _EPOCH).days,
                one.canary_r,
                one.active_r,
                one.canary_side,
                one.active_side,
                positions.get(one.symbol, 0),
            )
            for one in closed
        ]
    )


def count_candles(
    session: Session,
    strategy_name: str,
    version: str,
    symbols: Sequence[str],
    *,
    start: datetime,
    end: datetime,
    tables: EvidenceTables = LIVE,
) -> int:
    """Return how many candles of *symbols* in [start, end) the version decided without an error."""
    log = tables.log
    return session.exec(
        select(func.count()).where(
            log.strategy_name == strategy_name,
            log.version == version,
            col(log.symbol).in_(symbols),
            col(log.timestamp) >= start,
            col(log.timestamp) < end,
            log.decision != ERROR,
            log.reason != INSUFFICIENT_HISTORY,
        )
    ).one()


def read_slots(
    session: Session,
    strategy_name: str,
    canary: str,
    active: str,
    *,
    start: datetime,
    end: datetime | None = None,
    tables: EvidenceTables = LIVE,
) -> tuple[list[ClosedSlot], list[PendingSlot]]:
    """Return the closed slots on candles in [start, end) in booking order, and the signals that are still pending.

    A candle is not a slot if a version has an error, too little history or no row on it: slots are paired evidence.
    """
    queries, ours = _slot_queries(tables)
    query = queries[session.get_bind().dialect.name]
    if end is not None:
        query = query.where(ours.timestamp < end)
    names = {"strategy_name": strategy_name, "canary": canary, "active": active, "start": start}
    closed: list[ClosedSlot] = []
    pending: list[PendingSlot] = []
    for timestamp, symbol, canary_action, active_action, canary_r, canary_end, active_r, active_end in session.exec(
        query, params=names
    ).all():
        unbooked = [
            PendingSlot(version, symbol, timestamp)
            for version, action, closed_at in ((canary, canary_action, canary_end), (active, active_action, active_end))
            if action in SIGNALS and closed_at is None
        ]
        if unbooked:
            pending += unbooked
            continue
        last = max(moment for moment in (canary_end, active_end) if moment is not None)
        sides = (_SIDES[canary_action], _SIDES[active_action])
        closed.append(ClosedSlot(last, timestamp, symbol, canary_r or 0.0, active_r or 0.0, *sides))
    return sorted(closed), pending


def oldest_overdue(
    session: Session,
    strategy_name: str,
    pending: Sequence[PendingSlot],
    candles: int,
    *,
    timeframe: timedelta,
    spoken: Mapping[str, Mapping[str, datetime]],
) -> PendingSlot | None:
    """Return a signal that is still pending although its version has since decided more than *candles* candles.

    Args:
        spoken: see `newest_spoken`. Used to skip signals that are too young to be overdue.
    """
    oldest: dict[tuple[str, str], PendingSlot] = {}
    for one in sorted(pending, key=lambda one: one.timestamp):
        oldest.setdefault((one.version, one.symbol), one)
    for one in oldest.values():
        newest = spoken[one.version].get(one.symbol, one.timestamp)
        if newest - one.timestamp <= candles * timeframe:
            continue
        since = session.exec(
            select(func.count()).where(
                LOG.strategy_name == strategy_name,
                LOG.version == one.version,
                LOG.symbol == one.symbol,
                col(LOG.timestamp) > one.timestamp,
            )
        ).one()
        if since > candles:
            return one
    return None


def get_book(session: Session, rollout_id: UUID) -> RolloutBook:
    return session.get_one(RolloutBook, rollout_id)


def booked(session: Session, rollout_id: UUID, *, first: int | None = None, start: int = 0) -> Sequence[BookedSlot]:
    """Return the slots that a rollout has booked, from position *start* on. *first* limits their number."""
    mine = (BookedSlot.rollout_id == rollout_id, col(BookedSlot.position) >= start)
    query = select(BookedSlot).where(*mine).order_by(col(BookedSlot.position))
    return session.exec(query if first is None else query.limit(first)).all()


def newest_booked(session: Session, rollout_id: UUID, limit: int) -> Sequence[BookedSlot]:
    """Return the newest *limit* booked slots, newest first."""
    query = select(BookedSlot).where(BookedSlot.rollout_id == rollout_id)
    return session.exec(query.order_by(col(BookedSlot.position).desc()).limit(limit)).all()


def booked_r(session: Session, rollout_id: UUID, *, first: int) -> tuple[int, float, float]:
    """Return (number of slots, Σ R of the canary, Σ R of its control) over the *first* booked slots."""
    found = session.execute(
        select_columns(
            func.count(),
            func.coalesce(func.sum(col(BookedSlot.canary_r)), 0.0),
            func.coalesce(func.sum(col(BookedSlot.active_r)), 0.0),
        ).where(col(BookedSlot.rollout_id) == rollout_id, col(BookedSlot.position) < first)
    ).one()
    return found[0], found[1], found[2]


def booked_by_day(session: Session, rollout_id: UUID, *, first: int) -> list[DaySums]:
    """Return the sums of the *first* booked slots by UTC day of the candle, as in comparisons (not of the close)."""
    day = cast(extract("epoch", col(BookedSlot.timestamp)), BigInteger) // _DAY_S
    unlike = func.count().filter(col(BookedSlot.canary_side) != BookedSlot.active_side)
    sums = (func.sum(col(BookedSlot.canary_r)), func.sum(col(BookedSlot.active_r)))
    mine = (col(BookedSlot.rollout_id) == rollout_id, col(BookedSlot.position) < first)
    query = select_columns(day, func.count(), unlike, *sums).where(*mine)
    return [DaySums(*row) for row in session.execute(query.group_by(text("1")))]


def not_booked(session: Session, rollout_id: UUID, closed: Collection[ClosedSlot]) -> list[ClosedSlot]:
    """Return those of *closed* that the rollout has not booked yet, in booking order."""
    if not closed:
        return []
    known = set(
        session.exec(
            select(BookedSlot.symbol, BookedSlot.timestamp).where(
                BookedSlot.rollout_id == rollout_id,
                col(BookedSlot.timestamp) >= min(one.timestamp for one in closed),
            )
        ).all()
    )
    return sorted(one for one in closed if (one.symbol, one.timestamp) not in known)


def book_slots(session: Session, rollout_id: UUID, closed: Sequence[ClosedSlot], *, first: int, now: datetime) -> None:
    """Book *closed* at consecutive positions that start at *first*."""
    insert_if_new(
        session,
        BookedSlot,
        [
            {
                "rollout_id": rollout_id,
                "position": position,
                "symbol": one.symbol,
                "timestamp": one.timestamp,
                "closed_at": one.closed_at,
                "booked_at": now,
                "canary_r": one.canary_r,
                "active_r": one.active_r,
                "canary_side": one.canary_side,
                "active_side": one.active_side,
            }
            for position, one in enumerate(closed, start=first)
        ],
    )


# Decision records and equity marks


_NEWEST_DECIDED = per_dialect(
    select(LOG.version, LOG.symbol, func.max(LOG.timestamp))
    .where(
        LOG.strategy_name == bindparam("strategy_name"),
        col(LOG.version).in_([bindparam("one"), bindparam("other")]),
        col(LOG.timestamp) >= bindparam("since"),
        *_DECIDED,
    )
    .group_by(LOG.version, LOG.symbol),
    LOG,
    "one",
    "other",
)
_COUNTED = per_dialect(
    select(LOG.decision, LOG.error_kind, func.count())
    .where(
        LOG.strategy_name == bindparam("strategy_name"),
        LOG.version == bindparam("version"),
        col(LOG.timestamp) >= bindparam("since"),
        LOG.reason != INSUFFICIENT_HISTORY,
    )
    .group_by(LOG.decision, LOG.error_kind),
    LOG,
    "version",
)


def newest_spoken(
    session: Session, strategy_name: str, versions: tuple[str, str], since: datetime
) -> dict[str, dict[str, datetime]]:
    """Return, by version and symbol, the open time of the newest candle that was decided without an error."""
    one, other = versions
    params = {"strategy_name": strategy_name, "one": one, "other": other, "since": since}
    rows = session.exec(_NEWEST_DECIDED[session.get_bind().dialect.name], params=params).all()
    newest: dict[str, dict[str, datetime]] = {version: {} for version in versions}
    for version, symbol, moment in rows:
        newest[version][symbol] = moment
    return newest


def read_record(
    session: Session,
    strategy_name: str,
    version: str,
    other: str,
    *,
    symbols: Sequence[str],
    since: datetime,
    spoken: Mapping[str, Mapping[str, datetime]],
    left_out: Mapping[str, datetime] = MappingProxyType({}),
) -> Record:
    """Return the version's record since then. Candles that only *other* decided count as silent.

    Args:
        symbols: on which silence counts.
        left_out: by symbol, the first candle from which its rows do not count.
        spoken: see `newest_spoken`. Used to look only at symbols on which *version* lags.

    Errors and silence for which the host is at fault are not counted, see `Record`.
    """
    counts = not_left_out(col(LOG.symbol), col(LOG.timestamp), left_out)
    mine = (LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.timestamp) >= since, *counts)
    theirs_too = (LOG.strategy_name == strategy_name, LOG.version == other, col(LOG.timestamp) >= since)
    params = {"strategy_name": strategy_name, "version": version, "since": since}
    counted = session.exec(_COUNTED[session.get_bind().dialect.name].where(*counts), params=params).all()
    errors = {kind: count for decision, kind, count in counted if decision == ERROR}
    ours, theirs = spoken[version], spoken[other]
    lagging = [one for one in symbols if one in theirs and (one not in ours or ours[one] < theirs[one])]
    excused = _of_the_host(session, mine, theirs_too) if _LATE & errors.keys() else set()
    in_a_row, host_in_a_row = _errors_in_a_row(session, mine, symbols, excused) if errors else (0, 0)
    failed, fault = _failed_run(session, strategy_name, version, other) if lagging else (None, "")
    silent = host_silent = 0
    if lagging:
        asked = (session, strategy_name, version, other, lagging, since)
        silent = host_silent = _silence(*asked)
        if silent and (failed or excused):
            silent = _silence(*asked, after=failed, excused="overload" in errors)
    return Record(
        decided=sum(count for *_, count in counted) - len(excused),
        errors=sum(errors.values()) - len(excused),
        errors_in_a_row=in_a_row,
        invalid=errors.get("invalid", 0),
        breaches=errors.get("breach", 0),
        silent_candles=silent,
        last_error=_last_error(session, mine) if errors else "",
        host_errors_in_a_row=host_in_a_row,
        host_silent_candles=host_silent,
        host_fault=fault or (_OTHERS_TOO if excused else ""),
    )


def read_marks(
    session: Session,
    strategy_name: str,
    canary: str,
    active: str,
    *,
    since: datetime,
    **asked: Any,
) -> tuple[Sequence[datetime], FloatArray, FloatArray]:
    """Return the candles with marks since then, and both arms' changes of marked-to-market R, of shape (candles,).

    Args:
        asked: `left_out` and `timeframe` of `marks_by_candle`.
    """
    ours = marks_by_candle(session, strategy_name, canary, start=since, **asked)
    theirs = marks_by_candle(session, strategy_name, active, start=since, **asked)
    candles = sorted(ours.keys() | theirs.keys())
    return (
        candles,
        np.array([ours.get(candle, 0.0) for candle in candles], np.float64),
        np.array([theirs.get(candle, 0.0) for candle in candles], np.float64),
    )


def _of_the_host(session: Session, mine: Sequence[Any], theirs: Sequence[Any]) -> set[tuple[str, datetime]]:
    """Return symbol and candle of the errors for which the host is at fault.

    The run has found so, or the other version missed its time limit on the same candle as well.
    """
    rows = session.exec(select(LOG.symbol, LOG.timestamp, LOG.error_kind).where(*mine, *_MISSED)).all()
    also = set(session.exec(select(LOG.symbol, LOG.timestamp).where(*theirs, *_MISSED)).all())
    return {(symbol, at) for symbol, at, kind in rows if kind == "overload" or (symbol, at) in also}


def _failed_run(session: Session, strategy_name: str, version: str, other: str) -> tuple[datetime | None, str]:
    """Return the time of the version's newest failed run if the host is at fault for it, and why.

    The host is at fault if the run has found so, or if the same run hit the other version as well. The newest run
    decides: it has tried all candles again that earlier ones left.
    """
    ours = session.get(FailedRun, (strategy_name, version), populate_existing=True)
    if ours is None or not ours.hit:
        return None, ""
    if ours.host_fault:
        return ours.at, ours.host_fault
    theirs = session.get(FailedRun, (strategy_name, other), populate_existing=True)
    if theirs is None or not theirs.hit or theirs.at != ours.at:
        return None, ""
    return ours.at, f"{other} could not be run either: {theirs.reason}"


def _errors_in_a_row(
    session: Session, mine: Sequence[Any], symbols: Sequence[str], excused: Collection[tuple[str, datetime]]
) -> tuple[int, int]:
    """Return the longest run of errors at the newest end of one symbol's rows, without the excused ones and with."""
    newest = session.exec(
        select(LOG.symbol, LOG.decision, LOG.timestamp)
        .where(*mine, LOG.reason != INSUFFICIENT_HISTORY)
        .order_by(col(LOG.timestamp).desc())
        .limit(_RECENT_ROWS * max(1, len(symbols)))
    ).all()
    own: Counter[str] = Counter()
    streaks: Counter[str] = Counter()
    broken: set[str] = set()
    for symbol, decision, at in newest:
        if decision == ERROR and symbol not in broken:
            streaks[symbol] += 1
            own[symbol] += (symbol, at) not in excused
        else:
            broken.add(symbol)
    return max(own.values(), default=0), max(streaks.values(), default=0)


def _last_error(session: Session, mine: Sequence[Any]) -> str:
    newest = select(LOG.error).where(*mine, LOG.decision == ERROR).order_by(col(LOG.timestamp).desc(), LOG.symbol)
    return session.exec(newest.limit(1)).first() or ""


def _silence(
    session: Session,
    strategy_name: str,
    version: str,
    other: str,
    symbols: Sequence[str],
    since: datetime,
    *,
    after: datetime | None = None,
    excused: bool = False,
) -> int:
    """Return the most candles of one symbol that *other* decided after the last one that *version* did.

    Args:
        after: count only what was decided by a later run than this one.
        excused: leave out candles on which *version* has an error for which the host is at fault.
    """
    decided = (
        select(LOG.symbol, func.max(LOG.timestamp).label("last"))
        .where(LOG.strategy_name == strategy_name, LOG.version == version, col(LOG.timestamp) >= since, *_DECIDED)
        .group_by(LOG.symbol)
        .subquery()
    )
    counts: list[Any] = [] if after is None else [col(LOG.logged_at) > after]
    if excused:
        mine = (col(_ONE.strategy_name) == strategy_name, col(_ONE.version) == version)
        same = (col(_ONE.symbol) == LOG.symbol, col(_ONE.timestamp) == LOG.timestamp, col(_ONE.timestamp) >= since)
        counts.append(~exists().where(*mine, *same, col(_ONE.error_kind) == "overload"))
    missed = session.exec(
        select(func.count())
        .select_from(LOG)
        .outerjoin(decided, decided.c.symbol == LOG.symbol)
        .where(
            LOG.strategy_name == strategy_name,
            LOG.version == other,
            col(LOG.symbol).in_(symbols),
            *_DECIDED,
            col(LOG.timestamp) >= since,
            col(LOG.timestamp) > func.coalesce(decided.c.last, since - timedelta(microseconds=1)),
            *counts,
        )
        .group_by(LOG.symbol)
    ).all()
    return max(missed, default=0)


# Metric samples


def add_samples(session: Session, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write the samples that are new and return their number."""
    return insert_if_new(session, MetricSample, rows)


def newest_samples(session: Session, rollout_ids: Sequence[UUID]) -> dict[tuple[UUID, str], datetime]:
    """Return when each gate of these rollouts was last sampled, by (rollout id, gate)."""
    newest = (
        select(func.max(MetricSample.id))
        .where(col(MetricSample.rollout_id).in_(rollout_ids))
        .group_by(col(MetricSample.rollout_id), col(MetricSample.gate))
    )
    rows = session.exec(
        select(MetricSample.rollout_id, MetricSample.gate, MetricSample.taken_at).where(
            col(MetricSample.id).in_(newest)
        )
    ).all()
    return {(rollout_id, gate): at for rollout_id, gate, at in rows}


def read_samples(
    session: Session, rollout_id: UUID, wanted: Mapping[str, int], *, until: datetime | None = None
) -> dict[str, list[Sample]]:
    """Return by gate, oldest first, the newest samples with a value, and the newest sample if it has no value.

    Args:
        wanted: gate -> number of samples with a value.
        until: ignore later samples. A tick leaves it out, so that a clock set back hides no sample from it.
    """
    return {gate: _samples(session, rollout_id, gate, count, until) for gate, count in wanted.items()}


def _samples(session: Session, rollout_id: UUID, gate: str, count: int, until: datetime | None) -> list[Sample]:
    query = (
        select(MetricSample)
        .where(MetricSample.rollout_id == rollout_id, MetricSample.gate == gate)
        .where(true() if until is None else col(MetricSample.taken_at) <= until)
        .order_by(col(MetricSample.id).desc())  # by id, so that a clock that ran ahead does not hide later samples
    )
    newest = session.exec(query.limit(1)).all()
    valued = session.exec(query.where(col(MetricSample.value).is_not(None)).limit(count)).all()
    rows = [*(row for row in newest if row.value is None), *valued]
    return [Sample(row.taken_at, row.value, row.problem) for row in reversed(rows)]
