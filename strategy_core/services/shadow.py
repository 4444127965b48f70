"""Shadow runs: every version that is not retired decides on every closed candle, and the decision is logged."""

import os
import platform
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import groupby
from typing import Any

import pandas as pd
import structlog
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.alerts import HOST_OVERLOADED, QUIET, REFUSED, REVISED, Fault, Severity, affected_text, few_of
from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import LATE_CANDLES, Windows, closed_by, opened_ns, timeframe_delta
from strategy_core.domain.errors import (
    InvalidCandles,
    InvariantRefused,
    IsolationUnavailable,
    RetiredVersion,
    RolloutError,
    StrategyOverdue,
    reason_of,
)
from strategy_core.domain.evidence import VersionRun, host_at_fault
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.strategy import Intent
from strategy_core.isolation.client import DecisionRequest, FailureBudget, IsolatedStrategy
from strategy_core.isolation.pool import WorkerPool, own_cores
from strategy_core.isolation.protocol import Answer
from strategy_core.market.source import CandleSource
from strategy_core.services import version_alerts
from strategy_core.services.alerts import FEED, HOST, REVISIONS, note_refused, report_faults
from strategy_core.services.evidence import next_limit
from strategy_core.services.score import score_outcomes
from strategy_core.services.signals import publish_signals
from strategy_core.services.tick import tick_rollout
from strategy_core.services.watchdog import StaleSymbol, feed_faults, serving_facts
from strategy_core.store import decisions, rollouts, versions
from strategy_core.store.decisions import Last, last_rows, newest_rows, rows_since
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import ERROR, SIGNALS, ShadowDecisionLog, StrategyVersion, decision_id

SYMBOLS_AT_ONCE = 32  # per batch: workers start while the candles of the next batch are read
DECISIONS_A_RUN = 200_000  # 1.7 kB each in memory until they are logged. At least one candle per symbol is decided
HOST_FAULTS = (StrategyOverdue, IsolationUnavailable)  # refusals for which the host may be at fault
_VECTORISE_FROM = 2  # candles of a symbol: below that, decide one by one, as registration vets it
_LOOK_BACK = timedelta(days=7)  # added to twice the late candles: a closed week needs no extra query per symbol

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

Rows = Sequence[tuple[datetime, str]]
log = structlog.get_logger(__name__)


@dataclass(slots=True)
class SymbolBacklog:
    """The candles of one symbol that a version still has to decide, and the answers."""

    symbol: str
    windows: Windows
    positions: list[int]
    revised: list[datetime] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class VersionBacklog:
    """The work of one version in a run.

    Attributes:
        symbols: the version's symbols in this run.
        last: by symbol, the range of its newest rows.
        rows: by symbol with a short history, (candle, window hash) of its newest rows, the newest first.
        absent: symbols whose candles are unavailable, with the reason. The other symbols are still decided.
        refused: why the version could not be run, or not to the end. One of its workers may have answered before.
        asked: whether this run asked it.
        logged, logged_to: rows that this run has logged before its end, on candles that had closed by that time.
        load_s: its slowest load in this run, in seconds.
        host_fault: why the host is at fault for what hit it, or "".
        told_by_host: whether the alert about the host tells that it was not run.
    """

    version: StrategyVersion
    symbols: Sequence[str]
    last: Mapping[str, Last]
    rows: dict[str, Rows]
    due: list[SymbolBacklog] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    refused: RolloutError | None = None
    patience: FailureBudget = field(default_factory=FailureBudget)
    asked: bool = False
    logged: int = 0
    logged_to: datetime | None = None
    load_s: float = 0.0
    host_fault: str = ""
    told_by_host: bool = False

    def rows_to_log(self, closed_by: datetime | None = None) -> list[dict[str, Any]]:
        """Return the rows that are not logged yet, of candles that closed by *closed_by*. The default is all."""
        if self.version.status == Status.RETIRED:  # since this run has begun
            return []
        delta = timeframe_delta(self.version.timeframe)
        return [
            row
            for due in self.due
            for row in due.rows
            if (self.logged_to is None or row["timestamp"] + delta > self.logged_to)
            and (closed_by is None or row["timestamp"] + delta <= closed_by)
        ]

    @property
    def hit(self) -> bool:
        """Whether it missed a time limit or could not be isolated: the host may be at fault."""
        late = any(answer.kind == "deadline" for due in self.due for answer in due.answers)
        return late or isinstance(self.refused, HOST_FAULTS)


