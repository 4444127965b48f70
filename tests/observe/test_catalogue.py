"""The catalogue of exported metrics."""

from typing import get_args

from strategy_core.isolation.protocol import Kind
from strategy_core.observe.metrics import ERROR_KINDS, FAMILIES, NAMES


def test_every_name_stands_there_once() -> None:
    assert len(NAMES) == len(FAMILIES)
    assert all(family.name.endswith("_total") == (family.kind == "counter") for family in FAMILIES)


def test_every_kind_of_error_is_told_before_the_first() -> None:
    assert {*ERROR_KINDS, ""} == set(get_args(Kind))
