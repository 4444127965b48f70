"""Every change of a strategy leaves its audit event."""

import ast
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.transitions import ChangeAlert, recorded_change
from strategy_core.store import alerts, audit, rollouts, versions
from strategy_core.store.engine import reading, transaction
from tests.builders import MONDAY, OWNER, put_version

ROOT = Path(__file__).parents[2]


def records(file: Path) -> list[str]:
    """Return the functions of a file that write to the trail."""
    found = []
    for function in ast.walk(ast.parse(file.read_text())):
        if isinstance(function, ast.FunctionDef):
            calls = [ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)]
            found += [function.name] * calls.count("audit.record")
    return found


def test_recorded_change_is_the_only_writer_of_the_trail() -> None:
    sources = [file for folder in ("strategy_core", "flows", "deployments") for file in (ROOT / folder).rglob("*.py")]
    text = {file: file.read_text() for file in sources}

    writers = {file.relative_to(ROOT).as_posix(): records(file) for file in sources if "audit.record(" in text[file]}

    assert writers == {"strategy_core/services/transitions.py": ["recorded_change"]}
    assert [file for file in sources if "store.audit import record" in text[file]] == []


def test_a_change_that_fails_leaves_neither_event_nor_alert(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", Status.CANARY)

    with pytest.raises(ZeroDivisionError), transaction(engine) as session:
        versions.lock_strategy(session, "fib_rsi")
        with recorded_change(session, Command(OWNER, MONDAY), "widen", "fib_rsi", "2") as change:
            change.alert = ChangeAlert("rollout.advanced", "wider", severity="info", dedupe_key="wider")
            rollouts.set_canary_share(session, "fib_rsi", 100 // 0)

    with reading(engine) as session:
        assert (list(audit.events(session)), list(alerts.find_alerts(session))) == ([], [])


def test_a_change_is_recorded_with_the_state_before_and_after_it(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2", Status.CANARY)
    command = Command(OWNER, MONDAY, "a wider look", override_reason="the broker was at fault")

    with transaction(engine) as session:
        versions.lock_strategy(session, "fib_rsi")
        with recorded_change(session, command, "widen", "fib_rsi", "2") as change:
            rollouts.set_canary_share(session, "fib_rsi", 1_250)
            change.after["note"] = "by hand"
            change.alert = ChangeAlert("rollout.advanced", "wider", severity="info", dedupe_key="wider")

    with reading(engine) as session:
        (event,), (alert,) = audit.events(session), alerts.find_alerts(session)
        assert (event.action, event.version, event.actor, event.at) == ("widen", "2", OWNER.name, MONDAY)
        assert (event.before["percent"], event.after["percent"], event.after["note"]) == (0.0, 12.5, "by hand")
        assert event.reason == "the broker was at fault"
        assert (alert.facts["before"]["percent"], alert.facts["after"]["percent"]) == (0.0, 12.5)
        assert alert.facts["exposed"]["percent"] == 12.5