@dataclass(frozen=True, slots=True)
class ShadowRun:
    """The result of one version's run. *error* is why it could not be run, or not on all symbols."""

    strategy_name: str
    version: str
    role: str
    logged: int = 0
    signals: int = 0
    errors: int = 0
    error: str = ""


def run_shadow(
    engine: Engine,
    source: CandleSource,
    workers: WorkerPool,
    *,
    now: datetime,
    catch_up: int = 1_000,
    symbols: Collection[str] | None = None,
    quiet: timedelta = QUIET,
) -> list[ShadowRun]:
    """Log one decision for each version, symbol and candle closed by *now* that is not yet logged.

    Repeated, late and parallel runs give the same log. A failing version does not affect the others.

    With several candles to log, an open rollout is ticked after each candle at which it may pass a limit of money, as
    if the candles had come one by one. After the last candle the caller scores and ticks, as always. A run for some
    *symbols* only cannot judge a rollout, and leaves that out.

    Args:
        catch_up: maximum missed candles to decide per symbol, the oldest first. It is lowered if the whole run would
            exceed DECISIONS_A_RUN. The next run continues.
        symbols: the symbols of this run, if they are split over several machines. The default is all.
        quiet: how long a fault must be gone until its incident is over, for alerts.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        backlogs = [
            read_backlog(
                session, version, [each for each in version.symbols if symbols is None or each in symbols], now
            )
            for version in versions.list_versions(session)
            if version.status != Status.RETIRED
        ]
    catch_up = min(catch_up, max(1, DECISIONS_A_RUN // max(1, sum(len(backlog.symbols) for backlog in backlogs))))
    due = read_due_candles(engine, source, backlogs, now, catch_up)
    workers.share_out(due, lambda backlog, dues: _decide(engine, workers, backlog, dues, now))
    _judge_host(engine, workers, backlogs)
    runs = []
    for _, group in groupby(backlogs, key=lambda backlog: backlog.version.strategy_name):
        together = list(group)
        if symbols is None:
            _log_to_limits(engine, source, together, now)
        runs += _log(engine, together, now)
        publish_signals(engine)
    _report_feed(engine, backlogs, now, quiet)
    _report_host(engine, backlogs, now, quiet)
    note_refused(engine, [backlog.version for backlog in backlogs if _is_refused(backlog)], now=now)
    return runs


def _is_refused(backlog: VersionBacklog) -> bool:
    """Whether no worker of the version could be run, which an alert tells and no other incident explains."""
    answered = any(due.rows for due in backlog.due)
    if backlog.refused is None or backlog.told_by_host or answered:
        return False
    return version_alerts.refusal_kind(backlog.refused) == REFUSED


def _judge_host(engine: Engine, workers: WorkerPool, backlogs: Sequence[VersionBacklog]) -> None:
    """Note for each version that missed a time limit whether the host is at fault, and mark its errors.

    If the run loaded no active version to compare with, it loads one now, under the same limit.
    """
    hit = [backlog for backlog in backlogs if backlog.hit]
    if not hit:
        return
    runs = [_version_run(workers, backlog) for backlog in backlogs if backlog.asked]
    if not any(run.serves and (run.hit or run.load_share) for run in runs):
        runs += _probe(engine, workers, hit, backlogs)
    for backlog in hit:
        backlog.host_fault = host_at_fault(_version_run(workers, backlog), runs)
        if not backlog.host_fault:
            continue
        for row in (row for due in backlog.due for row in due.rows if row["error_kind"] == "deadline"):
            row["error_kind"], row["error"] = "overload", f"{row['error']}; {backlog.host_fault}"
    at_fault = any(backlog.host_fault for backlog in hit)
    for backlog in hit:  # an active version that was late is what the host was measured by
        backlog.told_by_host = bool(backlog.host_fault) or (at_fault and backlog.version.status == Status.ACTIVE)


def _version_run(workers: WorkerPool, backlog: VersionBacklog) -> VersionRun:
    version = backlog.version
    serves, share = version.status == Status.ACTIVE, backlog.load_s / workers.load_deadline_s
    return VersionRun(version.strategy_name, version.version, serves, backlog.hit, share)


def _probe(
    engine: Engine, workers: WorkerPool, hit: Sequence[VersionBacklog], backlogs: Sequence[VersionBacklog]
) -> list[VersionRun]:
    """Load the active version of a strategy with a version that was hit. Return how it went."""
    strategies = {backlog.version.strategy_name for backlog in hit if backlog.version.status != Status.ACTIVE}
    for backlog in backlogs:
        version = backlog.version
        if version.status != Status.ACTIVE or version.strategy_name not in strategies:
            continue
        name = (version.strategy_name, version.version)
        try:
            load_s = workers.time_load(version, partial(recorded_answers, engine))
        except RolloutError as error:
            return [VersionRun(*name, serves=True, hit=isinstance(error, HOST_FAULTS))]
        return [VersionRun(*name, serves=True, load_share=load_s / workers.load_deadline_s)]
    return []


def _report_host(engine: Engine, backlogs: Sequence[VersionBacklog], now: datetime, quiet: timedelta) -> None:
    """Alert on a host that is too slow to run versions, once per incident."""
    hit = [backlog for backlog in backlogs if backlog.told_by_host]
    faults = [_host_fault(engine, hit)] if hit else []
    report_faults(engine, HOST, faults, now=now, quiet=quiet)


def _host_fault(engine: Engine, hit: Sequence[VersionBacklog]) -> Fault:
    host, load = platform.node(), os.getloadavg()[0] / own_cores()
    strategies = sorted({backlog.version.strategy_name for backlog in hit})
    why = next(backlog.host_fault for backlog in hit if backlog.host_fault)
    names = few_of([f"{backlog.version.strategy_name} {backlog.version.version}" for backlog in hit])
    text = f"{host} is too slow to run versions: {why}; load {load:.1f} per core; not in time: {names}"
    facts = {"host": host, "load_per_core": load, **serving_facts(engine, strategies)}
    cause = f"{HOST} {host}"
    return Fault(cause, HOST_OVERLOADED, Severity.CRITICAL, text, strategies, facts=facts)


def _report_feed(engine: Engine, backlogs: Sequence[VersionBacklog], now: datetime, quiet: timedelta) -> None:
    """Alert on unavailable and on revised candles, once per incident. `watch_feed` ends an incident of the feed."""
    needed: dict[tuple[str, str], list[str]] = {}
    absent: dict[tuple[str, str], StaleSymbol] = {}
    revised: list[tuple[VersionBacklog, str, datetime]] = []
    for backlog in backlogs:
        name, timeframe = backlog.version.strategy_name, backlog.version.timeframe
        for symbol, why in backlog.absent.items():
            key = (symbol, timeframe)
            needed.setdefault(key, []).append(name)
            absent.setdefault(key, StaleSymbol(symbol, timeframe, f"{symbol} is unavailable: {why}", absent=True))
        revised += [(backlog, due.symbol, candle) for due in backlog.due for candle in due.revised]
    report_faults(engine, FEED, feed_faults(engine, list(absent.values()), needed), now=now, quiet=quiet, partly=True)
    faults = [_revision_fault(engine, revised)] if revised else []
    quiet = max([quiet, *(2 * timeframe_delta(backlog.version.timeframe) for backlog in backlogs)])
    report_faults(engine, REVISIONS, faults, now=now, quiet=quiet)


def _revision_fault(engine: Engine, revised: Sequence[tuple[VersionBacklog, str, datetime]]) -> Fault:
    backlog, symbol, candle = revised[0]
    version = backlog.version
    strategies = sorted({each.version.strategy_name for each, *_ in revised})
    symbols = list(dict.fromkeys(symbol for _, symbol, _ in revised))
    text = (
        f"{symbol} {candle:%Y-%m-%d %H:%M} UTC or a candle before it was revised after "
        f"{version.strategy_name} {version.version} decided on it"
    )
    if len(revised) > 1:
        text = f"candles were revised after versions decided on them, {affected_text(strategies, symbols)}: {text}"
    facts = serving_facts(engine, strategies, version.version)
    return Fault(REVISIONS, REVISED, Severity.WARNING, text, strategies, symbols, facts)


@retry_transient()
def log_candle(
    engine: Engine,
    worker: IsolatedStrategy,
    version: StrategyVersion,
    candles: pd.DataFrame,
    *,
    symbol: str,
    timestamp: datetime,
    now: datetime,
) -> ShadowDecisionLog:
    """Return the log row of the candle that opened at *timestamp*. If it is missing, decide it in *worker* and log it.

    Args:
        candles: of *symbol*, as in `domain.candles`. The version does not see candles after *timestamp*.

    Raises:
        RetiredVersion: the version is retired.
        InvalidCandles: the candle is missing, or has not closed by *now*.
    """
    timestamp, now = utc(timestamp, "timestamp"), utc(now, "now")
    if version.status == Status.RETIRED:
        raise RetiredVersion(version.strategy_name, version.version)
    known = closed_by(candles, now, version.timeframe)
    position = int(known.index.searchsorted(pd.Timestamp(timestamp)))
    if position == len(known) or known.index[position] != timestamp:
        raise InvalidCandles(symbol, f"no {version.timeframe} candle opened at {timestamp} and closed by {now}")
    due = SymbolBacklog(symbol, Windows(known), [position])
    name = (version.strategy_name, version.version, symbol, timestamp)
    with reading(engine) as session:
        logged = session.get(ShadowDecisionLog, decision_id(*name))
    if logged is not None:
        return logged
    (answers,) = worker.decide(
        [DecisionRequest(symbol, version.timeframe, due.windows, due.positions, version.warmup_bars)]
    )
    with transaction(engine) as session:
        decisions.log_decisions(session, _rows(version, due, answers, now))
        logged = session.get_one(ShadowDecisionLog, decision_id(*name))
    publish_signals(engine)
    return logged


def read_backlog(session: Session, version: StrategyVersion, symbols: Sequence[str], now: datetime) -> VersionBacklog:
    """Return the version's work on *symbols*, with its newest decisions. Its candles are not read yet."""
    name = (version.strategy_name, version.version)
    since = now - 2 * LATE_CANDLES * timeframe_delta(version.timeframe) - _LOOK_BACK
    last = last_rows(session, *name, LATE_CANDLES, since=since)
    few = [symbol for symbol in symbols if symbol not in last or last[symbol].oldest is None]
    rows: Mapping[str, Rows]
    if version.created_at < since:  # there may be rows before *since*
        rows = {symbol: newest_rows(session, *name, symbol, LATE_CANDLES) for symbol in few}
    else:
        rows = rows_since(session, *name, few, since) if few else {}
    return VersionBacklog(version, symbols, last, {symbol: rows.get(symbol, ()) for symbol in few})


