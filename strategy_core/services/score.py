"""Scoring: book the outcomes of closed trades, and mark open trades to market."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import RolloutError, reason_of
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoredTrades, ScoringRule, marks, score
from strategy_core.domain.strategy import Action, Intent
from strategy_core.market.source import CandleSource
from strategy_core.store import decisions, outcomes, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.tables import SIGNALS, StrategyVersion, decision_id


@dataclass(frozen=True, slots=True)
class Scored:
    """The result of a scoring run.

    Attributes:
        booked: outcomes of closed trades.
        pending: trades that are still open.
        lost: signals whose candle is no longer in the feed.
        refused: versions and symbols that could not be scored, with the reason.
    """

    booked: int = 0
    pending: int = 0
    lost: int = 0
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The rows that scoring will book once some decisions are logged: outcomes of closed trades, and equity marks."""

    outcomes: Sequence[Mapping[str, Any]]
    marks: Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class _Unscored:
    """One version's unscored signals on one symbol, its decisions to close since, and the simulation's result."""

    version: StrategyVersion
    symbol: str
    rule: ScoringRule
    signals: Sequence[tuple[datetime, str]]
    closes: Sequence[datetime]
    decided: datetime
    marked: datetime | None
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    marks: list[dict[str, Any]] = field(default_factory=list)
    pending: int = 0
    lost: int = 0


def score_outcomes(engine: Engine, source: CandleSource, *, now: datetime, strategy_name: str | None = None) -> Scored:
    """Book the outcomes of all signals whose trades have closed by *now*. A second run changes no row.

    Candles are read and trades simulated outside any transaction, so that rollbacks do not wait. Then each strategy is
    booked in one transaction, so that no tick sees a shock in one version alone.

    Args:
        strategy_name: score only this strategy. The default is all.
    """
    with reading(engine) as session:
        rules = {
            name: ScoringRule.model_validate(versions.get_strategy(session, name).scoring)
            for name in versions.strategy_names(session)
        }
        found = [
            _read_unscored(session, version, symbol, rules[version.strategy_name])
            for version in versions.list_versions(session, strategy_name)
            for symbol in version.symbols
        ]
    scored, refused = [], []
    for one in found:
        if one is None:
            continue
        try:
            _simulate(one, source, now)
        except RolloutError as error:  # its candles are unavailable, those of others may be available
            refused.append(f"{one.version.strategy_name} {one.version.version} {one.symbol}: {reason_of(error)}")
        else:
            scored.append(one)
    booked = 0
    for _, together in groupby(scored, key=lambda one: one.version.strategy_name):
        booked += _book(engine, list(together))
    pending, lost = sum(one.pending for one in scored), sum(one.lost for one in scored)
    return Scored(booked, pending, lost, tuple(refused))


def foresee(
    engine: Engine,
    source: CandleSource,
    version: StrategyVersion,
    rows: Sequence[Mapping[str, Any]],
    rule: ScoringRule,
    *,
    now: datetime,
) -> Foreseen:
    """Return what scoring will book once *rows* of the version's decisions are logged. Nothing is written.

    A symbol whose candles are unavailable is left out.
    """
    ahead: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        ahead.setdefault(row["symbol"], []).append(row)
    with reading(engine) as session:
        read = [_read_unscored(session, version, symbol, rule, ahead.get(symbol, [])) for symbol in version.symbols]
    found = [one for one in read if one is not None]
    for one in found:
        with suppress(RolloutError):
            _simulate(one, source, now)
    return Foreseen([row for one in found for row in one.outcomes], [row for one in found for row in one.marks])


@retry_transient()
def _book(engine: Engine, together: Sequence[_Unscored]) -> int:
    with transaction(engine) as session:
        booked = outcomes.book_outcomes(session, [row for one in together for row in one.outcomes])
        outcomes.mark_equity(session, [row for one in together for row in one.marks])
        return booked


