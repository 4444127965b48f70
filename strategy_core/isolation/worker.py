"""The worker process that runs one version's code, without access to a database, the network or secrets.

The fork server forks it. It reads frames and writes lines (see `protocol`) on its two pipes. Output of the version is
discarded.
"""

import gc
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby, islice
from pathlib import Path
from time import perf_counter, time
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import scipy  # noqa: F401  imported, like talib, before the guard is armed, because importing loads native code
import talib  # noqa: F401

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidConfig, InvalidDecision, InvalidEntryPoint, RolloutError, StrategyFailed
from strategy_core.domain.strategy import Context, Decision, Strategy
from strategy_core.isolation import protocol, sandbox
from strategy_core.isolation.guard import Guard
from strategy_core.isolation.protocol import Answer, Kind, Question
from strategy_core.isolation.sandbox import Available, Prepared, View
from strategy_core.strategies.adapters import Backtesting, Freqtrade
from strategy_core.strategies.loading import (
    ReadyConfig,
    as_strategy,
    canonical,
    load,
    resolve,
    trained_until_of,
    validated,
    warmup_of,
)
from strategy_core.strategies.toggles import declared_toggles

_NOWHERE = "\0"  # no file's name starts so
_LIBRARY_FOLDERS = (
    f"{os.sep}site-packages{os.sep}",
    f"{os.sep}dist-packages{os.sep}",
    f"{Path(os.__file__).parent}{os.sep}",
    f"{Path(__file__).parents[1]}{os.sep}",
)
AHEAD = 32  # windows prepared in a batch, because running a version's code evicts our data from the CPU caches
READ_BYTES = 1 << 18  # read buffer for questions of thousands of candles


class Pipes:
    """The worker's ends of its two pipes. Its stdin, stdout and stderr are /dev/null."""

    def __init__(self, inbox: int, outbox: int) -> None:
        self._inbox = os.fdopen(inbox, "rb", buffering=READ_BYTES)
        self._outbox = outbox
        self._lock = threading.RLock()  # a thread of the version may report a breach during a write

    def read_frame(self) -> tuple[dict[str, Any], list[bytes]] | None:
        return protocol.read_frame(self._inbox.read)

    def send(self, **message: Any) -> None:
        text = memoryview(protocol.line(message))
        with self._lock:
            try:
                while text:
                    text = text[os.write(self._outbox, text) :]
            except OSError:
                os._exit(1)  # the parent is gone, or the version closed the pipe and breaches could not be reported


class CandleHistory:
    """The candles of a question. Each decision gets its own copy."""

    def __init__(self, question: Question) -> None:
        table = np.frombuffer(question.table, "<i8").reshape(-1, 1 + len(question.columns))
        self._values = table.view("<f8")[:, 1:].T
        self._columns = pd.Index(list(question.columns))
        self.index = pd.DatetimeIndex(table[:, 0].astype("M8[ns]"), tz="UTC")

    def cut(self, start: int, end: int) -> pd.DataFrame:
        values = self._values[:, start:end].copy("C")  # the version may write to its copy
        return pd.DataFrame(values.T, index=self.index[start:end], columns=self._columns.view(), copy=False)


