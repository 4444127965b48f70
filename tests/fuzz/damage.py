"""Bytes that were sound, damaged: what disks, editors, vendors and intruders make of a file or a message."""

import os
from collections.abc import Callable, Sequence

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests import effort

TIMES = int(os.environ.get("ROLLOUT_FUZZ_TIMES", "1"))  # as many examples, and new ones each time, where more than 1
TOKENS: Sequence[bytes] = [
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\u0000", b"\\ud800", "💩٣".encode(), b"\x1b[31m",
    b"\n", b"\r", b"\t", b",", b'"', b"'", b"[", b"{", b"}", b":", b"%00", b"../x", b"[" * 3_000, b'{"a":' * 3_000,
    b"NaN", b"-inf", b"Infinity", b"1e999", b"1e308", b"-1e-320", b"-1", b"0", b"1_000", b"9" * 30, b"9" * 5_000,
    b"null", b"true", b"[]", b"{}", b'{"a":1,"a":2}', b"x" * 20_000, b"fib_rsi", b"GOLD", b"2", b"P1D",
    b"2026-03-02T01:00:00Z", b"2026-03-02T01:00", b"2026-02-30T00:00Z", b"0001-01-01T00:00:00+14:00",
    b"9999-12-31T23:59:59-14:00", b"2026-03-02T02:00:00+01:00", b"1772409600", b"2262-04-12T00:00:00Z",
]  # fmt: skip
ENCODINGS = ("utf-16", "utf-32", "utf-8-sig", "cp037")
_Edit = Callable[[bytes], bytes]


def rules(number: int) -> settings:
    """Return settings for *number* examples, the same in every run unless `ROLLOUT_FUZZ_TIMES` asks for more."""
    return settings(
        max_examples=effort.examples(number) * TIMES,
        derandomize=TIMES == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def damaged(*sound: bytes) -> st.SearchStrategy[bytes]:
    """Return one of *sound* after one to three edits; now and then as it was."""
    return st.builds(_edited, st.sampled_from(sound), st.lists(_EDITS, max_size=3))


def _edited(sound: bytes, edits: Sequence[_Edit]) -> bytes:
    for edit in edits:
        sound = edit(sound)
    return sound


def _at(content: bytes, place: float) -> int:
    return int(place * len(content))


def _inserted(place: float, token: bytes) -> _Edit:
    return lambda content: content[: _at(content, place)] + token + content[_at(content, place) :]


def _cut(place: float, end: float) -> _Edit:
    return lambda content: content[: _at(content, place)] + content[max(_at(content, place), _at(content, end)) :]


def _overwritten(place: float, byte: int) -> _Edit:
    return lambda content: content[: _at(content, place)] + bytes([byte]) + content[_at(content, place) + 1 :]


def _exchanged(place: float, token: bytes) -> _Edit:
    """Put *token* where a word stood: what surrounds it stays well formed."""

    def edit(content: bytes) -> bytes:
        start = end = min(_at(content, place), max(0, len(content) - 1))
        while start > 0 and content[start - 1 : start].isalnum():
            start -= 1
        while end < len(content) and (content[end : end + 1].isalnum() or content[end : end + 1] in b".+-:_"):
            end += 1
        return content[:start] + token + content[end:]

    return edit


def _recoded(encoding: str) -> _Edit:
    return lambda content: content.decode("latin-1").encode(encoding, "replace")


_PLACES = st.floats(0, 1, exclude_max=True)
_EDITS: st.SearchStrategy[_Edit] = st.one_of(
    st.builds(_exchanged, _PLACES, st.sampled_from(TOKENS)),
    st.builds(_inserted, _PLACES, st.sampled_from(TOKENS)),
    st.builds(_overwritten, _PLACES, st.integers(0, 255)),
    st.builds(_cut, _PLACES, _PLACES),
    st.builds(_cut, _PLACES, st.just(1.0)),
    st.builds(_recoded, st.sampled_from(ENCODINGS)),
)
