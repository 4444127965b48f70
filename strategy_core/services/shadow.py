"""Let every version that is not retired decide on every closed candle, and log what it said; nothing else happens."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import LATE_CANDLES, Windows, closed_by, opened_ns, timeframe_delta
from strategy_core.domain.errors import InvalidCandles, InvariantRefused, RetiredVersion, RolloutError
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.isolation.client import DecisionRequest, FailureBudget, IsolatedStrategy
from strategy_core.isolation.pool import WorkerPool
from strategy_core.isolation.protocol import Answer
from strategy_core.market.source import CandleSource
from strategy_core.services import version_alerts
from strategy_core.store import decisions, versions
from strategy_core.store.decisions import Last, last_rows, newest_rows, rows_since
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import ERROR, SIGNALS, ShadowDecisionLog, StrategyVersion, decision_id

SYMBOLS_AT_ONCE = 32  # read before they are asked about: workers begin while the others' candles are read
_LOOK_BACK = timedelta(days=7)  # beside twice the late candles: over a closed week no symbol is asked for alone

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

Rows = Sequence[tuple[datetime, str]]


@dataclass(slots=True)
class SymbolBacklog:
    """The candles of one symbol that a version has still to decide, and what came of it."""

    symbol: str
    windows: Windows
    positions: list[int]
    revised: list[datetime] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class VersionBacklog:
    """One version's part of a run.

    Attributes:
        symbols: of the version, those that this run is about.
        last: by symbol, where its newest rows begin and end.
        rows: by symbol, (candle, window hash) of its newest rows one by one, the newest first; where they are too few.
        absent: symbols whose candles cannot be had, each with why; the others are decided all the same.
        refused: why the version could not be asked at all, or no further: one of its workers may have answered before.
    """

    version: StrategyVersion
    symbols: Sequence[str]
    last: Mapping[str, Last]
    rows: dict[str, Rows]
    due: list[SymbolBacklog] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    refused: RolloutError | None = None
    patience: FailureBudget = field(default_factory=FailureBudget)


def read_backlog(session: Session, version: StrategyVersion, symbols: Sequence[str], now: datetime) -> VersionBacklog:
    """Return the version's turn on *symbols*, and what it has decided last; its candles are not read yet."""
    name = (version.strategy_name, version.version)
    since = now - 2 * LATE_CANDLES * timeframe_delta(version.timeframe) - _LOOK_BACK
    last = last_rows(session, *name, LATE_CANDLES, since=since)
    few = [symbol for symbol in symbols if symbol not in last or last[symbol].oldest is None]
    rows: Mapping[str, Rows]
    if version.created_at < since:  # there may be older rows than were looked for
        rows = {symbol: newest_rows(session, *name, symbol, LATE_CANDLES) for symbol in few}
    else:
        rows = rows_since(session, *name, few, since) if few else {}
    return VersionBacklog(version, symbols, last, {symbol: rows.get(symbol, ()) for symbol in few})


def read_due_candles(
    engine: Engine, source: CandleSource, turns: Sequence[VersionBacklog], now: datetime, catch_up: int
) -> Iterator[dict[VersionBacklog, list[SymbolBacklog]]]:
    """Yield what is due, some symbols at a time; each symbol's candles are asked for and turned into bytes once."""
    by_symbol: dict[str, list[VersionBacklog]] = {}
    for turn in turns:
        for symbol in turn.symbols:
            by_symbol.setdefault(symbol, []).append(turn)
    names = list(by_symbol)
    for start in range(0, len(names), SYMBOLS_AT_ONCE):
        batch: dict[VersionBacklog, list[SymbolBacklog]] = {}
        for symbol in names[start : start + SYMBOLS_AT_ONCE]:
            for turn, due in _due(engine, source, symbol, by_symbol[symbol], now, catch_up):
                turn.due.append(due)
                if due.positions:
                    batch.setdefault(turn, []).append(due)
        yield batch


