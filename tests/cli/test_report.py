"""`rollout report`: a page in a file, or the facts, by the rollout's id or its strategy's name."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from strategy_core.store import rollouts
from strategy_core.store.engine import reading
from tests.builders import put_version
from tests.cli.conftest import Rollout
from tests.report.reading import Page


@pytest.fixture
def started(database: Engine, rollout: Rollout) -> str:
    """Return the id of a rollout."""
    put_version(database, "1", Status.ACTIVE)
    put_version(database, "2")
    assert rollout("start", "fib_rsi", "2", "--yes", "--reason", "<b>better</b>").code == 0
    with reading(database) as session:
        return str(rollouts.list_rollouts(session)[0].id)


def test_it_writes_one_page(rollout: Rollout, started: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"

    said = rollout("report", started, "--output", str(file))

    assert said.out == f"fib_rsi 2 against 1: running\nWritten to {file}\n"
    page = Page(file.read_text())
    assert "fib_rsi 2 against 1: running at 5 % of users" in page.text
    assert "<b>better</b>" in page.text
    assert [each.name for each in tmp_path.glob("report*")] == ["report.html"]


def test_without_a_name_the_file_is_called_after_the_rollout(
    rollout: Rollout, started: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    rollout("report", "fib_rsi")

    assert [each.name for each in tmp_path.glob("*.html")] == [f"rollout-fib_rsi-2-{started[:8]}.html"]


def test_a_dash_is_standard_output(rollout: Rollout, started: str) -> None:
    assert rollout("report", "fib_rsi", "--output", "-").out.startswith("<!doctype html>")


def test_programs_get_the_facts(rollout: Rollout, started: str) -> None:
    data = rollout("report", "fib_rsi", "--json").data

    report = data["report"]
    assert data["generation"] == 1
    assert report["progress"]["status"]["rollout"]["id"] == started
    assert report["progress"]["percent"] == 5.0
    assert report["cost"] == {"slots": 0, "canary_r": 0.0, "control_r": 0.0, "risk_fraction": 0.01}
    assert report["rolled_back"] is None
    assert report["changes"][0]["reason"] == "<b>better</b>"


@pytest.mark.parametrize(("named", "said"), [("nobodys", "no strategy 'nobodys'"), ("0" * 32, "no rollout")])
def test_what_is_not_there_is_said(rollout: Rollout, started: str, named: str, said: str) -> None:
    answer = rollout("report", named)

    assert answer.code == 4
    assert said in answer.err


def test_a_folder_that_is_not_there_is_told_in_a_line(rollout: Rollout, started: str) -> None:
    answer = rollout("report", started, "--output", "/nowhere/report.html")

    assert answer.code == 1
    assert "No such file or directory" in answer.err
