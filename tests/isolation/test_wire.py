"""Messages of a worker: exactly an answer, otherwise a protocol error."""

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.candles import Windows
from strategy_core.domain.strategy import Action, Decision
from strategy_core.isolation import protocol
from strategy_core.isolation.protocol import Answer, ProtocolError, Question

SELL = ["sell", 0.5, {"rsi": 71.0}, "why"]


@given(
    st.sampled_from(list(Action)),
    st.floats(0, 1),
    st.dictionaries(
        st.text(max_size=9).filter(str.isascii),
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    ),
)
def test_a_decision_comes_over_as_it_was(action: Action, confidence: float, features: dict[str, Any]) -> None:
    features = {name.replace("\x00", ""): value for name, value in features.items()}
    answer = Answer(Decision(action, confidence, features, "why"), None, "", 1.5)

    key, rows = protocol.message_in(protocol.line({"rows": [protocol.row(answer)]}))

    assert key == "rows"
    assert protocol.answers_in(rows) == [answer]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b"[1]",
        b"{}",
        b'{"a":1,"b":2}',
        b'{"rows":NaN}',
        b'{"rows":Infinity}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=["empty", "no JSON", "list", "no key", "two keys", "NaN", "infinity", "deep", "no text"],
)
def test_a_line_that_is_no_message_is_garbled(text: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.message_in(text)


@pytest.mark.parametrize(
    "rows",
    [
        None,
        [],
        [["", None, SELL, 1.0]] * 501,
        [["", None, SELL]],
        [["", None, SELL, 1.0, "more"]],
        [["fine", None, SELL, 1.0]],
        [["raised", 7, None, 1.0]],
        [["", None, SELL, "1.0"]],
        [["", None, SELL, -1.0]],
        [["", None, None, 1.0]],
        [["", None, ["sell", 2.0, {}, "", "open"], 1.0]],
        [["", None, ["sel", 0.5, {}, "", "open"], 1.0]],
        [["", None, ["sell", 0.5, [], ""], 1.0]],
        [["", None, ["sell", 0.5, {"a": [1]}, ""], 1.0]],
        [["", None, ["sell", 0.5, {"a": 2**70}, "", "open"], 1.0]],
        [["", None, ["sell", 0.5, {}, "x" * 501, "open"], 1.0]],
        [["", None, ["sell", 0.5, {"n\x00": 1}, "", "open"], 1.0]],
        [["", None, ["sell", 0.5, {}, ""], 1.0]],
        [["", None, ["sell", 0.5, {}, "", "close"], 1.0]],
        [["", None, ["hold", 0.5, {}, "", "reverse"], 1.0]],
    ],
)
def test_rows_that_are_not_exactly_answers_are_garbled(rows: Any) -> None:
    with pytest.raises(ProtocolError):
        protocol.answers_in(rows)


def test_an_error_text_is_one_printable_line_of_bounded_length() -> None:
    assert protocol.one_line("boom\n\x1b[31m  red\x00") == "boom [31m red"
    assert protocol.one_line("x" * 10_000) == "x" * 499 + "…"


def test_a_question_comes_over_to_the_last_bit() -> None:
    index = pd.date_range("2026-01-05", periods=3, freq="h", tz="UTC", unit="us")
    windows = Windows(pd.DataFrame({"close": [1.0, np.nan, 1 / 3], "volume": [5e-324, 0.0, 1e308]}, index=index))
    asked = Question("GOLD", "1h", windows.columns, windows.rows(1, 3), np.array([1]), 2, False)

    read = protocol.read_frame(io.BytesIO(protocol.question_frame([asked, asked])).read)

    assert read is not None
    first, second = protocol.questions_in(*read)
    assert (first.symbol, first.timeframe, first.columns, first.bars, first.many) == (
        ("GOLD", "1h", ["close", "volume"], 2, False)
    )
    assert first.table == second.table == windows.table[1:].tobytes()
    assert first.positions.tolist() == [1]


def test_the_end_of_the_pipe_is_no_frame() -> None:
    assert protocol.read_frame(io.BytesIO(b"").read) is None
