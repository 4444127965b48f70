"""A candle run of many symbols and five versions, beside the same `decide` calls in a plain loop of two processes.

`ROLLOUT_BENCHMARK_SYMBOLS` says how many symbols, `ROLLOUT_BENCHMARK_ROUNDS` how often each side is measured.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from multiprocessing import get_context
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine

from strategy_core.domain.candles import LATE_CANDLES
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.strategy import Context
from strategy_core.domain.windows import Windows
from strategy_core.isolation.isolated import IsolatedStrategy
from strategy_core.isolation.nursery import nursery
from strategy_core.services.shadow import run_shadow
from strategy_core.services.workers import Workers, build_of
from strategy_core.store import decisions
from strategy_core.store.engine import transaction
from strategy_core.store.tables import decision_id
from tests.benchmarks.bands import Band, Bands
from tests.benchmarks.many_symbols import Walks
from tests.builders import HOUR, MONDAY, decision_row, put_version

pytestmark = pytest.mark.benchmark_suite
SYMBOLS = [f"SYM{number:03d}" for number in range(int(os.environ.get("ROLLOUT_BENCHMARK_SYMBOLS", "500")))]
ROUNDS = int(os.environ.get("ROLLOUT_BENCHMARK_ROUNDS", "5"))
CONFIGS = {f"v{number}": Band(width=2.0 + number / 10, length=150 + 2 * number) for number in range(5)}
CORES = 2
ENTRY_POINT = "tests.benchmarks.bands:Bands"

Key = TypeVar("Key")
Item = TypeVar("Item")
_barrier: list[Barrier] = []


class Timed(Workers):
    """Says when the asking began and ended; what is before is reading what was decided, what is after is logging."""

    asked: tuple[float, float] = (0.0, 0.0)

    def share_out(
        self, batches: Iterable[Mapping[Key, Sequence[Item]]], ask: Callable[[Key, Sequence[Item]], None]
    ) -> None:
        began = time.perf_counter()
        super().share_out(batches, ask)
        self.asked = (began, time.perf_counter())


def test_a_run_beside_a_plain_loop(engine: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    source = Walks(SYMBOLS)
    _put_versions(engine)
    _put_history(engine, source)
    candles = (MONDAY + hour * HOUR for hour in range(24))
    plain: list[float] = []
    cold: list[list[float]] = []
    warm: list[list[float]] = []
    with _two_processes() as processes, Timed(at_once=CORES) as kept:
        _run(engine, source, kept, next(candles))
        plain.append(_plainly(processes))
        for _ in range(ROUNDS):  # in turns: a machine that is slow for a while is so for a run and the loops beside it
            with Timed(at_once=CORES) as fresh:
                _forget_nursery()
                cold.append(_run(engine, source, fresh, next(candles)))
            plain.append(_plainly(processes))
            warm.append(_run(engine, source, kept, next(candles)))
            plain.append(_plainly(processes))
        private = sorted(_private_mb(worker) for _, worker in kept._idle)
    each = median(plain) * CORES / len(SYMBOLS) / len(CONFIGS)
    told = [
        f"{engine.dialect.name}, {len(SYMBOLS)} symbols x {len(CONFIGS)} versions, {CORES} cores: "
        f"a plain loop {median(plain):.2f} s ({each * 1e3:.1f} ms a decision)"
    ]
    for name, runs, beside in (("cold", cold, plain[:-1]), ("warm", warm, plain[1:])):
        loops = [(before + after) / 2 for before, after in zip(beside[::2], beside[1::2], strict=True)]
        over = sorted(run[0] / loop - 1 for run, loop in zip(runs, loops, strict=True))
        took, before, asking, after = (median(column) for column in zip(*runs, strict=True))
        told.append(
            f"  {name}: {took:.2f} s, overhead {median(over):.1%} ({over[0]:.1%} to {over[-1]:.1%}; "
            f"before {before:.2f} s, asking {asking:.2f} s, logging {after:.2f} s)"
        )
    told.append(f"  memory of a worker's own: {private[0]:.0f} to {private[-1]:.0f} MB")
    with capsys.disabled():
        print("\n" + "\n".join(told))  # noqa: T201
    assert median(run[0] for run in warm) < 2 * median(plain)


def _run(engine: Engine, source: Walks, workers: Timed, now: datetime) -> list[float]:
    """Return (seconds, before the asking, asking, after it) of a run on one candle."""
    began = time.perf_counter()
    runs = run_shadow(engine, source, workers, now=now)
    ended = time.perf_counter()
    assert [(run.logged, run.errors) for run in runs] == [(len(SYMBOLS), 0)] * len(CONFIGS)
    return [ended - began, workers.asked[0] - began, workers.asked[1] - workers.asked[0], ended - workers.asked[1]]


@contextmanager
def _two_processes() -> Iterator[Pool]:
    context = get_context("spawn")
    with context.Pool(CORES, initializer=meet_at, initargs=(context.Barrier(CORES),)) as pool:
        yield pool


def meet_at(barrier: Barrier) -> None:
    _barrier.append(barrier)


def _plainly(processes: Pool) -> float:
    """Return the seconds that two processes take for all decisions on one candle, each for half of the symbols."""
    return max(processes.map(decide_all, [SYMBOLS[start::CORES] for start in range(CORES)], chunksize=1))


def decide_all(symbols: Sequence[str]) -> float:
    """Return the seconds of a plain loop, which finds its candles cut and its strategy ready."""
    source, strategy = Walks(symbols), Bands()
    asked = [
        (source.candles(symbol, closed_by=MONDAY, bars=band.length), band, Context(symbol, "1h", MONDAY))
        for band in CONFIGS.values()
        for symbol in symbols
    ]
    _barrier[0].wait()
    began = time.perf_counter()
    for candles, band, context in asked:
        strategy.decide(candles, band, context)
    return time.perf_counter() - began


def _put_versions(engine: Engine) -> None:
    for version, band in CONFIGS.items():
        config = band.model_dump()
        with IsolatedStrategy(ENTRY_POINT, config) as strategy:
            build = build_of(ENTRY_POINT, strategy.describe(), SYMBOLS, "1h")
        put_version(
            engine,
            version,
            Status.ACTIVE if version == "v0" else Status.SHADOW,
            symbols=SYMBOLS,
            at=MONDAY - timedelta(days=60),
            entry_point=ENTRY_POINT,
            config=config,
            warmup_bars=band.length,
            fingerprint=build.digest,
            fingerprint_parts=build.parts,
        )


def _put_history(engine: Engine, source: Walks) -> None:
    """Log as many candles of each symbol as a run looks back on."""
    rows: list[dict[str, Any]] = []
    for symbol in SYMBOLS:
        windows = Windows(source.candles(symbol, closed_by=MONDAY - HOUR))
        for version, band in CONFIGS.items():
            for position in range(len(windows) - LATE_CANDLES, len(windows)):
                at = windows.opened_at(position)
                names = {"id": decision_id("fib_rsi", version, symbol, at)}
                hashed = {"window_hash": windows.hash_of(position, band.length)}
                rows.append(decision_row(version, at, symbol=symbol) | names | hashed)
    with transaction(engine) as session:
        decisions.log_decisions(session, rows)


def _forget_nursery() -> None:
    """Have the next worker start another process to fork from, as a run of the schedule does."""
    nursery().close()


def _private_mb(worker: IsolatedStrategy) -> float:
    assert worker._process is not None
    text = Path(f"/proc/{worker._process._pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1e3
