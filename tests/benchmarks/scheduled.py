"""One candle run, timed: in this process, or in one of its own as Prefect starts it for every minute.

`python -m tests.benchmarks.scheduled DATABASE CANDLES TIME AT_ONCE` prints what `timed_run` returns.
"""

import pickle
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import prefect.engine  # noqa: F401  it has all of Prefect in memory before it imports a flow
from sqlalchemy import Engine

import flows.shadow  # noqa: F401
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.source import CandleSource
from strategy_core.services.shadow import run_shadow
from strategy_core.store.engine import open_database

Key = TypeVar("Key")
Item = TypeVar("Item")


class Timed(WorkerPool):
    """Says when the asking began and ended; what is before is reading what was decided, what is after is logging."""

    asked: tuple[float, float] = (0.0, 0.0)

    def share_out(
        self, batches: Iterable[Mapping[Key, Sequence[Item]]], ask: Callable[[Key, Sequence[Item]], None]
    ) -> None:
        began = time.perf_counter()
        super().share_out(batches, ask)
        self.asked = (began, time.perf_counter())


def timed_run(engine: Engine, source: CandleSource, workers: Timed, now: datetime) -> list[float]:
    """Return (seconds, before the asking, asking, after it) of a run on one candle."""
    began = time.perf_counter()
    runs = run_shadow(engine, source, workers, now=now)
    ended = time.perf_counter()
    assert [(run.logged, run.errors) for run in runs] == [(len(source.symbols()), 0)] * len(runs)
    return [ended - began, workers.asked[0] - began, workers.asked[1] - workers.asked[0], ended - workers.asked[1]]


def main(address: str, candles: str, now: str, at_once: str) -> None:
    source: CandleSource = pickle.loads(Path(candles).read_bytes())  # takes as long as Prefect until the flow's body
    with Timed(at_once=int(at_once)) as workers:
        print(*timed_run(open_database(address), source, workers, datetime.fromisoformat(now)))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
