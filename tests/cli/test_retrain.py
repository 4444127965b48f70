"""`rollout retrain`: a model, a version in shadow and a picture, or one line that says what to do."""

from pathlib import Path
from re import search
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from sqlalchemy import Engine

from strategy_core.domain.lifecycle import Status
from tests.builders import GOLD, put_version
from tests.cli.conftest import Rollout, contents


@pytest.fixture
def ready(rollout: Rollout, database: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rollout:
    monkeypatch.setenv("ROLLOUT_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("ROLLOUT_FEED", "synthetic:GOLD?symbols=1&start=2026-01-01&days=60")
    monkeypatch.setenv("ROLLOUT_DECISION_DEADLINE_S", "5")
    known: dict[str, Any] = {"strategy_name": "ppo_gold", "entry_point": "ppo_gold", "symbols": [GOLD], "config": {}}
    put_version(database, "1", Status.ACTIVE, **known)
    return rollout


@pytest.mark.full
def test_a_training_is_registered_drawn_and_the_next_step_is_named(ready: Rollout, tmp_path: Path) -> None:
    plot = tmp_path / "plot.svg"

    said = ready("retrain", "ppo_gold", "2", "--until", "2026-02-20", "--plot", str(plot))
    shown = ready("show", "ppo_gold", "2")
    again = ready("retrain", "ppo_gold", "3", "--until", "2026-02-20", "--json")

    lines = said.out.splitlines()
    assert said.code == 0
    assert said.err == "training ppo_gold 2 on candles before 2026-02-20, which takes minutes\n"
    assert lines[0].startswith("ppo_gold 2 is registered as shadow: trained until 2026-02-20 with seed ")
    assert search(r"^out of sample in 2026: \d+ signals, ", lines[1])  # another processor may round otherwise
    assert lines[-1].startswith("Next: rollout replay ppo_gold 2 --from 2026-02-20 ")
    assert ET.parse(plot).getroot().tag.endswith("svg")
    assert "trained until  2026-02-20 00:00" in shown.out
    assert again.code == 5
    assert "is the same build as 'ppo_gold' '2'" in again.err


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("2", "--until", "2026-04-01"), 2, "until = '2026-04-01 00:00 UTC' is not valid; allowed: a time up to "),
        (
            ("2", "--until", "2026-01-02"),
            5,
            "23 candles before 2026-01-02 00:00 UTC, needed are more than 72; the first opens at 2026-01-01 ",
        ),
        (("2", "--until", "soon"), 2, "'soon' is not a time for --until; allowed: 2026-01-31"),
        (("1", "--until", "2026-02-20"), 5, "already has a version '1'"),
        (("2", "--until", "2026-02-20", "--plot", "/no/folder/a.svg"), 2, "a file in a folder that exists"),
    ],
    ids=["future", "short", "words", "name", "plot"],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    ready: Rollout, database: Engine, tmp_path: Path, arguments: tuple[str, ...], code: int, line: str
) -> None:
    before = contents(database)

    said = ready("retrain", "ppo_gold", *arguments)

    assert said.code == code
    assert line in said.err
    assert len(said.err.splitlines()) == 1
    assert (contents(database), (tmp_path / "models").exists()) == (before, False)
