"""Bars of gates: where the value stands against the limit at which the verdict changes."""

from typing import Any
from uuid import uuid4

import pytest

from strategy_core.api.console.gate_bar import LIMIT_AT, GateBar, gate_bar
from strategy_core.domain.gates.base import Gate, Silence
from strategy_core.domain.gates.on_live_orders import Latency, RoutingAudit
from strategy_core.domain.gates.on_slots import Harm, NotWorse
from tests.api.asking import verdict


@pytest.mark.parametrize(
    ("gate", "facts", "fill"),
    [
        pytest.param(Silence(), {"value": 0, "limit": 3}, 0.0, id="nothing"),
        pytest.param(Harm(), {"value": 1.0, "limit": 2.0}, LIMIT_AT / 2, id="a logarithm of E"),
        pytest.param(Harm(), {"value": -0.5, "limit": 2.0}, 0.0, id="E below 1"),
        pytest.param(Harm(), {"value": 9.0, "limit": 2.0}, 100.0, id="far beyond"),
        pytest.param(Latency(), {"value": 10.0, "limit": 1_000.0}, LIMIT_AT / 3, id="E itself"),
        pytest.param(RoutingAudit(), {"value": 1.0, "limit": 1.0}, LIMIT_AT, id="at the limit"),
    ],
)
def test_a_bar_fills_up_to_its_limit(gate: Gate, facts: dict[str, Any], fill: float) -> None:
    bar = gate_bar(gate, verdict(uuid4(), **facts))

    assert bar is not None
    assert (round(bar.fill, 6), bar.limit) == (round(fill, 6), LIMIT_AT)


def test_the_interval_of_a_proof_lies_right_of_the_limit_once_it_passes() -> None:
    passing = gate_bar(NotWorse(), verdict(uuid4(), value=0.02, low=-0.05, limit=-0.07))
    failing = gate_bar(NotWorse(), verdict(uuid4(), value=0.02, low=-0.2, limit=-0.07))

    assert passing is not None
    assert failing is not None
    assert passing.limit == failing.limit == 50
    assert failing.start < 50 < passing.start < (passing.value or 0) < passing.fill


def test_a_gate_that_waits_for_slots_shows_how_many_it_has() -> None:
    bar = gate_bar(NotWorse(), verdict(uuid4(), verdict="insufficient", value=6, limit=30))

    assert bar == GateBar(fill=20.0, limit=None, wanted=True)


@pytest.mark.parametrize(
    ("gate", "facts"),
    [
        pytest.param(NotWorse(), {"value": 0.0, "low": 0.0, "limit": 0.0}, id="both did the same"),
        pytest.param(NotWorse(), {"verdict": "inconclusive", "value": -0.1, "limit": -0.1}, id="own slots"),
        pytest.param(Silence(), {"value": None}, id="no value"),
        pytest.param(Silence(), {"limit": 0.0}, id="no scale"),
    ],
)
def test_what_has_no_scale_has_no_bar(gate: Gate, facts: dict[str, Any]) -> None:
    assert gate_bar(gate, verdict(uuid4(), **facts)) is None
