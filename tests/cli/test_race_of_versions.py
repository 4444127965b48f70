"""`rollout race start`, `status`, `enter`, `withdraw`, `close` and `tick`."""

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import DAY, MONDAY, put_version
from tests.cli.conftest import Rollout, set_clock
from tests.services.test_race_whatif import put_replayed_days
from tests.services.test_races import days

WORTH = {"1": 0.1, "2": 0.5, "3": -1.0, "4": 0.2}


@pytest.fixture(autouse=True)
def candidates(database: Engine) -> None:
    put_version(database, "1", Status.ACTIVE)
    for version in ("2", "3", "4"):
        put_version(database, version)


def test_a_race_from_its_start_to_its_end(rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    none = rollout("race", "status").out
    begun = rollout("race", "start", "fib_rsi", "2", "3", "--reason", "which is best").out
    waiting = rollout("race", "status", "fib_rsi").out
    end = days(database, MONDAY, 60, WORTH)
    set_clock(monkeypatch, end + 3 * DAY)
    ticked = rollout("race", "tick").out
    shown = rollout("race", "status").out
    entered = rollout("race", "enter", "fib_rsi", "4").out
    out = rollout("race", "withdraw", "fib_rsi", "2", "--reason", "too wild").out
    closed = rollout("race", "close", "fib_rsi").out

    assert none == "no race. To start one: rollout race start STRATEGY VERSION VERSION\n"
    assert "fib_rsi: 2, 3 race against 1, counted from 2026-03-01 on" in begun
    assert "No day is counted yet" in waiting
    assert "fib_rsi: 61 days counted; 2 leads with +0.4" in ticked
    assert max(map(len, shown.splitlines())) <= 80
    rows = [line.split() for line in shown.splitlines()]
    assert [row[:2] for row in rows if row[:1] in (["1"], ["2"], ["3"]) and row[1] != "leads"] == [
        ["2", "running"],
        ["1", "active"],
        ["3", "eliminated"],
    ]
    assert entered == "fib_rsi 4 is in the race. Its evidence begins on 2026-05-01\n"
    assert out == "fib_rsi 2 is out of the race\n"
    assert closed == "the race of fib_rsi is closed\n"
    assert rollout("race", "status").out.startswith("no race")
    assert "closed by" in rollout("race", "status", "--all").out


def test_a_program_gets_the_standings(rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rollout("race", "start", "fib_rsi", "2", "3", "--start-rollouts")
    set_clock(monkeypatch, days(database, MONDAY, 20, WORTH) + 3 * DAY)

    (ticked,) = rollout("race", "tick", "--json").data
    (found,) = rollout("race", "status", "--json").data

    assert (ticked["days"], ticked["error"]) == (21, "")
    assert ticked["line"].endswith("its rollout is started")
    assert [each["version"] for each in found["entries"]] == ["1", "2", "3"]
    assert found["standings"][0]["rows"][1]["slots"] == 80
    assert rollout("status", "fib_rsi", "--json").data[0]["canary"] == "2"


def test_what_is_refused_says_what_would_be_allowed(rollout: Rollout) -> None:
    alone = rollout("race", "start", "fib_rsi", "2")
    none = rollout("race", "close", "fib_rsi")
    rollout("race", "start", "fib_rsi", "2", "3")
    again = rollout("race", "start", "fib_rsi", "2", "3")

    assert (alone.code, alone.err) == (2, "error: a race is refused: it needs 2 to 32 candidates, and has 1\n")
    assert (none.code, none.err) == (
        4,
        "error: 'fib_rsi' has no open race; to start one: rollout race start fib_rsi VERSION VERSION\n",
    )
    assert (again.code, "enter the versions into it, or close it" in again.err) == (5, True)


def test_a_race_on_past_candles(rollout: Rollout, database: Engine) -> None:
    put_replayed_days(database)

    said = rollout("race", "whatif", "fib_rsi", "2", "3", "--shadow-days", "30")
    data = rollout("race", "whatif", "fib_rsi", "2", "3", "--shadow-days", "30", "--json").data
    unknown = rollout("race", "whatif", "fib_rsi", "4")

    assert said.code == 0
    assert "fib_rsi: 2 candidates, 2026-01-01 to " in said.out
    assert "Users earned +" in said.out
    assert data["events"][0]["what"].startswith("its rollout starts: 2 leads")
    assert (unknown.code, "rollout replay fib_rsi 4" in unknown.err) == (5, True)
