"""The clock of a replay is the database's: another shell needs no ROLLOUT_REPLAY_*, and a wrong clock is named."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.source import ReplayClock
from strategy_core.services.database import start_clock
from strategy_core.services.rollouts import start_rollout
from tests.builders import HOUR, MONDAY, OWNER, put_version
from tests.cli.conftest import Rollout, contents
from tests.services.outbox import outbox

FAR = datetime(2200, 1, 1, tzinfo=UTC)  # no clock of a test's machine has come so far
NAMES = ("REPLAY_FROM", "REPLAY_STARTED_AT")


@pytest.fixture
def another_shell(rollout: Rollout, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    """The command without the settings of a replay."""
    for name in NAMES:
        monkeypatch.delenv(f"ROLLOUT_{name}")
    return rollout


def put_rollout(engine: Engine, started: datetime) -> None:
    put_version(engine, "1", Status.ACTIVE, at=started)
    put_version(engine, "2", at=started)
    start_rollout(engine, Command(OWNER, started), strategy_name="fib_rsi", version="2", plan=Plan())


def test_another_shell_shows_the_time_of_the_replay(another_shell: Rollout, database: Engine) -> None:
    put_rollout(database, MONDAY)
    start_clock(database, ReplayClock(None, MONDAY + HOUR))

    shown, known = another_shell("status", "--all"), another_shell("alerts", "list", "--json").data
    another_shell("pause", "fib_rsi")

    assert "minimum left    23 h" in shown.out
    assert shown.err == ""
    assert [each["kind"] for each in known["alerts"]] == ["rollout.started"]
    assert another_shell("audit", "log", "--json").data[-1]["at"] == "2026-03-02T01:00:00Z"
    assert another_shell("db", "clock").out == "the clock of a replay stands still: it is 2026-03-02 01:00 UTC\n"
    assert another_shell("db", "clock", "--remove").out == "the clock is removed: real time counts\n"
    assert another_shell("db", "clock").out.startswith("real time counts: it is 2")


def test_a_fast_replay_widens_the_plan_of_a_rollout_from_any_shell(another_shell: Rollout, database: Engine) -> None:
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        put_version(database, version, status)
    start_clock(database, ReplayClock(FAR, MONDAY, 5760.0))

    plan = another_shell("start", "fib_rsi", "2", "--yes", "--json").data["plan"]

    assert plan["blind_limit"] > Plan().model_dump(mode="json")["blind_limit"]


def test_settings_that_disagree_are_named_and_nothing_is_called_late(rollout: Rollout, database: Engine) -> None:
    put_rollout(database, MONDAY)
    start_clock(database, ReplayClock(None, MONDAY + 100 * HOUR))

    shown = rollout("status", "--all")
    listed = rollout("alerts", "list", "--json").data
    rollout("alerts", "deliver")

    assert "minimum left    clock disagrees" in shown.out
    assert len(shown.err.splitlines()) == 1
    assert shown.err.startswith("warning: clock disagrees: ROLLOUT_REPLAY_FROM shows 2026-03-02 00:00 UTC and the")
    assert listed["overdue"] == []
    assert [each.kind for each in outbox(database)] == ["rollout.started"]
    assert rollout("rollback", "fib_rsi", "--reason", "now").code == 0


def test_real_time_before_the_times_of_the_database_judges_nothing(another_shell: Rollout, database: Engine) -> None:
    """As for a database of a replay whose clock was removed. A rollback works."""
    put_rollout(database, FAR)
    before = contents(database)

    shown = another_shell("status", "--all")
    known = another_shell("status", "--json").data[0]["rollout"]
    listed = another_shell("alerts", "list", "--json").data

    assert "minimum left    clock disagrees" in shown.out
    assert "the database has a time of 2200-01-01 00:00 UTC" in shown.err
    assert (known["minimum_left"], known["maximum_left"]) == (None, None)
    assert known["clock_disagrees"].startswith("clock disagrees: the database has a time of 2200-01-01 00:00 UTC")
    assert listed["overdue"][0].startswith("whether fib_rsi 2 is ticked cannot be seen: clock disagrees: ")
    assert contents(database) == before
    another_shell("alerts", "deliver")
    assert [each.kind for each in outbox(database)] == ["rollout.started", "clock.disagrees"]
    assert another_shell("rollback", "fib_rsi", "--reason", "now").code == 0


def test_a_rollback_works_though_the_clock_cannot_be_used(
    rollout: Rollout, database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_rollout(database, MONDAY)
    monkeypatch.setenv("ROLLOUT_REPLAY_FROM", "9999-12-31T23:00Z")

    done = rollout("rollback", "fib_rsi", "--reason", "now")

    assert (done.code, "the database's clock cannot be used" in done.err) == (0, True)
