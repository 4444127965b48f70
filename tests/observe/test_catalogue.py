"""docs/metrics.md tells exactly what is exported: names, kinds and labels."""

import re
from pathlib import Path
from typing import get_args

from strategy_core.isolation.protocol import Kind
from strategy_core.observe.metrics import ERROR_KINDS, FAMILIES, NAMES

PAGE = Path(__file__).parent.parent.parent / "docs" / "metrics.md"
_ROW = re.compile(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*?) ?\| (.+) \|$", re.MULTILINE)


def test_the_page_tells_of_every_metric_and_of_no_other() -> None:
    told = {
        (name, kind, tuple(label.strip() for label in labels.split(",") if label.strip()))
        for name, kind, labels, _ in _ROW.findall(PAGE.read_text())
    }

    assert told == {(family.name, family.kind, family.labels) for family in FAMILIES}


def test_every_name_stands_there_once() -> None:
    assert len(NAMES) == len(FAMILIES)
    assert all(family.name.endswith("_total") == (family.kind == "counter") for family in FAMILIES)


def test_every_kind_of_error_is_told_before_the_first() -> None:
    assert {*ERROR_KINDS, ""} == set(get_args(Kind))
