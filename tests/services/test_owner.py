"""What owners say to a rollout that waits, on evidence as it stands in the store; test_ramp has its whole life."""

from datetime import datetime

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import MissingReason, NotAwaiting, UnknownRollout, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import State, Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.canary import update_canary_percent
from strategy_core.services.rollouts import Choice, approve, decide_rollout, pause, resume, start_rollout
from strategy_core.services.tick import tick
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.alerts import find_alerts
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import Rollout
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version

DAILY = {"percent": 5, "minimum_time": 86_400, "margins": {"pnl_r": 0.1, "win": 0.05}}
PLAN = read_plan(
    {"stages": [DAILY, {**DAILY, "percent": 100}], "gates": [{"kind": "errors"}], "maximum_stage_time": 172_800}
)


@pytest.fixture
def asked(engine: Engine, market: SyntheticSource) -> Engine:
    """Version 2 has passed its first stage against version 1: it waits for an approval since Tuesday."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=PLAN)
    assert step(engine, market, MONDAY + DAY) is Step.AWAIT_APPROVAL
    return engine


def step(engine: Engine, market: SyntheticSource, now: datetime, *, decided: bool = True) -> Step:
    """Log the candles until *now*, if they are *decided*, and tick."""
    if decided:
        hours = [MONDAY + hour * HOUR for hour in range(int((now - MONDAY) / HOUR))]
        put_decisions(engine, *(decision_row(version, at) for version in ("1", "2") for at in hours))
    (ticked,) = tick(engine, market, now=now)
    assert ticked.ruling is not None, ticked.error
    return ticked.ruling.step


def put_state(engine: Engine, state: State) -> None:
    with transaction(engine) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=state.value)


def newest(engine: Engine) -> Rollout:
    with reading(engine) as session:
        return rollouts.list_rollouts(session)[0]


def percent(engine: Engine) -> float:
    with reading(engine) as session:
        return rollouts.get_canary(session, "fib_rsi").rollout_percent


@pytest.mark.parametrize("reason", ["", " \n"])
def test_the_last_stage_is_not_approved_without_a_reason(asked: Engine, reason: str) -> None:
    with pytest.raises(MissingReason, match="cannot approve the last stage of 'fib_rsi' '2' without a reason"):
        approve(asked, Command(OWNER, MONDAY + DAY, reason), strategy_name="fib_rsi")

    assert newest(asked).state == State.AWAITING_APPROVAL
    approve(asked, Command(OWNER, MONDAY + DAY, "reviewed"), strategy_name="fib_rsi")
    assert newest(asked).approved_stage == 1


def test_an_earlier_stage_is_approved_without_a_reason(engine: Engine, market: SyntheticSource) -> None:
    stages = [{**DAILY, "percent": share} for share in (5, 50, 100)]
    plan = read_plan({"stages": stages, "gates": [{"kind": "errors"}], "approve_before": [50, 100]})
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=plan)
    step(engine, market, MONDAY + DAY)

    approve(engine, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi")

    assert newest(engine).approved_stage == 1


def test_an_approval_lapses_when_a_gate_passes_no_more_and_is_asked_for_again(
    asked: Engine, market: SyntheticSource
) -> None:
    approve(asked, Command(OWNER, MONDAY + DAY, "reviewed"), strategy_name="fib_rsi")

    assert step(asked, market, MONDAY + DAY + 6 * HOUR, decided=False) is Step.LAPSE
    assert newest(asked).approved_stage is None
    assert step(asked, market, MONDAY + DAY + 7 * HOUR, decided=False) is Step.HOLD
    assert step(asked, market, MONDAY + DAY + 8 * HOUR) is Step.AWAIT_APPROVAL
    assert percent(asked) == 5.0
    with reading(asked) as session:
        event = audit.events(session)[-2]
        alerts = [alert.kind for alert in find_alerts(session)]
    assert (event.action, event.before["percent"], event.after["percent"]) == ("lapse", 5.0, 5.0)
    assert event.reason.startswith("the approval lapses: freshness: candle")
    assert alerts[-4:] == [
        "rollout.approval_lapsed",
        "rollout.blind",
        "rollout.awaiting_approval",
        "incident.ended",
    ]

    approve(asked, Command(OWNER, MONDAY + DAY + 8 * HOUR, "reviewed"), strategy_name="fib_rsi")
    assert step(asked, market, MONDAY + DAY + 9 * HOUR) is Step.ADVANCE
    assert percent(asked) == 100.0


def test_a_late_tick_uses_no_approval_that_was_given_after_its_moment(asked: Engine, market: SyntheticSource) -> None:
    approve(asked, Command(OWNER, MONDAY + DAY + 2 * HOUR, "reviewed"), strategy_name="fib_rsi")

    assert step(asked, market, MONDAY + DAY + HOUR) is Step.HOLD
    assert percent(asked) == 5.0
    assert newest(asked).approved_stage == 1  # it waits for a tick of its time
    assert step(asked, market, MONDAY + DAY + 2 * HOUR) is Step.ADVANCE


def test_a_late_tick_rolls_back_whatever_was_approved_later(asked: Engine, market: SyntheticSource) -> None:
    approve(asked, Command(OWNER, MONDAY + DAY + 6 * HOUR, "reviewed"), strategy_name="fib_rsi")
    at = [MONDAY + DAY + hour * HOUR for hour in range(3)]
    put_decisions(asked, *(decision_row("2", hour, "error", error_kind="raised") for hour in at))

    assert step(asked, market, MONDAY + DAY + 3 * HOUR) is Step.ROLL_BACK


def test_harm_rolls_back_what_was_approved(asked: Engine, market: SyntheticSource) -> None:
    approve(asked, Command(OWNER, MONDAY + DAY, "reviewed"), strategy_name="fib_rsi")
    at = [MONDAY + DAY + hour * HOUR for hour in range(3)]
    put_decisions(asked, *(decision_row("2", hour, "error", error_kind="raised") for hour in at))

    assert step(asked, market, MONDAY + DAY + 3 * HOUR) is Step.ROLL_BACK


@pytest.mark.parametrize("state", [State.AWAITING_APPROVAL, State.AWAITING_DECISION])
def test_what_waits_for_an_owner_can_be_paused_and_set_by_hand(
    asked: Engine, market: SyntheticSource, state: State
) -> None:
    put_state(asked, state)
    pause(asked, Command(OWNER, MONDAY + DAY, "a holiday"), strategy_name="fib_rsi")
    update_canary_percent(asked, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", percent=1)
    assert step(asked, market, MONDAY + DAY + HOUR) is Step.HOLD
    assert newest(asked).state == State.PAUSED

    resume(asked, Command(OWNER, MONDAY + DAY + 2 * HOUR), strategy_name="fib_rsi")

    assert newest(asked).state == State.RUNNING
    assert percent(asked) == 5.0
    assert step(asked, market, MONDAY + DAY + 3 * HOUR) is Step.HOLD
    assert step(asked, market, MONDAY + 2 * DAY + 2 * HOUR) is Step.AWAIT_APPROVAL


def test_an_approval_does_not_outlast_a_pause(asked: Engine, market: SyntheticSource) -> None:
    approve(asked, Command(OWNER, MONDAY + DAY, "reviewed"), strategy_name="fib_rsi")
    pause(asked, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi")
    resume(asked, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi")

    assert step(asked, market, MONDAY + 2 * DAY) is Step.AWAIT_APPROVAL
    assert percent(asked) == 5.0


@pytest.mark.parametrize("state", [State.PAUSED, State.ROLLED_BACK])
def test_what_is_paused_or_over_is_not_paused(asked: Engine, state: State) -> None:
    if state is State.ROLLED_BACK:
        decide_rollout(asked, Command(OWNER, MONDAY + DAY, "enough"), strategy_name="fib_rsi", choice=Choice.ROLL_BACK)
        with pytest.raises(UnknownRollout):
            pause(asked, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi")
        return
    put_state(asked, state)
    allowed = "allowed when awaiting_approval or awaiting_decision or running"
    with pytest.raises(NotAwaiting, match=f"cannot pause: the rollout is paused; {allowed}"):
        pause(asked, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi")


@pytest.mark.parametrize(
    "state", [State.RUNNING, State.PAUSED, State.AWAITING_APPROVAL, State.AWAITING_DECISION], ids=str
)
def test_a_decision_to_roll_back_is_heard_in_every_state(asked: Engine, state: State) -> None:
    put_state(asked, state)

    rollout = decide_rollout(
        asked, Command(OWNER, MONDAY + DAY, "odd fills"), strategy_name="fib_rsi", choice=Choice.ROLL_BACK
    )

    assert (rollout.state, rollout.reason) == (State.ROLLED_BACK, "by ana: odd fills")
    assert percent(asked) == 0.0
    with reading(asked) as session:
        assert versions.get_version(session, "fib_rsi", "2").quarantined_at == MONDAY + DAY
        event = audit.events(session)[-1]
        assert find_alerts(session)[-1].kind == "rollout.rolled_back"
    assert (event.actor, event.action, event.reason) == ("ana", "roll_back", "odd fills")


def test_a_decision_that_comes_twice_takes_nobody_off_the_healthy_version(asked: Engine) -> None:
    decide_rollout(asked, Command(OWNER, MONDAY + DAY, "odd fills"), strategy_name="fib_rsi", choice=Choice.ROLL_BACK)

    with pytest.raises(UnknownRollout, match="of 'fib_rsi' is open"):
        decide_rollout(
            asked, Command(OWNER, MONDAY + DAY, "odd fills"), strategy_name="fib_rsi", choice=Choice.ROLL_BACK
        )
    with pytest.raises(UnknownStrategy):
        decide_rollout(asked, Command(OWNER, MONDAY, "odd"), strategy_name="fib_rsy", choice=Choice.ROLL_BACK)


@pytest.mark.parametrize("choice", [Choice.EXTEND, Choice.ADVANCE])
def test_any_other_decision_waits_to_be_asked_for(asked: Engine, choice: Choice) -> None:
    with pytest.raises(NotAwaiting, match="cannot decide: the rollout is awaiting_approval"):
        decide_rollout(asked, Command(OWNER, MONDAY + DAY, "hurry"), strategy_name="fib_rsi", choice=choice)