def _due(
    engine: Engine, source: CandleSource, symbol: str, turns: Sequence[VersionBacklog], now: datetime, catch_up: int
) -> list[tuple[VersionBacklog, SymbolBacklog]]:
    """Return what each of *turns* has to do on *symbol*; nothing where its candles cannot be had, which they note."""
    try:
        candles = _reaching(source, symbol, turns, now)
    except RolloutError as error:
        for turn in turns:
            turn.absent.append(f"{symbol}: {error}")
        return []
    opened = opened_ns(candles)
    found, needed = [], []
    for turn in turns:
        late = _undecided(engine, turn, symbol, opened)[:catch_up]
        known = _newest(turn, symbol)
        newest = None if known is None else _position(opened, known[0])
        found.append((turn, late, newest))
        for at in (*late[:1], *late[-1:], *(() if newest is None else (newest,))):
            needed += [at + 1 - turn.version.warmup_bars, at]
    start, end = max(0, min(needed, default=0)), max(needed, default=-1) + 1
    cut = candles if (start, end) == (0, len(candles)) else candles.iloc[start:end]
    windows = Windows(cut)  # of a long outage no more is held than this run decides
    dues = []
    for turn, late, newest in found:
        due = SymbolBacklog(symbol, windows, [at - start for at in late])
        known = _newest(turn, symbol)
        if known is not None and newest is not None:
            candle, window_hash = known
            if windows.hash_of(newest - start, turn.version.warmup_bars) != window_hash:
                due.revised.append(candle)
        dues.append((turn, due))
    return dues


def _undecided(engine: Engine, turn: VersionBacklog, symbol: str, opened: IntArray) -> list[int]:
    """Return the positions since the oldest of the newest rows that have no row: late ones, then new ones."""
    last = turn.last.get(symbol)
    if symbol not in turn.rows and last is not None and last.oldest is not None:
        oldest, newest = opened.searchsorted([_ns(last.oldest), _ns(last.newest) + 1]).tolist()
        if newest - oldest == LATE_CANDLES:  # as many candles as rows: none has come late
            return list(range(newest, len(opened)))
        with reading(engine) as session:
            name = (turn.version.strategy_name, turn.version.version)
            turn.rows[symbol] = newest_rows(session, *name, symbol, LATE_CANDLES)
    decided = {_ns(candle) for candle, _ in turn.rows[symbol]}
    first = int(opened.searchsorted(_ns(_since(turn, symbol))))
    return [first + i for i, moment in enumerate(opened[first:].tolist()) if moment not in decided]


def _reaching(source: CandleSource, symbol: str, turns: Sequence[VersionBacklog], now: datetime) -> pd.DataFrame:
    """Return candles that reach back to all that is due, and to the warm-up before it: nearly always one question."""
    since = min(_since(turn, symbol) for turn in turns)
    warmup = max(turn.version.warmup_bars for turn in turns)
    bars = warmup + LATE_CANDLES
    candles = source.candles(symbol, closed_by=now, bars=bars)
    if len(candles) < bars or int(opened_ns(candles).searchsorted(_ns(since))) >= warmup - 1:
        return candles
    recent = source.candles(symbol, closed_by=now, since=since)
    return source.candles(symbol, closed_by=now, bars=len(recent) + warmup - 1)


def _since(turn: VersionBacklog, symbol: str) -> datetime:
    """Return the candle from which on all are to be decided: the oldest of the newest rows, or the version's first."""
    if rows := turn.rows.get(symbol):
        return rows[-1][0]
    last = turn.last.get(symbol)
    if last is not None and last.oldest is not None:
        return last.oldest
    version = turn.version
    return max(version.created_at, version.retired_at or version.created_at)  # what it said before may be gone by now


def _newest(turn: VersionBacklog, symbol: str) -> tuple[datetime, str] | None:
    """Return (candle, window hash) of the newest row."""
    if rows := turn.rows.get(symbol):
        return rows[0]
    last = turn.last.get(symbol)
    return None if last is None else (last.newest, last.window_hash)


def _position(opened: IntArray, candle: datetime) -> int | None:
    at = int(opened.searchsorted(_ns(candle)))
    return at if at < len(opened) and opened[at] == _ns(candle) else None