class LoadedVersion:
    """The loaded strategy with its validated params, called under the guard."""

    def __init__(
        self, strategy: Strategy, params: Any, config: dict[str, Any], guard: Guard, places: Sequence[str] = ()
    ) -> None:
        self._strategy = strategy
        self._places = places
        self._params = params
        self._guard = guard
        self._config = config
        self.warmup_bars = warmup_of(strategy, params)

    def description(self, visible: Collection[str] = ()) -> dict[str, Any]:
        """Return what the version declares. Until it sees its model files, its end of training is unknown.

        If that cannot be told, the version still decides: only its registration needs it.

        Args:
            visible: the model files that this worker may read.
        """
        declared: Callable[[Any], Sequence[Path]] = getattr(self._strategy, "model_files", lambda _: ())
        files = [str(Path(file).absolute()) for file in declared(self._params)]
        until, problem = self._trained_until() if {*files} <= {*visible} else (None, "")
        toggles, toggle_problems = self._toggles()
        return {
            "config": self._config,
            "warmup_bars": self.warmup_bars,
            "vectorised": callable(getattr(self._strategy, "decide_many", None)),
            "model_files": files,
            "notes": list(self._strategy.notes) if isinstance(self._strategy, Backtesting | Freqtrade) else [],
            "trained_until": until and until.isoformat(),
            "trained_until_problem": problem,
            "toggles": toggles,
            "toggle_problems": toggle_problems,
        }

    def _trained_until(self) -> tuple[datetime | None, str]:
        """Return the end of training and "", or None and why it cannot be told."""
        try:
            return trained_until_of(self._strategy, self._params), ""
        except StrategyFailed as refused:
            return None, protocol.one_line(refused)
        except BaseException as raised:  # noqa: BLE001  a version's code
            return None, raised_line(raised, self._places)

    def _toggles(self) -> tuple[Mapping[str, Any], list[str]]:
        """Return the declared toggles, and the problems with them. Only a registration needs them, as above."""
        try:
            return declared_toggles(self._strategy)
        except BaseException as raised:  # noqa: BLE001  a version's code
            return {}, [raised_line(raised, self._places)]

    def answers(self, questions: Iterable[Question]) -> Iterator[list[Answer]]:
        """Yield the answers in the order of the positions, one by one, or in batches for a decide_many."""
        for many, together in groupby(questions, key=lambda question: question.many):
            if many:
                for question in together:
                    answers = self._many(question, CandleHistory(question))
                    for start in range(0, len(answers), protocol.ROWS_A_LINE):
                        yield answers[start : start + protocol.ROWS_A_LINE]
                continue
            windows = (window for question in together for window in _windows(question))
            while ahead := list(islice(windows, AHEAD)):
                for candles, context in ahead:
                    yield [self._one(candles, context)]

    def _one(self, candles: pd.DataFrame, context: Context) -> Answer:
        started = perf_counter()
        answer, error, kind = self._guarded(lambda: self._strategy.decide(candles, self._params, context))
        duration_ms = (perf_counter() - started) * 1e3
        return Answer(None, error, kind, duration_ms) if kind else _as_answer(answer, duration_ms)

    def _many(self, question: Question, history: CandleHistory) -> list[Answer]:
        rows = question.positions - (question.bars - 1)
        candles = history.cut(0, len(history.index))
        expected = len(candles) - question.bars + 1
        context = _context(question, candles.index[-1])
        decide_many: Callable[..., Sequence[Decision]] = self._strategy.decide_many  # type: ignore[attr-defined]
        started = perf_counter()
        decided, error, kind = self._guarded(lambda: list(decide_many(candles, self._params, context)))
        duration_ms = (perf_counter() - started) * 1e3 / expected
        if not kind and len(decided) != expected:
            error, kind = f"decide_many gave {len(decided)} decisions for {expected} windows", "invalid"
        if kind:
            return [Answer(None, error, kind, duration_ms)] * len(rows)
        return [_as_answer(decided[row], duration_ms) for row in rows.tolist()]

    def _guarded(self, call: Callable[[], Any]) -> tuple[Any, str | None, Kind]:
        """Return (result, None, ""), or (None, error, kind). A breach counts even if the version caught its error."""
        result: Any = None
        error: str | None = None
        kind: Kind = ""
        try:
            result = call()
        except InvalidDecision as nonsense:
            error, kind = protocol.one_line(nonsense), "invalid"
        except MemoryError:
            os._exit(protocol.OUT_OF_MEMORY)  # the version's state may be broken by the failed allocation
        except BaseException as raised:  # noqa: BLE001  a version's code: SystemExit is its failure and must not end the worker
            error, kind = raised_line(raised, self._places), "raised"
        tried = self._guard.take()
        return (None, tried[0], "breach") if tried else (result, error, kind)


