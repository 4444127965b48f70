"""What is written is what parsers of both formats read, whatever the names hold."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as as_openmetrics
from prometheus_client.parser import text_string_to_metric_families as as_text

from strategy_core.observe.metrics import OPENMETRICS, TEXT, Exposition, Family, wanted

COUNTED = Family("said_total", "counter", ("strategy", "decision"), 'What was said, "in all"; a back\\slash')
MEASURED = Family("measured", "gauge", (), "What was measured.")
PARSERS: dict[str, Callable[[str], Iterable[Any]]] = {TEXT: as_text, OPENMETRICS: as_openmetrics}
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ['a"b', "a\\", "a\nb", '",x="', "\\n", "{}", "%s", "a=b,c", "\r", "\u2028"]
)


@pytest.mark.parametrize("media_type", PARSERS)
@given(names=st.dictionaries(st.tuples(NAMES, NAMES), st.integers(0, 2**53), max_size=5))
def test_names_come_through_whatever_they_hold(media_type: str, names: dict[tuple[str, str], int]) -> None:
    found = Exposition([COUNTED])
    for labels, value in names.items():
        found.add("said_total", labels, value)

    (family,) = PARSERS[media_type](found.written(media_type).decode())

    assert {(one.labels["strategy"], one.labels["decision"]): one.value for one in family.samples} == names
    assert {one.name for one in family.samples} <= {"said_total"}
    assert family.type == "counter"
    assert family.documentation == COUNTED.told


@pytest.mark.parametrize("media_type", PARSERS)
@pytest.mark.parametrize("value", [0.0, -0.5, 1e300, 1e-300, 123456789.123, math.inf, -math.inf, math.nan])
def test_numbers_come_through_to_the_last_digit(media_type: str, value: float) -> None:
    found = Exposition([COUNTED, MEASURED])
    found.add("measured", (), value)

    families = list(PARSERS[media_type](found.written(media_type).decode()))

    assert [repr(one.value) for family in families for one in family.samples] == [repr(value)]


def test_a_family_without_samples_is_named_all_the_same() -> None:
    assert Exposition([MEASURED]).written(TEXT).decode().splitlines() == [
        "# HELP measured What was measured.",
        "# TYPE measured gauge",
    ]


def test_half_a_character_is_replaced() -> None:
    found = Exposition([COUNTED])
    found.add("said_total", ("\ud800", "buy"), 1)

    assert 'strategy="\ufffd"' in found.written(TEXT).decode()


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/plain;version=0.0.4;q=0.3,*/*;q=0.1", TEXT),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1",
            OPENMETRICS,
        ),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text; q=0.0, text/plain", TEXT),
        ("application/openmetrics-textual", TEXT),
    ],
)
def test_openmetrics_is_spoken_to_whom_it_is_asked_for(accept: str, media_type: str) -> None:
    assert wanted(accept) == media_type
