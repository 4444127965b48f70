"""External metrics from Prefect, on both databases."""

import pytest
from sqlalchemy import Engine

from flows.ramp import sample_run, start_canary
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from tests.builders import put_version
from tests.endpoint import Endpoint, vector
from tests.flows.conftest import Clock

PLAN = read_plan({"gates": [{"kind": "metric", "metric": "slippage", "query": "slippage", "maximum": 3}]})


@pytest.fixture
def started(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE)
    put_version(engine, "v2")
    assert start_canary.fn("fib_rsi", "v2", owner="ana", plan=PLAN).is_completed()
    return engine


def test_a_sample_is_told_in_a_line(started: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_PROMETHEUS_URL", endpoint.url)

    state = sample_run.fn()

    assert state.is_completed()
    assert state.message == "fib_rsi v2 metric:slippage: 1.5"


def test_a_metric_without_a_value_fails_the_run(
    started: Engine, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_PROMETHEUS_URL", endpoint.url)
    endpoint.body = vector("NaN")

    state = sample_run.fn()

    assert state.is_failed()
    assert state.message == "fib_rsi v2 metric:slippage: the value is nan"


def test_a_gate_without_an_address_to_ask_is_said_aloud(started: Engine) -> None:
    state = sample_run.fn()

    assert state.is_failed()
    assert state.message == "fib_rsi v2 metric:slippage: ROLLOUT_PROMETHEUS_URL is not set"


def test_without_a_metric_gate_there_is_nothing_to_ask(engine: Engine, at: Clock) -> None:
    assert sample_run.fn().message == "no open rollout has a metric gate"