def read_due_candles(
    engine: Engine, source: CandleSource, backlogs: Sequence[VersionBacklog], now: datetime, catch_up: int
) -> Iterator[dict[VersionBacklog, list[SymbolBacklog]]]:
    """Yield the due work, some symbols at a time. Each symbol's candles are read and encoded once."""
    by_symbol: dict[str, list[VersionBacklog]] = {}
    for backlog in backlogs:
        for symbol in backlog.symbols:
            by_symbol.setdefault(symbol, []).append(backlog)
    names = list(by_symbol)
    for start in range(0, len(names), SYMBOLS_AT_ONCE):
        batch: dict[VersionBacklog, list[SymbolBacklog]] = {}
        for symbol in names[start : start + SYMBOLS_AT_ONCE]:
            for backlog, due in _find_due(engine, source, symbol, by_symbol[symbol], now, catch_up):
                backlog.due.append(due)
                if due.positions:
                    batch.setdefault(backlog, []).append(due)
        yield batch


def _find_due(
    engine: Engine, source: CandleSource, symbol: str, backlogs: Sequence[VersionBacklog], now: datetime, catch_up: int
) -> list[tuple[VersionBacklog, SymbolBacklog]]:
    """Return the due work of each version on *symbol*. If its candles are unavailable, note that and return no work."""
    try:
        candles = _read_candles(source, symbol, backlogs, now)
    except RolloutError as error:
        for backlog in backlogs:
            backlog.absent[symbol] = reason_of(error)
        return []
    opened = opened_ns(candles)
    found, needed = [], []
    for backlog in backlogs:
        late = _undecided(engine, backlog, symbol, opened)[:catch_up]
        known = _newest(backlog, symbol)
        newest = None if known is None else _position(opened, known[0])
        found.append((backlog, late, newest))
        for at in (*late[:1], *late[-1:], *(() if newest is None else (newest,))):
            needed += [at + 1 - backlog.version.warmup_bars, at]
    start, end = max(0, min(needed, default=0)), max(needed, default=-1) + 1
    cut = candles if (start, end) == (0, len(candles)) else candles.iloc[start:end]
    windows = Windows(cut)  # after a long outage, hold only what this run decides
    dues = []
    for backlog, late, newest in found:
        due = SymbolBacklog(symbol, windows, [at - start for at in late])
        known = _newest(backlog, symbol)
        if known is not None and newest is not None:
            candle, window_hash = known
            if windows.hash_of(newest - start, backlog.version.warmup_bars) != window_hash:
                due.revised.append(candle)
        dues.append((backlog, due))
    return dues