_UNSEEN = "; a version sees only files that model_files(params) returns, and only after its modules are imported"


def raised_line(raised: BaseException, places: Sequence[str] = ()) -> str:
    """Return the exception's name, text and location in one line.

    The location is the last line of the version's own code, which is below *places* or in no library.
    """
    place = ""
    entries = traceback.extract_tb(raised.__traceback__)
    own = [entry for entry in entries if entry.filename.startswith((*places, _NOWHERE)) or not _of_library(entry)]
    for entry in (own or entries)[-1:]:
        place = f" ({Path(entry.filename).name}, line {entry.lineno})"
    try:
        text = protocol.one_line(raised)
    except BaseException:  # noqa: BLE001  __str__ may be a version's code too
        text = "(its text cannot be read)"
    hint = _UNSEEN if isinstance(raised, FileNotFoundError) else ""
    return f"{type(raised).__name__}: {text}{place}{hint}" if text else f"{type(raised).__name__}{place}{hint}"


def _of_library(entry: traceback.FrameSummary) -> bool:
    return not Path(entry.filename).is_absolute() or any(folder in entry.filename for folder in _LIBRARY_FOLDERS)


def _places_of(module_name: str) -> tuple[str, ...]:
    """Return how the names of all files start that belong to the top-level package of a loaded module."""
    top = module_name.partition(".")[0]
    module = sys.modules[module_name if top == "strategy_core" else top]
    folders = getattr(module, "__path__", None)
    return (str(module.__file__),) if folders is None else tuple(f"{folder}{os.sep}" for folder in folders)


def _windows(question: Question) -> Iterator[tuple[pd.DataFrame, Context]]:
    history = CandleHistory(question)
    for last in question.positions.tolist():
        candles = history.cut(last - question.bars + 1, last + 1)
        yield candles, _context(question, candles.index[-1])


def _context(question: Question, opened: pd.Timestamp) -> Context:
    return Context(question.symbol, question.timeframe, opened.to_pydatetime() + timeframe_delta(question.timeframe))


def _as_answer(answer: object, duration_ms: float) -> Answer:
    try:
        return Answer(protocol.loggable(protocol.plain(answer)), None, "", duration_ms)
    except InvalidDecision as nonsense:
        return Answer(None, protocol.one_line(nonsense), "invalid", duration_ms)


def _load(start: Mapping[str, Any], parts: Sequence[bytes], guard: Guard) -> LoadedVersion:
    entry_point, config = start["entry_point"], start["config"]
    if ahead_s := start.get("clock_ahead_s"):
        _move_clock(ahead_s)
    strategy = as_strategy(pickle.loads(parts[0]), entry_point) if parts else load(entry_point)  # noqa: S301  the parent's
    given = {} if strategy.Params is ReadyConfig else config
    params = validated(strategy.Params, given, entry_point)
    source = type(strategy).__module__ if parts else resolve(entry_point).partition(":")[0]
    return LoadedVersion(strategy, params, canonical(params, given, entry_point), guard, _places_of(source))


def _move_clock(ahead_s: float) -> None:
    """Move the clock that Python code reads. The names that a version imports later, or has, are moved too."""
    sys.modules["pytest"] = None  # type: ignore[assignment]  # else it is imported too, where it is installed: a second
    from time_machine import travel  # only the vetting needs it

    del sys.modules["pytest"]
    travel(time() + ahead_s, tick=True).start()


