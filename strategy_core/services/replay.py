"""Replay: let registered versions decide on past candles, and score these decisions."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import Engine

from strategy_core.domain.candles import Windows, timeframe_delta
from strategy_core.domain.errors import InvalidTimeframe, NothingToReplay, UnknownSymbol
from strategy_core.domain.lifecycle import Status, utc
from strategy_core.domain.scoring import ScoringRule, marks, score
from strategy_core.domain.strategy import Action
from strategy_core.isolation.client import DecisionRequest, FailureBudget
from strategy_core.isolation.pool import WorkerPool
from strategy_core.isolation.protocol import Answer
from strategy_core.market.source import CandleSource
from strategy_core.services.compare import Period, period
from strategy_core.services.evidence import LOOK_BACK, shared_symbols
from strategy_core.services.score import outcome_rows, rows_of
from strategy_core.services.shadow import recorded_answers
from strategy_core.store import replays, versions
from strategy_core.store.engine import reading, retry_transient, transaction
from strategy_core.store.replays import Stretch
from strategy_core.store.tables import StrategyVersion

CHUNK = 2_000  # candles of one call to a version, and of one transaction
CHUNKS_HELD = 8  # of a version in memory at once: 1.7 kB a decision
Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Replayed:
    """The result of one version's replay.

    Attributes:
        first, newest: the replayed candles, by open time.
        candles: that it can decide on in the period: each has the candles before it that the version needs.
        decided: that are new. The other ones were replayed before, or failed.
        signals: buys and sells in the period, new or not.
        closed: of these, trades that have closed.
        pending: trades that are still open where the feed ends.
        errors: candles on which it failed, with the newest error. They are not stored, and are tried again next time.
        revised: candles that were replayed before on other candles than the feed has now, with the first of them.
        trained_until: end of the version's training, if it names one.
    """

    strategy_name: str
    version: str
    first: datetime | None = None
    newest: datetime | None = None
    candles: int = 0
    decided: int = 0
    signals: int = 0
    closed: int = 0
    pending: int = 0
    errors: int = 0
    last_error: str = ""
    revised: int = 0
    first_revised: datetime | None = None
    trained_until: datetime | None = None

    @property
    def summary(self) -> str:
        """What was decided, in one line."""
        counts = (
            f"{self.candles} candles, {self.decided} of them new, {self.signals} signals, {self.closed} closed trades"
        )
        return f"{self.strategy_name} {self.version}: {counts}" + (f", {self.errors} errors" if self.errors else "")

    @property
    def notes(self) -> list[str]:
        """What an owner should know of it, a line each."""
        notes = []
        if not self.decided and not self.errors and self.candles:
            notes.append(f"nothing new: {self.version} was replayed on these candles before")
        if self.errors:
            notes.append(f"{self.version} failed on {self.errors} candles, the newest with: {self.last_error}")
        if self.trained_until is not None and self.first is not None and self.first < self.trained_until:
            until = f"{self.trained_until:%Y-%m-%d %H:%M} UTC"
            notes.append(f"in sample: {self.version} was trained on candles until {until}. compare shows them apart")
        if self.first_revised is not None:
            notes.append(
                f"the feed has revised candles since {self.version} was replayed on them: {self.revised} decisions, "
                f"the first on {self.first_revised:%Y-%m-%d %H:%M} UTC. To decide on them again: --again"
            )
        return notes


@dataclass(slots=True, eq=False)
class _Replayer:
    """One version in a replay."""

    version: StrategyVersion
    symbols: Sequence[str]
    result: Replayed
    budget: FailureBudget = field(default_factory=FailureBudget)


@dataclass(slots=True)
class _Chunk:
    """Some candles of one symbol that a version has to decide, as positions of *windows*, and its answers.

    Attributes:
        size: with the candles that it has decided before.
    """

    windows: Windows
    positions: Sequence[int]
    size: int
    answers: list[Answer] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Market:
    """The candles of one symbol: those of the period, at [start, end), and those around them that trades need."""

    symbol: str
    candles: pd.DataFrame
    start: int
    end: int


def replay_version(
    engine: Engine,
    source: CandleSource,
    workers: WorkerPool,
    *,
    strategy_name: str,
    version: str,
    now: datetime,
    start: datetime | None = None,
    end: datetime | None = None,
    length: timedelta = LOOK_BACK,
    again: bool = False,
    done: Progress = lambda *_: None,
) -> list[Replayed]:
    """Let *version* decide on the candles that opened in [start, end), and store the decisions and their outcomes.

    The active version is replayed on the same candles, because a comparison needs both. The rows are apart from the
    log of live decisions: no gate of a rollout counts them. A second replay of the same candles adds nothing.

    Args:
        start, end: by default *length* before *end*, and the end of the feed.
        again: delete what was replayed in the period, and decide again. Meant for candles that were revised.
        done: called with the symbol, the number of its candles that are done and their total.

    Raises:
        UnknownStrategy, UnknownVersion, UnknownSymbol, InvalidPeriod
        InvalidTimeframe: the feed has another timeframe.
        NothingToReplay: the period has no candle that *version* can decide on.
        FingerprintMismatch, AnswersMismatch, Untrusted: a version cannot be run.
    """
    now = utc(now, "now")
    with reading(engine) as session:
        chosen = versions.get_version(session, strategy_name, version)
        active = versions.with_status(session, strategy_name, Status.ACTIVE)
        rule = ScoringRule.model_validate(versions.get_strategy(session, strategy_name).scoring)
    if chosen.timeframe != source.timeframe:
        raise InvalidTimeframe(chosen.timeframe, [source.timeframe])
    if missing := sorted(set(chosen.symbols) - set(source.symbols())):
        raise UnknownSymbol(missing[0], source.symbols())
    over = _period(source, chosen, start, end, length, now)
    replayers = [
        _Replayer(chosen, chosen.symbols, Replayed(strategy_name, version, trained_until=chosen.trained_until))
    ]
    if active is not None and active.version != version and active.timeframe == chosen.timeframe:
        both = shared_symbols(chosen, active)
        replayers.append(
            _Replayer(active, both, Replayed(strategy_name, active.version, trained_until=active.trained_until))
        )
    for symbol in chosen.symbols:
        market = _read_market(source, symbol, replayers, rule, over, now)
        asked = [each for each in replayers if symbol in each.symbols]
        _decide_symbol(engine, workers, market, asked, rule, now, again, done)
        for each in asked:
            _score_symbol(engine, each, market, rule)
    if replayers[0].result.candles == 0:
        raise NothingToReplay(version, over.start, over.end, _feed_text(source, chosen, now))
    return [each.result for each in replayers]


def _period(
    source: CandleSource,
    version: StrategyVersion,
    start: datetime | None,
    end: datetime | None,
    length: timedelta,
    now: datetime,
) -> Period:
    if end is None:
        newest = _newest_candle(source, version, now)
        end = now if newest is None else min(now, newest + timeframe_delta(version.timeframe))
    return period(end - length if start is None else start, end)


def _newest_candle(source: CandleSource, version: StrategyVersion, now: datetime) -> datetime | None:
    """Return the newest candle that the feed has, which may have ended long before the newest expected one."""
    newest = (source.candles(symbol, closed_by=now, bars=1).index for symbol in version.symbols)
    return max((index[-1].to_pydatetime() for index in newest if len(index)), default=None)


def _feed_text(source: CandleSource, version: StrategyVersion, now: datetime) -> str:
    newest = _newest_candle(source, version, now)
    until = "no candles" if newest is None else f"candles until {newest:%Y-%m-%d %H:%M} UTC"
    return f"the feed has {until}, and the version needs {version.warmup_bars} for its first decision"


def _read_market(
    source: CandleSource, symbol: str, replayers: Sequence[_Replayer], rule: ScoringRule, over: Period, now: datetime
) -> _Market:
    """Read the candles of the period, the warm-up before it, and those after it in which its last trades close."""
    step = (rule.horizon + 1) * timeframe_delta(source.timeframe)
    until = over.end
    while True:
        until = min(now, until + step)
        later = len(source.candles(symbol, closed_by=until, since=over.end)) if until > over.end else 0
        if later > rule.horizon or until >= now:
            break
        step *= 2  # a weekend or a gap
    bars = len(source.candles(symbol, closed_by=until, since=over.start))
    scoring = rule.horizon + rule.warmup_bars  # trades that were opened before the period are marked in it
    before = max(scoring, *(each.version.warmup_bars for each in replayers))
    candles = source.candles(symbol, closed_by=until, bars=bars + before)
    candles = candles.iloc[: max(len(candles) - later + rule.horizon + 1, 0)] if later > rule.horizon + 1 else candles
    first, last = (int(candles.index.searchsorted(pd.Timestamp(moment))) for moment in (over.start, over.end))
    return _Market(symbol, candles, first, last)


def _decide_symbol(
    engine: Engine,
    workers: WorkerPool,
    market: _Market,
    replayers: Sequence[_Replayer],
    rule: ScoringRule,
    now: datetime,
    again: bool,
    done: Progress,
) -> None:
    windows = Windows(market.candles)
    waiting = {each: _chunks(engine, each, windows, market, rule, again) for each in replayers}
    total = sum(max(0, market.end - _first(each, market)) for each in replayers)
    count = 0
    while any((batch := {each: list(islice(chunks, CHUNKS_HELD)) for each, chunks in waiting.items()}).values()):
        asked = {each: [chunk for chunk in chunks if chunk.positions] for each, chunks in batch.items()}
        workers.share_out([asked], partial(_ask, engine, workers, market.symbol))
        for each, chunks in batch.items():
            for chunk in chunks:
                _store(engine, each, market.symbol, chunk, now)
                count += chunk.size
                done(market.symbol, count, total)


def _first(replayer: _Replayer, market: _Market) -> int:
    """Return the position of the first candle that the version can decide on."""
    return max(market.start, replayer.version.warmup_bars - 1)


def _stretch(replayer: _Replayer, market: _Market, start: int, end: int) -> Stretch:
    """Return the candles at the positions [start, end)."""
    opened = pd.DatetimeIndex(market.candles.index)
    names = (replayer.version.strategy_name, replayer.version.version, market.symbol)
    return Stretch(*names, opened[start].to_pydatetime(), opened[end - 1].to_pydatetime())


def _chunks(
    engine: Engine, replayer: _Replayer, windows: Windows, market: _Market, rule: ScoringRule, again: bool
) -> Iterator[_Chunk]:
    """Yield the candles that are still to be decided."""
    result, bars = replayer.result, replayer.version.warmup_bars
    for start in range(_first(replayer, market), market.end, CHUNK):
        end = min(start + CHUNK, market.end)
        stretch = _stretch(replayer, market, start, end)
        if again:
            _discard(engine, replayer, market, rule, start, end)
        with reading(engine) as session:
            known = replays.read_hashes(session, stretch)
        missing = []
        for at in range(start, end):
            opened = windows.opened_at(at)
            if opened not in known:
                missing.append(at)
            elif known[opened] != windows.hash_of(at, bars):
                result.revised += 1
                result.first_revised = min(opened, result.first_revised or opened)
        result.candles += end - start
        result.first = min(stretch.start, result.first or stretch.start)
        result.newest = max(stretch.end, result.newest or stretch.end)
        yield _Chunk(windows, missing, end - start)


@retry_transient()
def _discard(engine: Engine, replayer: _Replayer, market: _Market, rule: ScoringRule, start: int, end: int) -> None:
    """Delete the decisions at [start, end), and the outcomes of earlier trades that these candles may have closed."""
    with transaction(engine) as session:
        replays.discard_decisions(session, _stretch(replayer, market, start, end))
        replays.discard_outcomes(session, _stretch(replayer, market, max(0, start - rule.horizon - 1), end))


def _ask(engine: Engine, workers: WorkerPool, symbol: str, replayer: _Replayer, chunks: Sequence[_Chunk]) -> None:
    version = replayer.version
    asks = [
        DecisionRequest(symbol, version.timeframe, chunk.windows, chunk.positions, version.warmup_bars)
        for chunk in chunks
    ]
    with workers.borrow(version, partial(recorded_answers, engine)) as worker:
        answered = worker.decide(asks, vectorised=True, budget=replayer.budget)
    for chunk, answers in zip(chunks, answered, strict=True):
        chunk.answers = answers


@retry_transient()
def _write_decisions(engine: Engine, rows: Sequence[dict[str, Any]]) -> int:
    with transaction(engine) as session:
        return replays.add_decisions(session, rows)


def _store(engine: Engine, replayer: _Replayer, symbol: str, chunk: _Chunk, now: datetime) -> None:
    """Store the answers of a chunk. An error is counted and not stored: it may be the host's."""
    version, result, rows = replayer.version, replayer.result, []
    for at, answer in zip(chunk.positions, chunk.answers, strict=True):
        if answer.decision is None:
            result.errors += 1
            result.last_error = f"{answer.kind}: {answer.error}"
            continue
        rows.append(
            {
                "strategy_name": version.strategy_name,
                "version": version.version,
                "symbol": symbol,
                "timestamp": chunk.windows.opened_at(at),
                "decision": answer.decision.action.value,
                "intent": answer.decision.intent.value,
                "confidence": answer.decision.confidence,
                "reason": answer.decision.reason,
                "window_hash": chunk.windows.hash_of(at, version.warmup_bars),
                "replayed_at": now,
            }
        )
    if rows:
        result.decided += _write_decisions(engine, rows)
    chunk.answers = []


