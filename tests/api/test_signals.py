"""Signals over the API: the strategies that a token covers, and requests that wait for a signal."""

import asyncio
import threading
from typing import Any

import httpx2 as httpx  # as Starlette's client
import pytest
from anyio import to_thread
from sqlalchemy import Engine

from strategy_core.api.routes import PREFIX
from strategy_core.api.routes.signals import SignalWatch
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.canary import activate_canary
from strategy_core.services.signals import publish_signals
from tests.api.asking import HELD, Api
from tests.api.every import fields, refused
from tests.api.signing import token
from tests.builders import HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version


@pytest.fixture
def serving(api: Api) -> Api:
    for strategy_name in ("fib_rsi", "ppo_gold"):
        put_version(api.engine, "1", Status.ACTIVE, strategy_name=strategy_name)
    return api


def put_signal(engine: Engine, hour: int, **changes: Any) -> None:
    put_decisions(engine, decision_row("1", MONDAY + hour * HOUR, "buy", **changes) | {"role": "active"})
    publish_signals(engine)


def test_signals_are_read_in_order_from_a_cursor(serving: Api) -> None:
    for hour in range(3):
        put_signal(serving.engine, hour)

    first = serving.get("/signals?limit=2").json()
    second = serving.get("/signals", params={"since": first["cursor"]}).json()

    assert [each["candle"] for each in first["items"]] == ["2026-03-02T00:00:00Z", "2026-03-02T01:00:00Z"]
    assert (first["more"], second["more"]) == (True, False)
    (last,) = second["items"]
    assert last == {
        "cursor": second["cursor"],
        "strategy_name": "fib_rsi",
        "version": "1",
        "symbol": "GOLD",
        "candle": "2026-03-02T02:00:00Z",
        "closed_at": "2026-03-02T03:00:00Z",
        "valid_until": "2026-03-02T04:00:00Z",
        "action": "buy",
        "intent": "open",
        "confidence": 0.5,
        "risk_scale": 1.0,
        "role": "active",
    }


def test_a_token_reads_the_signals_of_its_strategies(serving: Api) -> None:
    put_signal(serving.engine, 0)
    put_signal(serving.engine, 0, strategy_name="ppo_gold")
    gold = token(scope="read", strategies=["ppo_gold"])

    assert [each["strategy_name"] for each in serving.get("/signals", held=gold).json()["items"]] == ["ppo_gold"]
    assert len(serving.get("/signals", held="reader").json()["items"]) == 2
    refused(serving.get("/signals?strategy_name=fib_rsi", held=gold), 403)


def test_a_cursor_that_cannot_be_continued_from_is_told_from_one_that_is_none(serving: Api) -> None:
    problem = refused(serving.get("/signals?since=7-00000000"), 409)

    assert problem["type"] == "/problems/signal-cursor-lost"
    assert problem["cursor"] == "7-00000000"
    assert fields(refused(serving.get("/signals?since=7"), 422)) == ["since"]
    assert fields(refused(serving.get("/signals?wait=21"), 422)) == ["wait"]


def test_a_request_that_waits_is_answered_with_the_first_signal(serving: Api) -> None:
    begun = serving.get("/signals").json()["cursor"]
    logging = threading.Timer(0.3, put_signal, (serving.engine, 0))
    logging.start()

    found = serving.get("/signals", params={"since": begun, "wait": 20}).json()

    logging.join()
    assert [each["candle"] for each in found["items"]] == ["2026-03-02T00:00:00Z"]


def test_a_request_goes_on_waiting_past_signals_of_other_strategies(serving: Api) -> None:
    put_signal(serving.engine, 0)
    begun = serving.get("/signals").json()["cursor"]
    logging = threading.Timer(0.1, put_signal, (serving.engine, 1))
    logging.start()

    found = serving.get("/signals", params={"since": begun, "strategy_name": "ppo_gold", "wait": 1.5}).json()

    logging.join()
    assert found["items"] == []
    assert found["cursor"].startswith("2-")


def test_requests_that_wait_leave_threads_and_connections_to_a_rollback(serving: Api) -> None:
    put_version(serving.engine, "2")
    activate_canary(serving.engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)
    headers = {"Authorization": f"Bearer {HELD['owner']}"}
    watch: SignalWatch = serving.app.state.signal_watch

    async def ask() -> tuple[int, int, int]:
        to_thread.current_default_thread_limiter().total_tokens = 2
        transport = httpx.ASGITransport(app=serving.app)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://test{PREFIX}", headers=headers) as client:
            waiting = [asyncio.create_task(client.get("/signals?wait=20", timeout=60)) for _ in range(40)]
            while watch.waiting < len(waiting):
                await asyncio.sleep(0.01)
            body = {"strategy_name": "fib_rsi", "reason": "odd fills"}
            rolled_back = await client.post("/rollback", json=body, timeout=60)
            still = watch.waiting
            await to_thread.run_sync(put_signal, serving.engine, 0)
            answers = await asyncio.gather(*waiting)
        return rolled_back.status_code, still, sum(len(each.json()["items"]) for each in answers)

    assert asyncio.run(ask()) == (200, 40, 40)
    assert watch.waiting == 0


def test_when_too_many_wait_the_next_is_answered_at_once(serving: Api) -> None:
    watch = SignalWatch(slots=0)
    serving.app.state.signal_watch = watch

    found = serving.get("/signals?wait=20").json()

    assert found["items"] == []
    assert watch.looked_at == 0.0  # it did not wait
