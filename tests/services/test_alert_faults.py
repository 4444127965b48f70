"""Deliveries killed, doubled or hung: each alert comes, twice at most, under one id; and nothing else waits for it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.alerts import deliver
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from tests.builders import HOUR, MONDAY, OWNER, put_version
from tests.endpoint import Endpoint, serving
from tests.services.outbox import channel_to, deliveries, ids, put_alert, texts, url_of

ROOT = Path(__file__).parents[2]
MINUTE = timedelta(minutes=1)


def start(database: str, endpoint: Endpoint, now: datetime, moment: str = "") -> subprocess.Popen[str]:
    """Start a process that delivers to the endpoint."""
    arguments = [database, url_of(endpoint), now.isoformat(), moment]
    command = [sys.executable, "-m", "tests.services.delivering", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.full
@pytest.mark.parametrize(("moment", "copies"), [("claimed", 1), ("sent", 2)])
def test_killed_around_a_send_it_is_delivered_once_its_lease_is_over(
    engine: Engine, database_url: str, endpoint: Endpoint, moment: str, copies: int
) -> None:
    put_alert(engine, "users lose money")
    process = start(database_url, endpoint, MONDAY, moment)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    process.kill()
    process.communicate()

    early = deliver(engine, [channel_to(endpoint)], now=MONDAY + 4 * MINUTE)
    late = deliver(engine, [channel_to(endpoint)], now=MONDAY + 5 * MINUTE)
    again = deliver(engine, [channel_to(endpoint)], now=MONDAY + HOUR)

    assert (len(early), len(late), len(again)) == (0, 1, 0)
    assert texts(endpoint) == ["users lose money"] * copies
    assert len(set(ids(endpoint))) == 1  # by which a receiver drops the second
    assert [row.attempts for row in deliveries(engine)] == [2]


@pytest.mark.full
def test_processes_that_deliver_at_once_send_each_alert_once(
    engine: Engine, database_url: str, endpoint: Endpoint
) -> None:
    wanted = [f"alert {number}" for number in range(30)]
    for text in wanted:
        put_alert(engine, text)

    processes = [start(database_url, endpoint, MONDAY) for _ in range(3)]
    codes = [process.wait() for process in processes]
    for process in processes:
        process.communicate()

    assert codes == [0, 0, 0]
    assert sorted(texts(endpoint)) == sorted(wanted)


def test_a_lease_that_has_run_out_belongs_to_whoever_took_it_next(engine: Engine, endpoint: Endpoint) -> None:
    """The first process was only slow: what it says of its try afterwards changes nothing."""
    put_alert(engine, "users lose money")
    endpoint.let_go.clear()
    with ThreadPoolExecutor(2) as threads:
        slow = threads.submit(deliver, engine, [channel_to(endpoint)], now=MONDAY)
        assert endpoint.reached.wait(60)
        endpoint.reached.clear()
        next_one = threads.submit(deliver, engine, [channel_to(endpoint)], now=MONDAY + 6 * MINUTE)
        assert endpoint.reached.wait(60)
        endpoint.let_go.set()
        assert [each.problem for each in (*slow.result(), *next_one.result())] == ["", ""]

    (row,) = deliveries(engine)
    assert (row.sent_at, row.attempts) == (MONDAY + 6 * MINUTE, 2)
    assert len(set(ids(endpoint))) == 1


def test_a_channel_that_hangs_keeps_no_other_from_sending_nor_any_tick_nor_rollback(
    engine: Engine, endpoint: Endpoint, market: SyntheticSource
) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    endpoint.let_go.clear()
    with serving() as other, ThreadPoolExecutor(1) as thread:
        hanging = channel_to(endpoint, timeout=60)
        passing = thread.submit(deliver, engine, [hanging, channel_to(other)], now=MONDAY)
        assert endpoint.reached.wait(60)
        assert other.reached.wait(60)
        (ticked,) = tick(engine, market, now=MONDAY + MINUTE)
        roll_back(engine, Command(OWNER, MONDAY + MINUTE, "odd fills"), strategy_name="fib_rsi")
        was_hanging = not passing.done()
        endpoint.let_go.set()
        tried = passing.result()

    assert was_hanging
    assert ticked.ruling is not None
    assert {each.problem for each in tried} == {""}
    assert texts(other) == ["fib_rsi 2 started at 5 % against 1"]


def test_a_channel_that_hangs_for_ever_is_left_after_its_time(engine: Engine, endpoint: Endpoint) -> None:
    put_alert(engine, "a")
    put_alert(engine, "b")
    endpoint.let_go.clear()

    tried = deliver(engine, [channel_to(endpoint, timeout=0.5)], now=MONDAY)

    assert [each.problem for each in tried] == ["no answer within 0.5 s"]


def test_a_fault_of_a_channel_is_its_own(engine: Engine, endpoint: Endpoint) -> None:
    class Broken:
        name = "broken-00000000"
        at_least = channel_to(endpoint).at_least
        repeats = True

        def takes(self, kind: str) -> bool:
            return True

        def prepare(self) -> None:
            pass

        def send(self, *_: object) -> str:
            raise RuntimeError("token s3cr3t is not welcome")

    put_alert(engine, "users lose money")

    tried = deliver(engine, [Broken(), channel_to(endpoint)], now=MONDAY)

    assert {each.channel: each.problem for each in tried} == {
        "broken-00000000": "failed: RuntimeError",
        channel_to(endpoint).name: "",
    }
