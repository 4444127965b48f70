"""Ask a version for decisions in its worker process, with deadlines and a limit on failures."""

import pickle
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
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
    InvalidToggles,
    IsolationBreach,
    IsolationUnavailable,
    NaiveTime,
    RolloutError,
    StrategyFailed,
    StrategyOverdue,
    TimeOutOfRange,
    Untrusted,
    reason_of,
)
from strategy_core.domain.lifecycle import utc
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action, Decision
from strategy_core.domain.toggles import declaration_text, read_declaration
from strategy_core.isolation import protocol
from strategy_core.isolation.fingerprint import check_model_files, model_file_parts, own_modules
from strategy_core.isolation.process import Died, Overdue, Process, checked_config, start_frame
from strategy_core.isolation.protocol import Answer, Kind, Question
from strategy_core.isolation.sandbox import View
from strategy_core.strategies.loading import resolve

FAILURES_IN_A_ROW = 3  # per run, so that a hanging version does not stall a catch-up of a thousand candles
FAILURES_IN_ALL = 10
LOAD_DEADLINE_S = 60.0
MEMORY_BYTES = 8 << 30  # address space, of which libraries reserve far more than they use
ROW_ALLOWANCE_S = 0.001  # added to the deadline for each window of a vectorised request
SEND_ALLOWANCE_S = 5.0
BREACHES_KEPT = 50
PROBLEMS_SHOWN = 50
NAP_S = 0.05  # the longest time that answers may wait in the pipe, which has room for NAP_ANSWERS
NAP_ANSWERS = 128
REPORTS_HEARD = 100  # breaches read before an answer, twice what a guard reports: endless ones would outrun a deadline
TOO_SHORT = Answer(Decision(Action.HOLD, reason=INSUFFICIENT_HISTORY))


class FailureBudget:
    """Limits the failed workers of one version in one run. Thread-safe.

    Attributes:
        final_answer: the answer to all remaining requests once too many workers have failed, else None.
    """

    def __init__(self) -> None:
        self.final_answer: Answer | None = None
        self._in_a_row = 0
        self._in_all = 0
        self._lock = threading.Lock()

    def record_answer(self) -> None:
        with self._lock:
            self._in_a_row = 0

    def record_failure(self, failure: Answer) -> None:
        """Count a worker that had to be ended because of *failure*."""
        with self._lock:
            self._in_a_row += 1
            self._in_all += 1
            if self.final_answer is None and (self._in_a_row >= FAILURES_IN_A_ROW or self._in_all >= FAILURES_IN_ALL):
                error = f"not asked: {self._in_all} workers failed in this run, the last one with: {failure.error}"
                self.final_answer = Answer(None, error, failure.kind)


@dataclass(frozen=True, slots=True)
class DecisionRequest:
    """Decide at the close of `candles.iloc[p]`, for each p of *positions*, on the *bars* candles that end there.

    A position with fewer than *bars* candles is answered without the version: hold, `insufficient_history`.
    """

    symbol: str
    timeframe: str
    candles: pd.DataFrame | Windows
    positions: Sequence[int]
    bars: int


class PendingRequests:
    """The unanswered rest of one request.

    Attributes:
        many: whether one call of decide_many answers it.
        answers: one per position. Positions with too little history are answered from the start.
        places: indexes of the positions still to be answered, in order.
    """

    def __init__(self, ask: DecisionRequest, *, many: bool) -> None:
        self.ask = ask
        self.many = many
        self.answers = [TOO_SHORT] * len(ask.positions)
        self.places = deque(i for i, position in enumerate(ask.positions) if position >= ask.bars - 1)

    def question(self) -> Question:
        ask, positions = self.ask, [self.ask.positions[place] for place in self.places]
        start, end = min(positions) - ask.bars + 1, max(positions) + 1  # later candles would be look-ahead
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
        """Answer the position that failed, or all positions of a decide_many."""
        self.put(answer)
        while self.many and self.places:
            self.put(answer)


def check_request(ask: DecisionRequest) -> None:
    """Raise InvalidTimeframe or InvalidCandles for a request that no version can answer."""
    timeframe_delta(ask.timeframe)
    for position in ask.positions:
        if not 0 <= position < len(ask.candles):
            raise InvalidCandles(ask.symbol, f"no candle at position {position} of {len(ask.candles)}")


