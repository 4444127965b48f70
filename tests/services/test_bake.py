"""After the promotion: the same gates stay armed, and one call, or a failure, reinstates the predecessor."""

from datetime import datetime

from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import approve
from strategy_core.services.tick import tick
from strategy_core.services.versions import activate_version
from tests.builders import MONDAY, OWNER, put_version
from tests.services.ramping import days, newest, ruled, standing


def test_after_the_promotion_a_failure_reinstates_the_predecessor(ramped: Engine, market: SyntheticSource) -> None:
    now = _promoted(ramped, market)
    now = days(ramped, now, 2, {"1": 0.4, "2": -3.0})

    assert ruled(tick(ramped, market, now=now))[0] is Step.ROLL_BACK
    assert standing(ramped) == ({"1": "active", "2": "shadow"}, 0.0)
    assert newest(ramped).state == "rolled_back"


def test_an_owner_undoes_a_promotion_by_one_call(ramped: Engine, market: SyntheticSource) -> None:
    now = _promoted(ramped, market)

    assert roll_back(ramped, Command(OWNER, now, "users complain"), strategy_name="fib_rsi") == "2"
    assert standing(ramped)[0] == {"1": "active", "2": "shadow"}


def test_activating_the_predecessor_while_it_bakes_undoes_the_promotion(
    ramped: Engine, market: SyntheticSource
) -> None:
    now = _promoted(ramped, market)

    activate_version(ramped, Command(OWNER, now), strategy_name="fib_rsi", version="1")

    assert standing(ramped)[0] == {"1": "active", "2": "shadow"}
    assert newest(ramped).state == "rolled_back"


def test_another_version_activated_while_one_bakes_aborts_it(ramped: Engine, market: SyntheticSource) -> None:
    now = _promoted(ramped, market)
    put_version(ramped, "3")

    activate_version(ramped, Command(OWNER, now), strategy_name="fib_rsi", version="3")

    assert standing(ramped)[0] == {"1": "shadow", "2": "retired", "3": "active"}
    assert newest(ramped).state == "aborted"


def _promoted(engine: Engine, market: SyntheticSource) -> datetime:
    now = days(engine, MONDAY, 4)
    for _ in range(5):
        if ruled(tick(engine, market, now=now))[0] is Step.AWAIT_APPROVAL:
            approve(engine, Command(OWNER, now, "reviewed"), strategy_name="fib_rsi")
            tick(engine, market, now=now)
        now = days(engine, now, 1)
    assert newest(engine).promoted_at is not None
    return now
