"""Evidence of a rollout: the pair's shadow history, the slot ledger, and the facts that gates judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import LATE_CANDLES, timeframe_delta
from strategy_core.domain.errors import RolloutError, reason_of
from strategy_core.domain.evidence import Evidence
from strategy_core.domain.gates.base import Finding
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import WATCH_QUARTER, ExcessDrawdown, LosingStreak
from strategy_core.domain.pair_noise import History, measure
from strategy_core.domain.performance import deepest_so_far, max_drawdown
from strategy_core.domain.plan import Plan, load_plan
from strategy_core.domain.ramp import judge_all
from strategy_core.domain.scoring import ScoringRule
from strategy_core.domain.slot_ledger import SlotLedger, Totals, add_slots, open_ledger, read_ledger
from strategy_core.domain.slots import Slots
from strategy_core.market.source import CandleSource
from strategy_core.services.live_trades import FIDELITY_HISTORY, live_fidelity
from strategy_core.services.score import foresee
from strategy_core.store import decisions, evidence, live_trades, replays, rollouts, versions
from strategy_core.store.engine import failure, is_disconnected, reading
from strategy_core.store.outcomes import marks_by_candle
from strategy_core.store.tables import LIVE, REPLAYED, EvidenceTables, Rollout, RolloutBook, StrategyVersion

LOOK_BACK = timedelta(days=180)  # older slots reflect another market
REPORTED_WITHIN = timedelta(days=1)  # by then, a platform that reports its trades once a day has reported them
_SAME = 1e-9  # of equity: sums in another order differ by less
STOPPED_SIGNALS = 10  # older than that, without an order of any user: with fewer, all users may have declined


@dataclass(frozen=True, slots=True)
class Shadow:
    """What a pair did in shadow: its slots, their measured history, and the calendar days they cover."""

    slots: Slots
    history: History
    days: float


def read_shadow(session: Session, version: StrategyVersion, active: StrategyVersion, now: datetime) -> Shadow:
    """Return the pair's shadow of at most the last 180 days."""
    start = max(now - LOOK_BACK, live_since(version, active))
    part = _Part(version, active, start, now)
    found, days = evidence.as_slots(part.closed(session), part.symbols), (now - start).total_seconds() / 86_400
    return Shadow(found, measure(found, days, symbols=part.symbols, candles=part.candles(session)), days)


def add_replays(
    session: Session, shadow: Shadow, version: StrategyVersion, active: StrategyVersion, now: datetime
) -> Shadow | None:
    """Return the pair's shadow with replayed slots before it, 180 days together, or None without such slots.

    The replayed days are the newest ones that both versions have replayed before they decided live together, and on
    which neither was trained.
    """
    part = _replayed_part(session, version, active, now - LOOK_BACK, now)
    if part is None:
        return None
    live = _Part(version, active, live_since(version, active), now)
    found = evidence.as_slots(sorted([*part.closed(session), *live.closed(session)]), live.symbols)
    days = shadow.days + (part.end - part.start).total_seconds() / 86_400
    candles = part.candles(session) + live.candles(session)
    history = measure(found, days, symbols=live.symbols, candles=candles)
    return Shadow(found, history, days)


def read_replayed(session: Session, version: StrategyVersion, active: StrategyVersion, start: datetime) -> Shadow:
    """Return what a pair did in replays of at most the 180 days before *start*, as far as it had closed by then.

    Candles on which either version was trained are left out, unless the training ended after *start*.
    """
    both = replayed_by_both(session, version, active)
    first = start if both is None else min(start, max(start - LOOK_BACK, both[0]))
    trained = trained_until(version, active)
    if trained is not None and trained <= start:
        first = max(first, trained)
    part = _Part(version, active, first, start, REPLAYED)
    found = evidence.as_slots([one for one in part.closed(session) if one.closed_at <= start], part.symbols)
    days = (start - first).total_seconds() / 86_400
    return Shadow(found, measure(found, days, symbols=part.symbols, candles=part.candles(session)), days)


