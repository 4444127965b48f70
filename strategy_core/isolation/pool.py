"""Pool of isolated workers, and the queue that shares work out among them."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Generic, Self, TypeVar

from strategy_core.domain.errors import AnswersMismatch, FingerprintMismatch, InvalidEntryPoint
from strategy_core.isolation.client import LOAD_DEADLINE_S, Description, IsolatedStrategy
from strategy_core.isolation.fingerprint import (
    SCHEMA,
    Fingerprint,
    changed_parts,
    fingerprint,
    registered_model_files,
    schema_of,
)
from strategy_core.isolation.vetting import KnownAnswers, first_difference
from strategy_core.store.tables import StrategyVersion

MANY = 16  # waiting items of one key that justify another worker while more items may come
LEAST = 4  # items per take, so that the last share does not keep one worker busy after the others
IDLE = 16  # idle workers kept for the next candles of their version: memory against milliseconds of start-up

Key = TypeVar("Key")
Item = TypeVar("Item")
ReadAnswers = Callable[[StrategyVersion], bytes | None]  # the content of its KnownAnswers


class WorkQueue(Generic[Key, Item]):
    """Waiting items by key. Thread-safe.

    Args:
        takers: number of threads that take from it.
    """

    def __init__(self, takers: int) -> None:
        self._takers = takers
        self._waiting: dict[Key, deque[Item]] = {}
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, items: Mapping[Key, Sequence[Item]]) -> None:
        with self._changed:
            for key, more in items.items():
                self._waiting.setdefault(key, deque()).extend(more)
                self._count += len(more)
            self._changed.notify_all()

    def close(self, *, drop: bool = False) -> None:
        """Accept no more items. With *drop*, also discard the waiting ones."""
        with self._changed:
            self._closed = True
            if drop:
                self._waiting.clear()
                self._count = 0
            self._changed.notify_all()

    def take(self, mine: Key | None) -> tuple[Key, list[Item]] | None:
        """Return items of one key: of *mine*, or of the key with most items. Return None when all are taken.

        Until the queue is closed it waits for items of *mine*, unless another key has more than `MANY`.
        The number of items shrinks with the queue, so that all takers finish at about the same time.
        """
        with self._changed:
            while True:
                key = self._next(mine)
                if key is not None:
                    waiting = self._waiting[key]
                    share = min(self._count // 2, len(waiting)) // self._takers  # leaves items of a slow key to others
                    count = min(len(waiting), max(LEAST, share))
                    self._count -= count
                    return key, [waiting.popleft() for _ in range(count)]
                if self._closed:
                    return None
                self._changed.wait()

    def _next(self, mine: Key | None) -> Key | None:
        if mine is not None and self._waiting.get(mine):
            return mine
        most = max(self._waiting, key=lambda key: len(self._waiting[key]), default=None)
        count = 0 if most is None else len(self._waiting[most])
        few = 0 if mine is None or self._closed else MANY  # more items of *mine* may come
        return most if count > few else None


def build_of(
    entry_point: str, described: Description, symbols: Sequence[str], timeframe: str, *, schema: str = SCHEMA
) -> Fingerprint:
    """Return the fingerprint of the installed build, by the present *schema* or that of a registered version."""
    return fingerprint(
        entry_point,
        described.config,
        symbols=symbols,
        timeframe=timeframe,
        warmup_bars=described.warmup_bars,
        model_files=described.model_files,
        toggles=described.toggles,
        schema=schema,
    )


def own_cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """Isolated workers, started on demand and kept for later candles of their version, up to `IDLE` of them.

    Args:
        deadline_s: time for one decision.
        load_deadline_s: time to load a version.
        at_once: number of workers that run at the same time, by default the cores of this process.
    """

    def __init__(
        self, *, deadline_s: float = 5.0, load_deadline_s: float = LOAD_DEADLINE_S, at_once: int | None = None
    ) -> None:
        self.at_once = at_once or own_cores()
        self.load_deadline_s = load_deadline_s
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._idle: list[tuple[str, IsolatedStrategy]] = []  # longest idle first
        self._dedicated: list[IsolatedStrategy] = []
        self._threads = ThreadPoolExecutor(max_workers=self.at_once)

    def share_out(
        self, batches: Iterable[Mapping[Key, Sequence[Item]]], ask: Callable[[Key, Sequence[Item]], None]
    ) -> None:
        """Call *ask* with a key and some of its items until all items of *batches* are done, `at_once` calls at a time.

        The calls run in threads that wait for worker processes. The caller's thread draws the batches meanwhile.
        """
        queue: WorkQueue[Key, Item] = WorkQueue(self.at_once)

        def serve() -> None:
            mine: Key | None = None
            while taken := queue.take(mine):
                mine, items = taken
                ask(mine, items)

        serving = [self._threads.submit(serve) for _ in range(self.at_once)]
        try:
            for batch in batches:
                queue.put(batch)
            queue.close()
            for each in as_completed(serving):
                each.result()
        except BaseException:
            queue.close(drop=True)
            raise

    @contextmanager
    def borrow(self, version: StrategyVersion, read_answers: ReadAnswers) -> Iterator[IsolatedStrategy]:
        """Yield a worker of the version for exclusive use, started if necessary.

        Args:
            read_answers: called for a worker that is started, which is then asked for the same answers.

        Raises:
            FingerprintMismatch: its code, a model file or a library differs from what was registered.
            AnswersMismatch: it gives other answers than at its registration.
            InvalidEntryPoint, InvalidConfig, StrategyFailed: the version cannot be loaded.
        """
        key = f"{version.strategy_name} {version.fingerprint}"  # two strategies may have the same build
        with self._lock:
            at = next((i for i in reversed(range(len(self._idle))) if self._idle[i][0] == key), None)
            worker = None if at is None else self._idle.pop(at)[1]
        worker = worker or self._start(version, read_answers)
        try:
            yield worker
        finally:
            with self._lock:
                self._idle.append((key, worker))
                surplus = [self._idle.pop(0)[1] for _ in range(len(self._idle) - IDLE)]
            for each in surplus:
                each.close()

    def time_load(self, version: StrategyVersion, read_answers: ReadAnswers) -> float:
        """Return the seconds that a new worker of the version takes to load. Raises the errors of `borrow`."""
        worker = self._start(version, read_answers)
        worker.close()
        return worker.take_load_s()

    def dedicated(self, version: StrategyVersion, read_answers: ReadAnswers) -> IsolatedStrategy:
        """Return a worker that is the caller's until the pool is closed. Raises the errors of `borrow`."""
        worker = self._start(version, read_answers)
        self._dedicated.append(worker)
        return worker

    def for_engine(self, version: StrategyVersion, engine: object, read_answers: ReadAnswers) -> IsolatedStrategy:
        """Return a dedicated worker for an entry point's name, or for a ready instance, which is not verified.

        Raises:
            InvalidEntryPoint: the version has another entry point, or the instance cannot be pickled.
            FingerprintMismatch, AnswersMismatch, InvalidConfig, StrategyFailed: see `borrow`.
        """
        if isinstance(engine, str):
            if engine != version.entry_point:
                raise InvalidEntryPoint(engine, f"{version.version!r} was registered with {version.entry_point!r}")
            return self.dedicated(version, read_answers)
        worker = IsolatedStrategy(version.entry_point, version.config, deadline_s=self._deadline_s, engine=engine)
        self._dedicated.append(worker)
        return worker

    def close(self) -> None:
        self._threads.shutdown()
        for worker in [*self._dedicated, *(worker for _, worker in self._idle)]:
            worker.close()
        self._dedicated.clear()
        self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, version: StrategyVersion, read_answers: ReadAnswers) -> IsolatedStrategy:
        worker = IsolatedStrategy(
            version.entry_point,
            version.config,
            deadline_s=self._deadline_s,
            load_deadline_s=self.load_deadline_s,
            model_files=registered_model_files(version.fingerprint_parts),
        )
        try:
            _verify(version, worker.describe())
            _verify_answers(version, worker, read_answers)
        except BaseException:
            worker.close()
            raise
        return worker


def _verify(version: StrategyVersion, described: Description) -> None:
    schema = schema_of(version.fingerprint_parts)
    if "toggles" not in version.fingerprint_parts:  # registered before there were toggles
        described = replace(described, toggles="")
    found = build_of(version.entry_point, described, version.symbols, version.timeframe, schema=schema)
    if found.digest != version.fingerprint:
        changed = changed_parts(version.fingerprint_parts, found.parts)
        raise FingerprintMismatch(version.strategy_name, version.version, changed)


def _verify_answers(version: StrategyVersion, worker: IsolatedStrategy, read_answers: ReadAnswers) -> None:
    digest = version.registration_report.get("answers_digest")
    if not digest:
        return  # registered before answers were recorded, or its windows are too large to keep
    content = read_answers(version)
    known = None if content is None else KnownAnswers.read(content)
    if known is None or known.digest != digest:
        raise FingerprintMismatch(version.strategy_name, version.version, ["recorded answers"])
    if differs := first_difference(worker, known):
        raise AnswersMismatch(version.strategy_name, version.version, differs)