def _undecided(engine: Engine, backlog: VersionBacklog, symbol: str, opened: IntArray) -> list[int]:
    """Return the positions without a row since the oldest of the newest rows: late candles, then new ones."""
    last = backlog.last.get(symbol)
    if symbol not in backlog.rows and last is not None and last.oldest is not None:
        oldest, newest = opened.searchsorted([_ns(last.oldest), _ns(last.newest) + 1]).tolist()
        if newest - oldest == LATE_CANDLES:  # as many candles as rows: no late candles
            return list(range(newest, len(opened)))
        with reading(engine) as session:
            name = (backlog.version.strategy_name, backlog.version.version)
            backlog.rows[symbol] = newest_rows(session, *name, symbol, LATE_CANDLES)
    decided = {_ns(candle) for candle, _ in backlog.rows[symbol]}
    first = int(opened.searchsorted(_ns(_first_to_decide(backlog, symbol))))
    return [first + i for i, moment in enumerate(opened[first:].tolist()) if moment not in decided]


def _read_candles(source: CandleSource, symbol: str, backlogs: Sequence[VersionBacklog], now: datetime) -> pd.DataFrame:
    """Return candles back to the oldest due one and its warm-up, in most cases with one read."""
    since = min(_first_to_decide(backlog, symbol) for backlog in backlogs)
    warmup = max(backlog.version.warmup_bars for backlog in backlogs)
    bars = warmup + LATE_CANDLES
    candles = source.candles(symbol, closed_by=now, bars=bars)
    if len(candles) < bars or int(opened_ns(candles).searchsorted(_ns(since))) >= warmup - 1:
        return candles
    recent = source.candles(symbol, closed_by=now, since=since)
    return source.candles(symbol, closed_by=now, bars=len(recent) + warmup - 1)


