"""The months of a database from a shell."""

import pytest

from strategy_core.cli import main


def test_a_dry_run_tells_and_changes_nothing(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ROLLOUT_REPLAY_FROM", "2036-02-20T00:00:00+00:00")
    asked = ["db", "maintain", "--database-url", postgresql_url]

    assert main([*asked, "--dry-run"]) == 0
    assert main([*asked, "--json"]) == 0

    told, _, answered = capsys.readouterr().out.partition("{")
    assert told.splitlines()[:3] == [f"2036_0{month}: would be made" for month in (2, 3, 4)]
    assert '"made": [\n    "2036_02",' in answered
    assert main(asked) == 0
    assert (
        capsys.readouterr().out == "all months are kept: ROLLOUT_KEEP_DAYS is not set, or there are no decisions yet\n"
    )
