"""Book what decisions were worth, once their trades have closed, and mark open ones to market; never before."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.scoring import ScoringRule, Trades, marks, score
from strategy_core.domain.strategy import Action
from strategy_core.market.source import CandleSource
from strategy_core.store import decisions, outcomes, versions
from strategy_core.store.engine import transaction
from strategy_core.store.tables import StrategyVersion, decision_id


@dataclass(frozen=True, slots=True)
class Scored:
    """How many outcomes were booked and how many trades are still open; *lost* signals have no candle in the feed."""

    booked: int = 0
    pending: int = 0
    lost: int = 0

    def __add__(self, other: "Scored") -> "Scored":
        return Scored(self.booked + other.booked, self.pending + other.pending, self.lost + other.lost)


def score_outcomes(engine: Engine, source: CandleSource, *, now: datetime) -> Scored:
    """Book the outcomes of every strategy's signals that have closed by *now*; a second run changes nothing."""
    total = Scored()
    with transaction(engine) as session:
        everything = versions.list_versions(session)
    for version in everything:
        with transaction(engine) as session:
            rule = ScoringRule.model_validate(versions.get_strategy(session, version.strategy_name).scoring)
            for symbol in version.symbols:
                total += _score_symbol(session, source, version, symbol, rule, now)
    return total


def _score_symbol(
    session: Session, source: CandleSource, version: StrategyVersion, symbol: str, rule: ScoringRule, now: datetime
) -> Scored:
    """Book one version's trades on one symbol, up to the newest candle it has decided.

    No further: a signal on a candle that is decided later would have its first marks passed over.
    """
    signals = decisions.signals_to_score(session, version, symbol, horizon=rule.horizon)
    decided = decisions.newest_decided(session, version.strategy_name, version.version, symbol) if signals else None
    if decided is None:
        return Scored()
    marked = outcomes.newest_mark(session, version, symbol)
    known_by = now if version.status == Status.RETIRED else min(now, decided + timeframe_delta(version.timeframe))
    candles = _candles(source, symbol, signals[0][0], known_by, rule)
    positions = candles.index.get_indexer(pd.DatetimeIndex([moment for moment, _ in signals]))
    found = np.flatnonzero(positions >= 0)
    sides = np.array([1 if signals[i][1] == Action.BUY else -1 for i in found.tolist()])
    trades = score(candles, positions[found], sides, rule)
    moments = [signals[i][0] for i in found.tolist()]
    booked = outcomes.book_outcomes(session, _outcome_rows(version, symbol, candles, moments, trades))
    outcomes.mark_equity(session, _mark_rows(version, symbol, candles, marks(candles, trades, rule), marked))
    return Scored(booked, int((~trades.closed).sum()), len(signals) - len(found))


def _candles(source: CandleSource, symbol: str, first: datetime, known_by: datetime, rule: ScoringRule) -> pd.DataFrame:
    needed = len(source.candles(symbol, closed_by=known_by, since=first)) + rule.warmup_bars
    return source.candles(symbol, closed_by=known_by, bars=needed)


def _outcome_rows(
    version: StrategyVersion, symbol: str, candles: pd.DataFrame, moments: Sequence[datetime], trades: Trades
) -> list[dict[str, Any]]:
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
