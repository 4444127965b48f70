"""From a failing gate to the receiver of its alert, through the flows, also with failures on the way."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from flows.alerts import deliver_alerts
from flows.ramp import ramp_tick, start_canary
from strategy_core.domain.lifecycle import Status
from tests.builders import HOUR, MONDAY, decision_row, put_decisions, put_version
from tests.endpoint import Endpoint
from tests.flows.conftest import Clock
from tests.services.outbox import ids, texts, url_of

ROOT = Path(__file__).parents[2]
MINUTE = timedelta(minutes=1)
TOLD = "fib_rsi 2 rolled back: invalid_decisions: "
TICK_AND_DELIVER = """
from flows.alerts import deliver_alerts
from flows.ramp import ramp_tick

print(ramp_tick.fn().message, flush=True)
input()
deliver_alerts.fn()
"""


@pytest.fixture
def harmed(engine: Engine, at: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> Endpoint:
    """Return the receiver of critical alerts. The next tick finds a failing gate."""
    monkeypatch.setenv("ROLLOUT_ALERT_URLS", f"critical={url_of(endpoint)}")
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    assert start_canary.fn("fib_rsi", "2", owner="ana").is_completed()
    put_decisions(engine, decision_row("1", MONDAY), decision_row("2", MONDAY, "error", error_kind="breach"))
    at(MONDAY + HOUR)
    return endpoint


def delivered(at: Clock, minutes: range) -> list[str | None]:
    """Run the delivery twice, a minute apart, and return its result lines."""
    said = []
    for minute in minutes:
        at(MONDAY + HOUR + minute * MINUTE)
        said.append(deliver_alerts.fn().message)
    return said


def test_a_failed_gate_is_told_once(harmed: Endpoint, at: Clock) -> None:
    assert ramp_tick.fn().is_completed()

    assert delivered(at, range(3)) == ["1 sent", "0 sent", "0 sent"]

    assert texts(harmed)[0].startswith(TOLD)
    assert len(harmed.posted) == 1


@pytest.mark.full
def test_a_receiver_that_fails_three_times_is_told_once(harmed: Endpoint, at: Clock) -> None:
    harmed.statuses = [500, 503, 500]
    assert ramp_tick.fn().is_completed()

    said = delivered(at, range(12))

    assert [line for line in said if line != "0 sent"][-1] == "1 sent"
    assert len([line for line in said if line and "HTTP 50" in line]) == 3
    assert len(harmed.posted) == 4
    assert len(set(ids(harmed))) == 1


@pytest.mark.full
@pytest.mark.parametrize(("killed", "copies"), [("between commit and send", 1), ("between send and mark", 2)])
def test_a_process_that_is_killed_on_the_way_keeps_nobody_from_being_told(
    harmed: Endpoint, at: Clock, killed: str, copies: int
) -> None:
    """A receiver drops the second copy by its id."""
    harmed.let_go.clear()  # it takes what is sent, and does not answer
    process = subprocess.Popen(
        [sys.executable, "-c", TICK_AND_DELIVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert "roll back" in process.stdout.readline()
    if copies == 2:
        process.stdin.write("\n")
        process.stdin.flush()
        assert harmed.reached.wait(120)
    process.kill()
    process.communicate()
    harmed.let_go.set()

    said = delivered(at, range(1, 8))

    assert [line for line in said if line != "0 sent"] == ["1 sent"]
    assert [text.startswith(TOLD) for text in texts(harmed)] == [True] * copies
    assert len(set(ids(harmed))) == 1
