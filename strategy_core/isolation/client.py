"""How many workers one version may cost one run; never which of its decisions are asked, nor what they are worth."""

import pickle
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import pandas as pd

from strategy_core.domain.candles import Windows, timeframe_delta
from strategy_core.domain.errors import (
    Invalid,
    InvalidCandles,
    InvalidConfig,
    InvalidEntryPoint,
    IsolationBreach,
    RolloutError,
    StrategyFailed,
    Untrusted,
)
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action, Decision
from strategy_core.isolation import protocol
from strategy_core.isolation.process import Died, Overdue, Process, start_frame
from strategy_core.isolation.protocol import Answer, Question

FAILURES_IN_A_ROW = 3  # of the worker, in one run: a hanging version does not stall a catch-up of a thousand candles
FAILURES_IN_ALL = 10


class FailureBudget:
    """What all workers of one version have cost so far. Safe to use from several threads.

    Attributes:
        lost: the answer to whatever is still to be asked, once too many workers have failed.
    """

    def __init__(self) -> None:
        self.lost: Answer | None = None
        self._in_a_row = 0
        self._in_all = 0
        self._lock = threading.Lock()

    def answered(self) -> None:
        with self._lock:
            self._in_a_row = 0

    def failed(self, failure: Answer) -> None:
        """Count a worker that had to be ended; *failure* says why."""
        with self._lock:
            self._in_a_row += 1
            self._in_all += 1
            if self.lost is None and (self._in_a_row >= FAILURES_IN_A_ROW or self._in_all >= FAILURES_IN_ALL):
                error = f"not asked: {self._in_all} workers failed in this run, the last one so: {failure.error}"
                self.lost = Answer(None, error, failure.kind)


TOO_SHORT = Answer(Decision(Action.HOLD, reason=INSUFFICIENT_HISTORY))


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """Decide at the close of `candles.iloc[p]`, for each p of *positions*, on the *bars* candles that end there.

    Fewer than *bars* candles are answered for the version: hold, `insufficient_history`.
    """

    symbol: str
    timeframe: str
    candles: pd.DataFrame | Windows
    positions: Sequence[int]
    bars: int


class PendingRequests:
    """What is left of one ask.

    Attributes:
        many: answered by one decide_many.
        answers: one per position of the ask; those of too little history are there from the start.
        places: indexes of the positions still to be answered, in order.
    """

    def __init__(self, ask: DecisionRequest, *, many: bool) -> None:
        self.ask = ask
        self.many = many
        self.answers = [TOO_SHORT] * len(ask.positions)
        self.places = deque(i for i, position in enumerate(ask.positions) if position >= ask.bars - 1)

    def question(self) -> Question:
        ask, positions = self.ask, [self.ask.positions[place] for place in self.places]
        start, end = min(positions) - ask.bars + 1, max(positions) + 1  # and not one candle later
        whole = isinstance(ask.candles, Windows)
        windows = ask.candles if isinstance(ask.candles, Windows) else Windows(ask.candles.iloc[start:end])
        return Question(
            symbol=ask.symbol,
            timeframe=ask.timeframe,
            columns=windows.columns,
            table=windows.rows(start, end) if whole else windows.rows(0, end - start),
            positions=np.array(positions, dtype=np.int64) - start,
            bars=ask.bars,
            many=self.many,
        )

    def put(self, answer: Answer) -> None:
        self.answers[self.places.popleft()] = answer

    def fail(self, answer: Answer) -> None:
        """Answer what shares the failed deadline: one position, or all that a decide_many was to answer."""
        self.put(answer)
        while self.many and self.places:
            self.put(answer)


def check_request(ask: DecisionRequest) -> None:
    """Raise InvalidTimeframe or InvalidCandles for an ask that no version can answer."""
    timeframe_delta(ask.timeframe)
    for position in ask.positions:
        if not 0 <= position < len(ask.candles):
            raise InvalidCandles(ask.symbol, f"no candle at position {position} of {len(ask.candles)}")


MEMORY_BYTES = 8 << 30  # address space, which libraries take far more of than of memory
ROW_ALLOWANCE_S = 0.001  # beside the deadline, for each window of a vectorised ask
SEND_ALLOWANCE_S = 5.0
BREACHES_KEPT = 50
NAP_S = 0.05  # the longest that answers may lie in the pipe, which is wide enough for NAP_ANSWERS
NAP_ANSWERS = 128
REPORTS_HEARD = 100  # of breaches, before an answer: twice what a guard reports; without end they outrun any deadline