def _score_symbol(engine: Engine, replayer: _Replayer, market: _Market, rule: ScoringRule) -> None:
    """Book the outcomes of the replayed signals, and mark their trades to market. Rows that are stored are not written.

    Trades that were opened before the period are scored again, because they may have closed or been open in it.
    """
    version, result, candles = replayer.version, replayer.result, market.candles
    start = max(0, market.start - rule.horizon - 1)
    if start >= len(candles):
        return
    whole = _stretch(replayer, market, start, len(candles))
    with reading(engine) as session:
        signals = replays.read_signals(session, whole)
        closes = replays.read_closes(session, whole)
        booked = replays.read_booked(session, whole)
    positions = candles.index.get_indexer(pd.DatetimeIndex([moment for moment, _ in signals], tz="UTC"))
    found = np.flatnonzero(positions >= 0).tolist()
    sides = np.array([1 if signals[i][1] == Action.BUY else -1 for i in found], dtype=np.int64)
    trades = score(candles, positions[found], sides, rule, rows_of(candles, closes))
    within = (positions[found] >= market.start) & (positions[found] < market.end)
    result.signals += int(within.sum())
    result.closed += int((trades.closed & within).sum())
    result.pending = result.signals - result.closed
    rows = outcome_rows(version, market.symbol, candles, [signals[i][0] for i in found], trades)
    new = [row for row in rows if row["timestamp"] not in booked]
    for first in range(0, len(new), CHUNK):
        _book(engine, new[first : first + CHUNK])
    changes = marks(candles, trades, rule)
    opened = pd.DatetimeIndex(candles.index)
    for first in range(market.start, len(candles), CHUNK):
        last = min(first + CHUNK, len(candles))
        values = {opened[at].to_pydatetime(): float(changes[at]) for at in range(first, last) if changes[at] != 0}
        _mark(engine, _stretch(replayer, market, first, last), values)


@retry_transient()
def _book(engine: Engine, rows: Sequence[dict[str, Any]]) -> None:
    kept = [{name: value for name, value in row.items() if name != "decision_id"} for row in rows]
    with transaction(engine) as session:
        replays.add_outcomes(session, kept)


@retry_transient()
def _mark(engine: Engine, stretch: Stretch, values: dict[datetime, float]) -> None:
    with reading(engine) as session:
        if replays.read_marks(session, stretch) == values:
            return
    key = {"strategy_name": stretch.strategy_name, "version": stretch.version, "symbol": stretch.symbol}
    rows = [{**key, "timestamp": candle, "r": r} for candle, r in values.items()]
    with transaction(engine) as session:
        replays.replace_marks(session, stretch, rows)