def replayed_by_both(
    session: Session, version: StrategyVersion, active: StrategyVersion
) -> tuple[datetime, datetime] | None:
    """Return the first and the newest candle that both versions have replayed, or None without any."""
    ours, theirs = _replayed_spans(session, version, active)
    if ours is None or theirs is None:
        return None
    first, newest = max(ours.first, theirs.first), min(ours.newest, theirs.newest)
    return (first, newest) if first <= newest else None


def _replayed_spans(
    session: Session, version: StrategyVersion, active: StrategyVersion
) -> tuple[replays.Span | None, replays.Span | None]:
    """Return what each of the two has replayed of the symbols that both decide on."""
    name, symbols = version.strategy_name, shared_symbols(version, active)
    ours, theirs = (replays.replayed_span(session, name, each.version, symbols) for each in (version, active))
    return ours, theirs


def live_since(version: StrategyVersion, active: StrategyVersion) -> datetime:
    """Return the time from which both versions have been decided on live candles."""
    return max(version.created_at, active.created_at)


def trained_until(one: StrategyVersion, other: StrategyVersion) -> datetime | None:
    """Return the later end of training of two versions, or None if neither says so. Earlier candles are in sample."""
    return max((each.trained_until for each in (one, other) if each.trained_until is not None), default=None)


def left_out_until(session: Session, version: StrategyVersion, active: StrategyVersion) -> datetime | None:
    """Return up to when replayed candles of the pair are left out, since they are in sample, or None without such."""
    until = trained_until(version, active)
    if until is None:
        return None
    firsts = [span.first for span in _replayed_spans(session, version, active) if span is not None]
    return until if any(first < until for first in firsts) else None


@dataclass(frozen=True, slots=True)
class _Part:
    """What a pair did on the candles that opened in [start, end), live or in replays."""

    version: StrategyVersion
    active: StrategyVersion
    start: datetime
    end: datetime
    tables: EvidenceTables = LIVE

    @property
    def symbols(self) -> list[str]:
        return shared_symbols(self.version, self.active)

    def closed(self, session: Session) -> list[evidence.ClosedSlot]:
        names = (self.version.strategy_name, self.version.version, self.active.version)
        return evidence.read_slots(session, *names, start=self.start, end=self.end, tables=self.tables)[0]

    def candles(self, session: Session) -> int:
        """Return the number of candles of each symbol that both decided."""
        both = (self.version, self.active)
        over: dict[str, Any] = {"start": self.start, "end": self.end, "tables": self.tables}
        name, symbols = self.version.strategy_name, self.symbols
        counts = (evidence.count_candles(session, name, each.version, symbols, **over) for each in both)
        return min(counts) // len(symbols)


def _replayed_part(
    session: Session, version: StrategyVersion, active: StrategyVersion, start: datetime, now: datetime
) -> _Part | None:
    """Return the newest replayed candles of the pair, as many days as [start, now) has before its live ones.

    Candles on which either version was trained are left out.
    """
    since, both = live_since(version, active), replayed_by_both(session, version, active)
    if since <= start or both is None:
        return None
    end = min(since, both[1] + timeframe_delta(version.timeframe))
    first = max(both[0], end - (min(since, now) - start), trained_until(version, active) or both[0])
    return _Part(version, active, first, end, REPLAYED) if first < end else None


def shared_symbols(one: StrategyVersion, other: StrategyVersion) -> list[str]:
    """Return the symbols that both versions decide on, in alphabetical order."""
    return sorted(set(one.symbols) & set(other.symbols))


@dataclass(frozen=True, slots=True)
class Booking:
    """A rollout's slot ledger, and what `save_ledger` has to write.

    Attributes:
        new: closed slots that are not booked yet, in order.
        pending: signals whose trades are still open.
        spoken: by version and symbol, the newest candle the version has decided.
        settled: by shared symbol, the newest candle that both versions have decided, or None.
    """

    row: RolloutBook
    history: History
    book: SlotLedger
    new: Sequence[evidence.ClosedSlot]
    pending: Sequence[evidence.PendingSlot]
    spoken: Mapping[str, Mapping[str, datetime]]
    settled: Mapping[str, datetime | None]


