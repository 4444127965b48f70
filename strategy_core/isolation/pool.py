"""What versions have still to be asked, handed out so that no worker idles; never what they answer."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from types import TracebackType
from typing import Generic, Self, TypeVar

from strategy_core.domain.errors import FingerprintMismatch, InvalidEntryPoint
from strategy_core.isolation.client import Description, IsolatedStrategy
from strategy_core.isolation.fingerprint import Fingerprint, changed_parts, fingerprint
from strategy_core.store.tables import StrategyVersion

MANY = 16  # items of one key that wait are worth another worker while more is to come
LEAST = 4  # items at once: what is handed out last must not keep one worker busy while the others have ended

Key = TypeVar("Key")
Item = TypeVar("Item")


class WorkQueue(Generic[Key, Item]):
    """Items that wait, each under its key. Safe to use from several threads.

    Args:
        takers: how many take from it.
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
        """Say that nothing more comes; with *drop* that nothing more is handed out either."""
        with self._changed:
            self._closed = True
            if drop:
                self._waiting.clear()
                self._count = 0
            self._changed.notify_all()

    def take(self, mine: Key | None) -> tuple[Key, list[Item]] | None:
        """Return items of one key: of *mine*, else of which most wait; None when all are taken.

        While more may come it waits for some of *mine*, unless many of another key wait.
        Many while many wait under any key, ever fewer towards the end: so that who takes them end together.
        """
        with self._changed:
            while True:
                key = self._next(mine)
                if key is not None:
                    waiting = self._waiting[key]
                    share = min(self._count // 2, len(waiting)) // self._takers  # the rest of a slow one is for others
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
        few = 0 if mine is None or self._closed else MANY  # more of its own may come
        return most if count > few else None


IDLE = 16  # workers that wait for their version's next candles: each takes memory, a new one some milliseconds


def build_of(entry_point: str, described: Description, symbols: Sequence[str], timeframe: str) -> Fingerprint:
    """Return the fingerprint of the build that is installed now."""
    return fingerprint(
        entry_point,
        described.config,
        symbols=symbols,
        timeframe=timeframe,
        warmup_bars=described.warmup_bars,
        model_files=described.model_files,
    )


def own_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class WorkerPool:
    """Isolated workers, started when a version is asked and kept for its next candles as far as memory allows.

    Args:
        deadline_s: how long a version may take for one decision.
        at_once: how many work at the same time; as many as there are cores for this process, unless given.
    """

    def __init__(self, *, deadline_s: float = 5.0, at_once: int | None = None) -> None:
        self.at_once = at_once or own_cores()
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._idle: list[tuple[str, IsolatedStrategy]] = []  # the one that has waited longest first
        self._held: list[IsolatedStrategy] = []
        self._threads = ThreadPoolExecutor(max_workers=self.at_once)

    def share_out(
        self, batches: Iterable[Mapping[Key, Sequence[Item]]], ask: Callable[[Key, Sequence[Item]], None]
    ) -> None:
        """Call *ask* with a key and some of its items until all of *batches* are asked, `at_once` at a time.

        Each call only waits for a worker process. Batches are drawn meanwhile, one by one, by the caller's own thread.
        """
        line: WorkQueue[Key, Item] = WorkQueue(self.at_once)

        def serve() -> None:
            mine: Key | None = None
            while taken := line.take(mine):
                mine, items = taken
                ask(mine, items)

        serving = [self._threads.submit(serve) for _ in range(self.at_once)]
        try:
            for batch in batches:
                line.put(batch)
            line.close()
            for each in as_completed(serving):
                each.result()
        except BaseException:
            line.close(drop=True)
            raise

    @contextmanager
    def lent(self, version: StrategyVersion) -> Iterator[IsolatedStrategy]:
        """Yield a worker of the version that nobody else uses meanwhile, started if need be.

        Raises:
            FingerprintMismatch: the code, model or library is not what was registered.
            InvalidEntryPoint, InvalidConfig, StrategyFailed: it cannot be loaded.
        """
        key = f"{version.strategy_name} {version.fingerprint}"  # two strategies may run one build
        with self._lock:
            at = next((i for i in reversed(range(len(self._idle))) if self._idle[i][0] == key), None)
            worker = None if at is None else self._idle.pop(at)[1]
        worker = worker or self._started(version)
        try:
            yield worker
        finally:
            with self._lock:
                self._idle.append((key, worker))
                surplus = [self._idle.pop(0)[1] for _ in range(len(self._idle) - IDLE)]
            for each in surplus:
                each.close()

    def of(self, version: StrategyVersion) -> IsolatedStrategy:
        """Return a worker of the version, the caller's own until the pool is closed; it raises as `lent` does."""
        worker = self._started(version)
        self._held.append(worker)
        return worker

    def given(self, version: StrategyVersion, engine: object) -> IsolatedStrategy:
        """Return a worker of the version's entry point by name, or of a ready instance, on the caller's word.

        Raises:
            InvalidEntryPoint: the name is another one's, or the instance cannot be sent to a worker.
            FingerprintMismatch, InvalidConfig, StrategyFailed: see `lent`.
        """
        if isinstance(engine, str):
            if engine != version.entry_point:
                raise InvalidEntryPoint(engine, f"{version.version!r} was registered with {version.entry_point!r}")
            return self.of(version)
        worker = IsolatedStrategy(version.entry_point, version.config, deadline_s=self._deadline_s, engine=engine)
        self._held.append(worker)
        return worker

    def close(self) -> None:
        self._threads.shutdown()
        for worker in [*self._held, *(worker for _, worker in self._idle)]:
            worker.close()
        self._held.clear()
        self._idle.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _started(self, version: StrategyVersion) -> IsolatedStrategy:
        worker = IsolatedStrategy(version.entry_point, version.config, deadline_s=self._deadline_s)
        try:
            _verify(version, worker.describe())
        except BaseException:
            worker.close()
            raise
        return worker


def _verify(version: StrategyVersion, described: Description) -> None:
    found = build_of(version.entry_point, described, version.symbols, version.timeframe)
    if found.digest != version.fingerprint:
        changed = changed_parts(version.fingerprint_parts, found.parts)
        raise FingerprintMismatch(version.strategy_name, version.version, changed)
