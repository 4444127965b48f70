"""Whoever holds one strategy's lock, and however many wait for it: another strategy is rolled back meanwhile."""

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from sqlalchemy import text
from starlette.exceptions import HTTPException

from strategy_core.api.dependencies import StrategyBulkhead
from strategy_core.store.engine import open_database
from tests.api.asking import WHY, Api, placed, put_world


@pytest.mark.full
@pytest.mark.parametrize("waiting_for", ["/versions/{ppo_gold/2}/retire", "/rollback"])
def test_a_stuck_strategy_holds_up_no_rollback_of_another(postgresql_url: str, waiting_for: str) -> None:
    """More requests wait for the stuck strategy than there are connections."""
    engine, other = open_database(postgresql_url), open_database(postgresql_url)
    world = put_world(engine)
    api = Api(engine)
    body = {**WHY, **({"strategy_name": "ppo_gold"} if waiting_for == "/rollback" else {})}
    with ThreadPoolExecutor(50) as pool, other.connect() as holder:
        holder.execute(text("SELECT 1 FROM strategy WHERE name = 'ppo_gold' FOR UPDATE"))
        waiting: list[Future[Any]] = [pool.submit(api.post, placed(waiting_for, world), body) for _ in range(40)]
        while engine.pool.checkedout() < 3:  # type: ignore[attr-defined]
            assert not any(each.done() for each in waiting)

        rolled_back = api.post("/rollback", {"strategy_name": "fib_rsi", **WHY})
        still_waiting = not any(each.done() for each in waiting)
        holder.rollback()

        assert rolled_back.status_code == 200
        assert still_waiting
        assert {each.result().status_code for each in waiting} <= {200, 409}
    for each in (engine, other):
        each.dispose()


def test_a_turn_comes_when_another_is_given_back() -> None:
    bulkhead, begun, had = StrategyBulkhead(slots=1), Event(), Event()
    bulkhead.acquire("gold")

    def follow() -> None:
        begun.set()
        bulkhead.acquire("gold")
        had.set()

    with ThreadPoolExecutor(1) as pool:
        followed = pool.submit(follow)
        begun.wait()
        bulkhead.acquire("silver")
        early = had.is_set()
        bulkhead.release("gold")
        followed.result()

    assert not early
    assert had.is_set()


def test_who_has_waited_long_enough_is_told_to_ask_again() -> None:
    bulkhead = StrategyBulkhead(slots=1, patience_s=0)
    bulkhead.acquire("gold")

    with pytest.raises(HTTPException) as told:
        bulkhead.acquire("gold")

    assert told.value.status_code == 503