@dataclass(frozen=True, slots=True)
class Description:
    """What a version is, as its own code says: the config with every default filled, and what it needs."""

    config: dict[str, Any]
    warmup_bars: int
    vectorised: bool
    model_files: tuple[Path, ...]


class IsolatedStrategy:
    """One version's code in a worker process of its own, which is started when first needed and after it died.

    What the worker may do is said in `guard` and `kernel`. Not for use from two threads at once.

    Args:
        entry_point: a known name or `package.module:Class`.
        config: its config, validated in the worker by the strategy's own model.
        deadline_s: time for one decision; past it the worker is killed.
        engine: a ready instance instead, sent to the worker by pickle; *entry_point* is then only its name.
        memory_bytes: address space of the worker; a quarter of it may be memory of its own.
        load_deadline_s: time for the worker to start and the version's modules and model files to load.

    Attributes:
        breaches: what the version tried to touch outside, oldest first, 50 at most.

    Raises:
        InvalidEntryPoint: *engine* cannot be sent.
    """

    def __init__(
        self,
        entry_point: str,
        config: Mapping[str, Any],
        *,
        deadline_s: float = 5.0,
        engine: object | None = None,
        memory_bytes: int = MEMORY_BYTES,
        load_deadline_s: float = 60.0,
    ) -> None:
        self.entry_point = entry_point
        self.deadline_s = deadline_s
        self.load_deadline_s = load_deadline_s
        self.breaches: list[str] = []
        self._process: Process | None = None
        self._description: Description | None = None
        self._refused: RolloutError | None = None
        pickled = None if engine is None else _pickled(engine, entry_point)
        self._start = start_frame(entry_point, config, memory_bytes, pickled)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker; a later ask starts another."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def describe(self) -> Description:
        """Load the version and say what it is.

        Raises:
            InvalidEntryPoint: there is no such strategy.
            InvalidConfig: its own model refuses the config.
            IsolationBreach: loading it tried to touch the outside.
            StrategyFailed: its code raised, hung or ended the worker while loading.
        """
        if self._refused is not None:
            raise self._refused
        if self._description is None:
            self._ready()
        assert self._description is not None
        return self._description

    def decide(
        self, asks: Sequence[DecisionRequest], *, vectorised: bool = False, patience: FailureBudget | None = None
    ) -> list[list[Answer]]:
        """Return one list per ask, one answer per position; a version's fault is an answer, never an exception.

        With *vectorised*, an ask of `warmup_bars` bars goes to `decide_many` where the strategy has one, under one
        deadline of `deadline_s` and a millisecond a row.

        Args:
            vectorised: see above.
            patience: shared by the workers and calls of one run, when it asks a version in parts.

        Raises:
            InvalidCandles: a position that is not in its ask's candles.
            InvalidTimeframe: an ask's timeframe is none.
        """
        for ask in asks:
            check_request(ask)
        try:
            described = self.describe()
        except (Untrusted, Invalid) as refused:
            return [[_refusal(refused)] * len(ask.positions) for ask in asks]
        many_bars = described.warmup_bars if vectorised and described.vectorised else None
        everything = [PendingRequests(ask, many=ask.bars == many_bars) for ask in asks]
        try:
            self._answer(deque(pending for pending in everything if pending.places), patience or FailureBudget())
        except BaseException:
            self.close()  # half an exchange is in its pipes
            raise
        return [pending.answers for pending in everything]

    def _answer(self, pending: deque[PendingRequests], patience: FailureBudget) -> None:
        while pending and patience.lost is None:
            answered, failure = self._converse(pending)
            if answered:
                patience.answered()
            if failure is None:
                return
            self.close()
            patience.failed(failure)
            pending[0].fail(failure)
            if not pending[0].places:
                pending.popleft()
        for rest in pending:
            while rest.places and patience.lost is not None:
                rest.put(patience.lost)

    def _converse(self, pending: deque[PendingRequests]) -> tuple[int, Answer | None]:
        """Ask one worker all that is pending; return how many it answered, and its failure if it had one."""
        answered, reports, tried, allowed_s = 0, 0, "", self.deadline_s
        try:
            process = self._ready()
            questions = protocol.question_frame(asked.question() for asked in pending)
            process.send(questions, time.monotonic() + self.deadline_s + SEND_ALLOWANCE_S)
            waiting, nap_s = sum(len(asked.places) for asked in pending), 0.0
            while pending:
                asked = pending[0]
                allowed_s = self.deadline_s + (ROW_ALLOWANCE_S * len(asked.places) if asked.many else 0.0)
                deadline = time.monotonic() + allowed_s
                left = len(asked.places) - (len(asked.places) if asked.many else 1)
                while len(asked.places) > left:
                    key, value = process.hear(deadline, nap_s)
                    if key == "breach" and reports < REPORTS_HEARD:
                        reports, tried = reports + 1, tried or self._breached(value)
                        continue
                    for answer in _rows(key, value, len(asked.places)):
                        asked.put(replace(answer, decision=None, error=tried, kind="breach") if tried else answer)
                        answered += 1
                        rest = min(NAP_ANSWERS, waiting - answered)
                        nap_s = min(NAP_S, answer.duration_ms / 2e3 * rest)  # waking for each takes the version's core
                    reports, tried = 0, ""
                if not asked.places:
                    pending.popleft()
        except Overdue:
            failure = Answer(None, f"no answer within {allowed_s:g} s", "deadline", allowed_s * 1e3)
        except Died as died:
            failure = Answer(None, str(died), "died")
        except (Untrusted, Invalid) as refused:
            failure = _refusal(refused)
        else:
            return answered, None
        return answered, replace(failure, error=f"{tried}; then {failure.error}", kind="breach") if tried else failure

    def _ready(self) -> Process:
        """Return a worker that has loaded the version: the one at hand, or a new one."""
        if self._process is not None and self._process.alive:
            return self._process
        self.close()
        try:
            self._process = process = Process()
            deadline = time.monotonic() + self.load_deadline_s
            process.send(self._start, deadline)
            for _ in range(REPORTS_HEARD):
                message = process.hear(deadline)
                if message[0] != "breach":
                    break
                self._breached(message[1])
            self._description = _described(*message, self.entry_point)
        except Overdue:
            self._refuse(StrategyFailed(f"loading {self.entry_point} took more than {self.load_deadline_s:g} s"))
        except Died as died:
            self._refuse(StrategyFailed(f"loading {self.entry_point} failed: {died}"))
        except (Untrusted, Invalid) as refused:
            self._refuse(refused)
        return process

    def _refuse(self, refused: RolloutError) -> NoReturn:
        self.close()
        if self._description is None:
            self._refused = refused  # its first loading: asking again would only cost the time again
        raise refused

    def _breached(self, tried: object) -> str:
        text = protocol.one_line(tried)
        if len(self.breaches) < BREACHES_KEPT:
            self.breaches.append(text)
        return text


