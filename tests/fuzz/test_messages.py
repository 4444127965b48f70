"""What other programs answer, or a worker says, is believed when it is exactly as agreed, and else told in a line."""

import json
import math
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from hypothesis import given

from strategy_core.domain.errors import Invalid, RoutingUnavailable, Untrusted
from strategy_core.domain.routing import BUCKETS
from strategy_core.domain.strategy import Action, Decision
from strategy_core.isolation import protocol
from strategy_core.isolation.client import _answers_in, _description_in
from strategy_core.isolation.process import Died
from strategy_core.observe.prometheus import Prometheus
from strategy_core.router.http import routing_source
from tests.endpoint import Endpoint, serving, vector
from tests.fuzz.damage import damaged, rules

ROW = {
    "strategy_name": "fib_rsi",
    "active": "1",
    "canary": "2",
    "rollout_percent": 12.5,
    "salt": "",
    "generation": 7,
}
SAID = protocol.row(
    protocol.Answer(Decision(Action.BUY, 0.5, {"rsi": 28.5, "n": 3, "note": "x"}, "why"), None, "", 1.5)
)
READY = {"config": {"a": 1}, "warmup_bars": 5, "vectorised": False, "model_files": [], "notes": []}
MESSAGES: list[dict[str, Any]] = [
    {"rows": [SAID, SAID]},
    {"ready": READY},
    {"refused": ["InvalidConfig", ["a: no"]]},
    {"breach": "x"},
]
LINES = [protocol.line(message).rstrip() for message in MESSAGES]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[Endpoint]:
    with serving() as served:
        yield served


@pytest.mark.full
@rules(60)
@given(body=damaged(json.dumps({"strategies": [ROW, ROW | {"strategy_name": "x", "canary": None}]}).encode()))
def test_an_answer_of_routing_is_whole_or_none(endpoint: Endpoint, body: bytes) -> None:
    endpoint.body = body
    line, found = "", None
    with closing(routing_source(endpoint.url, "t0ken")) as source:
        try:
            found = source.read()
        except RoutingUnavailable as error:
            line = str(error)

    assert "\n" not in line
    for routing in (each for each in (found or {}).values() if each is not None):
        assert routing.active
        assert 0 <= routing.percent_bp <= BUCKETS


@pytest.mark.full
@rules(60)
@given(body=damaged(vector("0.25")))
def test_an_answer_of_prometheus_is_a_finite_number_or_a_line(endpoint: Endpoint, body: bytes) -> None:
    endpoint.body = body

    (answer,) = Prometheus(endpoint.url).query(["up"]).values()

    assert (answer.value is None) == bool(answer.problem)
    assert answer.value is None or math.isfinite(answer.value)
    assert answer.problem.isprintable()


@rules(200)
@given(text=damaged(*LINES))
def test_a_workers_line_is_what_was_agreed_or_its_end(text: bytes) -> None:
    """What is believed can be stored: no text without an encoding, no number beyond what a database holds."""
    with suppress(protocol.ProtocolError, Died, Invalid, Untrusted):
        key, value = protocol.message_in(text)
        if key == "rows":
            assert all(
                each.decision is None or protocol.loggable(each.decision) for each in _answers_in(key, value, 500)
            )
        elif key == "breach":
            assert protocol.one_line(value).isprintable()
        else:
            described = _description_in(key, value, "x:Y")
            json.dumps(described.config, ensure_ascii=False, allow_nan=False).encode()
