"""Ticks and owners doubled or raced: never two actives, never none, one step at most, one audit row.

That none of it is half done when a process is killed, `tests/faults` shows.
"""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import Refused
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.services.transitions import strategy_state
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import open_database, reading, transaction
from tests.builders import DAY, MONDAY, OWNER, put_day, put_version

NOW = MONDAY + 4 * DAY


def prepare(engine: Engine, canary_r: float, *, stage: int = 0) -> None:
    said, worth = {"1": "buy", "2": "buy"}, {"1": 0.4, "2": canary_r}
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    for day in range(4):
        put_day(engine, MONDAY + day * DAY, said, worth, signal_hours=range(0, 20, 2))
    if stage:
        with transaction(engine) as session:
            rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], stage_index=stage)


def picture(engine: Engine) -> dict[str, Any]:
    """All that must be as if the step had been taken once, or not at all."""
    with reading(engine) as session:
        rollout = rollouts.list_rollouts(session)[0]
        return {
            "statuses": {version.version: version.status for version in versions.list_versions(session)},
            "standing": strategy_state(session, "fib_rsi"),
            "rollout": (rollout.state, rollout.stage_index, rollout.generation, rollout.reason),
            "audit": [event.action for event in audit.events(session)],
            "alerts": [alert.kind for alert in alerts.find_alerts(session)],
            "verdicts": sorted((row.gate, row.verdict) for row in rollouts.verdict_history(session, rollout.id)),
        }


CASES: dict[str, tuple[float, int, Step]] = {
    "advance": (0.4, 0, Step.ADVANCE),
    "promote": (0.4, 4, Step.PROMOTE),
    "roll back": (-1.0, 0, Step.ROLL_BACK),
}


@pytest.mark.parametrize("case", CASES)
def test_eight_ticks_at_once_take_one_step(engine: Engine, market: SyntheticSource, case: str) -> None:
    canary_r, stage, step = CASES[case]
    prepare(engine, canary_r, stage=stage)
    start = Barrier(8)

    def at_once(_: int) -> list[Step]:
        start.wait()
        return [one.ruling.step for one in tick(engine, market, now=NOW) if one.ruling is not None]

    with ThreadPoolExecutor(8) as threads:
        steps = [step for taken in threads.map(at_once, range(8)) for step in taken]

    assert [taken for taken in steps if taken is not Step.HOLD] == [step]
    assert len(picture(engine)["audit"]) == 2
    assert list(picture(engine)["statuses"].values()).count("active") == 1


def test_an_owner_and_a_tick_at_once_leave_one_story(engine: Engine, market: SyntheticSource) -> None:
    """Whoever comes second finds what the first one left; nobody works on what he read before."""
    prepare(engine, 0.4, stage=4)
    start = Barrier(2)

    def promote() -> None:
        start.wait()
        tick(engine, market, now=NOW)

    def undo() -> None:
        start.wait()
        roll_back(engine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")

    with ThreadPoolExecutor(2) as threads:
        for done in [threads.submit(promote), threads.submit(undo)]:
            done.result()

    after = picture(engine)
    assert after["statuses"] == {"1": "active", "2": "shadow"}
    assert after["rollout"][0] == "rolled_back"
    assert after["audit"] in (["start_rollout", "roll_back"], ["start_rollout", "promote", "roll_back"])


def test_eight_owners_starting_a_rollout_start_one(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start = Barrier(8)

    def begin(_: int) -> bool:
        start.wait()
        try:
            start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(begin, range(8))) == 1
    assert picture(engine)["audit"] == ["start_rollout"]


def test_on_postgresql_one_strategys_lock_delays_no_others_rollback(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    prepare(engine, 0.4)
    put_version(engine, "1", Status.ACTIVE, strategy_name="ppo_gold")
    with transaction(engine) as session:
        versions.lock_strategy(session, "ppo_gold")
        roll_back(engine, Command(OWNER, NOW, "news"), strategy_name="fib_rsi")

    assert picture(engine)["standing"]["percent"] == 0.0
    engine.dispose()
