"""A candle run of many symbols and five versions, beside the same `decide` calls in a plain loop of two processes.

`ROLLOUT_BENCHMARK_SYMBOLS` says how many symbols, `ROLLOUT_BENCHMARK_ROUNDS` how often each side is measured.
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from multiprocessing import get_context
from multiprocessing.pool import Pool
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from strategy_core.domain.candles import LATE_CANDLES, Windows
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.strategy import Context
from strategy_core.isolation.client import IsolatedStrategy
from strategy_core.isolation.pool import build_of
from strategy_core.store import decisions
from strategy_core.store.engine import transaction
from strategy_core.store.tables import decision_id
from tests.benchmarks.bands import Band, Bands
from tests.benchmarks.many_symbols import Walks
from tests.benchmarks.scheduled import Timed, timed_run
from tests.builders import HOUR, MONDAY, decision_row, put_version
from tests.isolation.asking import worker_pids

pytestmark = pytest.mark.benchmark_suite
SYMBOLS = [f"SYM{number:03d}" for number in range(int(os.environ.get("ROLLOUT_BENCHMARK_SYMBOLS", "500")))]
ROUNDS = int(os.environ.get("ROLLOUT_BENCHMARK_ROUNDS", "5"))
CONFIGS = {f"v{number}": Band(width=2.0 + number / 10, length=150 + 2 * number) for number in range(5)}
CORES = 2
ENTRY_POINT = "tests.benchmarks.bands:Bands"

_barrier: list[Barrier] = []


def test_a_run_beside_a_plain_loop(engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Walks(SYMBOLS)
    stored = tmp_path / "candles"
    stored.write_bytes(pickle.dumps(source))
    _put_versions(engine)
    _put_history(engine, source)
    candles = (MONDAY + hour * HOUR for hour in range(24))
    plain: list[float] = []
    scheduled: list[list[float]] = []
    warm: list[list[float]] = []
    with _two_processes() as processes, Timed(at_once=CORES) as kept:
        timed_run(engine, source, kept, next(candles))
        plain.append(_plainly(processes))
        for _ in range(ROUNDS):  # in turns: a machine that is slow for a while is so for a run and the loops beside it
            scheduled.append(_scheduled(engine, stored, next(candles)))
            plain.append(_plainly(processes))
            warm.append(timed_run(engine, source, kept, next(candles)))
            plain.append(_plainly(processes))
        private = sorted(map(_private_mb, worker_pids()))
    each = median(plain) * CORES / len(SYMBOLS) / len(CONFIGS)
    told = [
        f"{engine.dialect.name}, {len(SYMBOLS)} symbols x {len(CONFIGS)} versions, {CORES} cores: "
        f"a plain loop {median(plain):.2f} s ({each * 1e3:.1f} ms a decision)"
    ]
    for name, runs, beside in (("scheduled", scheduled, plain[:-1]), ("warm", warm, plain[1:])):
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


def _scheduled(engine: Engine, candles: Path, now: datetime) -> list[float]:
    """Return what `timed_run` does, in a new process that Prefect would have started for the run."""
    address = engine.url.render_as_string(hide_password=False)
    arguments = [address, str(candles), now.isoformat(), str(CORES)]
    started = os.environ | {"PREFECT__FLOW_RUN_ID": str(UUID(int=0))}
    command = [sys.executable, "-m", "tests.benchmarks.scheduled", *arguments]
    said = subprocess.run(command, env=started, capture_output=True, text=True, check=True).stdout
    return [float(each) for each in said.split()]


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


def _private_mb(worker: int) -> float:
    text = Path(f"/proc/{worker}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1e3
