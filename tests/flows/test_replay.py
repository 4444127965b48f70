"""The form that replays a version."""

import pytest
from sqlalchemy import Engine

from flows.compare import compare
from flows.register import register_version
from flows.replay import replay, whatif
from strategy_core.domain.lifecycle import Status
from tests.builders import MONDAY, put_version
from tests.flows.conftest import Clock

# the services are tested on both databases
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_a_replay_is_one_line_and_what_is_from_it_says_so(engine: Engine, at: Clock) -> None:
    at(MONDAY)
    register_version.fn("fib_rsi", "v1", "ana", ["GOLD"], status=Status.ACTIVE)
    register_version.fn("fib_rsi", "v2", "ana", ["GOLD"], config={"rsi_period": 10})

    empty = compare.fn("fib_rsi", "v2", days=7).message or ""
    replayed = replay.fn("fib_rsi", "v2", days=7).message or ""
    again = replay.fn("fib_rsi", "v2", start="2026-02-24", end="2026-02-26").message or ""
    week = compare.fn("fib_rsi", "v2", start="2026-02-23").message or ""
    days = compare.fn("fib_rsi", "v2", start="2026-02-24", end="2026-02-26").message or ""
    endless = compare.fn("fib_rsi", "v2", end="2026-02-26").message or ""
    compared = compare.fn("fib_rsi", "v2", days=7).message or ""
    ramped = whatif.fn("fib_rsi", "v2", start="2026-02-24", end="2026-02-26T00:00Z").message or ""
    unclear = whatif.fn("fib_rsi", "v2", start="yesterday").message or ""

    assert empty.startswith("no candle was compared: v2 and v1 decide on live candles since 2026-03-02 00:00 UTC")
    assert "run the deployment replay" in empty
    assert replayed.startswith("fib_rsi v2: ")
    assert "; fib_rsi v1: " in replayed
    assert again.endswith("nothing new: v1 was replayed on these candles before")
    assert " of the candles from replay" in compared
    assert week == compared
    assert days.startswith("46 candles and ")
    assert endless == "end = '2026-02-26' is not valid; allowed: an end only with a start"
    assert ramped.startswith("fib_rsi v2 would still be at 5 % on 2026-02-26 00:00 UTC, 2 days after its start: ")
    assert "'yesterday' is not a time for start; allowed: 2026-01-31, or 2026-01-31T12:00Z" in unclear


def test_what_cannot_be_replayed_fails_with_one_line(engine: Engine, at: Clock) -> None:
    at(MONDAY)
    put_version(engine, "v1")

    state = replay.fn("fib_rsi", "v9")

    assert state.is_failed()
    assert "no version 'v9' of 'fib_rsi'" in (state.message or "")
