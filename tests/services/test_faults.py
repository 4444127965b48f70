"""A tick killed at any statement, doubled or raced: never two actives, never none, one step at most, one audit row."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, event

from strategy_core.domain.errors import Refused
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Step
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.promote import activate_version
from strategy_core.services.ramp import tick
from strategy_core.services.rollback import roll_back
from strategy_core.services.start import start_rollout
from strategy_core.services.transition import standing
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import open_database, reading, transaction
from tests.builders import DAY, MONDAY, OWNER, put_day, put_version

WHO: dict[str, Any] = {"strategy_name": "fib_rsi", "actor": OWNER}
NOW = MONDAY + 4 * DAY
Action = Callable[[Engine, SyntheticSource], object]


class Killed(BaseException):
    """What a killed process looks like from inside: nothing catches it."""


@contextmanager
def killed_at(engine: Engine, statement: int) -> Iterator[list[str]]:
    """Kill at the given statement of the block, commits counted; the list holds the statements that were begun."""
    begun: list[str] = []

    def before(conn: Any, cursor: Any, sql: str, *_: Any) -> None:
        begun.append(sql)
        if len(begun) == statement:
            raise Killed(sql)

    def commit(conn: Any) -> None:
        before(conn, None, "COMMIT")

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "commit", commit)
    try:
        yield begun
    finally:
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "commit", commit)


def prepare(engine: Engine, canary_r: float, *, stage: int = 0) -> None:
    said, worth = {"1": "buy", "2": "buy"}, {"1": 0.4, "2": canary_r}
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, version="2", plan=Plan(), now=MONDAY, **WHO)
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
            "standing": standing(session, "fib_rsi"),
            "rollout": (rollout.state, rollout.stage_index, rollout.generation, rollout.reason),
            "audit": [event.action for event in audit.events(session)],
            "alerts": [alert.kind for alert in audit.alerts(session)],
            "verdicts": sorted((row.gate, row.verdict) for row in rollouts.verdict_history(session, rollout.id)),
        }


def ticks(engine: Engine, market: SyntheticSource) -> object:
    return tick(engine, market, now=NOW)


CASES: dict[str, tuple[float, int, Action]] = {
    "advance": (0.4, 0, ticks),
    "promote": (0.4, 4, ticks),
    "roll back": (-1.0, 0, ticks),
    "an owner rolls back": (0.4, 0, lambda engine, _: roll_back(engine, reason="news", now=NOW, **WHO)),
    "an owner activates": (0.4, 0, lambda engine, _: activate_version(engine, version="2", now=NOW, **WHO)),
}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_every_statement_a_step_is_taken_once_or_not_at_all(
    engine: Engine, market: SyntheticSource, case: str
) -> None:
    canary_r, stage, act = CASES[case]
    prepare(engine, canary_r, stage=stage)
    before = picture(engine)
    points = 0
    while True:
        points += 1
        with killed_at(engine, points) as begun:
            try:
                act(engine, market)
            except Killed:
                now = picture(engine) if len(begun) == points else before
                assert now == before, f"killed at {begun[-1]}"
                continue
        break
    after = picture(engine)

    assert points > 15
    assert after != before
    assert len(after["audit"]) == len(before["audit"]) + 1
    assert list(after["statuses"].values()).count("active") == 1


@pytest.mark.parametrize("case", ["advance", "promote", "roll back"])
def test_eight_ticks_at_once_take_one_step(engine: Engine, market: SyntheticSource, case: str) -> None:
    canary_r, stage, _ = CASES[case]
    prepare(engine, canary_r, stage=stage)
    start = Barrier(8)

    def at_once(_: int) -> list[Step]:
        start.wait()
        return [one.ruling.step for one in tick(engine, market, now=NOW) if one.ruling is not None]

    with ThreadPoolExecutor(8) as threads:
        steps = [step for taken in threads.map(at_once, range(8)) for step in taken]

    assert [step for step in steps if step is not Step.HOLD] == [
        {"advance": Step.ADVANCE, "promote": Step.PROMOTE, "roll back": Step.ROLL_BACK}[case]
    ]
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
        roll_back(engine, reason="news", now=NOW, **WHO)

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
            start_rollout(engine, version="2", plan=Plan(), now=MONDAY, **WHO)
        except Refused:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(begin, range(8))) == 1
    assert picture(engine)["audit"] == ["start_rollout"]


KILLER = """
import os, signal, sys
from datetime import datetime
from sqlalchemy import event
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.ramp import tick
from strategy_core.store.engine import open_database
from tests.builders import MONDAY
url, at, now = sys.argv[1], int(sys.argv[2]), datetime.fromisoformat(sys.argv[3])
engine = open_database(url)
begun = []
def before(*_):
    begun.append(1)
    if len(begun) == at:
        os.kill(os.getpid(), signal.SIGKILL)
event.listen(engine, "after_cursor_execute", before)
tick(engine, SyntheticSource(("GOLD",), start=MONDAY.replace(month=1, day=1), days=300), now=now)
"""


@pytest.mark.parametrize("statement", [25, 30, 35])
def test_a_process_that_is_really_killed_leaves_nothing_half_done(
    sqlite_url: str, market: SyntheticSource, statement: int
) -> None:
    """SIGKILL with the transaction open: the next process finds the state of before, and takes the step."""
    engine = open_database(sqlite_url)
    prepare(engine, 0.4, stage=4)
    before = picture(engine)
    died = subprocess.run(
        [sys.executable, "-c", KILLER, sqlite_url, str(statement), NOW.isoformat()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )

    assert died.returncode == -9
    assert picture(engine) == before
    tick(engine, market, now=NOW)
    assert picture(engine)["statuses"] == {"1": "shadow", "2": "active"}
    engine.dispose()


def test_on_postgresql_one_strategys_lock_delays_no_others_rollback(postgresql_url: str) -> None:
    engine = open_database(postgresql_url)
    prepare(engine, 0.4)
    put_version(engine, "1", Status.ACTIVE, strategy_name="ppo_gold")
    with transaction(engine) as session:
        versions.lock_strategy(session, "ppo_gold")
        roll_back(engine, reason="news", now=NOW, **WHO)

    assert picture(engine)["standing"]["percent"] == 0.0
    engine.dispose()
