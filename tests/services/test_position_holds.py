"""Open positions hold the next stage: without a manager that decides, or with more open risk than the plan allows."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.alerts import OPEN_RISK_EXCEEDED, ORPHANED
from strategy_core.domain.audit import Command
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import read_alerts
from strategy_core.services.drain import drain
from strategy_core.services.live_trades import ingest
from strategy_core.services.queries import read_rollout
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_pair, put_version
from tests.services.ramping import days, newest, ruled
from tests.services.test_positions import closed, opened

BEFORE = MONDAY - 2 * HOUR  # no order of the rollout, which the gates on live orders would judge


def hold(engine: Engine, version: str, number: int, **facts: Any) -> None:
    """Report open trades of a version, opened before the rollout."""
    trades = [opened(f"{version}-{n}", version, opened_at=BEFORE, **facts) for n in range(number)]
    ingest(engine, trades, now=MONDAY)


def decides(engine: Engine, version: str, until: datetime) -> None:
    put_decisions(engine, *(decision_row(version, until - n * HOUR) for n in range(1, 5)))


def start(engine: Engine, **plan: Any) -> datetime:
    put_pair(engine)
    start_rollout(
        engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan().model_copy(update=plan)
    )
    return days(engine, MONDAY, 4)


def test_positions_whose_manager_is_silent_hold_the_next_stage(ramped: Engine, market: SyntheticSource) -> None:
    put_version(ramped, "3")
    hold(ramped, "3", 2)
    now = days(ramped, MONDAY, 4)

    step, reason = ruled(tick(ramped, market, now=now))

    assert step is Step.HOLD
    assert reason.startswith("2 open positions of fib_rsi have no manager that decides: 3 has not decided on GOLD")
    decides(ramped, "3", now)
    assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE


def test_an_open_incident_of_the_drain_holds_it_too(ramped: Engine, market: SyntheticSource) -> None:
    put_version(ramped, "3", symbols=("SILVER",))
    hold(ramped, "3", 1, symbol="SILVER")
    now = days(ramped, MONDAY, 4)
    drain(ramped, market, now=now)
    assert [each.alert.kind for each in read_alerts(ramped)][-1] == ORPHANED

    assert ruled(tick(ramped, market, now=now)) == (
        Step.HOLD,
        "open positions of fib_rsi had no manager that decides a short while ago",
    )

    ingest(ramped, [closed("3-0", "3", opened_at=BEFORE, symbol="SILVER")], now=now)
    drain(ramped, market, now=now + timedelta(minutes=11))
    assert ruled(tick(ramped, market, now=now + timedelta(minutes=12)))[0] is Step.ADVANCE


def test_a_rollback_does_not_wait_for_orphans(ramped: Engine, market: SyntheticSource) -> None:
    put_version(ramped, "3")
    hold(ramped, "3", 2)
    now = days(ramped, MONDAY, 4, {"1": 0.4, "2": -1.0})

    assert ruled(tick(ramped, market, now=now))[0] is Step.ROLL_BACK


def test_at_the_maximum_time_of_the_stage_the_owner_is_asked(engine: Engine, market: SyntheticSource) -> None:
    now = start(engine, maximum_stage_time=timedelta(days=2))
    put_version(engine, "3")
    hold(engine, "3", 1)

    assert ruled(tick(engine, market, now=now))[0] is Step.AWAIT_DECISION


@pytest.mark.parametrize(("sizes", "percent"), [({}, 25.0), ({"size": 2.0}, 25.0)])
def test_open_risk_above_the_limit_holds_the_next_stage(
    engine: Engine, market: SyntheticSource, sizes: dict[str, float], percent: float
) -> None:
    now = start(engine, open_risk_percent=20.0)
    hold(engine, "1", 3, **sizes)
    hold(engine, "2", 1, **sizes)

    step, reason = ruled(tick(engine, market, now=now))

    assert step is Step.HOLD
    assert reason.startswith(f"the canary has {percent} % of the open risk, 1 open position, by ")
    assert reason.endswith("the plan's limit is 20 %")
    status, _ = read_rollout(engine, newest(engine).id, now=now)
    assert status.open_risk.startswith("25.0 % of the open risk")


def test_it_goes_on_when_the_open_risk_has_fallen(engine: Engine, market: SyntheticSource) -> None:
    now = start(engine, open_risk_percent=20.0)
    hold(engine, "1", 3)
    hold(engine, "2", 1)
    assert ruled(tick(engine, market, now=now))[0] is Step.HOLD

    ingest(engine, [closed("2-0", "2", opened_at=BEFORE)], now=now)

    assert ruled(tick(engine, market, now=now))[0] is Step.ADVANCE


def test_open_risk_above_the_limit_is_one_alert(engine: Engine, market: SyntheticSource) -> None:
    now = start(engine, open_risk_percent=20.0)
    hold(engine, "1", 3)
    hold(engine, "2", 1)

    (line,) = drain(engine, market, now=now).exceeded
    drain(engine, market, now=now + timedelta(minutes=1))

    assert line.startswith("fib_rsi 2: the canary has 25.0 % of the open risk")
    assert [each.alert.kind for each in read_alerts(engine)].count(OPEN_RISK_EXCEEDED) == 1


def test_without_a_limit_open_risk_holds_nothing(engine: Engine, market: SyntheticSource) -> None:
    now = start(engine)
    hold(engine, "2", 3)

    assert drain(engine, market, now=now).exceeded == []
    assert ruled(tick(engine, market, now=now))[0] is Step.ADVANCE


def test_the_wait_for_positions_lasts_as_long_as_they_do(ramped: Engine, market: SyntheticSource) -> None:
    put_version(ramped, "3")
    hold(ramped, "3", 1)
    now = days(ramped, MONDAY, 5)

    assert ruled(tick(ramped, market, now=now - DAY))[0] is Step.HOLD
    assert ruled(tick(ramped, market, now=now))[0] is Step.HOLD
    assert newest(ramped).stage_index == 0
