"""The risk of a pair is measured in shadow when a rollout starts, frozen, and sent with every signal of the version."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvariantRefused
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan, read_plan
from strategy_core.domain.policy import LossLimit, load_policy
from strategy_core.domain.risk import load_risk
from strategy_core.services.audit import verify_trail
from strategy_core.services.queries import Scope, list_canaries, read_rollout
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import preview_plan, start_rollout
from strategy_core.services.signals import publish_signals, read_signals
from strategy_core.services.versions import activate_version
from strategy_core.store import audit, outcomes
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import Rollout
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.services.ramping import newest

FROM = MONDAY - 40 * DAY
SCALED = "2 risks 1.8 × what 1 does: its users are sent 0.56 of the size"


def put_equity(
    engine: Engine, version: str, r: float, *, hours: int = 30 * 24, symbol: str = GOLD, until: datetime = MONDAY
) -> None:
    """Mark an open trade that gains and loses *r* by turns in each of the last hours."""
    rows: Sequence[dict[str, Any]] = [
        {
            "strategy_name": "fib_rsi",
            "version": version,
            "symbol": symbol,
            "timestamp": until - (n + 1) * HOUR,
            "r": r if n % 2 else -r,
        }
        for n in range(hours)
    ]
    with transaction(engine) as session:
        outcomes.mark_equity(session, rows)


@pytest.fixture
def measured(engine: Engine) -> Engine:
    """Version 1 is active, version 2 risks 1.8 × as much in 40 days of shadow."""
    put_version(engine, "1", Status.ACTIVE, at=FROM, recorded=True)
    put_version(engine, "2", at=FROM, recorded=True)
    put_equity(engine, "1", 0.1)
    put_equity(engine, "2", 0.18)
    return engine


def start(engine: Engine, version: str = "2", *, now: datetime = MONDAY, **plan: Any) -> Rollout:
    chosen = Plan().model_copy(update=plan)
    return start_rollout(engine, Command(OWNER, now), strategy_name="fib_rsi", version=version, plan=chosen)


def line(rollout: Rollout) -> str:
    found = load_risk(rollout.risk)
    assert found is not None
    return found.line(rollout.version, rollout.control_version)


def test_a_start_freezes_the_scale_in_the_trail(measured: Engine) -> None:
    started = start(measured)

    assert (started.risk_scale, line(started)) == (0.56, SCALED)
    with reading(measured) as session:
        event = audit.events(session)[-1]
    assert (event.action, event.after["risk_scale"]) == ("start_rollout", 0.56)
    assert all(trail.breaks == [] for trail in verify_trail(measured).trails)
    status, _ = read_rollout(measured, started.id, now=MONDAY)
    assert status.risk == SCALED
    ((_, _, _, scale),) = list_canaries(measured, Scope(), now=MONDAY)
    assert scale == 0.56


def test_what_has_been_frozen_stays(measured: Engine) -> None:
    started = start(measured)
    put_equity(measured, "2", 1.0, hours=48, until=MONDAY + 2 * DAY)

    with pytest.raises(InvariantRefused), transaction(measured) as session:
        session.connection().execute(text("UPDATE rollout SET risk_scale = 1"))
    with pytest.raises(InvariantRefused), transaction(measured) as session:
        session.connection().execute(text("UPDATE rollout SET risk = NULL"))

    assert newest(measured).risk_scale == started.risk_scale == 0.56


def test_a_preview_shows_what_a_start_would_freeze(measured: Engine) -> None:
    found = preview_plan(measured, strategy_name="fib_rsi", version="2", plan=Plan(), now=MONDAY)

    assert SCALED in found.notes
    assert found.risk is not None
    assert found.risk.scale == 0.56
    assert found.risk.active_var == pytest.approx(1.645 * (30 * 24 * 0.01 / 39) ** 0.5, rel=0.01)


def test_a_plan_may_leave_the_size_as_it_is(measured: Engine) -> None:
    started = start(measured, risk_scale=False)

    assert started.risk_scale == 1.0
    assert line(started) == (
        "2 risks 1.8 × what 1 does: its users are sent the full size, because the plan applies no risk scale"
    )


def test_with_too_little_shadow_no_scale_is_claimed(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE, at=FROM)
    put_version(engine, "2", at=MONDAY - 10 * DAY)
    for version, r in (("1", 0.1), ("2", 0.5)):
        put_equity(engine, version, r, hours=200)

    started = start(engine)

    assert started.risk_scale == 1.0
    assert "9 days in shadow together, 20 are needed" in line(started)


def test_a_version_that_was_down_is_not_taken_for_a_calm_one(measured: Engine) -> None:
    hours = [MONDAY - n * HOUR for n in range(1, 30 * 24)]
    put_decisions(measured, *(decision_row("1", at) for at in hours))
    put_decisions(measured, *(decision_row("2", at) for at in hours[:400]))

    started = start(measured)

    assert started.risk_scale == 1.0
    assert "one has decided on 400 candles, the other on 719" in line(started)


def test_a_version_counts_with_all_of_its_symbols(engine: Engine) -> None:
    """Its users are sent the trades of all of them."""
    put_version(engine, "1", Status.ACTIVE, at=FROM)
    put_version(engine, "2", at=FROM, symbols=(GOLD, "SILVER"))
    put_equity(engine, "1", 0.1)
    put_equity(engine, "2", 0.1)
    put_equity(engine, "2", 0.1, symbol="SILVER")

    assert start(engine).risk_scale == 0.5


def test_every_signal_of_the_version_has_the_scale_also_after_the_promotion(measured: Engine) -> None:
    def scales() -> list[tuple[str, float, str]]:
        return [(each.version, each.risk_scale, each.role) for each in read_signals(measured).items]

    start(measured)
    put_decisions(
        measured,
        *(
            decision_row(version, MONDAY, "buy") | {"role": role, "logged_at": MONDAY + HOUR}
            for version, role in (("1", "active"), ("2", "canary"))
        ),
    )
    publish_signals(measured)
    assert scales() == [("1", 1.0, "active"), ("2", 0.56, "canary")]

    activate_version(measured, Command(OWNER, MONDAY + HOUR, "enough"), strategy_name="fib_rsi", version="2")

    assert scales() == [("1", 1.0, "withdrawn"), ("2", 0.56, "active")]


def test_a_successor_is_measured_against_the_size_that_users_have(measured: Engine) -> None:
    start(measured)
    activate_version(measured, Command(OWNER, MONDAY, "enough"), strategy_name="fib_rsi", version="2")
    put_version(measured, "3", at=FROM)
    put_equity(measured, "3", 0.18)

    assert start(measured, "3").risk_scale == 0.56


def test_a_new_start_of_a_version_measures_anew(measured: Engine) -> None:
    start(measured)
    roll_back(measured, Command(OWNER, MONDAY, "doubt"), strategy_name="fib_rsi")
    again = start_rollout(
        measured,
        Command(OWNER, MONDAY + HOUR, override_reason="looked at"),
        strategy_name="fib_rsi",
        version="2",
        plan=read_plan({"risk_scale": False}),
    )

    assert again.risk_scale == 1.0
    ((_, _, _, scale),) = list_canaries(measured, Scope(), now=MONDAY + HOUR)
    assert scale == 1.0


def test_a_stored_plan_of_before_has_no_scale() -> None:
    stored = Plan().model_dump(mode="json")
    del stored["risk_scale"]

    policy = load_policy({"plans": {"usual": stored}, "loss_limit": LossLimit(r=1).model_dump()})

    assert policy.plans["usual"].risk_scale is False
