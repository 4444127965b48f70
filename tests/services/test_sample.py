"""Samples of external metrics: taken for every open rollout, kept as they came, judged by the tick after."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlmodel import col, select

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvariantRefused, NaiveTime
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import State, Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.observe.prometheus import Prometheus
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.sample_metrics import sample_metrics
from strategy_core.services.tick import tick
from strategy_core.store import evidence, rollouts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import MetricSample, Rollout
from tests.builders import MONDAY, OWNER, put_version
from tests.endpoint import Endpoint, vector

MINUTE = timedelta(minutes=1)
SLIPPAGE: dict[str, Any] = {
    "kind": "metric",
    "metric": "slippage",
    "query": 'slip{s="$strategy",v="$canary"} - slip{s="$strategy",v="$active"}',
    "maximum": 3,
    "minimum_samples": 2,
}
SHARED = {**SLIPPAGE, "metric": "latency", "query": "latency", "dry_run": True}


def start(engine: Engine, strategy_name: str = "fib_rsi", *gates: dict[str, Any]) -> Rollout:
    put_version(engine, "1", Status.ACTIVE, strategy_name=strategy_name)
    put_version(engine, "2", strategy_name=strategy_name)
    plan = read_plan({"gates": [*gates] or [SLIPPAGE, SHARED]})
    return start_rollout(engine, Command(OWNER, MONDAY), strategy_name=strategy_name, version="2", plan=plan)


def stored(engine: Engine) -> list[MetricSample]:
    with reading(engine) as session:
        return [*session.exec(select(MetricSample).order_by(col(MetricSample.id))).all()]


def test_each_metric_gate_of_each_open_rollout_gets_its_sample(engine: Engine, endpoint: Endpoint) -> None:
    first, second = start(engine), start(engine, "ppo_gold")
    start(engine, "plain", {"kind": "errors"})
    start(engine, "over")
    roll_back(engine, Command(OWNER, MONDAY, "over"), strategy_name="over")

    sampled = sample_metrics(engine, Prometheus(endpoint.url), now=MONDAY + MINUTE)

    assert {(each.rollout_id, each.gate, each.value, each.problem) for each in sampled} == {
        (rollout.id, gate, 1.5, "") for rollout in (first, second) for gate in ("metric:slippage", "metric:latency")
    }
    assert sorted(endpoint.queries) == [  # what both ask is asked once
        "latency",
        'slip{s="fib_rsi",v="2"} - slip{s="fib_rsi",v="1"}',
        'slip{s="ppo_gold",v="2"} - slip{s="ppo_gold",v="1"}',
    ]
    assert [(row.rollout_id, row.gate, row.taken_at, row.value) for row in stored(engine)] == [
        (each.rollout_id, each.gate, MONDAY + MINUTE, 1.5) for each in sampled
    ]


def test_a_problem_is_a_row_too_and_never_holds_the_header(engine: Engine, endpoint: Endpoint) -> None:
    start(engine)
    endpoint.status, endpoint.body = 401, b'{"error": "Bearer s3cr3t is not welcome\\u0000"}'

    sampled = sample_metrics(
        engine, Prometheus(endpoint.url, header=SecretStr("Authorization: Bearer s3cr3t")), now=MONDAY
    )

    assert {(row.value, row.problem) for row in stored(engine)} == {(None, "HTTP 401: *** *** is not welcome ")}
    assert "s3cr3t" not in str(sampled)


def test_two_passes_within_half_a_minute_leave_one_sample(engine: Engine, endpoint: Endpoint) -> None:
    """Doubled flows must not make two in a row of one answer."""
    start(engine, "fib_rsi", SLIPPAGE)
    asked = [MONDAY + timedelta(seconds=second) for second in (0, 10, 29, 30, 59)]
    taken = [len(sample_metrics(engine, Prometheus(endpoint.url), now=now)) for now in asked]

    assert taken == [1, 0, 0, 1, 0]


def test_a_plan_that_cannot_be_read_keeps_no_other_from_its_samples(engine: Engine, endpoint: Endpoint) -> None:
    put_version(engine, "1", Status.ACTIVE, strategy_name="broken")
    put_version(engine, "2", strategy_name="broken")
    times: dict[str, Any] = dict.fromkeys(("started_at", "stage_entered_at", "stage_extended_at"), MONDAY)
    row = Rollout(
        strategy_name="broken", version="2", control_version="1", state=State.RUNNING, plan={"stages": []}, **times
    )
    with transaction(engine) as session:
        rollouts.add_rollout(session, row, {})
    start(engine)

    sampled = sample_metrics(engine, Prometheus(endpoint.url), now=MONDAY)

    assert {each.strategy_name for each in sampled} == {"fib_rsi"}


def test_a_sample_is_taken_at_an_aware_time(engine: Engine) -> None:
    with pytest.raises(NaiveTime):
        sample_metrics(engine, Prometheus(None), now=MONDAY.replace(tzinfo=None))


def test_without_an_open_rollout_nobody_is_asked(engine: Engine, endpoint: Endpoint) -> None:
    assert sample_metrics(engine, Prometheus(endpoint.url), now=MONDAY) == []
    assert endpoint.asked == []


def test_values_out_of_bounds_in_a_row_roll_back(engine: Engine, endpoint: Endpoint, market: SyntheticSource) -> None:
    """The first of them already holds."""
    start(engine)
    prometheus = Prometheus(endpoint.url)
    for minute, value in enumerate(("1", "9", "9"), start=1):
        endpoint.body = vector(value)
        sample_metrics(engine, prometheus, now=MONDAY + minute * MINUTE)
        (ticked,) = tick(engine, market, now=MONDAY + minute * MINUTE)
        assert ticked.ruling is not None
        assert ticked.ruling.step is Step.HOLD
    sample_metrics(engine, prometheus, now=MONDAY + 4 * MINUTE)

    (ticked,) = tick(engine, market, now=MONDAY + 4 * MINUTE)

    assert ticked.ruling is not None
    assert ticked.ruling.step is Step.ROLL_BACK
    assert ticked.ruling.reason == "metric:slippage: 9, allowed at most 3; 3 samples in a row outside (limit 3)"
    with reading(engine) as session:
        history = rollouts.verdict_history(session, ticked.rollout_id)
    told = [(row.verdict, row.value, row.n) for row in history if row.gate == "metric:slippage"]
    assert told == [("insufficient", 1, 1), ("inconclusive", 9, 2), ("inconclusive", 9, 3), ("fail", 9, 3)]


def test_no_tick_and_no_rollback_waits_for_an_endpoint(
    engine: Engine, endpoint: Endpoint, market: SyntheticSource
) -> None:
    """The pass is still asking when the users are taken off; its samples come to a rollout that is over."""
    start(engine)
    endpoint.let_go.clear()
    with ThreadPoolExecutor(1) as thread:
        passing = thread.submit(sample_metrics, engine, Prometheus(endpoint.url, timeout=60), now=MONDAY + MINUTE)
        assert endpoint.reached.wait(60)
        (ticked,) = tick(engine, market, now=MONDAY + MINUTE)
        roll_back(engine, Command(OWNER, MONDAY + MINUTE, "odd fills"), strategy_name="fib_rsi")
        was_asking = not passing.done()
        endpoint.let_go.set()
        sampled = passing.result()

    assert was_asking
    assert ticked.ruling is not None
    assert [each.value for each in sampled] == [1.5, 1.5]
    assert len(stored(engine)) == 2


def test_what_a_tick_saw_is_seen_again_from_the_rows_of_its_time(engine: Engine) -> None:
    rollout = start(engine)
    gate = "metric:slippage"
    given: list[tuple[int, float | None]] = [(1, 1.0), (2, None), (3, 3.0), (4, 4.0), (5, None), (6, None)]
    rows = [
        {
            "rollout_id": rollout.id,
            "gate": gate,
            "taken_at": MONDAY + minute * MINUTE,
            "value": value,
            "problem": "" if value is not None else "HTTP 500",
        }
        for minute, value in given
    ]
    with transaction(engine) as session:
        assert evidence.add_samples(session, rows) == 6

    with reading(engine) as session:
        found = [
            evidence.read_samples(session, rollout.id, {gate: 2}, until=MONDAY + minute * MINUTE)[gate]
            for minute in (0, 2, 4, 6)
        ]
    assert [[sample.value for sample in each] for each in found] == [
        [],
        [1.0, None],
        [3.0, 4.0],
        [3.0, 4.0, None],
    ]
    assert found[3][-1].taken_at == MONDAY + 6 * MINUTE


@pytest.mark.parametrize(("value", "problem"), [(None, ""), (1.0, "and yet")])
def test_the_database_holds_a_value_or_a_reason(engine: Engine, value: float | None, problem: str) -> None:
    rollout = start(engine)
    row = {"rollout_id": rollout.id, "gate": "metric:m", "taken_at": MONDAY, "value": value, "problem": problem}

    with pytest.raises(InvariantRefused), transaction(engine) as session:
        evidence.add_samples(session, [row])
