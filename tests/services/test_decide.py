"""What an owner answers a rollout that waits, and what he cannot: nobody advances in the dark or into harm."""

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import NotAwaiting, UnknownRollout
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.canary import update_canary_percent
from strategy_core.services.rollouts import Choice, approve, decide_rollout, pause, resume
from strategy_core.services.tick import tick
from strategy_core.store import audit
from strategy_core.store.engine import reading
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_day, put_decisions, put_version
from tests.services.ramping import days, newest, ruled, standing


def test_no_answer_within_the_maximum_asks_the_owner(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    now = MONDAY + 64 * DAY

    assert ruled(tick(ramped, market, now=now))[0] is Step.AWAIT_DECISION
    assert newest(ramped).state == "awaiting_decision"
    decide_rollout(ramped, Command(OWNER, now, "more data"), strategy_name="fib_rsi", choice=Choice.EXTEND)
    assert ruled(tick(ramped, market, now=now))[0] is Step.HOLD
    assert newest(ramped).stage_index == 0


def test_an_owner_may_advance_without_an_answer_and_answers_for_it(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    now = MONDAY + 64 * DAY
    tick(ramped, market, now=now)

    decide_rollout(ramped, Command(OWNER, now, "few signals by design"), strategy_name="fib_rsi", choice=Choice.ADVANCE)

    assert standing(ramped)[1] == 10.0
    with reading(ramped) as session:
        event = audit.events(session)[-1]
    assert (event.actor, event.action, event.reason) == ("ana", "advance", "by ana: few signals by design")


def test_nobody_advances_in_the_dark(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    tick(ramped, market, now=MONDAY + 64 * DAY)
    tick(ramped, market, now=MONDAY + 64 * DAY + 8 * HOUR)

    with pytest.raises(NotAwaiting, match="without sight since"):
        decide_rollout(
            ramped, Command(OWNER, MONDAY + 65 * DAY, "hurry"), strategy_name="fib_rsi", choice=Choice.ADVANCE
        )


def test_an_approval_counts_only_when_it_is_asked_for(ramped: Engine) -> None:
    with pytest.raises(NotAwaiting, match="cannot approve: the rollout is running; allowed when awaiting_approval"):
        approve(ramped, Command(OWNER, MONDAY), strategy_name="fib_rsi")


def test_without_an_open_rollout_there_is_nothing_to_say(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)

    with pytest.raises(UnknownRollout, match="of 'fib_rsi' is open"):
        approve(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi")


def test_nobody_advances_into_harm(ramped: Engine, market: SyntheticSource) -> None:
    put_day(ramped, MONDAY + 63 * DAY, {"1": "buy", "2": "hold"}, {"1": 1.0, "2": 0.0}, signal_hours=[3])
    now = MONDAY + 64 * DAY
    tick(ramped, market, now=now)
    put_decisions(ramped, decision_row("2", now, "error", error_kind="breach"), decision_row("1", now))

    with pytest.raises(NotAwaiting, match="in breach: invalid_decisions"):
        decide_rollout(ramped, Command(OWNER, now + HOUR, "hurry"), strategy_name="fib_rsi", choice=Choice.ADVANCE)
    with pytest.raises(NotAwaiting, match="without sight since"):
        decide_rollout(ramped, Command(OWNER, now + 3 * DAY, "hurry"), strategy_name="fib_rsi", choice=Choice.ADVANCE)


def test_an_approval_is_not_taken_for_gates_that_pass_no_more(ramped: Engine, market: SyntheticSource) -> None:
    now = days(ramped, MONDAY, 4)
    for _ in range(4):
        step, _ = ruled(tick(ramped, market, now=now))
        now = days(ramped, now, 1)
    assert step is Step.AWAIT_APPROVAL
    tick(ramped, market, now=now + 8 * HOUR)

    with pytest.raises(NotAwaiting, match="freshness is blind"):
        approve(ramped, Command(OWNER, now + 8 * HOUR), strategy_name="fib_rsi")


def test_a_pause_is_no_dwell(ramped: Engine, market: SyntheticSource) -> None:
    """Nobody was served at the stage while its percent was 0: its minimum time begins with the resumption."""
    pause(ramped, Command(OWNER, MONDAY), strategy_name="fib_rsi")
    now = days(ramped, MONDAY, 4)
    resume(ramped, Command(OWNER, now), strategy_name="fib_rsi")
    days(ramped, now, 1)

    assert ruled(tick(ramped, market, now=now + HOUR))[1].startswith("dwells at 5 %: 60 min")


def test_a_resumption_in_the_dark_adds_no_users(ramped: Engine, market: SyntheticSource) -> None:
    days(ramped, MONDAY, 1)
    pause(ramped, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi")
    update_canary_percent(ramped, Command(OWNER, MONDAY + DAY), strategy_name="fib_rsi", percent=1)
    tick(ramped, market, now=MONDAY + DAY + 8 * HOUR)
    resume(ramped, Command(OWNER, MONDAY + DAY + 9 * HOUR), strategy_name="fib_rsi")

    assert newest(ramped).blind_since is not None
    assert standing(ramped)[1] == 1.0