def _read_unscored(
    session: Session,
    version: StrategyVersion,
    symbol: str,
    rule: ScoringRule,
    ahead: Sequence[Mapping[str, Any]] = (),
) -> _Unscored | None:
    """Return the signals that are logged, and those in *ahead*: rows of the symbol that are not logged yet."""
    signals = dict(decisions.signals_to_score(session, version, symbol, horizon=rule.horizon))
    signals |= {row["timestamp"]: row["decision"] for row in ahead if row["decision"] in SIGNALS}
    decided = max((row["timestamp"] for row in ahead), default=None)
    if decided is None and signals:
        decided = decisions.newest_decided(session, version.strategy_name, version.version, symbol)
    if decided is None or not signals:
        return None
    closes = set(decisions.find_closes(session, version, symbol, since=min(signals)))
    closes |= {row["timestamp"] for row in ahead if row["intent"] == Intent.CLOSE}
    marked = outcomes.newest_mark(session, version, symbol)
    return _Unscored(version, symbol, rule, sorted(signals.items()), sorted(closes), decided, marked)


def _simulate(one: _Unscored, source: CandleSource, now: datetime) -> None:
    """Simulate the trades up to the newest candle that the version has decided.

    Later candles must wait: a signal on a candle that is decided later would miss its first marks. A retired version
    makes no more decisions, and its last trades still close.
    """
    version, symbol, signals = one.version, one.symbol, one.signals
    known_by = now if version.status == Status.RETIRED else min(now, one.decided + timeframe_delta(version.timeframe))
    candles = _candles(source, symbol, signals[0][0], known_by, one.rule)
    positions = candles.index.get_indexer(pd.DatetimeIndex([moment for moment, _ in signals]))
    found = np.flatnonzero(positions >= 0)
    sides = np.array([1 if signals[i][1] == Action.BUY else -1 for i in found.tolist()])
    trades = score(candles, positions[found], sides, one.rule, rows_of(candles, one.closes))
    moments = [signals[i][0] for i in found.tolist()]
    one.outcomes = outcome_rows(version, symbol, candles, moments, trades)
    one.marks = _mark_rows(version, symbol, candles, marks(candles, trades, one.rule), one.marked)
    one.pending = int((~trades.closed).sum())
    one.lost = len(signals) - len(found)


def rows_of(candles: pd.DataFrame, moments: Sequence[datetime]) -> IntArray:
    """Return the rows of the candles that opened at *moments*, rising. Candles that are not there are left out."""
    rows: IntArray = candles.index.get_indexer(pd.DatetimeIndex(list(moments), tz="UTC"))
    return np.sort(rows[rows >= 0]).astype(np.int64)


def _candles(source: CandleSource, symbol: str, first: datetime, known_by: datetime, rule: ScoringRule) -> pd.DataFrame:
    needed = len(source.candles(symbol, closed_by=known_by, since=first)) + rule.warmup_bars
    return source.candles(symbol, closed_by=known_by, bars=needed)


def outcome_rows(
    version: StrategyVersion, symbol: str, candles: pd.DataFrame, moments: Sequence[datetime], trades: ScoredTrades
) -> list[dict[str, Any]]:
    """Return the rows of `Outcome` for the closed *trades* of signals on the candles that opened at *moments*."""
    delta = timeframe_delta(version.timeframe)
    opened_at = pd.DatetimeIndex(candles.index)
    return [
        {
            "decision_id": decision_id(version.strategy_name, version.version, symbol, moments[i]),
            "strategy_name": version.strategy_name,
            "version": version.version,
            "symbol": symbol,
            "timestamp": moments[i],
            "opened_at": opened_at[int(trades.entry_position[i])].to_pydatetime(),
            "closed_at": opened_at[int(trades.exit_position[i])].to_pydatetime()
            + delta,  # known when its candle closed
            "entry_price": float(trades.entry_price[i]),
            "exit_price": float(trades.exit_price[i]),
            "exit_reason": str(trades.exit_reason[i]),
            "risk": float(trades.risk[i]),
            "pnl": float(trades.pnl[i]),
            "return_fraction": float(trades.return_fraction[i]),
            "r_multiple": float(trades.r_multiple[i]),
        }
        for i in np.flatnonzero(trades.closed).tolist()
    ]


def _mark_rows(
    version: StrategyVersion, symbol: str, candles: pd.DataFrame, changes: Any, marked: datetime | None
) -> list[dict[str, Any]]:
    opened_at = pd.DatetimeIndex(candles.index)
    fresh = opened_at > pd.Timestamp(marked) if marked else np.ones(len(candles), dtype=np.bool_)
    return [
        {
            "strategy_name": version.strategy_name,
            "version": version.version,
            "symbol": symbol,
            "timestamp": opened_at[i].to_pydatetime(),
            "r": float(changes[i]),
        }
        for i in np.flatnonzero(fresh & (changes != 0)).tolist()
    ]