def _rows(key: str, value: object, most: int) -> list[Answer]:
    try:
        answers = protocol.answers_in(value) if key == "rows" else []
    except protocol.ProtocolError as garbled:
        raise Died(f"its worker sent what was not agreed: {garbled}") from None
    if not 0 < len(answers) <= most:
        raise Died("its worker sent what was not asked for")
    return answers


def _described(key: str, value: object, entry_point: str) -> Description:
    """Return what a worker's first message describes, or raise the refusal it carries."""
    match key, value:
        case "ready", {
            "config": dict(config),
            "warmup_bars": int(bars),
            "vectorised": bool(many),
            "model_files": list(files),
        }:
            return Description(config, bars, many, tuple(Path(str(file)) for file in files))
        case "refused", ["InvalidEntryPoint", [str(why)]]:
            raise InvalidEntryPoint(entry_point, why)
        case "refused", ["InvalidConfig", list(problems)]:
            raise InvalidConfig(entry_point, [str(problem) for problem in problems])
        case "refused", ["IsolationBreach", [str(tried)]]:
            raise IsolationBreach(tried)
        case "refused", ["StrategyFailed", [str(what)]]:
            raise StrategyFailed(what)
        case _:
            raise Died("its worker sent what was not agreed")


def _refusal(refused: RolloutError) -> Answer:
    return Answer(None, str(refused), "breach" if isinstance(refused, IsolationBreach) else "raised")


def _pickled(engine: object, entry_point: str) -> bytes:
    if type(engine).__module__ == "__main__":  # it would be looked for in the worker's own __main__
        raise InvalidEntryPoint(entry_point, "the engine's class is in __main__; give an entry point instead")
    try:
        return pickle.dumps(engine)
    except Exception as refused:  # noqa: BLE001  an engine's own __reduce__ may raise anything
        why = protocol.one_line(f"{type(refused).__name__}: {refused}")
        raise InvalidEntryPoint(
            entry_point, f"the engine cannot be sent to a worker ({why}); give an entry point"
        ) from None