def _first_to_decide(backlog: VersionBacklog, symbol: str) -> datetime:
    """Return the first candle to decide: the oldest of the newest rows, or the version's first candle."""
    if rows := backlog.rows.get(symbol):
        return rows[-1][0]
    last = backlog.last.get(symbol)
    if last is not None and last.oldest is not None:
        return last.oldest
    version = backlog.version
    return max(version.created_at, version.retired_at or version.created_at)  # older rows may have been dropped


def _newest(backlog: VersionBacklog, symbol: str) -> tuple[datetime, str] | None:
    """Return (candle, window hash) of the newest row."""
    if rows := backlog.rows.get(symbol):
        return rows[0]
    last = backlog.last.get(symbol)
    return None if last is None else (last.newest, last.window_hash)


def _position(opened: IntArray, candle: datetime) -> int | None:
    at = int(opened.searchsorted(_ns(candle)))
    return at if at < len(opened) and opened[at] == _ns(candle) else None


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1_000


def recorded_answers(engine: Engine, version: StrategyVersion) -> bytes | None:
    """Return what the pool of workers compares the answers of a new worker with."""
    with reading(engine) as session:
        return versions.recorded_answers(session, version)


def _decide(
    engine: Engine, workers: WorkerPool, backlog: VersionBacklog, dues: Sequence[SymbolBacklog], now: datetime
) -> None:
    version = backlog.version
    for many, group in groupby(dues, key=lambda due: len(due.positions) >= _VECTORISE_FROM):
        if backlog.refused is not None:
            return
        together = list(group)
        asks = [
            DecisionRequest(due.symbol, version.timeframe, due.windows, due.positions, version.warmup_bars)
            for due in together
        ]
        backlog.asked = True
        try:
            with workers.borrow(version, partial(recorded_answers, engine)) as worker:
                answered = worker.decide(asks, vectorised=many, budget=backlog.patience)
                backlog.load_s = max(backlog.load_s, worker.take_load_s())
        except RolloutError as error:
            backlog.refused = error
            return
        for due, answers in zip(together, answered, strict=True):
            due.answers, due.rows = answers, _rows(version, due, answers, now)


