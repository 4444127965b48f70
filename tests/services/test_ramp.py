"""A rollout from its start to each of its ends, on evidence as it stands in the store."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollouts import approve, pause, start_rollout
from strategy_core.services.tick import tick, tick_rollout
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import reading
from tests.builders import HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.services.ramping import days, newest, ruled, standing


def test_it_advances_stage_by_stage_waits_for_the_owner_is_promoted_and_bakes(
    ramped: Engine, market: SyntheticSource
) -> None:
    now = days(ramped, MONDAY, 4)
    percents = []
    for _ in range(3):
        assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE
        percents.append(standing(ramped)[1])
        now = days(ramped, now, 1)
    waits = ruled(tick(ramped, market, now=now))
    again = ruled(tick(ramped, market, now=now))
    approve(ramped, Command(OWNER, now, "reviewed"), strategy_name="fib_rsi")
    assert ruled(tick(ramped, market, now=now))[0] is Step.ADVANCE
    percents.append(standing(ramped)[1])
    now = days(ramped, now, 1)
    promoted = ruled(tick(ramped, market, now=now))

    assert percents == [10.0, 25.0, 50.0, 100.0]
    assert waits[0] is again[0] is Step.AWAIT_APPROVAL
    assert promoted[0] is Step.PROMOTE
    assert standing(ramped) == ({"1": "shadow", "2": "active"}, 0.0)

    now = days(ramped, now, 7)
    assert ruled(tick(ramped, market, now=now)) == (Step.COMPLETE, "baked 7 days without harm")
    assert standing(ramped)[0] == {"1": "shadow", "2": "active"}
    with reading(ramped) as session:
        actions = [event.action for event in audit.events(session)]
    assert actions == [
        "start_rollout",
        "advance",
        "advance",
        "advance",
        "await_approval",
        "approve",
        "advance",
        "promote",
        "complete",
    ]


def test_a_doubled_tick_takes_one_step(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    for _ in range(3):
        tick(ramped, market, now=now)

    assert newest(ramped).stage_index == 1
    with reading(ramped) as session:
        assert [event.action for event in audit.events(session)] == ["start_rollout", "advance"]


def test_a_late_tick_does_not_turn_time_back(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    tick(ramped, market, now=now)
    tick(ramped, market, now=now - HOUR / 3)

    assert newest(ramped).last_tick_at == now
    assert newest(ramped).stage_index == 1


def test_a_dry_run_changes_nothing(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    said = tick_rollout(ramped, market, newest(ramped).id, now=now, apply=False)

    assert said is not None
    assert said[0].step is Step.ADVANCE
    assert newest(ramped).stage_index == 0
    assert newest(ramped).last_tick_at is None


def test_proven_harm_rolls_back_quarantines_and_tells(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4, {"1": 0.4, "2": -1.0})
    step, reason = ruled(tick(ramped, market, now=now))

    assert step is Step.ROLL_BACK
    assert reason.startswith("losing_streak: 40 slots in a row")
    assert standing(ramped) == ({"1": "active", "2": "shadow"}, 0.0)
    assert newest(ramped).state == "rolled_back"
    with reading(ramped) as session:
        assert versions.get_version(session, "fib_rsi", "2").quarantined_at == now
        alert = alerts.find_alerts(session)[-1]
    assert (alert.kind, alert.severity) == ("rollout.rolled_back", "critical")
    assert (alert.facts["value"], alert.facts["limit"], alert.facts["gate"]) == (40.0, 12.0, "losing_streak")
    assert tick(ramped, market, now=now) == []


@pytest.mark.parametrize(
    ("kind", "gate"),
    [("raised", "errors"), ("deadline", "errors"), ("invalid", "invalid_decisions"), ("breach", "invalid_decisions")],
)
def test_a_version_that_fails_is_rolled_back_though_it_dwells(
    ramped: Engine, market: SyntheticSource, kind: str, gate: str
) -> None:
    errors = 3 if gate == "errors" else 1
    put_decisions(ramped, *(decision_row("1", MONDAY + hour * HOUR) for hour in range(3)))
    put_decisions(ramped, *(decision_row("2", MONDAY + hour * HOUR) for hour in range(3 - errors)))
    put_decisions(
        ramped, *(decision_row("2", MONDAY + (2 - i) * HOUR, "error", error_kind=kind) for i in range(errors))
    )

    step, reason = ruled(tick(ramped, market, now=MONDAY + 3 * HOUR))

    assert step is Step.ROLL_BACK
    assert reason.startswith(gate)


def test_silence_is_rolled_back(ramped: Engine, market: SyntheticSource) -> None:
    put_decisions(ramped, decision_row("2", MONDAY), *(decision_row("1", MONDAY + hour * HOUR) for hour in range(5)))

    assert ruled(tick(ramped, market, now=MONDAY + 5 * HOUR))[0] is Step.ROLL_BACK


def test_a_drawdown_of_the_canary_alone_is_rolled_back_while_paused(ramped: Engine, market: SyntheticSource) -> None:
    """An owner's pause holds the ramp, never the protection."""
    pause(ramped, Command(OWNER, MONDAY), strategy_name="fib_rsi")
    now = days(ramped, MONDAY, 3, {"1": -0.01, "2": -1.0})

    step, reason = ruled(tick(ramped, market, now=now))

    assert step is Step.ROLL_BACK
    assert reason.startswith("excess_drawdown: drawdown 30.00%")


def test_verdicts_are_written_when_they_say_something_new(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 1)
    for minute in range(5):
        tick(ramped, market, now=now + timedelta(minutes=minute))

    with reading(ramped) as session:
        history = rollouts.verdict_history(session, newest(ramped).id)
        last = rollouts.last_verdicts(session, newest(ramped).id)
    assert len(history) == len(last) == 1 + len(Plan().gates)
    assert last["not_worse"].verdict == "insufficient"
    assert last["not_worse"].reason == "10 of 30 slots, day 1 of at least 3"


@pytest.mark.parametrize("how", ["insufficient_history", "errors"])
def test_a_canary_that_answers_without_deciding_is_silent(ramped: Engine, market: SyntheticSource, how: str) -> None:
    now = days(ramped, MONDAY, 4)
    hours = [now + hour * HOUR for hour in range(4)]
    put_decisions(ramped, *(decision_row("1", at) for at in hours))
    if how == "errors":
        put_decisions(ramped, *(decision_row("2", at, "error", error_kind="raised") for at in hours))
    else:
        put_decisions(ramped, *(decision_row("2", at, reason=how) for at in hours))

    assert ruled(tick(ramped, market, now=now + 4 * HOUR))[0] is Step.ROLL_BACK


def test_symbols_of_one_version_alone_are_neither_due_nor_silent(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE, symbols=("GOLD", "SILVER"))
    put_version(engine, "2", symbols=("GOLD",))
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    for hour in range(6):
        at = MONDAY + hour * HOUR
        put_decisions(engine, decision_row("1", at), decision_row("2", at), decision_row("1", at, symbol="SILVER"))

    step, reason = ruled(tick(engine, market, now=MONDAY + 6 * HOUR))

    assert step is Step.HOLD
    assert reason.startswith("dwells")
