"""Four eyes: whoever started a rollout waits for somebody else to let it go on, and for nobody to take users off it."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import FourEyes
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.domain.ramp import State, Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import Choice, approve, decide_rollout, pause, resume, start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version

ANOTHER = Actor("bob")
TUESDAY = MONDAY + DAY
DAILY = {"percent": 5, "minimum_time": 86_400, "margins": {"pnl_r": 0.1, "win": 0.05}}
PLAN = read_plan({"stages": [DAILY, {**DAILY, "percent": 100}], "gates": [{"kind": "errors"}]})

Wish = Callable[..., object]


@pytest.fixture
def started(engine: Engine, market: SyntheticSource) -> Engine:
    """Ana has started version 2 against version 1 on Monday; on Tuesday every gate passes."""
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW), ("3", Status.SHADOW)):
        put_version(engine, version, status)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=PLAN)
    hours = [MONDAY + hour * HOUR for hour in range(24)]
    put_decisions(engine, *(decision_row(version, at) for version in ("1", "2") for at in hours))
    (ticked,) = tick(engine, market, now=TUESDAY)
    assert ticked.ruling is not None
    assert ticked.ruling.step is Step.AWAIT_APPROVAL
    return engine


@pytest.mark.parametrize("name", ["Ana", "ANA", " ana ", "ａｎａ"])
def test_another_spelling_of_the_starters_name_is_no_second_owner(started: Engine, name: str) -> None:
    with pytest.raises(FourEyes):
        approving(started, Actor(name), four_eyes=True)

    approving(started, ANOTHER, four_eyes=True)


def put_state(engine: Engine, state: State) -> None:
    with transaction(engine) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=state.value)


def trail(engine: Engine) -> list[tuple[str, str]]:
    with reading(engine) as session:
        return [(event.actor, event.action) for event in audit.events(session)]


def approving(engine: Engine, actor: Actor, **more: Any) -> object:
    return approve(engine, Command(actor, TUESDAY, "reviewed", **more), strategy_name="fib_rsi")


def advancing(engine: Engine, actor: Actor, **more: Any) -> object:
    put_state(engine, State.AWAITING_DECISION)
    return decide_rollout(
        engine, Command(actor, TUESDAY, "enough", **more), strategy_name="fib_rsi", choice=Choice.ADVANCE
    )


def activating(engine: Engine, actor: Actor, **more: Any) -> object:
    return activate_version(engine, Command(actor, TUESDAY, **more), strategy_name="fib_rsi", version="2")


def raising_the_percent(engine: Engine, actor: Actor, **more: Any) -> object:
    put_state(engine, State.PAUSED)
    return update_canary_percent(engine, Command(actor, TUESDAY, **more), strategy_name="fib_rsi", percent=5.01)


ONWARDS = [
    (approving, "approve"),
    (advancing, "advance"),
    (activating, "activate_version"),
    (raising_the_percent, "update_canary_percent"),
]


@pytest.mark.parametrize(("wish", "action"), ONWARDS)
def test_who_started_it_does_not_let_it_go_on_and_another_does(started: Engine, wish: Wish, action: str) -> None:
    before = trail(started)

    with pytest.raises(FourEyes) as refused:
        wish(started, OWNER, four_eyes=True)

    assert str(refused.value) == (
        "'ana' started the rollout of 'fib_rsi' '2': another owner must do this; "
        "pausing and rolling back need no second owner"
    )
    assert trail(started) == before
    wish(started, ANOTHER, four_eyes=True)
    assert trail(started)[-1] == ("bob", action)


@pytest.mark.parametrize(("wish", "action"), ONWARDS)
def test_where_two_eyes_are_enough_one_owner_does_all(started: Engine, wish: Wish, action: str) -> None:
    wish(started, OWNER)

    assert trail(started)[-1] == ("ana", action)


def test_who_started_it_may_hold_it_at_any_time(started: Engine) -> None:
    put_state(started, State.AWAITING_DECISION)
    decide_rollout(
        started, Command(OWNER, TUESDAY, "more evidence", four_eyes=True), strategy_name="fib_rsi", choice=Choice.EXTEND
    )
    pause(started, Command(OWNER, TUESDAY), strategy_name="fib_rsi")
    update_canary_percent(started, Command(OWNER, TUESDAY, four_eyes=True), strategy_name="fib_rsi", percent=1)
    resume(started, Command(OWNER, TUESDAY), strategy_name="fib_rsi")

    actions = ["extend", "pause", "update_canary_percent", "resume"]
    assert trail(started)[-4:] == [("ana", action) for action in actions]


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSED, State.AWAITING_APPROVAL, State.AWAITING_DECISION])
def test_who_started_it_takes_users_off_it_at_any_time(started: Engine, state: State) -> None:
    put_state(started, state)

    decide_rollout(
        started, Command(OWNER, TUESDAY, "odd fills", four_eyes=True), strategy_name="fib_rsi", choice=Choice.ROLL_BACK
    )

    with reading(started) as session:
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 0


def test_a_promotion_is_undone_by_whoever_sees_the_harm(started: Engine) -> None:
    """To activate the predecessor of what bakes is a rollback, and so is the rollback itself."""
    with transaction(started) as session:
        rollout = rollouts.list_rollouts(session)[0]
        one, two = (versions.get_version(session, "fib_rsi", name) for name in ("1", "2"))
        versions.move(session, one, Status.SHADOW, TUESDAY)
        versions.move(session, two, Status.ACTIVE, TUESDAY)
        rollouts.set_canary_share(session, "fib_rsi", 0)
        rollouts.change_rollout(session, rollout, promoted_at=TUESDAY, state=State.RUNNING.value)

    activate_version(started, Command(OWNER, TUESDAY, "harm", four_eyes=True), strategy_name="fib_rsi", version="1")

    with reading(started) as session:
        assert rollouts.list_rollouts(session)[0].state == State.ROLLED_BACK


def test_another_version_and_what_no_rollout_moves_are_their_owners(started: Engine) -> None:
    activate_version(started, Command(OWNER, TUESDAY, four_eyes=True), strategy_name="fib_rsi", version="3")
    activate_canary(started, Command(OWNER, TUESDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)
    update_canary_percent(started, Command(OWNER, TUESDAY, four_eyes=True), strategy_name="fib_rsi", percent=10)
    roll_back(started, Command(OWNER, TUESDAY, "odd fills"), strategy_name="fib_rsi")

    assert [actor for actor, _ in trail(started)[-4:]] == ["ana"] * 4
