"""The gate on an external metric: verdicts with samples and without them."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.errors import EvidenceUnavailable, InvalidPlan
from strategy_core.domain.evidence import Sample
from strategy_core.domain.gates.base import Finding, Verdict
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.plan import read_plan
from tests.domain.facts import MARGINS, NOON, NOTHING

MINUTE = timedelta(minutes=1)
QUERY = 'slippage{version="$canary"}'
GATE = MetricThreshold(metric="slippage", query=QUERY, maximum=3, minimum_samples=4, consecutive_limit=3)
NAMES = {"strategy": "fib_rsi", "canary": "2.0.0", "active": "1.0.0"}


def taken(*values: float | None, ago: timedelta = timedelta(0)) -> list[Sample]:
    """Return samples a minute apart, the last of them *ago*. None is a sample without a value."""
    times = [NOON - ago - MINUTE * i for i in range(len(values))][::-1]
    return [Sample(at, value, "" if value is not None else "HTTP 500") for at, value in zip(times, values, strict=True)]


def judged(samples: list[Sample], gate: MetricThreshold = GATE, **facts: Any) -> Finding:
    return gate.judge(replace(NOTHING, samples={gate.name: samples}, **facts), MARGINS)


@pytest.mark.parametrize(
    ("values", "verdict", "reason"),
    [
        ((1, 1, 1, 1), Verdict.PASS, "1, allowed at most 3"),
        ((1, 1, 1, 3), Verdict.PASS, "3, allowed at most 3"),
        ((1, 1, 1), Verdict.INSUFFICIENT, "3 of 4 samples"),
        ((9, 9, 9), Verdict.INSUFFICIENT, "3 of 4 samples"),
        ((1, 1, 1, 4), Verdict.INCONCLUSIVE, "4, allowed at most 3; 1 of 3 samples in a row outside"),
        ((1, 1, 4, 4), Verdict.INCONCLUSIVE, "4, allowed at most 3; 2 of 3 samples in a row outside"),
        ((1, 4, 4, 5), Verdict.FAIL, "5, allowed at most 3; 3 samples in a row outside (limit 3)"),
        ((9, 9, 1, 9, 9, 1), Verdict.PASS, "1, allowed at most 3"),
        ((1, 9, 9, None, 9), Verdict.FAIL, "9, allowed at most 3; 3 samples in a row outside (limit 3)"),
        ((1, 9, 9, 9, None), Verdict.FAIL, "9, allowed at most 3; 3 samples in a row outside (limit 3)"),
    ],
)
def test_samples_are_judged_by_the_newest_in_a_row(
    values: tuple[float | None, ...], verdict: Verdict, reason: str
) -> None:
    """Separate blips do not add up. A sample without a value neither ends a row nor extends it."""
    finding = judged(taken(*values))

    assert (finding.gate, finding.verdict, finding.reason) == ("metric:slippage", verdict, reason)


@pytest.mark.parametrize(
    ("bounds", "value", "inside", "limit", "told"),
    [
        ({"minimum": 1.0}, 0.5, False, 1.0, "0.5, allowed at least 1"),
        ({"minimum": 1.0}, 2.0, True, 1.0, "2, allowed at least 1"),
        ({"minimum": 1.0, "maximum": 3.0}, 0.5, False, 1.0, "0.5, allowed 1 to 3"),
        ({"minimum": 1.0, "maximum": 3.0}, 2.5, True, 3.0, "2.5, allowed 1 to 3"),
        ({"minimum": 1.0, "maximum": 3.0}, 3.5, False, 3.0, "3.5, allowed 1 to 3"),
    ],
)
def test_the_limit_told_is_the_bound_that_lies_nearest(
    bounds: dict[str, float], value: float, inside: bool, limit: float, told: str
) -> None:
    gate = MetricThreshold(metric="m", query="q", minimum_samples=1, consecutive_limit=2, **bounds)

    finding = judged(taken(value), gate)

    assert finding.verdict is (Verdict.PASS if inside else Verdict.INCONCLUSIVE)
    assert (finding.value, finding.limit, finding.n) == (value, limit, 1)
    assert finding.reason.startswith(told)


@pytest.mark.parametrize(
    ("samples", "cause"),
    [
        (taken(1, 1, 1, 1, None), "no value: HTTP 500"),
        (taken(None), "no value: HTTP 500"),
        (taken(1, 1, 1, 1, ago=11 * MINUTE), "the newest sample is of 2026-03-02 11:49:00 UTC"),
        ([], "no sample has been taken since the rollout began"),
    ],
)
def test_without_a_fresh_value_it_is_blind_however_good_the_old_ones_were(samples: list[Sample], cause: str) -> None:
    with pytest.raises(EvidenceUnavailable, match=cause):
        judged(samples)


def test_a_sample_may_be_as_old_as_the_gate_allows() -> None:
    assert judged(taken(1, 1, 1, 1, ago=10 * MINUTE)).verdict is Verdict.PASS


def test_a_rollout_that_just_began_waits_for_its_first_sample() -> None:
    finding = judged([], started_at=NOON - 10 * MINUTE)

    assert (finding.verdict, finding.reason) == (Verdict.INSUFFICIENT, "no sample yet")


def test_samples_of_the_stage_before_pass_nothing() -> None:
    finding = judged(taken(1, 1, 1, 1, ago=MINUTE), stage_entered_at=NOON)

    assert (finding.verdict, finding.reason) == (Verdict.INSUFFICIENT, "no sample at this stage yet")


def test_another_gates_samples_are_nothing_to_it() -> None:
    with pytest.raises(EvidenceUnavailable):
        GATE.judge(replace(NOTHING, samples={"metric:other": taken(1, 1, 1, 1)}), MARGINS)


@given(st.lists(st.one_of(st.none(), st.floats(-10, 10)), max_size=12), st.integers(0, 30))
def test_absence_neither_passes_nor_fails(values: list[float | None], minutes: int) -> None:
    """Any part of a history can only fail on values that were outside."""
    samples = taken(*values, ago=minutes * MINUTE)
    try:
        verdict = judged(samples).verdict
    except EvidenceUnavailable:
        verdict = Verdict.BLIND
    known = [value for value in values if value is not None]

    if verdict is Verdict.PASS:
        assert values[-1] is not None
        assert values[-1] <= 3
        assert minutes <= 10
    if verdict is Verdict.FAIL:
        assert all(value > 3 for value in known[-3:])
    if len(known) >= 4 and all(value > 3 for value in known[-3:]):
        assert verdict is Verdict.FAIL


def test_names_are_filled_in_as_label_values() -> None:
    gate = MetricThreshold(
        metric="m", maximum=1, query='a{s=\'$strategy\', v!="$active"} / b{v="x:$canary", r=~"5..$"}'
    )

    assert gate.filled(NAMES) == 'a{s=\'fib_rsi\', v!="1.0.0"} / b{v="x:2.0.0", r=~"5..$"}'


@given(st.text())
def test_no_name_can_end_the_label_value_it_stands_in(name: str) -> None:
    filled = GATE.filled({**NAMES, "canary": name})
    value = filled.removeprefix('slippage{version="').removesuffix('"}')

    assert set(value) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-\\")
    assert value.encode().decode("unicode_escape") == name


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"query": " "}, "query"),
        ({"query": 'm{v="$candidate"}'}, "known are $strategy, $canary, $active"),
        ({"query": "rate_$canary"}, "may only be quoted label values"),
        ({"query": 'm{v=~"$canary"}'}, "may only be quoted label values"),
        ({"query": 'm{v!~"$canary"}'}, "may only be quoted label values"),
        ({"query": "m{v=`$canary`}"}, "may only be quoted label values"),
        ({"query": "m{v=~'a=\"$canary\"'}"}, "may only be quoted label values"),
        ({"maximum": None}, "a minimum, a maximum, or both"),
        ({"minimum": 4}, "minimum must not exceed maximum"),
        ({"maximum": float("nan")}, "finite"),
        ({"stale_after": 0}, "greater than 0"),
        ({"consecutive_limit": 0}, "greater than or equal to 1"),
        ({"metric": "errors of ü"}, "metric"),
        ({"metrik": "x"}, "metrik"),
    ],
)
def test_a_gate_that_cannot_be_meant_is_refused(changes: dict[str, Any], problem: str) -> None:
    given = {"kind": "metric", "metric": "slippage", "query": QUERY, "maximum": 3} | changes

    with pytest.raises(InvalidPlan) as refused:
        read_plan({"gates": [given]})
    assert problem in str(refused.value)


def test_several_metrics_stand_in_one_plan_under_names_of_their_own() -> None:
    one = {"kind": "metric", "metric": "slippage", "query": QUERY, "maximum": 3}
    plan = read_plan({"gates": [one, {**one, "metric": "latency", "dry_run": True}]})

    assert [gate.name for gate in plan.gates] == ["metric:slippage", "metric:latency"]
    assert read_plan(plan.model_dump(mode="json")) == plan
    with pytest.raises(InvalidPlan, match="a unique name"):
        read_plan({"gates": [one, one]})


def test_it_looks_at_as_many_samples_as_either_setting_needs() -> None:
    assert GATE.samples_needed == 4
    assert GATE.model_copy(update={"consecutive_limit": 9}).samples_needed == 9


def test_the_documented_metric_is_a_gate() -> None:
    page = (Path(__file__).parents[2] / "docs/how-to/gate-on-your-own-metric.md").read_text()
    (gate,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)

    assert read_plan({"gates": [json.loads(gate)]}).gates[0].name == "metric:slippage"


def test_samples_that_could_not_be_read_are_blindness() -> None:
    with pytest.raises(EvidenceUnavailable, match="the database refuses to work"):
        judged([], platform_problem="the database refuses to work")
