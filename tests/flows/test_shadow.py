"""The shadow run from Prefect: decisions are logged and scored, and a failing version is named."""

import pytest
from sqlalchemy import Engine

from flows.register import register_version
from flows.shadow import shadow_run
from strategy_core.domain.lifecycle import Status
from strategy_core.store import decisions, outcomes
from strategy_core.store.engine import reading
from tests.builders import DAY, GOLD, MONDAY, put_version
from tests.flows.conftest import Clock


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # the store's own tests hold the other database
def test_missed_candles_are_decided_and_scored_once_whatever_another_version_does(engine: Engine, at: Clock) -> None:
    register_version.fn("fib_rsi", "v1", owner="ana", symbols=[GOLD], config={}, status=Status.ACTIVE)
    put_version(engine, "v2", at=MONDAY)  # its fingerprint is no build's
    at(MONDAY + 30 * DAY)

    state = shadow_run.fn()

    assert state.is_failed()
    refused = "0 errors, failed: 'fib_rsi' 'v2' is not the build that was registered"
    assert refused in (state.message or "")
    with reading(engine) as session:
        logged = decisions.find_decisions(session, "fib_rsi", "v1", GOLD)
        booked = outcomes.find_outcomes(session, "fib_rsi", "v1")
    assert len(logged) > 400  # a month of hours without weekends
    assert len(booked) == sum(row.decision != "hold" for row in logged) > 0
    again = shadow_run.fn().message or ""
    assert "fib_rsi v1 (active): 0 decisions" in again
    assert "; 0 outcomes recorded" in again


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_without_candles_there_is_nothing_to_decide_on(
    engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_FEED", "/nowhere/gold.csv")

    state = shadow_run.fn()

    assert state.is_failed()
    assert (state.message or "").startswith("/nowhere/gold.csv: ")