def _log_to_limits(engine: Engine, source: CandleSource, backlogs: Sequence[VersionBacklog], now: datetime) -> None:
    """Log one strategy's decisions up to each candle at which its rollout may pass a limit, and tick it there.

    Decisions after the candle at which a rollout ends are those of a version that no user has.
    """
    done = None
    while (moment := _next_limit(engine, source, backlogs, now)) is not None and (done is None or moment > done):
        done = moment
        try:
            _log_to(engine, backlogs, moment)
            score_outcomes(engine, source, now=moment, strategy_name=backlogs[0].version.strategy_name)
            _tick_at(engine, source, backlogs, moment, now)
        except Exception as error:  # noqa: BLE001  the decisions must be logged, and the scheduled tick judges them
            log.warning("limit.not_judged", error=f"{type(error).__name__}: {error}")
            return


def _next_limit(
    engine: Engine, source: CandleSource, backlogs: Sequence[VersionBacklog], now: datetime
) -> datetime | None:
    """Return the close of the next candle at which the strategy's rollout must be ticked, except for the last one."""
    rows = {backlog.version.version: backlog.rows_to_log() for backlog in backlogs}
    opened = {row["timestamp"] for mine in rows.values() for row in mine}
    if len(opened) < 2:
        return None
    with reading(engine) as session:
        rollout = rollouts.open_rollout(session, backlogs[0].version.strategy_name)
    if rollout is None:
        return None
    try:
        moment = next_limit(engine, source, rollout, rows, now=now)
    except RolloutError:  # an unreadable plan, for which the scheduled tick has a ruling
        return None
    last = max(opened) + timeframe_delta(backlogs[0].version.timeframe)
    return None if moment is None or moment >= last else moment


@retry_transient()
def _log_to(engine: Engine, backlogs: Sequence[VersionBacklog], moment: datetime) -> None:
    with transaction(engine) as session:
        logged = [decisions.log_decisions(session, backlog.rows_to_log(moment)) for backlog in backlogs]
    for backlog, count in zip(backlogs, logged, strict=True):
        backlog.logged, backlog.logged_to = backlog.logged + count, moment