def load_ledger(
    session: Session, rollout: Rollout, pair: "VersionPair", *, not_before: datetime | None = None
) -> Booking:
    """Return the rollout's ledger with all slots that have closed by now. It is read-only.

    Args:
        not_before: slots on earlier candles are left out.
    """
    row = evidence.get_book(session, rollout.id)
    history = History.model_validate(row.history)
    before = read_ledger(row.totals.get("book", {})) or _rebook(session, rollout, history)
    strategy_name, canary, active = rollout.strategy_name, rollout.version, rollout.control_version
    since = max(_unsettled_from(row, rollout), not_before or rollout.started_at)
    all_closed, all_pending = evidence.read_slots(session, strategy_name, canary, active, start=since)
    closed = [one for one in all_closed if pair.counts(one.symbol, one.timestamp)]
    pending = [one for one in all_pending if pair.counts(one.symbol, one.timestamp)]
    spoken = evidence.newest_spoken(session, strategy_name, (canary, active), since)
    new = evidence.not_booked(session, rollout.id, closed)
    after, _ = add_slots(before, evidence.as_slots(new, pair.symbols), history)
    settled = {symbol: _earlier_of(spoken[canary].get(symbol), spoken[active].get(symbol)) for symbol in pair.symbols}
    return Booking(row, history, after, new, pending, spoken, settled)


@dataclass(frozen=True, slots=True)
class Watch:
    """The second ledger of a completed rollout, whose version is watched. It begins anew every quarter.

    Attributes:
        since: start of the quarter. The first one starts at the end of the bake.
        start: position of the quarter's first slot.
        own_slots: slots that the rollout booked before it ended. The later ones are the watch's.
    """

    since: datetime
    start: int
    own_slots: int
    book: SlotLedger

    def as_data(self) -> dict[str, Any]:
        numbers = {"start": self.start, "own_slots": self.own_slots}
        return {"since": self.since.isoformat(), **numbers, "book": self.book.as_data()}


