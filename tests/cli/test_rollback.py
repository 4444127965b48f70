"""What keeps no owner from rolling back in a shell."""

import pytest
from sqlalchemy import Engine

from strategy_core.store import rollouts
from strategy_core.store.engine import reading
from tests.builders import put_pair
from tests.cli.conftest import Rollout
from tests.prepared import prepared

CALLS = ["rollback fib_rsi", "decide fib_rsi rollback"]


@pytest.fixture
def pair(database: Engine) -> Engine:
    """Version 1 is active, version 2 in shadow."""
    prepared(database, put_pair)
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


def test_a_setting_that_is_wrong_stops_no_tick(rollout: Rollout, pair: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tick may have to roll back. The invalid setting is reported after it."""
    rollout("start", "fib_rsi", "2", "--yes")
    monkeypatch.setenv("ROLLOUT_CALENDAR", "lunar")

    ticked = rollout("tick")

    assert ticked.code == 2
    assert "hold" in ticked.out
    assert "ROLLOUT_CALENDAR = 'lunar' is not valid" in ticked.err
    with reading(pair) as session:
        assert rollouts.open_rollouts(session)[0].last_tick_at is not None
