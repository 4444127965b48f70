"""Which candles each version has still to decide, read once for all versions; never what they answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
from sqlalchemy import Engine
from sqlmodel import Session

from strategy_core.domain.arrays import IntArray
from strategy_core.domain.candles import LATE_CANDLES, timeframe_delta
from strategy_core.domain.errors import RolloutError
from strategy_core.domain.windows import Windows, opened_ns
from strategy_core.isolation.isolated import Answer
from strategy_core.isolation.patience import Patience
from strategy_core.market.source import CandleSource
from strategy_core.store.decisions import newest_rows
from strategy_core.store.engine import reading
from strategy_core.store.recent import Last, last_rows, rows_since
from strategy_core.store.tables import StrategyVersion

SYMBOLS_AT_ONCE = 32  # read before they are asked about: workers begin while the others' candles are read
_LOOK_BACK = timedelta(days=7)  # beside twice the late candles: over a closed week no symbol is asked for alone

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

Rows = Sequence[tuple[datetime, str]]


@dataclass(slots=True)
class Due:
    """The candles of one symbol that a version has still to decide, and what came of it."""

    symbol: str
    windows: Windows
    positions: list[int]
    revised: list[datetime] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Turn:
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
    due: list[Due] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    refused: RolloutError | None = None
    patience: Patience = field(default_factory=Patience)


def read_turn(session: Session, version: StrategyVersion, symbols: Sequence[str], now: datetime) -> Turn:
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
    return Turn(version, symbols, last, {symbol: rows.get(symbol, ()) for symbol in few})


def read_due(
    engine: Engine, source: CandleSource, turns: Sequence[Turn], now: datetime, catch_up: int
) -> Iterator[dict[Turn, list[Due]]]:
    """Yield what is due, some symbols at a time; each symbol's candles are asked for and turned into bytes once."""
    by_symbol: dict[str, list[Turn]] = {}
    for turn in turns:
        for symbol in turn.symbols:
            by_symbol.setdefault(symbol, []).append(turn)
    names = list(by_symbol)
    for start in range(0, len(names), SYMBOLS_AT_ONCE):
        batch: dict[Turn, list[Due]] = {}
        for symbol in names[start : start + SYMBOLS_AT_ONCE]:
            for turn, due in _due(engine, source, symbol, by_symbol[symbol], now, catch_up):
                turn.due.append(due)
                if due.positions:
                    batch.setdefault(turn, []).append(due)
        yield batch


def _due(
    engine: Engine, source: CandleSource, symbol: str, turns: Sequence[Turn], now: datetime, catch_up: int
) -> list[tuple[Turn, Due]]:
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
        due = Due(symbol, windows, [at - start for at in late])
        known = _newest(turn, symbol)
        if known is not None and newest is not None:
            candle, window_hash = known
            if windows.hash_of(newest - start, turn.version.warmup_bars) != window_hash:
                due.revised.append(candle)
        dues.append((turn, due))
    return dues


def _undecided(engine: Engine, turn: Turn, symbol: str, opened: IntArray) -> list[int]:
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


def _reaching(source: CandleSource, symbol: str, turns: Sequence[Turn], now: datetime) -> pd.DataFrame:
    """Return candles that reach back to all that is due, and to the warm-up before it: nearly always one question."""
    since = min(_since(turn, symbol) for turn in turns)
    warmup = max(turn.version.warmup_bars for turn in turns)
    bars = warmup + LATE_CANDLES
    candles = source.candles(symbol, closed_by=now, bars=bars)
    if len(candles) < bars or int(opened_ns(candles).searchsorted(_ns(since))) >= warmup - 1:
        return candles
    recent = source.candles(symbol, closed_by=now, since=since)
    return source.candles(symbol, closed_by=now, bars=len(recent) + warmup - 1)


def _since(turn: Turn, symbol: str) -> datetime:
    """Return the candle from which on all are to be decided: the oldest of the newest rows, or the version's first."""
    if rows := turn.rows.get(symbol):
        return rows[-1][0]
    last = turn.last.get(symbol)
    if last is not None and last.oldest is not None:
        return last.oldest
    version = turn.version
    return max(version.created_at, version.retired_at or version.created_at)  # what it said before may be gone by now


def _newest(turn: Turn, symbol: str) -> tuple[datetime, str] | None:
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
