"""Freezes and scheduled starts on the command line."""

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import DAY, MONDAY, put_version
from tests.cli.conftest import Rollout, set_clock


@pytest.fixture(autouse=True)
def pair(database: Engine) -> None:
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(database, version, status)


def test_a_freeze_is_set_shown_and_lifted(rollout: Rollout) -> None:
    out = rollout("freeze", "*", "--to", "2026-03-04", "--reason", "earnings", "--actor", "anna").out
    refused = rollout("start", "fib_rsi", "2", "--yes")
    shown = rollout("status").out
    listed = rollout("freezes", "--json").data["freezes"]
    lifted = rollout("unfreeze", "1", "--reason", "over").out

    assert "freeze 1 of all strategies: 2026-03-02 00:00 to 2026-03-04 00:00 UTC\n" in out
    assert refused.code == 5
    assert "cannot start a rollout of 'fib_rsi': frozen until 2026-03-04 00:00 UTC by anna: earnings" in refused.err
    assert "until 2026-03-04 00:00 UTC by anna: earnings" in shown
    assert [(each["id"], each["strategy_name"]) for each in listed] == [(1, "*")]
    assert lifted == "freeze 1 of all strategies is lifted\n"
    assert rollout("freezes").out == "no freeze\n"
    assert rollout("start", "fib_rsi", "2", "--yes").code == 0


def test_a_tick_starts_what_is_scheduled(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> None:
    out = rollout("start", "fib_rsi", "2", "--at", "2026-03-03", "--yes", "--actor", "anna").out
    (status,) = rollout("status", "--json").data
    listed = rollout("freezes").out

    set_clock(monkeypatch, MONDAY + DAY)
    ticked = rollout("tick").out

    assert out == "fib_rsi 2 starts at 2026-03-03 00:00 UTC\n"
    assert (status["canary"], status["scheduled"]["version"]) == (None, "2")
    assert "fib_rsi 2 starts at 2026-03-03 00:00 UTC, scheduled by anna" in listed
    assert "fib_rsi 2: scheduled start started, scheduled for 2026-03-03 00:00 UTC" in ticked
    assert rollout("status", "--json").data[0]["canary"] == "2"


def test_a_scheduled_start_is_cancelled(rollout: Rollout) -> None:
    rollout("start", "fib_rsi", "2", "--at", "2026-03-03", "--yes")

    assert rollout("cancel-start", "fib_rsi").out == "the start of fib_rsi 2 is cancelled\n"
    assert rollout("cancel-start", "fib_rsi").code == 4


def test_a_share_is_raised_in_a_freeze_for_a_reason_alone(rollout: Rollout) -> None:
    rollout("canary", "fib_rsi", "2", "5", "--yes")
    rollout("freeze", "*", "--to", "2026-03-04", "--reason", "earnings")

    refused = rollout("percent", "fib_rsi", "10", "--yes")
    raised = rollout("percent", "fib_rsi", "10", "--yes", "--override-reason", "the fix for the outage")

    assert refused.code == 5
    assert raised.out == "fib_rsi 2 is the canary of 10 % of users\n"
