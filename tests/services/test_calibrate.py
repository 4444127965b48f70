"""Calibration on both databases: the pair's own past, read once, and changed never."""

import json
from collections.abc import Sequence

import numpy as np
import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.calibration import OF_A_PAIR, RecordedPair
from strategy_core.domain.errors import Incomparable, InvalidName, InvalidSetting, NoActiveVersion, UnknownVersion
from strategy_core.domain.gates.on_metrics import MetricThreshold
from strategy_core.domain.gates.on_slots import Harm
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.simulation import USUAL
from strategy_core.services.calibrate import Calibrated, calibrate, read_pair
from tests.builders import DAY, HOUR, MONDAY, decision_row, outcome_row, put_decisions, put_outcomes, put_version

NOW = MONDAY + 40 * DAY


def put_history(engine: Engine, *, days: int, a_day: int = 3, canary: float = -0.1) -> None:
    """Put a pair that signals alike; the canary's trades are worth *canary* R less or more a trade, at random."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    rng = np.random.default_rng(7)
    moments = [MONDAY + day * DAY + hour * HOUR for day in range(days) for hour in range(a_day)]
    put_decisions(engine, *(decision_row(version, at, "buy") for version in ("1", "2") for at in moments))
    worth = rng.choice([-1.0, 1.0], len(moments))
    put_outcomes(engine, *(outcome_row("1", at, float(r)) for at, r in zip(moments, worth, strict=True)))
    other = worth * rng.choice([-1.0, 1.0], len(moments), p=[0.1, 0.9]) + canary
    put_outcomes(engine, *(outcome_row("2", at, float(r)) for at, r in zip(moments, other, strict=True)))


def tried(
    *scenarios: str, pair: RecordedPair | None = None, ramps: int = 6, workers: int | None = None, seed: int = 1
) -> Calibrated:
    return calibrate(Plan(), ramps=ramps, days=20, seed=seed, scenarios=scenarios, pair=pair, workers=workers)


@pytest.mark.full
def test_the_answer_does_not_depend_on_the_number_of_workers() -> None:
    """Eleven ramps are two chunks, which two processes end in either order."""
    here = tried("drawdown_spike", "severe", ramps=11)

    assert tried("drawdown_spike", "severe", ramps=11, workers=1) == here
    assert tried("drawdown_spike", "severe", ramps=11, workers=2) == here


@pytest.mark.full
def test_a_scenarios_ramps_are_its_own_and_its_seeds() -> None:
    both = tried("drawdown_spike", "severe")

    assert tried("severe").scenarios == both.scenarios[1:]
    assert tried("severe", seed=2).scenarios != both.scenarios[1:]


@pytest.mark.full
def test_the_usual_scenarios_are_tried_unless_some_are_named_each_once() -> None:
    told: list[tuple[int, int]] = []
    found = calibrate(Plan(), ramps=1, days=11, seed=1, done=lambda count, of: told.append((count, of)))

    assert [each.scenario for each in found.scenarios] == USUAL
    assert told == [(count, len(USUAL)) for count in range(1, len(USUAL) + 1)]
    assert [one.scenario for one in tried("severe", "identical", "severe", ramps=1).scenarios] == [
        "severe",
        "identical",
    ]


@pytest.mark.full
def test_metric_gates_are_left_out_and_said_to_be() -> None:
    metric = MetricThreshold(metric="slippage", query="slippage", maximum=3)
    with_metric = calibrate(Plan(gates=(*Plan().gates, metric)), ramps=2, days=20, seed=1, scenarios=["severe"])

    assert with_metric.left_out[-1] == "metric:slippage"
    assert with_metric.scenarios == tried("severe", ramps=2).scenarios


@pytest.mark.parametrize(
    ("scenarios", "days", "refusal", "says"),
    [
        (["sevre"], 20, InvalidName, "'sevre' is not a scenario; allowed: identical, equivalent, "),
        (["severe_from_day_10"], 10, InvalidSetting, "allowed: more than 10, when the fault of severe_from_day_10"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(
    scenarios: Sequence[str], days: int, refusal: type[Exception], says: str
) -> None:
    with pytest.raises(refusal, match=says):
        calibrate(Plan(), ramps=1, days=days, seed=1, scenarios=scenarios)


@pytest.mark.full
def test_a_pair_is_tried_on_its_own_past_with_its_own_stake(engine: Engine) -> None:
    put_history(engine, days=40)

    pair = read_pair(engine, strategy_name="fib_rsi", version="2", now=NOW)
    found = tried(pair=pair)

    assert (pair.history.slots, pair.history.days, pair.risk_fraction) == (120, 40, 0.01)
    assert [one.scenario for one in found.scenarios] == list(OF_A_PAIR)
    assert found.scenarios[0].healthy
    assert found.scenarios[0].rolled_back == 0.0
    lost = next(one for one in found.scenarios if one.scenario == "every_trade_loses")
    assert lost.rolled_back == 1.0
    assert lost.bound_slots is not None
    assert lost.median_slots is not None
    assert lost.bound_slots < 2 * lost.median_slots  # the gate joins several bets, the bound is of the best one


def test_it_changes_nothing(engine: Engine) -> None:
    put_history(engine, days=12)
    before = contents(engine)

    tried("severe", pair=read_pair(engine, strategy_name="fib_rsi", version="2", now=NOW), ramps=2)

    assert contents(engine) == before


@pytest.mark.parametrize(("days", "a_day", "found"), [(0, 0, "0 closed slots on 0"), (9, 3, "27 closed slots on 9")])
def test_too_little_history_is_refused(engine: Engine, days: int, a_day: int, found: str) -> None:
    put_history(engine, days=days, a_day=a_day)

    with pytest.raises(Incomparable, match=f"'2' cannot be measured against active '1': {found} days in shadow"):
        read_pair(engine, strategy_name="fib_rsi", version="2", now=NOW)


def test_a_single_day_is_too_little(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", symbols=[f"S{n}" for n in range(30)])
    for symbol in (f"S{n}" for n in range(30)):
        put_decisions(engine, *(decision_row(version, MONDAY, "buy", symbol=symbol) for version in ("1", "2")))
        put_outcomes(engine, *(outcome_row(version, MONDAY, 1.0, symbol=symbol) for version in ("1", "2")))

    with pytest.raises(Incomparable):
        read_pair(engine, strategy_name="fib_rsi", version="2", now=NOW)


def test_a_pair_that_cannot_be_is_refused(engine: Engine) -> None:
    put_version(engine, "2")

    with pytest.raises(UnknownVersion):
        read_pair(engine, strategy_name="fib_rsi", version="3", now=NOW)
    with pytest.raises(NoActiveVersion):
        read_pair(engine, strategy_name="fib_rsi", version="2", now=NOW)
    put_version(engine, "1", Status.ACTIVE, symbols=["SILVER"])
    with pytest.raises(Incomparable, match="symbols GOLD against SILVER"):
        read_pair(engine, strategy_name="fib_rsi", version="2", now=NOW)


@pytest.mark.full
def test_a_plan_of_harm_alone_is_a_plan() -> None:
    assert calibrate(Plan(gates=(Harm(),)), ramps=2, days=20, seed=1, scenarios=["severe"]).left_out == []


def contents(engine: Engine) -> str:
    with engine.connect() as connection:
        tables = ["strategy", "strategy_version", "rollout", "shadow_decision_log", "audit_event", "alert_outbox"]
        rows = {table: [*map(str, connection.execute(text(f"SELECT * FROM {table} ORDER BY 1")))] for table in tables}
    return json.dumps(rows)
