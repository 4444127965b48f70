"""The flows on positions: exits are announced each minute, and owners hand positions over or flatten them in forms."""

from typing import Any

import pytest
from sqlalchemy import Engine

from flows.drain import drain, flatten, hand_over
from flows.rollback import activate, retire
from strategy_core.domain.lifecycle import Status
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import held_positions, list_exits
from tests.builders import DAY, HOUR, MONDAY, decision_row, put_decisions, put_version
from tests.flows.conftest import Clock

ANA: dict[str, Any] = {"owner": "ana", "reason": "its code has a defect"}


@pytest.fixture
def held(engine: Engine, at: Clock) -> Engine:
    """Version 1 manages two positions, and leaves them. Version 2 is active since then."""
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    opened = {"user_id": "u1", "strategy_name": "fib_rsi", "version": "1", "symbol": "GOLD", "opened_at": MONDAY + HOUR}
    ingest(engine, [{**opened, "trade_id": trade_id} for trade_id in ("t1", "t2")], now=MONDAY + DAY)
    hours = [MONDAY + hour * HOUR for hour in range(24)]
    rows = [decision_row("1", hour, intent="close" if hour == hours[9] else "open") for hour in hours]
    put_decisions(engine, *rows, *(decision_row("2", hour) for hour in hours))
    at(MONDAY + DAY)
    assert activate.fn("fib_rsi", "2", **ANA).is_completed()
    return engine


def test_a_drain_tells_exits_once_and_says_what_drains(held: Engine) -> None:
    assert drain.fn().message == "2 exits announced; fib_rsi 1: 2 left"
    assert drain.fn().message == "0 exits announced; fib_rsi 1: 2 left"
    assert [(each.trade_id, each.why) for each in list_exits(held, None)] == [("t1", "close"), ("t2", "close")]


def test_positions_are_handed_over_in_a_form(held: Engine) -> None:
    refused = retire.fn("fib_rsi", "1", **ANA)
    assert refused.is_failed()
    assert "manages 2 open positions" in str(refused.message)

    assert hand_over.fn("fib_rsi", "1", "2", **ANA).message == "2 positions of fib_rsi 1 are managed by 2"
    assert retire.fn("fib_rsi", "1", **ANA).is_completed()
    assert held_positions(held, "fib_rsi").by_manager == {"2": 2}


def test_positions_are_flattened_in_a_form(held: Engine) -> None:
    assert flatten.fn("fib_rsi", "1", **ANA, after="3d").message == "2 positions of fib_rsi 1 are to be closed"
    assert flatten.fn("fib_rsi", "1", **ANA, after="soon").is_failed()

    assert retire.fn("fib_rsi", "1", **ANA, orphans_to="flatten").is_completed()
    assert held_positions(held, "fib_rsi").by_manager == {"": 2}
