"""Scrapes as `prometheus_client` writes them: both formats, read back by its own parsers."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as as_openmetrics
from prometheus_client.parser import text_string_to_metric_families as as_text
from sqlalchemy import Engine

from strategy_core.observe.metrics import FAMILIES, NAMES, exposition
from tests.builders import MONDAY, decision_row, put_decisions, put_version

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PARSERS: dict[str, Callable[[str], Iterable[Any]]] = {"": as_text, OPENMETRICS: as_openmetrics}
ODD_NAMES = ['a"b', "a\\", '",x="', "\\n", "{}", "%s", "a=b,c", "\u2028", "größer"]


@pytest.mark.parametrize("accept", PARSERS)
def test_odd_symbol_names_survive_a_scrape(engine: Engine, accept: str) -> None:
    put_version(engine, "1", symbols=tuple(ODD_NAMES))
    put_decisions(engine, *(decision_row("1", MONDAY, "buy", symbol=name) for name in ODD_NAMES))

    body, _ = exposition(engine, now=MONDAY, accept=accept)

    samples = [one for family in PARSERS[accept](body.decode()) for one in family.samples]
    bought = {one.labels["symbol"] for one in samples if one.labels.get("decision") == "buy" and one.value == 1}
    assert bought == set(ODD_NAMES)


@pytest.mark.parametrize("accept", PARSERS)
def test_every_family_is_named_with_its_kind_and_help(engine: Engine, accept: str) -> None:
    body, _ = exposition(engine, now=MONDAY, accept=accept)

    families = {one.name.removesuffix("_total"): one for one in PARSERS[accept](body.decode())}
    expected = {one.name.removesuffix("_total"): (one.kind, one.help) for one in FAMILIES}
    assert {name: (one.type, one.documentation) for name, one in families.items()} == expected
    assert len(families) == len(NAMES)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4"),
        ("*/*", "text/plain; version=0.0.4"),
        ("text/plain;version=0.0.4;q=0.3,*/*;q=0.1", "text/plain; version=0.0.4"),
        ("application/openmetrics-text;version=1.0.0,*/*;q=0.1", "application/openmetrics-text; version=1.0.0"),
        ("application/openmetrics-textual", "text/plain; version=0.0.4"),
    ],
)
def test_the_format_follows_the_accept_header(engine: Engine, accept: str, content_type: str) -> None:
    _, found = exposition(engine, now=MONDAY, accept=accept)

    assert found.startswith(content_type)