@dataclass(frozen=True, slots=True)
class Description:
    """What a version's code declares.

    Attributes:
        config: with every default filled in.
        notes: for the registration report.
        trained_until: end of the candles that it was fitted to, in UTC, if it names one.
        trained_until_problem: why that cannot be told, or "".
        toggles: the declared toggles, as `domain.toggles.declaration_text` writes them, or "".
        toggle_problems: why they are refused.
    """

    config: dict[str, Any]
    warmup_bars: int
    vectorised: bool
    model_files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    trained_until: datetime | None = None
    trained_until_problem: str = ""
    toggles: str = ""
    toggle_problems: tuple[str, ...] = ()


class IsolatedStrategy:
    """One version's code in its own worker process, started when first needed and again after it died.

    `sandbox` limits what the worker may do. Not thread-safe.

    Args:
        entry_point: a known name or `package.module:Class`.
        config: its config, validated in the worker by the strategy's own model.
        deadline_s: time for one decision. After it the worker is killed.
        engine: a ready instance to use instead, sent to the worker by pickle. *entry_point* is then only its name.
        memory_bytes: address space of the worker. A quarter of it may be private memory.
        load_deadline_s: time to start the worker and to load the version's modules and model files.
        model_files: the parts of its fingerprint about model files, if it is registered. A worker sees no others.

    Attributes:
        breaches: what the version tried to touch outside, oldest first, at most 50.

    Raises:
        InvalidEntryPoint: *engine* cannot be pickled.
    """

    def __init__(
        self,
        entry_point: str,
        config: Mapping[str, Any],
        *,
        deadline_s: float = 5.0,
        engine: object | None = None,
        memory_bytes: int = MEMORY_BYTES,
        load_deadline_s: float = LOAD_DEADLINE_S,
        model_files: Mapping[str, str] | None = None,
    ) -> None:
        self.entry_point = entry_point
        self.deadline_s = deadline_s
        self.load_deadline_s = load_deadline_s
        self.breaches: list[str] = []
        self._load_s = 0.0
        self._process: Process | None = None
        self._description: Description | None = None
        self._refused: RolloutError | None = None
        self._pickled = None if engine is None else _pickled(engine, entry_point)
        self._module = None if engine is None else type(engine).__module__
        self._config = checked_config(config, entry_point)
        self._memory_bytes = memory_bytes
        self._folder = Path.cwd()
        self._clock_ahead_s = 0.0
        self._registered_files = model_files

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def load_next(self, described: Description) -> None:
        """Let workers that are started from now on load what is stored: the config and no other model files."""
        self._config = checked_config(described.config, self.entry_point)
        self._registered_files = model_file_parts(described.model_files, self.entry_point)

    def under_clock(self, ahead: timedelta) -> Self:
        """Return the same version with workers whose clock is *ahead* of the real one."""
        other = copy(self)
        other.breaches, other._process = [], None
        other._clock_ahead_s = ahead.total_seconds()
        return other

    def close(self) -> None:
        """End the worker. A later request starts another."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def take_load_s(self) -> float:
        """Return the seconds of its slowest load since the last call, 0 without one."""
        taken, self._load_s = self._load_s, 0.0
        return taken

    def describe(self) -> Description:
        """Load the version and return its description.

        Raises:
            InvalidEntryPoint: there is no such strategy.
            InvalidConfig: the strategy's model refuses the config.
            IsolationBreach: its code tried to touch the outside while loading.
            StrategyFailed: its code raised, hung or ended the worker while loading.
        """
        if self._refused is not None:
            raise self._refused
        if self._description is None:
            self._ready()
        assert self._description is not None
        return self._description

    def read_params_schema(self) -> dict[str, Any]:
        """Load the code without a config and return the JSON schema of its config. The version wrote it: trust nothing.

        Raises:
            InvalidEntryPoint: there is no such strategy.
            IsolationBreach: its code tried to touch the outside while loading.
            StrategyFailed: its code raised, hung or ended the worker, or its model has no JSON schema.
        """
        try:
            _, (key, value) = self._start((), wants="params")
            if key == "params" and isinstance(value, dict) and protocol.encodable([value]):
                return value
            _description_in(key, value, self.entry_point)
        except Overdue:
            raise StrategyOverdue(f"loading {self.entry_point} took more than {self.load_deadline_s:g} s") from None
        except Died as died:
            raise StrategyFailed(f"loading {self.entry_point} failed: {died}") from None
        finally:
            self.close()
        raise StrategyFailed(f"loading {self.entry_point} failed: its worker sent an unexpected message")

    def decide(
        self, asks: Sequence[DecisionRequest], *, vectorised: bool = False, budget: FailureBudget | None = None
    ) -> list[list[Answer]]:
        """Return one list per request with one answer per position. A version's failure is an answer, not an exception.

        Args:
            vectorised: use `decide_many`, if the strategy has it, for requests of `warmup_bars` bars. Its deadline is
                `deadline_s` plus a millisecond per row.
            budget: shared by all workers and calls of one run that asks a version in parts.

        Raises:
            InvalidCandles: a position is outside the candles of its request.
            InvalidTimeframe: a request has an unknown timeframe.
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
            self._answer(deque(pending for pending in everything if pending.places), budget or FailureBudget())
        except BaseException:
            self.close()  # its pipes hold half an exchange
            raise
        return [pending.answers for pending in everything]

    def _answer(self, pending: deque[PendingRequests], budget: FailureBudget) -> None:
        while pending and budget.final_answer is None:
            answered, failure = self._exchange(pending)
            if answered:
                budget.record_answer()
            if failure is None:
                return
            self.close()
            budget.record_failure(failure)
            pending[0].fail(failure)
            if not pending[0].places:
                pending.popleft()
        for rest in pending:
            while rest.places and budget.final_answer is not None:
                rest.put(budget.final_answer)

    def _exchange(self, pending: deque[PendingRequests]) -> tuple[int, Answer | None]:
        """Send all pending requests to one worker. Return the number of answers, and its failure if it had one."""
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
                        reports, tried = reports + 1, tried or self._record_breach(value)
                        continue
                    for answer in _answers_in(key, value, len(asked.places)):
                        asked.put(replace(answer, decision=None, error=tried, kind="breach") if tried else answer)
                        answered += 1
                        rest = min(NAP_ANSWERS, waiting - answered)
                        nap_s = min(
                            NAP_S, answer.duration_ms / 2e3 * rest
                        )  # waking up for each answer would take CPU time from the version
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
        """Return the worker with the loaded version, started if necessary."""
        if self._process is not None and self._process.alive:
            return self._process
        self.close()
        try:
            files = () if self._description is None else self._description.model_files
            process, described = self._load(files)
            if described.model_files != files and self._may_see(described.model_files):
                self.close()  # only now is it known which files the worker must see
                files = described.model_files
                process, described = self._load(files)
                same = described.model_files == files
            else:
                same = True  # files that were not registered stay unseen, and the caller finds another fingerprint
            if not same:
                raise StrategyFailed(f"{self.entry_point} names other model files each time it is loaded")
            self._description = described
        except Overdue:
            self._refuse(StrategyOverdue(f"loading {self.entry_point} took more than {self.load_deadline_s:g} s"))
        except Died as died:
            self._refuse(StrategyFailed(f"loading {self.entry_point} failed: {died}"))
        except (Untrusted, Invalid) as refused:
            self._refuse(refused)
        return process

    def _may_see(self, files: tuple[Path, ...]) -> bool:
        """Whether the files may be shown: of a registered version only those of its fingerprint."""
        if self._registered_files is None:
            return True
        try:
            return model_file_parts(files, self.entry_point) == self._registered_files
        except InvalidEntryPoint:  # one of them cannot be read
            return False

    def _load(self, model_files: tuple[Path, ...]) -> tuple[Process, Description]:
        process, message = self._start(model_files)
        return process, _description_in(*message, self.entry_point)

    def _start(self, model_files: tuple[Path, ...], *, wants: str = "") -> tuple[Process, tuple[str, Any]]:
        """Start a worker and return it with its first message. *wants* is `params` for the schema of the config."""
        module = self._module or resolve(self.entry_point).partition(":")[0]
        modules = own_modules(module, self.entry_point)
        check_model_files(self.entry_point, model_files, modules, self._config)
        view = View(modules, [file for file in model_files if file.is_file()], self._folder)
        began = time.monotonic()
        self._process = process = Process()
        deadline = began + self.load_deadline_s
        header = {
            "entry_point": self.entry_point,
            "config": self._config,
            "memory_bytes": self._memory_bytes,
            "clock_ahead_s": self._clock_ahead_s,
            "wants": wants,
        }
        process.send(start_frame(header, view, self._pickled), deadline)
        for _ in range(REPORTS_HEARD):
            message = process.hear(deadline)
            if message[0] != "breach":
                break
            self._record_breach(message[1])
        self._load_s = max(self._load_s, time.monotonic() - began)
        return process, message

    def _refuse(self, refused: RolloutError) -> NoReturn:
        self.close()
        if self._description is None:
            self._refused = refused  # a failed first load is final, because another try would fail again
        raise refused

    def _record_breach(self, tried: object) -> str:
        text = protocol.one_line(tried)
        if len(self.breaches) < BREACHES_KEPT:
            self.breaches.append(text)
        return text


