"""What every flow opens: a database that is not as it should be fails the run in one line, as on the command line."""

from pathlib import Path

import pytest

from flows.ramp import pause, ramp_tick
from tests.flows.conftest import Clock

pytestmark = pytest.mark.parametrize("database_url", ["sqlite:///none.db"])


def test_a_database_without_a_schema_says_what_to_do(
    at: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")

    state = ramp_tick.fn()

    assert state.is_failed()
    assert "new.db has no schema, needed is v" in (state.message or "")
    assert not (tmp_path / "new.db").exists()


def test_a_database_that_refuses_to_work_is_one_line(
    at: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notes.txt").write_text("not a database, but long enough to be taken for one at first sight " * 20)
    monkeypatch.setenv("ROLLOUT_DATABASE_URL", f"sqlite:///{tmp_path / 'notes.txt'}")

    state = pause.fn("fib_rsi", owner="ana")

    assert state.is_failed()
    assert state.message == "the database refuses to work: file is not a database"
