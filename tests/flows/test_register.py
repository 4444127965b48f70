"""Registration from Prefect: vetted on the feed, in a worker process of its own."""

import pytest
from sqlalchemy import Engine

from flows.register import register_version
from strategy_core.domain.lifecycle import Status
from strategy_core.store import versions
from strategy_core.store.engine import reading
from tests.builders import GOLD
from tests.flows.conftest import Clock

# SQLite only: each test starts a worker process, and the service is tested on both databases
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def test_a_version_is_vetted_and_stored_with_its_defaults_filled(engine: Engine, at: Clock) -> None:
    state = register_version.fn(
        "fib_rsi", "v1", owner="ana", symbols=[GOLD], config={"rsi_period": 10}, status=Status.ACTIVE
    )

    assert state.is_completed(), state.message
    assert (state.message or "").startswith("fib_rsi v1 is registered as active, build ")
    with reading(engine) as session:
        stored = versions.get_version(session, "fib_rsi", "v1")
    assert stored.config["rsi_period"] == 10
    assert stored.config["fib_lookback_bars"] == 55
    assert stored.registration_report["passed"] is True


def test_a_misspelt_setting_is_refused_with_what_was_meant(engine: Engine, at: Clock) -> None:
    state = register_version.fn("fib_rsi", "v1", owner="ana", symbols=[GOLD], config={"rsi_perod": 10})

    assert state.is_failed()
    assert "rsi_period" in (state.message or "")
    with reading(engine) as session:
        assert versions.list_versions(session) == []


def test_another_timeframe_than_the_feeds_is_refused(engine: Engine, at: Clock) -> None:
    state = register_version.fn("fib_rsi", "v1", owner="ana", symbols=[GOLD], config={}, timeframe="7m")

    assert state.is_failed()
    assert (state.message or "").startswith("'7m' is not a timeframe; allowed: ")
