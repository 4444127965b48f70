"""Let every version that is not retired decide on every closed candle, and log what it said; nothing else happens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.candles import LATE_CANDLES, closed_by, window_hashes
from strategy_core.domain.errors import InvalidCandles, InvariantRefused, RetiredVersion, RolloutError
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.isolation.isolated import Answer, Ask, IsolatedStrategy
from strategy_core.market.source import CandleSource
from strategy_core.services import alarms
from strategy_core.services.workers import Workers
from strategy_core.store import decisions, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.retry import tried_again
from strategy_core.store.tables import ERROR, SIGNALS, ShadowDecisionLog, StrategyVersion, decision_id

_VECTORISE_FROM = 2  # candles: a live run decides one by one, as the gate checked it


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


@dataclass(slots=True)
class _Due:
    """The candles of one symbol that a version has still to decide, and what it answered."""

    symbol: str
    candles: pd.DataFrame
    positions: list[int]
    revised: list[datetime] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)


@dataclass(slots=True)
class _Turn:
    """One version's part of a run.

    Attributes:
        absent: symbols whose candles cannot be had, each with why; the others are decided all the same.
        refused: why the version could not be asked at all.
    """

    version: StrategyVersion
    due: list[_Due] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    refused: RolloutError | None = None


def run_shadow(
    engine: Engine, source: CandleSource, workers: Workers, *, now: datetime, catch_up: int = 1_000
) -> list[ShadowRun]:
    """Log one decision per version, symbol and candle closed by *now* that has none yet.

    Run twice, late, or in parallel, the log is the same. One version's failure touches no other's decisions.

    Args:
        catch_up: how many missed candles, the oldest first, are decided per symbol and run; the next run goes on.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        turns = [
            _turn(session, source, version, now, catch_up)
            for version in versions.list_versions(session)
            if version.status != Status.RETIRED
        ]
    workers.for_each(turns, lambda turn: _ask(workers, turn))
    by_strategy = groupby(turns, key=lambda turn: turn.version.strategy_name)
    return [run for _, together in by_strategy for run in _log(engine, list(together), now)]


@tried_again()
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
    due = _Due(symbol, known, [position])
    name = (version.strategy_name, version.version, symbol, timestamp)
    with reading(engine) as session:
        logged = session.get(ShadowDecisionLog, decision_id(*name))
    if logged is not None:
        return logged
    (due.answers,) = worker.decide([Ask(symbol, version.timeframe, known, due.positions, version.warmup_bars)])
    with transaction(engine) as session:
        decisions.log_decisions(session, _rows(version, due, now))
        return session.get_one(ShadowDecisionLog, decision_id(*name))


def _turn(session: Session, source: CandleSource, version: StrategyVersion, now: datetime, catch_up: int) -> _Turn:
    turn = _Turn(version)
    for symbol in version.symbols:
        try:
            turn.due.append(_due(session, source, version, symbol, now, catch_up))
        except RolloutError as error:  # its candles cannot be had; those of other symbols may
            turn.absent.append(f"{symbol}: {error}")
    return turn


def _due(
    session: Session, source: CandleSource, version: StrategyVersion, symbol: str, now: datetime, catch_up: int
) -> _Due:
    known = decisions.newest_rows(session, version.strategy_name, version.version, symbol, LATE_CANDLES)
    hashes = dict(known)
    since = known[-1][0] if known else version.created_at
    recent = source.candles(symbol, closed_by=now, since=since)
    candles = source.candles(symbol, closed_by=now, bars=len(recent) + version.warmup_bars - 1)
    opened_at = [moment.to_pydatetime() for moment in pd.DatetimeIndex(candles.index)]
    first = len(candles) - len(recent)
    positions = [at for at in range(first, len(candles)) if opened_at[at] not in hashes]
    due = _Due(symbol, candles, positions[:catch_up])
    if known and known[0][0] in opened_at:
        newest = opened_at.index(known[0][0])
        if window_hashes(candles, [newest], version.warmup_bars) != [known[0][1]]:
            due.revised.append(known[0][0])
    return due


def _ask(workers: Workers, turn: _Turn) -> None:
    version = turn.version
    asked = [due for due in turn.due if due.positions]
    asks = [Ask(due.symbol, version.timeframe, due.candles, due.positions, version.warmup_bars) for due in asked]
    if not asks:
        return
    try:
        many = max(len(ask.positions) for ask in asks) >= _VECTORISE_FROM
        answered = workers.of(version).decide(asks, vectorised=many)
    except RolloutError as error:
        turn.refused = error
    else:
        for due, answers in zip(asked, answered, strict=True):
            due.answers = answers


@tried_again()
def _log(engine: Engine, turns: Sequence[_Turn], now: datetime) -> list[ShadowRun]:
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


def _log_turn(session: Session, turn: _Turn, now: datetime) -> ShadowRun:
    version = turn.version
    name = (version.strategy_name, version.version, version.status)
    for due in turn.due:
        alarms.revised(session, version, due.symbol, due.revised, now)
    if turn.refused is not None:
        alarms.refused(session, version, turn.refused, now)
        return ShadowRun(*name, error=str(turn.refused))
    if turn.absent:
        alarms.absent(session, version, turn.absent, now)
    alarms.breached(session, version, [answer for due in turn.due for answer in due.answers], now)
    rows = [row for due in turn.due for row in _rows(version, due, now)]
    logged = decisions.log_decisions(session, rows)
    signals = sum(row["decision"] in SIGNALS for row in rows)
    errors = sum(row["decision"] == ERROR for row in rows)
    return ShadowRun(*name, logged, signals, errors, error="; ".join(turn.absent))


def _rows(version: StrategyVersion, due: _Due, now: datetime) -> list[dict[str, Any]]:
    opened_at = pd.DatetimeIndex(due.candles.index)
    hashes = window_hashes(due.candles, due.positions, version.warmup_bars)
    rows = []
    for at, answer, window_hash in zip(due.positions, due.answers, hashes, strict=True):
        timestamp = opened_at[at].to_pydatetime()
        said = answer.decision
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
                "window_hash": window_hash,
                "duration_ms": answer.duration_ms,
                "error_kind": answer.kind,
                "error": answer.error,
                "logged_at": now,
            }
        )
    return rows
