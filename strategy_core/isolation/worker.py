"""The worker process that runs one version's code, and nothing else; it never sees a database, a network or a secret.

Run as `python -P -m strategy_core.isolation.worker SOCKET`, it is the nursery that forks the workers. A worker takes
frames and answers lines (see `wire`) on two pipes of its own; what the version prints goes nowhere.
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import scipy  # noqa: F401  imported, as talib is, before the guard is armed: importing loads native code
import talib  # noqa: F401

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidConfig, InvalidDecision, InvalidEntryPoint, RolloutError
from strategy_core.domain.strategy import Context, Decision, Strategy
from strategy_core.isolation import protocol, sandbox
from strategy_core.isolation.protocol import Answer, Kind, Question
from strategy_core.isolation.sandbox import Guard
from strategy_core.strategies.loading import ReadyConfig, as_strategy, canonical, load, validated, warmup_of

AHEAD = 32  # windows cut in a row: after a version's code has run, the caches hold nothing of ours
READ_BYTES = 1 << 18  # of a question's thousands of candles at once


class Pipes:
    """A worker's ends of its two pipes; its stdin, stdout and stderr are the nursery's: /dev/null."""

    def __init__(self, inbox: int, outbox: int) -> None:
        self._inbox = os.fdopen(inbox, "rb", buffering=READ_BYTES)
        self._outbox = outbox
        self._lock = threading.RLock()  # a version's thread may breach while a line is on its way

    def read_frame(self) -> tuple[dict[str, Any], list[bytes]] | None:
        return protocol.read_frame(self._inbox.read)

    def say(self, **message: Any) -> None:
        text = memoryview(protocol.line(message))
        with self._lock:
            try:
                while text:
                    text = text[os.write(self._outbox, text) :]
            except OSError:
                os._exit(1)  # nobody listens, or the version closed the pipe: a breach could not be reported


class CandleHistory:
    """The candles of a question, out of which each decision gets a copy of its own."""

    def __init__(self, question: Question) -> None:
        table = np.frombuffer(question.table, "<i8").reshape(-1, 1 + len(question.columns))
        self._values = table.view("<f8")[:, 1:].T
        self._columns = pd.Index(list(question.columns))
        self.index = pd.DatetimeIndex(table[:, 0].astype("M8[ns]"), tz="UTC")

    def cut(self, start: int, end: int) -> pd.DataFrame:
        values = self._values[:, start:end].copy("C")  # the version's own: what it writes there, nobody else reads
        return pd.DataFrame(values.T, index=self.index[start:end], columns=self._columns.view(), copy=False)


class LoadedVersion:
    """The loaded strategy with its validated params, asked under the guard."""

    def __init__(self, strategy: Strategy, params: Any, config: dict[str, Any], guard: Guard) -> None:
        self._strategy = strategy
        self._params = params
        self._guard = guard
        self._config = config
        self.warmup_bars = warmup_of(strategy, params)

    def description(self) -> dict[str, Any]:
        files: Callable[[Any], Sequence[Path]] = getattr(self._strategy, "model_files", lambda _: ())
        return {
            "config": self._config,
            "warmup_bars": self.warmup_bars,
            "vectorised": callable(getattr(self._strategy, "decide_many", None)),
            "model_files": [str(Path(file).absolute()) for file in files(self._params)],
        }

    def answers(self, questions: Iterable[Question]) -> Iterator[list[Answer]]:
        """Yield the answers in the order of the positions, one by one or, of a decide_many, in batches."""
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
        said, error, kind = self._guarded(lambda: self._strategy.decide(candles, self._params, context))
        duration_ms = (perf_counter() - started) * 1e3
        return Answer(None, error, kind, duration_ms) if kind else _as_answer(said, duration_ms)

    def _many(self, question: Question, history: CandleHistory) -> list[Answer]:
        rows = question.positions - (question.bars - 1)
        candles = history.cut(0, len(history.index))
        expected = len(candles) - question.bars + 1
        context = _context(question, candles.index[-1])
        decide_many: Callable[..., Sequence[Decision]] = self._strategy.decide_many  # type: ignore[attr-defined]
        started = perf_counter()
        said, error, kind = self._guarded(lambda: list(decide_many(candles, self._params, context)))
        duration_ms = (perf_counter() - started) * 1e3 / expected
        if not kind and len(said) != expected:
            error, kind = f"decide_many gave {len(said)} decisions for {expected} windows", "invalid"
        if kind:
            return [Answer(None, error, kind, duration_ms)] * len(rows)
        return [_as_answer(said[row], duration_ms) for row in rows.tolist()]

    def _guarded(self, call: Callable[[], Any]) -> tuple[Any, str | None, Kind]:
        """Return what *call* said, or an error and its kind; a breach shows even when the version swallowed it."""
        said: Any = None
        error: str | None = None
        kind: Kind = ""
        try:
            said = call()
        except InvalidDecision as nonsense:
            error, kind = protocol.one_line(nonsense), "invalid"
        except MemoryError:
            os._exit(
                protocol.OUT_OF_MEMORY
            )  # what the failed allocation left behind is not to be trusted with the next candle
        except BaseException as raised:  # noqa: BLE001  a version's code: SystemExit is its failure, not our end
            error, kind = raised_line(raised), "raised"
        tried = self._guard.take()
        return (None, tried[0], "breach") if tried else (said, error, kind)


def raised_line(raised: BaseException) -> str:
    """Return the exception's name, text and place in one line."""
    place = ""
    for entry in traceback.extract_tb(raised.__traceback__)[-1:]:
        place = f" ({Path(entry.filename).name}, line {entry.lineno})"
    try:
        text = protocol.one_line(raised)
    except BaseException:  # noqa: BLE001  its __str__ is a version's code too
        text = "(its text cannot be read)"
    return f"{type(raised).__name__}: {text}{place}" if text else f"{type(raised).__name__}{place}"