def _answers_in(key: str, value: object, most: int) -> list[Answer]:
    try:
        answers = protocol.answers_in(value) if key == "rows" else []
    except protocol.ProtocolError as garbled:
        raise Died(f"its worker violated the protocol: {garbled}") from None
    if not 0 < len(answers) <= most:
        raise Died("its worker sent an unexpected message")
    return answers


def _description_in(key: str, value: object, entry_point: str) -> Description:
    """Return the description in a worker's first message, or raise the refusal in it.

    A version's code may have written the message: texts are cleaned, and what no database or path can hold is refused.
    """
    match key, value:
        case "ready", {
            "config": dict(config),
            "warmup_bars": int(bars),
            "vectorised": bool(many),
            "model_files": list(files),
            "notes": list(notes),
            **rest,
        } if protocol.encodable([config, files]):
            paths = tuple(Path(str(file)) for file in files)
            shown = tuple(protocol.one_line(note) for note in notes[:PROBLEMS_SHOWN])
            until, problem = (
                _time_in(rest.get("trained_until")),
                protocol.one_line(rest.get("trained_until_problem", "")),
            )
            toggles, problems = _toggles_in(rest.get("toggles", {}), rest.get("toggle_problems", []), entry_point)
            return Description(config, bars, many, paths, shown, until, problem, toggles, problems)
        case "refused", ["InvalidEntryPoint", [str(why)]]:
            raise InvalidEntryPoint(entry_point, protocol.one_line(why))
        case "refused", ["InvalidConfig", list(problems)]:
            raise InvalidConfig(entry_point, [protocol.one_line(problem) for problem in problems[:PROBLEMS_SHOWN]])
        case "refused", ["IsolationBreach", [str(tried)]]:
            raise IsolationBreach(protocol.one_line(tried))
        case "refused", ["IsolationUnavailable", [("namespaces" | "landlock" | "sidecar") as level, str(why)]]:
            raise IsolationUnavailable(level, protocol.one_line(why))
        case "refused", ["StrategyFailed", [str(what)]]:
            raise StrategyFailed(protocol.one_line(what))
        case _:
            raise Died("its worker violated the protocol: its first message has an unknown form")


