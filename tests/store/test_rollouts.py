from uuid import uuid4

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import LostRace, NoCanary, UnknownRollout
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.services.rollouts import start_rollout
from strategy_core.store import rollouts
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, MONDAY, OWNER, put_version


def test_who_works_on_what_he_read_before_loses_the_race(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    stale = start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    with transaction(engine) as session:
        rollouts.change_rollout(session, rollouts.get_rollout(session, stale.id), stage_index=1)

    with (
        pytest.raises(LostRace, match=r"changed meanwhile \(generation 1 -> 2\)"),
        transaction(engine) as session,
    ):
        rollouts.change_rollout(session, stale, stage_index=4)

    with reading(engine) as session:
        assert rollouts.get_rollout(session, stale.id).stage_index == 1


def test_the_time_of_a_tick_raises_no_generation(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    started = start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    with transaction(engine) as session:
        row = rollouts.get_rollout(session, started.id)
        rollouts.touch_rollout(session, row, last_tick_at=MONDAY + DAY, blind_since=None)

    with reading(engine) as session:
        found = rollouts.get_rollout(session, started.id)
    assert (found.generation, found.last_tick_at) == (1, MONDAY + DAY)


def test_what_is_not_there_is_said_by_name(engine: Engine) -> None:
    missing = uuid4()
    with reading(engine) as session:
        with pytest.raises(UnknownRollout, match=str(missing)):
            rollouts.get_rollout(session, missing)
        with pytest.raises(NoCanary, match="fib_rsi"):
            rollouts.get_canary(session, "fib_rsi")
