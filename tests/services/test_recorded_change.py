"""Every change of a strategy leaves its audit event."""

import ast
from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import NoCanary
from strategy_core.domain.lifecycle import Status
from strategy_core.services.canary import activate_canary
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


def widen(engine: Engine, command: Command, *, fail: bool = False) -> None:
    """Set the canary's share to 12.5 % as a use case would."""
    with transaction(engine) as session:
        versions.lock_strategy(session, "fib_rsi")
        with recorded_change(session, command, "widen", "fib_rsi", "2") as change:
            rollouts.set_canary_share(session, "fib_rsi", 1_250)
            change.after["note"] = "by hand"
            change.alert = ChangeAlert("rollout.advanced", "wider", severity="info", dedupe_key="wider")
            if fail:
                raise NoCanary("fib_rsi")


@pytest.fixture
def with_canary(engine: Engine) -> Engine:
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)
    return engine


def test_a_change_that_fails_leaves_neither_event_nor_alert(with_canary: Engine) -> None:
    with pytest.raises(NoCanary):
        widen(with_canary, Command(OWNER, MONDAY), fail=True)

    with reading(with_canary) as session:
        assert [event.action for event in audit.events(session)] == ["activate_canary"]
        assert list(alerts.find_alerts(session)) == []
        assert rollouts.get_canary(session, "fib_rsi").rollout_bp == 500


def test_a_change_is_recorded_with_the_state_before_and_after_it(with_canary: Engine) -> None:
    widen(with_canary, Command(OWNER, MONDAY, "a wider look", override_reason="the broker was at fault"))

    with reading(with_canary) as session:
        (_, event), (alert,) = audit.events(session), alerts.find_alerts(session)
    assert (event.action, event.version, event.actor, event.at) == ("widen", "2", OWNER.name, MONDAY)
    assert (event.before["percent"], event.after["percent"], event.after["note"]) == (5.0, 12.5, "by hand")
    assert event.reason == "the broker was at fault"
    assert (alert.facts["before"]["percent"], alert.facts["after"]["percent"]) == (5.0, 12.5)
    assert alert.facts["exposed"]["percent"] == 12.5
