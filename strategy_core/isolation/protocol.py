"""The messages between the product and a worker, and their validation.

The worker receives frames: a JSON header and raw bytes (little-endian int64 and float64). It sends JSON lines and not
pickle, because a version's code could have written them. Any deviation from the format raises ProtocolError.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from strategy_core.domain.errors import InvalidDecision
from strategy_core.domain.strategy import Action, Decision, Intent, checked_decision

Kind = Literal["", "raised", "invalid", "deadline", "died", "breach", "overload"]
FROM_A_WORKER = ("", "raised", "invalid", "breach")  # a version's code must not choose the others, see `overload`

OUT_OF_MEMORY = 77  # a worker's exit code
LENGTH_BYTES = 8
MAX_LINE_BYTES = 8_000_000
ROWS_A_LINE = 500
MAX_FEATURES = 100
MAX_TEXT = 500
FACT_TEXT = 2_000
_SURROGATE = re.compile("[\ud800-\udfff]")  # databases cannot encode lone surrogates


class ProtocolError(Exception):
    """The worker sent a malformed message and is no longer trusted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A version's answer for one candle.

    Attributes:
        decision: the decision, or None if the version failed.
        error: one line on what went wrong, else None.
        kind: "" for a decision, else raised, invalid (not a valid decision: NaN, confidence 2, wrong type), deadline,
            died, breach (it tried to touch the outside, with or without a decision), or overload (a deadline for which
            the run found the host at fault: gates do not count it against the version).
        duration_ms: time in the version's code, for a vectorised answer an equal share of it.
    """

    decision: Decision | None
    error: str | None = None
    kind: Kind = ""
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Question:
    """One request on the wire, with no later candles than it needs. *positions* count from its first candle."""

    symbol: str
    timeframe: str
    columns: Sequence[str]
    table: memoryview | bytes  # rows of `domain.candles.Windows`, the same bytes for every version
    positions: NDArray[np.int64]
    bars: int
    many: bool  # answered by one decide_many


def frame(header: Mapping[str, Any], parts: Sequence[bytes | memoryview] = ()) -> bytes:
    head = json.dumps({**header, "parts": [len(part) for part in parts]}).encode()
    return b"".join([len(head).to_bytes(LENGTH_BYTES, "little"), head, *parts])


def read_frame(read: Callable[[int], bytes]) -> tuple[dict[str, Any], list[bytes]] | None:
    """Return the next frame's header and parts, or None at the end of the pipe."""
    length = read(LENGTH_BYTES)
    if len(length) < LENGTH_BYTES:
        return None
    header = json.loads(read(int.from_bytes(length, "little")))
    return header, [read(size) for size in header.pop("parts")]


def question_frame(questions: Iterable[Question]) -> bytes:
    heads: list[Any] = []
    parts: list[bytes | memoryview] = []
    for q in questions:
        heads.append([q.symbol, q.timeframe, list(q.columns), q.bars, q.many])
        parts += [q.table, q.positions.astype("<i8").tobytes()]
    return frame({"questions": heads}, parts)


def questions_in(header: Mapping[str, Any], parts: Sequence[bytes]) -> list[Question]:
    questions = []
    for i, (symbol, timeframe, columns, bars, many) in enumerate(header["questions"]):
        table, positions = parts[2 * i : 2 * i + 2]
        questions.append(Question(symbol, timeframe, columns, table, np.frombuffer(positions, "<i8"), bars, many))
    return questions


def plain(answer: object) -> object:
    """Convert numpy scalars in a Decision to Python numbers. Return other objects unchanged."""
    if not isinstance(answer, Decision) or not isinstance(answer.features, Mapping):
        return answer
    features = {key: _plain(value) for key, value in answer.features.items()}
    return replace(answer, confidence=_plain(answer.confidence), features=features)


def loggable(answer: object) -> Decision:
    """Return *answer* if it is a decision that every database can store, else raise InvalidDecision."""
    if isinstance(answer, Decision) and not isinstance(answer.features, Mapping):
        raise InvalidDecision(f"features is {type(answer.features).__name__}, not a dict")
    decision = checked_decision(answer)
    if len(decision.features) > MAX_FEATURES:
        raise InvalidDecision(f"{len(decision.features)} features; allowed: at most {MAX_FEATURES}")
    for name, value in (("reason", decision.reason), *decision.features.items()):
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidDecision(f"feature {name!r:.60} does not fit 64 bits")
        for text in (name, value):
            if isinstance(text, str) and not _storable(text):
                raise InvalidDecision(
                    f"{name!r:.60}: a text may have at most {MAX_TEXT} characters of valid Unicode without NUL"
                )
    if not isinstance(decision.reason, str):
        raise InvalidDecision(f"reason is {type(decision.reason).__name__}, not str")
    return decision


def row(answer: Answer) -> list[Any]:
    it = answer.decision
    decision = None if it is None else [it.action.value, it.confidence, dict(it.features), it.reason, it.intent.value]
    return [answer.kind, answer.error, decision, answer.duration_ms]


def line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def message_in(text: bytes) -> tuple[str, Any]:
    """Return the key and value of a worker's line, or raise ProtocolError."""
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {type(error).__name__}") from None
    if not isinstance(message, dict) or len(message) != 1:
        raise ProtocolError("not a message of one key")
    key, value = next(iter(message.items()))
    return key, value


def answers_in(rows: object) -> list[Answer]:
    """Return the answers of a `rows` message, or raise ProtocolError if one is malformed."""
    if not isinstance(rows, list) or not 0 < len(rows) <= ROWS_A_LINE:
        raise ProtocolError("rows is not a list of rows")
    try:
        return [_answer(*cells) for cells in rows]
    except (TypeError, ValueError, AttributeError, OverflowError, InvalidDecision) as error:
        raise ProtocolError(f"not an answer: {one_line(error)}") from None


def encodable(value: object) -> bool:
    """Return whether every text in a JSON value is valid Unicode without NUL, as paths and databases need."""
    text = json.dumps(value, ensure_ascii=False)
    return "\\u0000" not in text and not _SURROGATE.search(text)


def one_line(error: object) -> str:
    """Return a text from a version's code as one printable line of bounded length."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)[:FACT_TEXT]).split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def _answer(kind: object, error: object, decision: Any, duration_ms: object) -> Answer:
    if kind not in FROM_A_WORKER or not (error is None or isinstance(error, str)):
        raise ProtocolError("an unknown kind of answer")
    if not isinstance(duration_ms, float) or not 0.0 <= duration_ms < math.inf:
        raise ProtocolError("an invalid duration")
    known = cast(Kind, kind)
    if known:
        return Answer(None, one_line(error or "") or "it gave no reason", known, duration_ms)
    action, confidence, features, reason, intent = decision
    given = Decision(Action(action), confidence, features, reason, Intent(intent))
    return Answer(loggable(given), None, "", duration_ms)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _storable(text: str) -> bool:
    return len(text) <= MAX_TEXT and "\x00" not in text and (text.isascii() or not _SURROGATE.search(text))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
