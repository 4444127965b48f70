"""Let every version that is not retired decide on every closed candle, and log what it said; nothing else happens."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.candles import closed_by
from strategy_core.domain.errors import InvalidCandles, InvariantRefused, RetiredVersion, RolloutError
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.windows import Windows
from strategy_core.isolation.isolated import Answer, Ask, IsolatedStrategy
from strategy_core.market.source import CandleSource
from strategy_core.services import alarms
from strategy_core.services.due import Due, Turn, read_due, read_turn
from strategy_core.services.workers import Workers
from strategy_core.store import decisions, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.retry import tried_again
from strategy_core.store.tables import ERROR, SIGNALS, ShadowDecisionLog, StrategyVersion, decision_id

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
    workers: Workers,
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
            read_turn(session, version, [each for each in version.symbols if symbols is None or each in symbols], now)
            for version in versions.list_versions(session)
            if version.status != Status.RETIRED
        ]
    catch_up = min(catch_up, max(1, DECISIONS_A_RUN // max(1, sum(len(turn.symbols) for turn in turns))))
    due = read_due(engine, source, turns, now, catch_up)
    workers.share_out(due, lambda turn, dues: _ask(workers, turn, dues, now))
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
    due = Due(symbol, Windows(known), [position])
    name = (version.strategy_name, version.version, symbol, timestamp)
    with reading(engine) as session:
        logged = session.get(ShadowDecisionLog, decision_id(*name))
    if logged is not None:
        return logged
    (answers,) = worker.decide([Ask(symbol, version.timeframe, due.windows, due.positions, version.warmup_bars)])
    with transaction(engine) as session:
        decisions.log_decisions(session, _rows(version, due, answers, now))
        return session.get_one(ShadowDecisionLog, decision_id(*name))


def _ask(workers: Workers, turn: Turn, dues: Sequence[Due], now: datetime) -> None:
    version = turn.version
    for many, group in groupby(dues, key=lambda due: len(due.positions) >= _VECTORISE_FROM):
        if turn.refused is not None:
            return
        together = list(group)
        asks = [Ask(due.symbol, version.timeframe, due.windows, due.positions, version.warmup_bars) for due in together]
        try:
            with workers.lent(version) as worker:
                answered = worker.decide(asks, vectorised=many, patience=turn.patience)
        except RolloutError as error:
            turn.refused = error
            return
        for due, answers in zip(together, answered, strict=True):
            due.answers, due.rows = answers, _rows(version, due, answers, now)


@tried_again()
def _log(engine: Engine, turns: Sequence[Turn], now: datetime) -> list[ShadowRun]:
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


def _log_turn(session: Session, turn: Turn, now: datetime) -> ShadowRun:
    version = turn.version
    name = (version.strategy_name, version.version, version.status)
    for due in turn.due:
        alarms.revised(session, version, due.symbol, due.revised, now)
    rows = [row for due in turn.due for row in due.rows]
    if turn.refused is not None:
        alarms.refused(session, version, turn.symbols, turn.refused, now, partly=bool(rows))
    elif turn.absent:
        alarms.absent(session, version, turn.absent, now)
    alarms.breached(session, version, [answer for due in turn.due for answer in due.answers], now)
    logged = decisions.log_decisions(session, rows)
    signals = sum(row["decision"] in SIGNALS for row in rows)
    errors = sum(row["decision"] == ERROR for row in rows)
    error = "; ".join(turn.absent) if turn.refused is None else str(turn.refused)
    return ShadowRun(*name, logged, signals, errors, error)


def _rows(version: StrategyVersion, due: Due, answers: Sequence[Answer], now: datetime) -> list[dict[str, Any]]:
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
