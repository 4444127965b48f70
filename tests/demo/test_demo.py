"""The whole demo, once on the synthetic market and once on a file; README's commands run it by default."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from strategy_core.cli import main
from strategy_core.demo.run import DemoResult, run_demo, run_story, show_result
from strategy_core.domain.errors import InvalidCandles, InvalidSetting
from strategy_core.market.synthetic import SyntheticSource
from tests.builders import GOLD, MONDAY


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    database = tmp_path_factory.mktemp("demo") / "demo.db"
    return run_story("synthetic:GOLD?seed=7&symbols=10", None, database, Console(quiet=True))


@pytest.mark.full
@pytest.mark.xdist_group("demo")
class TestOnTheSyntheticMarket:
    def test_the_better_version_climbs_every_stage_and_is_promoted(self, story: DemoResult) -> None:
        first, _ = story.rollouts

        assert (first.version, first.control_version, first.state) == ("2.0.0", "1.0.0", "completed")
        assert [stage.percent for stage in first.stages] == [5, 10, 25, 50, 100]
        assert {stage.verdict for stage in first.stages} == {"pass"}
        assert first.slots >= 100

    def test_the_broken_version_is_as_good_in_shadow_and_rolled_back_by_a_gate(self, story: DemoResult) -> None:
        _, second = story.rollouts

        assert story.comparisons[1].divergence_rate == 0.0
        assert (second.version, second.state) == ("3.0.0", "rolled_back")
        assert second.reason.startswith("excess_drawdown: drawdown")

    def test_the_versions_end_as_they_should(self, story: DemoResult) -> None:
        ends = {version.version: (version.status, version.quarantined) for version in story.versions}

        assert ends == {"1.0.0": ("shadow", False), "2.0.0": ("active", False), "3.0.0": ("shadow", True)}
        assert [version.errors for version in story.versions] == [0, 0, 0]

    def test_the_timeline_has_every_change_with_its_reason(self, story: DemoResult) -> None:
        actions = [event.action for event in story.timeline]

        assert actions.count("advance") >= 4
        assert actions.count("promote") == actions.count("complete") == actions.count("roll_back") == 1
        assert all(event.reason for event in story.timeline if event.actor == "ramp")

    def test_the_same_seed_gives_the_same_result(self, story: DemoResult) -> None:
        """Golden: a change of these is a change of routing, scoring, gates or market, and must be meant."""
        assert [(one.version, one.state, one.slots) for one in story.rollouts] == [
            ("2.0.0", "completed", 123),
            ("3.0.0", "rolled_back", 263),
        ]

    def test_it_can_be_read_on_a_terminal(self, story: DemoResult) -> None:
        console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
        show_result(story, console)

        text = console.export_text()
        for words in (
            "Timeline",
            "Shadow compared with active",
            "Rollouts",
            "roll back",
            "quarantined",
            story.ending[:40],
        ):
            assert words in text


@pytest.fixture
def short_file(tmp_path: Path) -> Path:
    market = SyntheticSource((GOLD,), seed=3, start=MONDAY.replace(year=2024), days=300)
    candles = market.candles(GOLD, closed_by=MONDAY.replace(year=2025))
    candles.to_csv(tmp_path / "GOLD.csv")
    return tmp_path / "GOLD.csv"


@pytest.mark.full
def test_on_a_file_it_ends_with_the_candles(
    short_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.db"
    code = main(["demo", "--candles", str(short_file), "--symbol", GOLD, "--keep", str(kept), "--json"])

    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert kept.exists()
    assert result["symbols"] == [GOLD]
    assert result["plans"][0]["underpowered"] or "days" in result["plans"][0]["verdict"]
    assert result["ending"]


def test_a_file_too_short_for_a_story_is_refused(short_file: Path, tmp_path: Path) -> None:
    rows = short_file.read_text().splitlines()[:500]
    (tmp_path / "SHORT.csv").write_text("\n".join(rows) + "\n")

    with pytest.raises(InvalidCandles, match="499 candles of SHORT; the demo needs more than 4000"):
        run_demo(candles=tmp_path / "SHORT.csv", symbol=None, as_json=False, database=None, console=Console(quiet=True))


def test_an_existing_database_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.db").write_text("precious")

    with pytest.raises(InvalidSetting, match="does not exist yet"):
        run_demo(candles=None, symbol=None, as_json=False, database=tmp_path / "mine.db", console=Console(quiet=True))
    assert (tmp_path / "mine.db").read_text() == "precious"