def serve(
    requests: socket.socket, found: Available
) -> NoReturn:  # pragma: no cover - a worker may write no coverage file
    """Answer the fork server's requests: fork a worker for each "fork", kill and reap a worker for an "end"."""
    tempfile.gettempdir()  # the first call writes to find the folder, which would be a breach later
    prepared = sandbox.prepare(found)
    gc.freeze()  # otherwise each worker's garbage collector would copy the shared pages of all imports
    namespace = os.open("/proc/self/ns/pid_for_children", os.O_RDONLY) if "namespaces" not in found.missing else -1
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, 64, 2)
        if not request:
            os._exit(0)  # the parent has ended, and the kernel ends the workers
        if request.startswith(b"end"):
            pid = int(request.split()[1])
            os.kill(pid, signal.SIGKILL)  # has no effect on a zombie
            requests.send(b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            continue
        pid = sandbox.fork_into_new_namespace(namespace) if namespace >= 0 else os.fork()
        if pid == 0:
            requests.close()
            if namespace >= 0:
                os.close(namespace)
            sandbox.end_with_parent()
            _run_worker(Pipes(*descriptors), prepared)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(b"%d" % pid)


def _run_worker(pipes: Pipes, prepared: Prepared) -> NoReturn:  # pragma: no cover - a worker may write no coverage file
    """Serve one version until the pipe ends."""
    start = pipes.read_frame()
    if start is None:
        os._exit(0)
    header, parts = start
    sys.path[:] = header["search_path"]
    np.random.seed()
    guard = Guard(lambda tried: pipes.send(breach=protocol.one_line(tried)))
    view = View(
        {name: Path(file) for name, file in header["modules"].items()},
        [Path(file) for file in header["model_files"]],
        Path(header["folder"]),
    )
    try:
        sandbox.confine(prepared, view, header["search_path"], header["memory_bytes"])
    except Exception as failed:  # noqa: BLE001  whatever it is, no code of the version may run
        pipes.send(refused=["IsolationUnavailable", [prepared.found.level, protocol.one_line(failed)]])
        os._exit(0)
    socket.has_ipv6 = False  # urllib3, which many packages import, tries IPv6 at its import: that would be a breach
    sys.modules["dask"] = None  # type: ignore[assignment]  # fails without /proc. scikit-learn can do without it
    guard.arm()
    version = _load_and_report(header, parts, guard, pipes)
    gc.freeze()  # also what the version imported
    while questions := pipes.read_frame():
        for answers in version.answers(protocol.questions_in(*questions)):
            pipes.send(rows=[protocol.row(answer) for answer in answers])
    os._exit(0)  # skips exit handlers of the version


def _load_and_report(header: Mapping[str, Any], parts: Sequence[bytes], guard: Guard, pipes: Pipes) -> LoadedVersion:
    message: dict[str, Any] = {}
    version: LoadedVersion | None = None
    try:
        if header.get("wants") == "params":
            message = {"params": load(header["entry_point"]).Params.model_json_schema()}
        else:
            version = _load(header, parts, guard)
            message = {"ready": version.description(header["model_files"])}
        refused = _load_error(None, guard.take())
    except BaseException as raised:  # noqa: BLE001  a version's code
        refused = _load_error(raised, guard.take())
    if refused is not None:
        pipes.send(refused=refused)
        os._exit(0)
    pipes.send(**message)
    if version is None:
        os._exit(0)
    return version


def _load_error(raised: BaseException | None, tried: Sequence[str]) -> list[Any] | None:
    """Return the name and arguments of the error for the parent to raise, or None after a successful load."""
    if tried:
        return ["IsolationBreach", [protocol.one_line(tried[0])]]
    if raised is None:
        return None
    if isinstance(raised, InvalidEntryPoint):
        return ["InvalidEntryPoint", [protocol.one_line(raised.why)]]
    if isinstance(raised, InvalidConfig):
        return ["InvalidConfig", [protocol.one_line(problem) for problem in raised.problems]]
    if isinstance(raised, RolloutError):
        return ["StrategyFailed", [protocol.one_line(raised)]]
    return ["StrategyFailed", [raised_line(raised)]]
