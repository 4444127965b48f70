"""Spread simulations over processes."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def spread(
    run: Callable[[T, range], list[R]],
    trials: Sequence[T],
    *,
    times: int,
    chunk: int,
    few: int,
    workers: int | None,
    done: Callable[[int, int], None],
) -> list[list[R]]:
    """Return the results of each trial, in order: *run* is called with the trial and numbers from range(*times*).

    Args:
        chunk: numbers of one call.
        few: calls in all that are made in this process, as they end before another process would have started.
        workers: number of processes, one per core by default. Given, this process makes no call itself.
        done: called with the number of results and the total.
    """
    chunks = [
        (n, range(first, min(first + chunk, times))) for n in range(len(trials)) for first in range(0, times, chunk)
    ]
    given = ((trials[n] for n, _ in chunks), (numbers for _, numbers in chunks))
    results: list[list[R]] = [[] for _ in trials]

    def collect(answers: Iterable[list[R]]) -> list[list[R]]:
        for (n, _), answer in zip(chunks, answers, strict=True):
            results[n] += answer
            done(sum(map(len, results)), times * len(trials))
        return results

    if workers is None and times * len(trials) <= few:
        return collect(map(run, *given))
    context = get_context("spawn")  # a fork would share the database's sockets
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    try:
        with _block_interrupts():
            answers = pool.map(run, *given)
        return collect(answers)
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Exit when the parent process ends: a killed parent cannot stop its children."""

    def watch(parent: BaseProcess) -> None:
        parent.join()
        os._exit(1)

    if (parent := parent_process()) is not None:
        Thread(target=watch, args=(parent,), daemon=True).start()


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Start processes that ignore Ctrl-C: the parent process stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