def _tick_at(
    engine: Engine, source: CandleSource, backlogs: Sequence[VersionBacklog], moment: datetime, now: datetime
) -> None:
    """Tick the strategy's rollout at *moment*, or at its newest change if that is later. Note the roles that follow."""
    name = backlogs[0].version.strategy_name
    with reading(engine) as session:
        rollout = rollouts.open_rollout(session, name)
    if rollout is None:
        return
    changed = max(rollout.last_tick_at or rollout.started_at, rollout.stage_entered_at, rollout.stage_extended_at)
    tick_rollout(engine, source, rollout.id, now=min(now, max(moment, changed)))
    with reading(engine) as session:
        roles = {version.version: version.status for version in versions.list_versions(session, name)}
    for backlog in backlogs:
        backlog.version.status = roles[backlog.version.version]
        for row in backlog.rows_to_log():
            row["role"] = backlog.version.status


@retry_transient()
def _log(engine: Engine, backlogs: Sequence[VersionBacklog], now: datetime) -> list[ShadowRun]:
    """Log the decisions of one strategy's versions together.

    A tick that saw the active version's rows before the canary's would take the canary for silent. If the database
    refuses a row, each version is logged on its own, so that one bad row does not block the other versions.
    """
    try:
        with transaction(engine) as session:
            return [_log_version(session, backlog, now) for backlog in backlogs]
    except InvariantRefused as refused:
        if len(backlogs) == 1:
            version = backlogs[0].version
            return [ShadowRun(version.strategy_name, version.version, version.status, error=reason_of(refused))]
    return [run for backlog in backlogs for run in _log(engine, [backlog], now)]


def _log_version(session: Session, backlog: VersionBacklog, now: datetime) -> ShadowRun:
    version = backlog.version
    name = (version.strategy_name, version.version, version.status)
    rows = [row for due in backlog.due for row in due.rows]
    if backlog.refused is not None:
        _note_failed_run(session, backlog, backlog.refused, now)
        if not backlog.told_by_host:
            version_alerts.alert_refused(session, version, backlog.symbols, backlog.refused, now, partly=bool(rows))
    version_alerts.alert_breaches(session, version, [answer for due in backlog.due for answer in due.answers], now)
    logged = backlog.logged + decisions.log_decisions(session, backlog.rows_to_log())
    signals = sum(row["decision"] in SIGNALS for row in rows)
    errors = sum(row["decision"] == ERROR for row in rows)
    absent = "; ".join(f"{symbol}: {why}" for symbol, why in backlog.absent.items())
    error = absent if backlog.refused is None else reason_of(backlog.refused)
    return ShadowRun(*name, logged, signals, errors, error)


def _note_failed_run(session: Session, backlog: VersionBacklog, refused: RolloutError, now: datetime) -> None:
    decisions.note_failed_run(
        session,
        backlog.version.strategy_name,
        backlog.version.version,
        at=now,
        hit=isinstance(refused, HOST_FAULTS),
        host_fault=backlog.host_fault,
        reason=reason_of(refused),
    )


def _rows(
    version: StrategyVersion, due: SymbolBacklog, answers: Sequence[Answer], now: datetime
) -> list[dict[str, Any]]:
    rows = []
    for at, answer in zip(due.positions, answers, strict=True):
        timestamp, decision = due.windows.opened_at(at), answer.decision
        rows.append(
            {
                "id": decision_id(version.strategy_name, version.version, due.symbol, timestamp),
                "strategy_name": version.strategy_name,
                "version": version.version,
                "symbol": due.symbol,
                "timestamp": timestamp,
                "decision": decision.action.value if decision else ERROR,
                "intent": decision.intent.value if decision else Intent.OPEN.value,
                "confidence": decision.confidence if decision else 0.0,
                "features": dict(decision.features) if decision else {},
                "reason": decision.reason if decision else "",
                "role": version.status,
                "window_hash": due.windows.hash_of(at, version.warmup_bars),
                "duration_ms": answer.duration_ms,
                "error_kind": answer.kind,
                "error": answer.error,
                "logged_at": now,
            }
        )
    return rows
