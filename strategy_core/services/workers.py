"""The worker processes that versions run in, one each, kept as long as the pool; a version that changed gets none."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self, TypeVar

from strategy_core.domain.errors import FingerprintMismatch, InvalidEntryPoint
from strategy_core.isolation.fingerprint import Fingerprint, changed_parts, fingerprint
from strategy_core.isolation.isolated import Description, IsolatedStrategy
from strategy_core.store.tables import StrategyVersion

Turn = TypeVar("Turn")


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


class Workers:
    """Isolated workers by version.

    Args:
        deadline_s: how long a version may take for one decision.
    """

    def __init__(self, *, deadline_s: float = 5.0) -> None:
        self._deadline_s = deadline_s
        self._running: dict[str, IsolatedStrategy] = {}
        self._threads = ThreadPoolExecutor(max_workers=2)  # kept: a worker dies with the thread that started it

    def for_each(self, turns: Sequence[Turn], ask: Callable[[Turn], None]) -> None:
        """Call *ask* for each of *turns*, two at a time: each call only waits for its version's worker process."""
        list(self._threads.map(ask, turns))

    def of(self, version: StrategyVersion) -> IsolatedStrategy:
        """Return the version's worker, started if need be.

        Raises:
            FingerprintMismatch: the code, model or library is not what was registered.
            InvalidEntryPoint, InvalidConfig, StrategyFailed: it cannot be loaded.
        """
        key = (
            f"{version.strategy_name} {version.fingerprint}"  # two strategies may run one build, each in its own thread
        )
        if key not in self._running:
            worker = IsolatedStrategy(version.entry_point, version.config, deadline_s=self._deadline_s)
            try:
                self._verify(version, worker)
            except BaseException:
                worker.close()
                raise
            self._running[key] = worker
        return self._running[key]

    def given(self, version: StrategyVersion, engine: object) -> IsolatedStrategy:
        """Return a worker of the version's entry point by name, or of a ready instance, on the caller's word.

        Raises:
            InvalidEntryPoint: the name is another one's, or the instance cannot be sent to a worker.
            FingerprintMismatch, InvalidConfig, StrategyFailed: see `of`.
        """
        if isinstance(engine, str):
            if engine != version.entry_point:
                raise InvalidEntryPoint(engine, f"{version.version!r} was registered with {version.entry_point!r}")
            return self.of(version)
        worker = IsolatedStrategy(version.entry_point, version.config, deadline_s=self._deadline_s, engine=engine)
        return self._running.setdefault(f"{version.fingerprint} {id(worker)}", worker)

    def close(self) -> None:
        self._threads.shutdown()
        for worker in self._running.values():
            worker.close()
        self._running.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _verify(self, version: StrategyVersion, worker: IsolatedStrategy) -> None:
        found = build_of(version.entry_point, worker.describe(), version.symbols, version.timeframe)
        if found.digest != version.fingerprint:
            changed = changed_parts(version.fingerprint_parts, found.parts)
            raise FingerprintMismatch(version.strategy_name, version.version, changed)