def _ns(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND * 1_000


DECISIONS_A_RUN = 200_000  # 1.7 kB each in memory until they are logged; never less than a candle of each symbol
_VECTORISE_FROM = 2  # candles of a symbol: a live run decides one by one, as the gate checked it


@dataclass(frozen=True, slots=True)
class ShadowRun:
    """What one version did in a run; *error* says why it could not be asked, at all or on some symbol."""

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
) -> list[ShadowRun]:
    """Log one decision per version, symbol and candle closed by *now* that has none yet.

    Run twice, late, or in parallel, the log is the same. One version's failure touches no other's decisions.

    Args:
        catch_up: how many missed candles, the oldest first, are decided per symbol and run; fewer when all versions and
            symbols together would be more decisions than memory is meant to hold. The next run goes on.
        symbols: the run's share of them, others being another's; all, unless given.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        turns = [
            read_backlog(
                session, version, [each for each in version.symbols if symbols is None or each in symbols], now
            )
            for version in versions.list_versions(session)
            if version.status != Status.RETIRED
        ]
    catch_up = min(catch_up, max(1, DECISIONS_A_RUN // max(1, sum(len(turn.symbols) for turn in turns))))
    due = read_due_candles(engine, source, turns, now, catch_up)
    workers.share_out(due, lambda turn, dues: _ask(workers, turn, dues, now))
    by_strategy = groupby(turns, key=lambda turn: turn.version.strategy_name)
    return [run for _, together in by_strategy for run in _log(engine, list(together), now)]


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
    """Return the row of the one candle that opened at *timestamp*; decided in *worker* and logged if there is none yet.

    Args:
        candles: of *symbol*, as `domain.candles` describes them; later ones than that candle are not shown.

    Raises:
        RetiredVersion: it decides nothing.
        InvalidCandles: that candle is not among them, or has not closed by *now*.
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
        return session.get_one(ShadowDecisionLog, decision_id(*name))


def _ask(workers: WorkerPool, turn: VersionBacklog, dues: Sequence[SymbolBacklog], now: datetime) -> None:
    version = turn.version
    for many, group in groupby(dues, key=lambda due: len(due.positions) >= _VECTORISE_FROM):
        if turn.refused is not None:
            return
        together = list(group)
        asks = [
            DecisionRequest(due.symbol, version.timeframe, due.windows, due.positions, version.warmup_bars)
            for due in together
        ]
        try:
            with workers.borrow(version) as worker:
                answered = worker.decide(asks, vectorised=many, budget=turn.patience)
        except RolloutError as error:
            turn.refused = error
            return
        for due, answers in zip(together, answered, strict=True):
            due.answers, due.rows = answers, _rows(version, due, answers, now)


@retry_transient()
def _log(engine: Engine, turns: Sequence[VersionBacklog], now: datetime) -> list[ShadowRun]:
    """Log the turns of one strategy together.

    A tick that saw the active version's rows and not yet the canary's would call the canary silent. Only when the
    database refuses them so are they logged one by one: then one version's bad row keeps out no other's.
    """
    try:
        with transaction(engine) as session:
            return [_log_turn(session, turn, now) for turn in turns]
    except InvariantRefused as refused:
        if len(turns) == 1:
            version = turns[0].version
            return [ShadowRun(version.strategy_name, version.version, version.status, error=str(refused))]
    return [run for turn in turns for run in _log(engine, [turn], now)]


def _log_turn(session: Session, turn: VersionBacklog, now: datetime) -> ShadowRun:
    version = turn.version
    name = (version.strategy_name, version.version, version.status)
    for due in turn.due:
        version_alerts.alert_revised_candles(session, version, due.symbol, due.revised, now)
    rows = [row for due in turn.due for row in due.rows]
    if turn.refused is not None:
        version_alerts.alert_refused(session, version, turn.symbols, turn.refused, now, partly=bool(rows))
    elif turn.absent:
        version_alerts.alert_missing_candles(session, version, turn.absent, now)
    version_alerts.alert_breaches(session, version, [answer for due in turn.due for answer in due.answers], now)
    logged = decisions.log_decisions(session, rows)
    signals = sum(row["decision"] in SIGNALS for row in rows)
    errors = sum(row["decision"] == ERROR for row in rows)
    error = "; ".join(turn.absent) if turn.refused is None else str(turn.refused)
    return ShadowRun(*name, logged, signals, errors, error)


def _rows(
    version: StrategyVersion, due: SymbolBacklog, answers: Sequence[Answer], now: datetime
) -> list[dict[str, Any]]:
    rows = []
    for at, answer in zip(due.positions, answers, strict=True):
        timestamp, said = due.windows.opened_at(at), answer.decision
        rows.append(
            {
                "id": decision_id(version.strategy_name, version.version, due.symbol, timestamp),
                "strategy_name": version.strategy_name,
                "version": version.version,
                "symbol": due.symbol,
                "timestamp": timestamp,
                "decision": said.action.value if said else ERROR,
                "confidence": said.confidence if said else 0.0,
                "features": dict(said.features) if said else {},
                "reason": said.reason if said else "",
                "role": version.status,
                "window_hash": due.windows.hash_of(at, version.warmup_bars),
                "duration_ms": answer.duration_ms,
                "error_kind": answer.kind,
                "error": answer.error,
                "logged_at": now,
            }
        )
    return rows
