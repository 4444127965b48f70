"""What must hold before a rollout starts, and that its start is one change."""

from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    IllegalTransition,
    Incomparable,
    NoActiveVersion,
    Quarantined,
    RolloutOpen,
    UnarmedPlan,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.services.canary import activate_canary
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.store import alerts, audit, versions
from strategy_core.store.engine import reading
from tests.builders import DAY, MONDAY, OWNER, put_version
from tests.services.ramping import newest, standing


def test_the_start_is_one_change(ramped: Engine) -> None:
    assert standing(ramped) == ({"1": "active", "2": "canary"}, 5.0)
    with reading(ramped) as session:
        (event,) = audit.events(session)
        (alert,) = alerts.find_alerts(session)
    assert (event.action, event.before["canary"], event.after["canary"]) == ("start_rollout", None, "2")
    assert alert.text == "fib_rsi 2 started at 5 % against 1"
    assert read_plan(newest(ramped).plan) == Plan()


def test_one_rollout_at_a_time(ramped: Engine) -> None:
    put_version(ramped, "3")

    with pytest.raises(RolloutOpen, match="'fib_rsi' '2' is running"):
        start_rollout(ramped, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="3", plan=Plan())


def test_a_rollout_starts_from_shadow_beside_an_active_version(engine: Engine) -> None:
    put_version(engine, "2")
    with pytest.raises(NoActiveVersion):
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "0", Status.RETIRED)
    with pytest.raises(IllegalTransition, match="cannot move retired -> canary"):
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="0", plan=Plan())


@pytest.mark.parametrize(
    ("columns", "difference"),
    [({"timeframe": "4h"}, "timeframe 4h against 1h"), ({"symbols": ["SILVER"]}, "symbols SILVER against GOLD")],
)
def test_what_shares_no_candle_cannot_be_measured(engine: Engine, columns: dict[str, Any], difference: str) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", **columns)

    with pytest.raises(Incomparable, match=difference):
        start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())


def test_an_unarmed_plan_never_starts(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")

    with pytest.raises(UnarmedPlan):
        start_rollout(
            engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=read_plan({"gates": []})
        )
    with reading(engine) as session:
        assert versions.get_version(session, "fib_rsi", "2").status == "shadow"


def test_a_canary_moved_by_hand_can_be_put_under_a_plan(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=20)

    start_rollout(engine, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", version="2", plan=Plan())

    assert standing(engine) == ({"1": "active", "2": "canary"}, 5.0)


def test_a_quarantined_version_is_ramped_again_only_with_a_reason(ramped: Engine) -> None:
    roll_back(ramped, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")

    with pytest.raises(Quarantined):
        start_rollout(ramped, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", version="2", plan=Plan())
    start_rollout(
        ramped,
        Command(OWNER, MONDAY + DAY, override_reason="the broker's fault"),
        strategy_name="fib_rsi",
        version="2",
        plan=Plan(),
    )

    assert standing(ramped) == ({"1": "active", "2": "canary"}, 5.0)