def _windows(question: Question) -> Iterator[tuple[pd.DataFrame, Context]]:
    history = CandleHistory(question)
    for last in question.positions.tolist():
        candles = history.cut(last - question.bars + 1, last + 1)
        yield candles, _context(question, candles.index[-1])


def _context(question: Question, opened: pd.Timestamp) -> Context:
    return Context(question.symbol, question.timeframe, opened.to_pydatetime() + timeframe_delta(question.timeframe))


def _as_answer(said: object, duration_ms: float) -> Answer:
    try:
        return Answer(protocol.loggable(protocol.plain(said)), None, "", duration_ms)
    except InvalidDecision as nonsense:
        return Answer(None, protocol.one_line(nonsense), "invalid", duration_ms)


def _loaded(start: Mapping[str, Any], parts: Sequence[bytes], guard: Guard) -> LoadedVersion:
    entry_point, config = start["entry_point"], start["config"]
    strategy = as_strategy(pickle.loads(parts[0]), entry_point) if parts else load(entry_point)  # noqa: S301  the parent's
    params = validated(strategy.Params, {} if strategy.Params is ReadyConfig else config, entry_point)
    return LoadedVersion(strategy, params, canonical(params), guard)


def main() -> None:  # pragma: no cover - a worker may write no coverage file
    """Fork a worker for every "fork" that comes with its two pipes; wait for the one that a "reap" names."""
    asked = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    tempfile.gettempdir()  # finds the folder by writing there: libraries that only ask for its name must not breach
    gc.freeze()  # else each worker's collector walks, and so copies, all that was imported here
    nursery_pid = os.getpid()
    while True:
        request, descriptors, _, _ = socket.recv_fds(asked, 64, 2)
        if not request:
            os._exit(0)  # its parent has ended; the kernel ends its workers
        if request.startswith(b"reap"):
            _, status = os.waitpid(int(request.split()[1]), 0)
            asked.send(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            asked.close()
            sandbox.end_with_parent(nursery_pid)
            _work(Pipes(*descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        asked.send(b"%d" % pid)


def _work(pipes: Pipes) -> NoReturn:  # pragma: no cover - a worker may write no coverage file
    """Be one version's worker until its pipe ends."""
    start = pipes.read_frame()
    if start is None:
        os._exit(0)
    header, parts = start
    sys.path[:] = header["search_path"]
    os.chdir(header["folder"])
    np.random.seed()
    guard = Guard(lambda tried: pipes.say(breach=protocol.one_line(tried)))
    sandbox.limit(header["memory_bytes"])
    guard.arm()
    version = _ready(header, parts, guard, pipes)
    gc.freeze()  # and what the version imported
    while asked := pipes.read_frame():
        for answers in version.answers(protocol.questions_in(*asked)):
            pipes.say(rows=[protocol.row(answer) for answer in answers])
    os._exit(0)  # a version's exit handlers have no say


def _ready(header: Mapping[str, Any], parts: Sequence[bytes], guard: Guard, pipes: Pipes) -> LoadedVersion:
    try:
        version = _loaded(header, parts, guard)
        description = version.description()
        refused = _refused(None, guard.take())
    except BaseException as raised:  # noqa: BLE001  a version's code
        refused = _refused(raised, guard.take())
    if refused is not None:
        pipes.say(refused=refused)
        os._exit(0)
    guard.loading = False
    pipes.say(ready=description)
    return version


def _refused(raised: BaseException | None, tried: Sequence[str]) -> list[Any] | None:
    """Return the name and facts of the error that the parent is to raise; None when loading went well."""
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


if __name__ == "__main__":
    main()
