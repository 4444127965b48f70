"""Answers as people and programs get them, on rows put into the store."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from typing import Any, get_args, get_type_hints

import pytest
from sqlalchemy import Engine

from strategy_core.cli.rollouts import decide
from strategy_core.domain.audit import Actor
from strategy_core.domain.lifecycle import Status
from strategy_core.services.rollouts import Choice
from strategy_core.store import audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import Rollout as RolloutRow
from tests.builders import (
    DAY,
    HOUR,
    MONDAY,
    decision_row,
    outcome_row,
    put_decisions,
    put_outcomes,
    put_pair,
    put_version,
)
from tests.cli.conftest import Rollout, contents, set_clock
from tests.prepared import prepared


@pytest.fixture
def pair(database: Engine) -> Engine:
    prepared(database, put_pair)
    return database


@pytest.fixture
def started(pair: Engine, rollout: Rollout) -> Engine:
    assert rollout("start", "fib_rsi", "2", "--yes").code == 0
    return pair


def state_of(engine: Engine) -> str:
    with reading(engine) as session:
        return rollouts.list_rollouts(session)[0].state


def put_state(engine: Engine, state: str) -> None:
    with transaction(engine) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], state=state)


def test_an_empty_database_answers_in_words_and_in_empty_lists(rollout: Rollout, database: Engine) -> None:
    assert rollout("status").out == "no strategies yet\n"
    assert (
        rollout("status", "--all").out == "no strategies yet\nversions run in isolation on this machine: namespaces\n"
    )
    assert rollout("tick").out == "no rollout is open\n"
    assert rollout("audit").out == "no changes yet\n"
    for command in ("list", "status", "audit", "tick", "shadow"):
        assert rollout(command, "--json").data == []


def test_without_a_command_it_helps(rollout: Rollout) -> None:
    said = rollout()

    assert said.code == 0
    assert "Usage: rollout" in said.out


def test_it_says_which_release_it_is(rollout: Rollout) -> None:
    said = rollout("--version")

    assert (said.code, said.out) == (0, f"rollout {version('strategy-rollout')}\n")


def test_versions_are_listed_by_strategy_and_status(rollout: Rollout, pair: Engine) -> None:
    put_version(pair, "1", Status.RETIRED, strategy_name="ppo_gold", at=MONDAY)

    assert [row["version"] for row in rollout("list", "--status", "active", "--json").data] == ["1"]
    assert [row["strategy_name"] for row in rollout("list", "--status", "retired", "--json").data] == ["ppo_gold"]
    lines = rollout("list").out.splitlines()
    assert [line.split()[:3] for line in lines if "1h" in line] == [
        ["fib_rsi", "1", "active"],
        ["fib_rsi", "2", "shadow"],
        ["ppo_gold", "1", "retired"],
    ]


def test_activation_and_retirement_are_said_and_done(rollout: Rollout, pair: Engine) -> None:
    assert rollout("activate", "fib_rsi", "2", "--yes").out == "fib_rsi 2 is active\n"
    assert rollout("activate", "fib_rsi", "1", "--yes", "--json").data["status"] == "active"
    put_version(pair, "3")
    assert rollout("retire", "fib_rsi", "3").out == "fib_rsi 3 is retired\n"

    statuses = {row["version"]: row["status"] for row in rollout("list", "--json").data}
    assert statuses == {"1": "active", "2": "retired", "3": "retired"}
    assert rollout("retire", "fib_rsi", "1", "--close", "--yes").out == "fib_rsi 1 is retired\n"
    assert "none, closed: its users get no version" in rollout("status", "fib_rsi").out
    unrouted = rollout("route", "user_123", "fib_rsi")
    assert (unrouted.code, unrouted.err.count("\n")) == (4, 1)
    assert "'fib_rsi' is closed: no version is active" in unrouted.err


def test_a_canary_by_hand_is_seen_by_its_users(rollout: Rollout, pair: Engine) -> None:
    said = rollout("canary", "fib_rsi", "2", "60", "--yes")
    inside = rollout("route", "user_123", "fib_rsi")
    rollout("percent", "fib_rsi", "33.33", "--yes")
    outside = rollout("route", "user_123", "fib_rsi")

    assert said.out == "fib_rsi 2 is the canary of 60 % of users\n"
    assert inside.out == "user_123 gets fib_rsi 2: bucket 59.88 < canary percent 60.00\n"
    assert outside.out == "user_123 gets fib_rsi 1: bucket 59.88 >= canary percent 33.33\n"


def test_a_quarantined_version_is_tried_again_with_a_reason_only(rollout: Rollout, started: Engine) -> None:
    rollout("rollback", "fib_rsi", "--reason", "harm")

    refused = rollout("canary", "fib_rsi", "2", "5", "--yes")
    tried = rollout("canary", "fib_rsi", "2", "5", "--yes", "--override-reason", "the feed was wrong")

    assert (refused.code, "is quarantined; give an override reason (--override-reason TEXT)" in refused.err) == (
        5,
        True,
    )
    assert tried.code == 0
    assert rollout("audit", "--json").data[-1]["reason"] == "the feed was wrong"


@pytest.mark.parametrize(
    "command",
    [
        ("rollback", "fib_rsi", "--reason"),
        ("decide", "fib_rsi", "extend", "--reason"),
        ("decide", "fib_rsi", "rollback", "--reason"),
        ("activate", "fib_rsi", "2", "--yes", "--override-reason"),
        ("start", "fib_rsi", "2", "--yes", "--override-reason"),
        ("canary", "fib_rsi", "2", "5", "--yes", "--override-reason"),
    ],
    ids=lambda command: f"{command[0]} {command[2]}",
)
def test_a_blank_reason_is_none(rollout: Rollout, pair: Engine, command: tuple[str, ...]) -> None:
    """Also for a version in quarantine, which a blank would otherwise lift."""
    with transaction(pair) as session:
        versions.get_version(session, "fib_rsi", "2").quarantined_at = MONDAY
    before = contents(pair)

    said = rollout(*command, " ")

    assert (said.code, said.err) == (2, "error: ' ' is not a reason; allowed: a text that is not blank\n")
    assert contents(pair) == before


def test_status_tells_people_the_stage_and_what_each_gate_said(
    rollout: Rollout, started: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, MONDAY + HOUR)
    ticked = rollout("tick").out

    shown = rollout("status", "fib_rsi", "--all").out

    assert "hold   dwells at 5 %: 60 min of 24 h" in ticked
    assert "canary          2 for 5 % of users" in shown
    assert "stages          [5] → 10 → 25 → 50 → 100 %" in shown
    assert "0 of 30 slots, day 0 of at least 3" in shown
    assert "info: fib_rsi 2 started at 5 % against 1" in shown


def test_a_gate_without_a_vote_is_shown_so(
    rollout: Rollout, pair: Engine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plan = tmp_path_factory.mktemp("plan") / "plan.json"
    plan.write_text('{"gates": [{"kind": "errors"}, {"kind": "silence", "dry_run": true}]}')
    rollout("start", "fib_rsi", "2", "--plan", str(plan), "--yes")
    rollout("tick")

    assert "no data (no vote)" in rollout("status", "--all").out


def test_a_tick_without_a_feed_is_blind_and_notes_it(
    rollout: Rollout, pair: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout("start", "fib_rsi", "2", "--yes")
    monkeypatch.setenv("ROLLOUT_FEED", "missing.csv")
    set_clock(monkeypatch, MONDAY + 12 * HOUR)

    (ticked,) = rollout("tick", "--json").data

    assert ticked["ruling"]["step"] == "hold"
    assert "missing.csv: no such file or folder" in ticked["ruling"]["reason"]
    (known,) = rollout("status", "--json").data
    assert known["rollout"]["blind_since"] == "2026-03-02T12:00:00Z"


def test_a_rollout_that_cannot_be_ruled_on_fails_the_tick(rollout: Rollout, pair: Engine) -> None:
    """A scheduler sees the exit code, and the output has the reason beside the judged rollouts."""
    begun: dict[str, Any] = {"started_at": MONDAY, "stage_entered_at": MONDAY, "stage_extended_at": MONDAY}
    row = RolloutRow(
        strategy_name="fib_rsi", version="2", control_version="1", state="running", plan={"stages": []}, **begun
    )
    with transaction(pair) as session:
        rollouts.add_rollout(session, row, {})

    said = rollout("tick", "--json")

    (ticked,) = json.loads(said.out)
    assert said.code == 1
    assert (ticked["ruling"]["blind"], "plan is not valid" in ticked["error"]) == (True, True)


def test_an_approval_is_given_when_it_is_asked_for(rollout: Rollout, started: Engine) -> None:
    put_state(started, "awaiting_approval")

    said = rollout("approve", "fib_rsi", "--reason", "go")

    assert (
        said.out
        == "fib_rsi 2 is approved. The next tick advances it, if its gates pass and no freeze or window holds it.\n"
    )
    assert state_of(started) == "running"


def test_the_last_stage_is_approved_with_a_reason(rollout: Rollout, started: Engine) -> None:
    put_state(started, "awaiting_approval")
    with transaction(started) as session:
        rollouts.change_rollout(session, rollouts.list_rollouts(session)[0], stage_index=3)

    bare = rollout("approve", "fib_rsi")
    given = rollout("approve", "fib_rsi", "--reason", "go")

    assert bare.code == 2
    assert bare.err == (
        "error: cannot approve the last stage of 'fib_rsi' '2' without a reason: all users get it; "
        "say in a few words why it is good enough for them\n"
    )
    assert given.code == 0


def test_an_owner_decides_what_the_evidence_could_not(rollout: Rollout, started: Engine) -> None:
    put_state(started, "awaiting_decision")
    extended = rollout("decide", "fib_rsi", "extend", "--reason", "quiet weeks")
    put_state(started, "awaiting_decision")
    advanced = rollout("decide", "fib_rsi", "advance", "--reason", "I answer for it")

    assert (extended.code, advanced.code) == (0, 0)
    assert rollout("status", "--json").data[0]["percent"] == 10.0
    assert rollout("decide", "fib_rsi", "rollback", "--reason", "enough").out == "fib_rsi 2: rollback is decided\n"
    assert state_of(started) == "rolled_back"


def test_the_choices_offered_are_the_services(rollout: Rollout) -> None:
    """They are written twice, so that help needs no import of the services."""
    offered = get_args(get_args(get_type_hints(decide, include_extras=True)["choice"])[0])

    assert list(offered) == list(Choice)


def test_a_comparison_is_shown_with_both_divergences(rollout: Rollout, pair: Engine) -> None:
    for day in range(3):
        for hour in range(4):
            at = MONDAY - 4 * DAY + day * DAY + (8 + hour) * HOUR
            put_decisions(pair, decision_row("1", at, "buy" if hour == 0 else "hold"))
            put_decisions(pair, decision_row("2", at, "buy" if hour < 2 else "hold"))
            put_outcomes(pair, outcome_row("2", at, 1.0)) if hour < 2 else None
            put_outcomes(pair, outcome_row("1", at, -0.5)) if hour == 0 else None

    shown = rollout("compare", "fib_rsi", "2", "--days", "5").out
    data = rollout("compare", "fib_rsi", "2", "--days", "5", "--json").data

    assert "signals     2 6, 1 3" in shown
    assert "1 (active)" in shown
    assert "divergence  50.0 % of actionable candles, 25.0 % of all" in shown
    assert "difference  +1.250 R a slot" in shown
    assert (data["shadow_signal_count"], data["active_signal_count"], data["divergence_rate"]) == (6, 3, 50.0)


def test_decisions_are_cut_to_their_period_symbol_and_number(rollout: Rollout, pair: Engine) -> None:
    for hour in range(6):
        put_decisions(pair, decision_row("2", MONDAY - DAY + hour * HOUR))
        put_decisions(pair, decision_row("2", MONDAY - DAY + hour * HOUR, symbol="SILVER"))

    rows = rollout(
        *("decisions", "fib_rsi", "2", "--symbol", "GOLD", "--limit", "2", "--json"),
        *("--start", "2026-03-01", "--end", "2026-03-01T05:00+01:00"),
    ).data

    assert [(row["symbol"], row["timestamp"]) for row in rows] == [
        ("GOLD", "2026-03-01T02:00:00Z"),
        ("GOLD", "2026-03-01T03:00:00Z"),
    ]


def test_the_newest_of_the_audit_trail_is_shown_with_what_changed(rollout: Rollout, started: Engine) -> None:
    rollout("rollback", "fib_rsi", "--reason", "harm")

    newest = rollout("audit", "--limit", "1").out

    assert "roll_back" in newest
    assert "start_rollout" not in newest
    assert "5 → 0" in newest


def test_a_reason_cannot_steer_a_terminal(rollout: Rollout, pair: Engine) -> None:
    with transaction(pair) as session:
        audit.record(
            session,
            Actor("eve"),
            "activate_version",
            strategy_name="fib_rsi",
            version="2",
            before={},
            after={},
            reason="\x1b[2J[bold]gone[/nope]",
            now=MONDAY,
        )

    shown = rollout("audit").out

    assert "\x1b" not in shown
    assert "[2J[bold]gone[/nope]" in shown


def test_the_actor_is_the_shells_user_unless_named(
    rollout: Rollout, pair: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "carla")
    rollout("activate", "fib_rsi", "2", "--yes")
    rollout("activate", "fib_rsi", "1", "--yes", "--actor", "dora")

    assert [event["actor"] for event in rollout("audit", "--json").data] == ["carla", "dora"]


def test_isolate_names_the_level(rollout: Rollout) -> None:
    shown = rollout("isolate")

    first, second = shown.out.splitlines()
    assert (shown.code, first) == (0, "versions run in isolation: namespaces")
    assert re.fullmatch(r"(\d+) of \1 attempts were refused", second)


@pytest.mark.full
def test_isolate_lists_every_open_door() -> None:
    environ = {**os.environ, "ROLLOUT_ISOLATION": "none"}
    command = [sys.executable, "-m", "strategy_core.cli", "isolate"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)

    assert done.returncode == 1
    assert done.stdout.startswith("versions run in isolation: none (trusted code only) (no namespaces: ROLLOUT_ISOL")
    assert "read a private file by native code" in done.stdout
