"""The database's months and the audit trail from Prefect, on both databases."""

import subprocess
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from flows.maintain import maintain_database, verify_audit
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.services.canary import activate_canary, update_canary_percent
from tests.builders import DAY, MONDAY, OWNER, put_version
from tests.endpoint import Endpoint
from tests.flows.conftest import Clock
from tests.flows.test_artifacts import in_a_run
from tests.services.outbox import outbox


def test_a_night_ends_with_what_was_made_in_a_line(engine: Engine, at: Clock) -> None:
    at(MONDAY + 3_650 * DAY)

    state = maintain_database.fn()

    assert state.is_completed()
    if engine.dialect.name == "sqlite":
        assert state.message == "SQLite has no monthly partitions: no work to do"
    else:
        assert str(state.message).startswith("2036_02: made; 2036_03: made; 2036_04: made; all months are kept: ")


def test_less_than_a_start_looks_back_on_cannot_be_kept(
    engine: Engine, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_KEEP_DAYS", "30")

    state = maintain_database.fn()

    assert state.is_failed()
    assert "ROLLOUT_KEEP_DAYS = '30' is not valid; allowed: greater than or equal to 180" in str(state.message)


@pytest.fixture
def folder(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where signed exports go, of a strategy with a canary at 5 %."""
    key = tmp_path / "audit.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    monkeypatch.setenv("ROLLOUT_AUDIT_KEY_FILE", str(key))
    monkeypatch.setenv("ROLLOUT_AUDIT_FOLDER", str(tmp_path / "anchor"))
    (tmp_path / "anchor").mkdir()
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)
    return tmp_path / "anchor"


def test_a_night_exports_the_trail_and_holds_it_against_the_night_before(
    engine: Engine, folder: Path, at: Clock
) -> None:
    at(MONDAY)
    first = verify_audit.fn()
    update_canary_percent(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=6)
    at(MONDAY + DAY)

    second = verify_audit.fn()

    assert str(first.message) == f"3 events verified, exported to {folder}/audit-20260302T000000Z.jsonl"
    assert str(second.message) == f"4 events verified, exported to {folder}/audit-20260303T000000Z.jsonl"
    assert [file.name[6:14] for file in sorted(folder.iterdir())] == ["20260302", "20260303"]
    assert outbox(engine) == []


def test_a_trail_that_does_not_continue_the_last_export_alerts_once(engine: Engine, folder: Path, at: Clock) -> None:
    """What no check of the database alone can find: the last change was undone without a trace."""
    at(MONDAY)
    update_canary_percent(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=6)
    verify_audit.fn()
    undo_the_last_change(engine)
    at(MONDAY + DAY)

    nights = [verify_audit.fn(), verify_audit.fn()]

    assert all(state.is_failed() for state in nights)
    assert "was noted earlier and is in no chain now: the trail was rewritten" in str(nights[0].message)
    (alert,) = outbox(engine)
    assert (alert.kind, alert.severity) == ("audit.broken", "critical")
    assert len(list(folder.iterdir())) == 1, "the export that shows it stays the newest"


def test_a_row_that_does_not_follow_alerts_for_its_strategy(engine: Engine, folder: Path, at: Clock) -> None:
    at(MONDAY)
    with engine.begin() as connection:
        connection.execute(text("UPDATE canary_config SET rollout_bp = 9000"))

    state = verify_audit.fn()

    assert state.is_failed()
    (alert,) = outbox(engine)
    assert alert.strategy_name == "fib_rsi"
    assert alert.text.startswith("fib_rsi: canary_config fib_rsi has rollout_bp 9000, but its audit events leave 500. ")
    assert list(folder.iterdir()) == []


def test_without_a_key_and_a_folder_the_trail_is_verified_alone(
    engine: Engine, folder: Path, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(MONDAY)
    monkeypatch.setenv("ROLLOUT_AUDIT_FOLDER", str(folder / "none"))
    absent = verify_audit.fn()
    monkeypatch.delenv("ROLLOUT_AUDIT_FOLDER")

    state = verify_audit.fn()

    assert absent.is_failed()
    assert "allowed: a folder that exists" in str(absent.message)
    assert str(state.message) == (
        "3 events verified; not exported: set ROLLOUT_AUDIT_KEY_FILE and ROLLOUT_AUDIT_FOLDER"
    )


def undo_the_last_change(engine: Engine) -> None:
    """Cut the last event of fib_rsi off, and put everything back to what it was before."""
    with engine.begin() as connection:
        run = connection.exec_driver_sql
        if engine.dialect.name == "postgresql":
            run("SET LOCAL session_replication_role = replica")
        else:
            for (name,) in run("SELECT name FROM sqlite_master WHERE type = 'trigger'").all():
                run(f"DROP TRIGGER {name}")
        run("DELETE FROM audit_event WHERE position = 4")
        run("UPDATE strategy SET generation = 3, audit_head = (SELECT hash FROM audit_event WHERE position = 3)")
        run("UPDATE canary_config SET rollout_bp = 500, asked_bp = 500, generation = 1")


def test_a_server_that_deletes_no_runs_leaves_the_database_maintained(
    engine: Engine, at: Clock, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint.status = 500

    with in_a_run(monkeypatch, endpoint.url):
        state = maintain_database.fn()

    assert state.is_completed()
    assert str(state.message).endswith("; old flow runs are left for the next night: PrefectHTTPStatusError")
