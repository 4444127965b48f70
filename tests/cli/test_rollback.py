"""What keeps no owner from rolling back in a shell."""

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import put_version
from tests.cli.conftest import Rollout

CALLS = ["rollback fib_rsi", "decide fib_rsi rollback"]


@pytest.fixture
def pair(database: Engine) -> Engine:
    """Version 1 is active, version 2 in shadow."""
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    return database


@pytest.mark.parametrize("call", CALLS)
def test_a_reason_in_another_encoding_stops_no_rollback(rollout: Rollout, pair: Engine, call: str) -> None:
    rollout("start", "fib_rsi", "2", "--yes", "--reason", "f\udcfcr")

    assert rollout(*call.split(), "--reason", "\udcff odd fills").code == 0
    assert rollout("audit", "log", "--json").data[-1]["reason"] == "\ufffd odd fills"


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", ["PROMETHEUS_TIMEOUT", "CALENDAR", "DECISION_DEADLINE_S", "REPLAY_SPEED"])
def test_a_setting_that_is_wrong_stops_no_rollback(
    rollout: Rollout, pair: Engine, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    """It needs the database alone."""
    rollout("start", "fib_rsi", "2", "--yes")
    monkeypatch.setenv(f"ROLLOUT_{name}", "abc")

    assert rollout("status").code == 2
    assert rollout(*call.split(), "--reason", "odd fills").code == 0
