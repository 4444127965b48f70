"""An hour in which two schedulers do everything at once: what one would have left, and each alert once."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from threading import Barrier

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import read_plan
from strategy_core.isolation.pool import WorkerPool
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import deliver
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.score import score_outcomes
from strategy_core.services.shadow import run_shadow
from strategy_core.services.tick import tick
from strategy_core.services.versions import register_version
from strategy_core.store import rollouts
from strategy_core.store.engine import open_database, reading
from tests.builders import DAY, GOLD, HOUR, MONDAY, OWNER
from tests.endpoint import Endpoint
from tests.faults.copies import Copies
from tests.faults.invariants import Picture, differences, picture, violations
from tests.services.outbox import channel_to, ids

MINUTE = timedelta(minutes=1)
NOON = MONDAY + 12 * HOUR
_STAGE = {"minimum_time": 600, "margins": {"pnl_r": 1.0, "win": 0.5}}
PLAN = read_plan(
    {
        "stages": [{**_STAGE, "percent": 5}, {**_STAGE, "percent": 100}],
        "approve_before": [],
        "gates": [{"kind": "errors"}],
        "maximum_stage_time": 3_600,
        "bake": 900,
    }
)


def market() -> SyntheticSource:
    return SyntheticSource((GOLD,), timeframe="1m", start=MONDAY - 20 * DAY, days=22)


def two_rollouts(engine: Engine) -> None:
    """One that goes well, and one whose canary fails in every decision from a quarter past on."""
    for name, version, status, config in (
        ("sound", "1", Status.ACTIVE, {}),
        ("sound", "2", Status.SHADOW, {"every": 3}),
        ("failing", "1", Status.ACTIVE, {}),
        ("failing", "2", Status.SHADOW, {"every": 3, "fails_after": (NOON + 15 * MINUTE).isoformat()}),
    ):
        register_version(
            engine,
            Command(OWNER, NOON),
            market(),
            strategy_name=name,
            version=version,
            config=config,
            entry_point="tests.faults.versions_under_test:Minutely",
            symbols=[GOLD],
            timeframe="1m",
            status=status,
        )
    for name in ("sound", "failing"):
        start_rollout(engine, Command(OWNER, NOON), strategy_name=name, version="2", plan=PLAN)


def run_an_hour(url: str, endpoint: Endpoint, schedulers: int) -> None:
    """Each minute every scheduler runs what is due that minute, all at once."""
    together = Barrier(schedulers)

    def schedule(_: int) -> None:
        engine, source = open_database(url), market()
        with WorkerPool() as workers:
            for now in minutes():
                together.wait()
                run_shadow(engine, source, workers, now=now)
                score_outcomes(engine, source, now=now)
                assert [one.error for one in tick(engine, source, now=now) if one.error] == []
                deliver(engine, [channel_to(endpoint)], now=now)
        engine.dispose()

    with ThreadPoolExecutor(schedulers) as threads:
        for done in [threads.submit(schedule, number) for number in range(schedulers)]:
            done.result()


def minutes() -> Sequence[datetime]:
    return [NOON + minute * MINUTE for minute in range(1, 61)]


@pytest.mark.long
def test_two_schedulers_leave_what_one_leaves(copies: Copies, endpoint: Endpoint) -> None:
    left: list[Picture] = []
    received: list[list[str]] = []
    for schedulers in (1, 2):
        endpoint.posted.clear()
        with copies.copy(two_rollouts) as copy:
            before = picture(copy.living)
            run_an_hour(copy.url, endpoint, schedulers)
            left.append(picture(copy.living))
            wrong = violations(copy.living, before, left[-1])
            assert [each for each in wrong if not each.startswith("one_step_at_most")] == []  # an hour is many steps
            with reading(copy.living) as session:
                ended = {one.strategy_name: one.state for one in rollouts.list_rollouts(session)}
            assert ended == {"sound": "completed", "failing": "rolled_back"}
        received.append(sorted(ids(endpoint)))

    assert received[1] == received[0]
    assert set(Counter(received[0]).values()) == {1}
    assert differences(*left) == []
