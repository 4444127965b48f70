"""Checking a body takes time and memory in proportion to its size, because other requests need the processor too."""

import tracemalloc
from time import process_time

import pytest

from strategy_core.api.requests import LARGEST, BadBody, check_body


@pytest.mark.full
def test_a_name_that_stands_twice_is_found_at_once_among_very_many() -> None:
    names = 300_000
    body = b"{" + b",".join(b'"%d":0' % number for number in range(names)) + b',"%d":0}' % (names - 1)
    began = process_time()

    with pytest.raises(BadBody, match="'299999' occurs twice"):
        check_body("application/json", body)

    assert process_time() - began < 10


@pytest.mark.full
def test_a_long_list_of_numbers_takes_memory_of_its_own_size() -> None:
    size = LARGEST // 8
    body = b"[" + b"0," * (size // 2 - 1) + b"0]"
    tracemalloc.start()

    check_body("application/json", body)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * size


@pytest.mark.parametrize("body", [b"NaN", b'"\\u0000"', b"1" * 30])
def test_a_body_that_is_no_more_than_a_bad_value_is_named_as_a_whole(body: bytes) -> None:
    with pytest.raises(BadBody, match=r"^body: "):
        check_body("application/json", body)