def _toggles_in(declared: object, problems: object, entry_point: str) -> tuple[str, tuple[str, ...]]:
    found = [protocol.one_line(each) for each in problems] if isinstance(problems, list) else ["problems are no list"]
    try:
        text = declaration_text(read_declaration(declared, entry_point))
    except InvalidToggles as refused:
        text, found = "", [*found, *(protocol.one_line(each) for each in refused.problems)]
    return ("" if found else text), tuple(found[:PROBLEMS_SHOWN])


def _time_in(text: object) -> datetime | None:
    try:
        return None if text is None else utc(datetime.fromisoformat(str(text)), "trained_until")
    except (ValueError, NaiveTime, TimeOutOfRange):
        raise Died("its worker violated the protocol: trained_until is no time") from None


def _refusal(refused: RolloutError) -> Answer:
    kind: Kind = "raised"
    if isinstance(refused, IsolationBreach | StrategyOverdue):
        kind = "breach" if isinstance(refused, IsolationBreach) else "deadline"
    return Answer(None, reason_of(refused), kind)


def _pickled(engine: object, entry_point: str) -> bytes:
    if type(engine).__module__ == "__main__":  # the worker would look for it in its own __main__
        raise InvalidEntryPoint(entry_point, "the class of the engine is in __main__: give an entry point instead")
    try:
        return pickle.dumps(engine)
    except Exception as refused:  # noqa: BLE001  an engine's __reduce__ may raise anything
        why = protocol.one_line(f"{type(refused).__name__}: {refused}")
        raise InvalidEntryPoint(
            entry_point, f"the engine cannot be sent to a worker ({why}): give an entry point"
        ) from None