def load_watch(session: Session, rollout: Rollout, booking: Booking, symbols: Sequence[str], now: datetime) -> Watch:
    """Return the ledger of the watch with the new slots of *booking*. It is read-only."""
    slots, history = booking.row.slots, booking.history
    before, ended = read_watch(session, rollout), rollout.ended_at or now
    since = ended + max(0, (now - ended) // WATCH_QUARTER) * WATCH_QUARTER
    if before is None or before.since < since:  # not later: a clock that is set back begins no quarter
        before = Watch(since, slots, before.own_slots if before else slots, open_ledger(history))
    book, _ = add_slots(before.book, evidence.as_slots(booking.new, symbols), history)
    return replace(before, book=book)


def read_watch(session: Session, rollout: Rollout) -> Watch | None:
    """Return the stored ledger of the watch, or None before its first slot."""
    row = evidence.get_book(session, rollout.id)
    if (noted := row.totals.get("watch")) is None:
        return None
    history = History.model_validate(row.history)
    book = read_ledger(noted["book"]) or _rebook(session, rollout, history, start=noted["start"])
    return Watch(datetime.fromisoformat(noted["since"]), noted["start"], noted["own_slots"], book)


def own_slots(session: Session, rollout: Rollout) -> int:
    """Return how many slots the rollout has booked, without those of the watch after its end."""
    row = evidence.get_book(session, rollout.id)
    return int(row.totals.get("watch", {}).get("own_slots", row.slots))


def save_ledger(
    session: Session,
    rollout: Rollout,
    booking: Booking,
    *,
    now: datetime,
    concordance: float | None = None,
    watch: Watch | None = None,
) -> None:
    """Store the ledger from `load_ledger` and the candle from which the next tick has to read.

    Candles before the settled ones bring no new slots, except pending ones and those on candles that the vendor
    delivers late. So the newest LATE_CANDLES starting points are kept, and reading starts at the oldest of them.
    """
    row = booking.row
    settled = [candle or rollout.started_at for candle in booking.settled.values()]
    evidence.book_slots(session, rollout.id, booking.new, first=row.slots, now=now)
    open_from = min([*settled, *(one.timestamp for one in booking.pending)], default=rollout.started_at)
    row.slots += len(booking.new)
    was = row.totals.get("unsettled_from", [])
    now_from = open_from.isoformat()
    unsettled = was if was[-1:] == [now_from] else [*was, now_from][-LATE_CANDLES:]
    row.totals = {"book": booking.book.as_data(), "unsettled_from": unsettled, "concordance": concordance}
    if watch is not None:
        row.totals |= {"watch": watch.as_data()}
    session.add(row)
    session.flush()


def recompute(session: Session, rollout: Rollout, *, first: int | None = None) -> Totals:
    """Return the totals that follow from the rollout's booked rows: from all, or from the *first* ones."""
    history = History.model_validate(evidence.get_book(session, rollout.id).history)
    return _rebook(session, rollout, history, first=first).totals


def _rebook(
    session: Session, rollout: Rollout, history: History, *, first: int | None = None, start: int = 0
) -> SlotLedger:
    """Book the rows again tick by tick: another order of sums would round differently."""
    found, rows = open_ledger(history), evidence.booked(session, rollout.id, first=first, start=start)
    for _, together in groupby(rows, key=lambda row: row.booked_at):
        found, _ = add_slots(found, evidence.as_slots(list(together), history.symbols), history)
    return found


def _earlier_of(one: datetime | None, other: datetime | None) -> datetime | None:
    return None if one is None or other is None else min(one, other)


def _unsettled_from(row: RolloutBook, rollout: Rollout) -> datetime:
    """Return the first candle that may still bring new slots."""
    noted = row.totals.get("unsettled_from", [])
    return rollout.started_at if len(noted) < LATE_CANDLES else datetime.fromisoformat(noted[0])


@dataclass(frozen=True, slots=True)
class VersionPair:
    """What the canary and control versions both decide on. It is fixed at registration.

    Attributes:
        symbols: the symbols that both decide on. Lateness and silence on other symbols do not count.
        excluded: by symbol, since when the canary does not serve it.
    """

    symbols: Sequence[str]
    timeframe: timedelta
    excluded: Mapping[str, datetime]

    @property
    def served(self) -> list[str]:
        return [symbol for symbol in self.symbols if symbol not in self.excluded]

    @property
    def left_out(self) -> dict[str, datetime]:
        """By excluded symbol, the first candle that does not count: a signal comes when its candle closes."""
        return {symbol: since - self.timeframe for symbol, since in self.excluded.items()}

    def counts(self, symbol: str, candle: datetime) -> bool:
        """Return whether the canary served the symbol when the candle closed."""
        return symbol not in self.excluded or candle + self.timeframe < self.excluded[symbol]


@dataclass(frozen=True, slots=True)
class Feed:
    """The newest candle per symbol that must have been decided by now, or the *problem* of the source."""

    due: Mapping[str, datetime]
    problem: str = ""


def load_pair(session: Session, rollout: Rollout) -> VersionPair:
    canary = versions.get_version(session, rollout.strategy_name, rollout.version)
    active = versions.get_version(session, rollout.strategy_name, rollout.control_version)
    excluded = rollouts.excluded_from(session, rollout)
    return VersionPair(shared_symbols(canary, active), timeframe_delta(canary.timeframe), excluded)


def read_feed(source: CandleSource, pair: VersionPair, moment: datetime) -> Feed:
    """Return the candles that must have been decided by *moment*, or the problem that the source raised."""
    try:
        due = {symbol: source.expected_at(symbol, moment) for symbol in pair.served}
    except Exception as error:  # noqa: BLE001  a failing source means blindness. Gates must still rule
        return Feed({}, in_a_line(error))
    return Feed({symbol: candle for symbol, candle in due.items() if candle is not None})


def judge(session: Session, rollout: Rollout, plan: Plan, feed: Feed, now: datetime) -> list[Finding]:
    """Return the finding of every gate on the rollout's present evidence. It is read-only."""
    margins = plan.stages[rollout.stage_index].margins
    pair = load_pair(session, rollout)
    booking = load_ledger(session, rollout, pair)
    return judge_all(plan.gates, load_evidence(session, rollout, plan, pair, feed, booking, now), margins)


def load_evidence(
    session: Session, rollout: Rollout, plan: Plan, pair: VersionPair, feed: Feed, booking: Booking, now: datetime
) -> Evidence:
    """Return the evidence of a rollout since its start. A new stage does not reset it."""
    strategy_name, since = rollout.strategy_name, rollout.started_at
    canary, active = rollout.version, rollout.control_version
    settled, spoken = booking.settled, booking.spoken
    due = {name: candle for name, candle in feed.due.items() if name in pair.served}
    symbol = max(due, key=lambda name: due[name] - (settled.get(name) or since), default=None)
    candles, canary_marks, active_marks = evidence.read_marks(
        session, strategy_name, canary, active, since=since, left_out=pair.left_out, timeframe=pair.timeframe
    )
    scoring = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
    patience = scoring.horizon + 1 + plan.late_candles
    late = evidence.oldest_overdue(
        session, strategy_name, booking.pending, patience, timeframe=pair.timeframe, spoken=spoken
    )
    asked: dict[str, Any] = {"symbols": pair.served, "since": since, "spoken": spoken, "left_out": pair.left_out}
    falls = zip(*(each.tolist() for each in deepest_so_far(canary_marks, scoring.risk_fraction)), strict=True)
    platform = _platform_facts(session, rollout, plan, pair, now)
    return Evidence(
        now=now,
        started_at=since,
        stage_entered_at=rollout.stage_entered_at,
        totals=booking.book.totals,
        history=booking.history,
        pending_slots=len(booking.pending),
        canary=evidence.read_record(session, strategy_name, canary, active, **asked),
        active=evidence.read_record(session, strategy_name, active, canary, **asked),
        canary_drawdown=max_drawdown(canary_marks, scoring.risk_fraction),
        active_drawdown=max_drawdown(active_marks, scoring.risk_fraction),
        risk_fraction=scoring.risk_fraction,
        newest_candle=settled.get(symbol) if symbol else None,
        due_candle=due[symbol] if symbol else None,
        overdue=f"no outcome of {late.version} on {late.symbol} {late.timestamp:%Y-%m-%d %H:%M} UTC yet"
        if late
        else "",
        feed_problem=feed.problem,
        canary_falls=[(candles[at] + pair.timeframe, drawdown) for at, drawdown in falls],
        **platform,
    )


def next_limit(
    engine: Engine,
    source: CandleSource,
    rollout: Rollout,
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    now: datetime,
) -> datetime | None:
    """Return the close of the first candle at which the rollout may pass its limit of drawdown or of losing streaks.

    A tick must judge it there. Before that candle the drawdown stays below its least limit or is no deeper than a tick
    has judged, and too few trades close for a streak.

    Args:
        rows: by version, rows of decisions that are not logged yet.
    """
    gates = [gate for gate in load_plan(rollout.plan).gates if not gate.dry_run]
    name, since = rollout.strategy_name, rollout.started_at
    with reading(engine) as session:
        pair = load_pair(session, rollout)
        both = [versions.get_version(session, name, each) for each in (rollout.version, rollout.control_version)]
        rule = ScoringRule.model_validate(versions.get_strategy(session, name).scoring)
        marks = marks_by_candle(
            session, name, rollout.version, start=since, left_out=pair.left_out, timeframe=pair.timeframe
        )
        booking = load_ledger(session, rollout, pair)
        judged = {gate: row.value or 0.0 for gate, row in rollouts.last_verdicts(session, rollout.id).items()}
    canary, active = (foresee(engine, source, each, rows.get(each.version, []), rule, now=now) for each in both)
    marked, ours, theirs = (
        [row for row in each if pair.counts(row["symbol"], row["timestamp"])]
        for each in (canary.marks, canary.outcomes, active.outcomes)
    )
    for row in ours:  # as `marks_by_candle` has it: held by users when its symbol was excluded
        if not pair.counts(row["symbol"], row["closed_at"] - pair.timeframe) and row["r_multiple"] < 0:
            marked.append({"timestamp": row["closed_at"] - pair.timeframe, "r": row["r_multiple"]})
    moments: list[datetime] = []
    for gate in gates:
        if isinstance(gate, ExcessDrawdown):
            for row in marked:
                marks[row["timestamp"]] = marks.get(row["timestamp"], 0.0) + row["r"]
            candles = sorted(candle for candle in marks if candle >= since)
            changes = np.array([marks[candle] for candle in candles], np.float64)
            least = max(gate.drawdown, judged.get(gate.name, 0.0) + 2 * _SAME) - _SAME
            falls = zip(*deepest_so_far(changes, rule.risk_fraction), strict=True)
            moments += [candles[at] + pair.timeframe for at, fall in falls if fall >= least][:1]
        if isinstance(gate, LosingStreak):
            totals, limit = booking.book.totals, gate.limit(booking.history)
            if limit <= totals.longest_streak > judged.get(gate.name, 0):
                moments.append(since)
            lost = [row["closed_at"] for row in ours if row["r_multiple"] < 0]
            won = [row["closed_at"] for row in theirs if row["r_multiple"] > 0]
            moments += sorted(lost + won)[max(0, limit - totals.streak - 1) :][:1]
    return min(moments, default=None)


def _platform_facts(session: Session, rollout: Rollout, plan: Plan, pair: VersionPair, now: datetime) -> dict[str, Any]:
    """Return live trades and metric samples, or why they are unreadable. Gates on slots must still rule then."""
    name, since = rollout.strategy_name, rollout.started_at
    canary, active = rollout.version, rollout.control_version
    metrics = {gate.name: gate.samples_needed for gate in plan.gates if isinstance(gate, MetricThreshold)}
    try:
        with session.begin_nested():  # else PostgreSQL refuses all later statements after an error
            sampled = evidence.read_samples(session, rollout.id, metrics)
            if not live_trades.reports_any(session, name):
                return {"samples": sampled}
            orders = live_trades.read_orders(session, name, canary, active, since=since, left_out=pair.excluded)
            serving = {canary: True, **({active: False} if plan.stages[rollout.stage_index].percent < 100 else {})}
            stopped = [
                _stopped(session, name, version, pair.served, orders.candle[orders.canary == is_canary], now)
                for version, is_canary in serving.items()
            ]
            return {
                "samples": sampled,
                "orders": orders,
                "orders_stopped": "; ".join(filter(None, stopped)),
                "fidelity": live_fidelity(session, name, active, since=since - FIDELITY_HISTORY, until=now),
            }
    except (DBAPIError, ArithmeticError, ValueError) as error:  # unreadable rows, or values that are not numbers
        if is_disconnected(error):
            raise  # the whole tick is retried
        return {"platform_problem": in_a_line(error)}


def _stopped(
    session: Session, strategy_name: str, version: str, symbols: Sequence[str], candles: IntArray, now: datetime
) -> str:
    """Return why the live orders of a version, on *candles*, seem to have stopped, or an empty text.

    A version without any order yet is left out: it may have no users who trade.
    """
    if len(candles) == 0:
        return ""
    newest, until = datetime.fromtimestamp(int(candles.max()), UTC), now - REPORTED_WITHIN
    if newest > until:
        return ""
    asked: dict[str, Any] = {"since": newest, "until": until, "at_most": STOPPED_SIGNALS}
    if decisions.count_signals(session, strategy_name, version, symbols, **asked) < STOPPED_SIGNALS:
        return ""
    return (
        f"version {version} has signalled {STOPPED_SIGNALS} times or more since its newest live order of "
        f"{newest:%Y-%m-%d %H:%M} UTC"
    )


def in_a_line(error: Exception) -> str:
    """Return the error as one printable line. A database error comes without its statement."""
    if isinstance(error, DBAPIError):
        return failure(error)
    text, kind = reason_of(error), type(error).__name__
    return text if isinstance(error, RolloutError) or text == kind else f"{kind}: {text}"
