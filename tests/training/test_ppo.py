"""Training: reproducible, accepted by rule, and told by year."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from strategy_core.domain.errors import TrainingFailed
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.strategies.ppo_gold import model_path, read_model
from strategy_core.training import ppo
from strategy_core.training.__main__ import run
from strategy_core.training.ppo import by_year, lesson, problem_of, signals, train
from tests.builders import DAY, MONDAY

FEED = "synthetic:GOLD?seed=7&days=120&start=2025-11-02"


@pytest.fixture(scope="module")
def candles() -> pd.DataFrame:
    return SyntheticSource(("GOLD",), start=MONDAY - 120 * DAY, days=120).candles("GOLD", closed_by=MONDAY)


def small(candles: pd.DataFrame, **asked: Any) -> Any:
    return train(candles, MONDAY - 30 * DAY, **{"seed": 7, "tries": 1, "updates": 2} | asked)


def test_the_same_seed_gives_the_same_bytes(candles: pd.DataFrame) -> None:
    first, again, other = (small(candles, seed=seed).model_dump_json() for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_the_median_of_the_tries_is_kept_and_progress_is_told(candles: pd.DataFrame) -> None:
    told: list[int] = []
    singles = [small(candles, seed=seed).card.mean_r for seed in (7, 8, 9)]

    kept = small(candles, tries=3, progress=lambda done, _: told.append(done))

    assert kept.card.mean_r == sorted(singles)[1]
    assert told == [1, 2, 3, 4, 5, 6]


def test_candles_after_the_end_are_not_seen(candles: pd.DataFrame) -> None:
    changed = candles.copy()
    changed.loc[changed.index >= MONDAY - 30 * DAY] *= 2.0

    assert small(candles) == small(changed)


def test_learning_earns_more_in_sample_than_the_start(candles: pd.DataFrame) -> None:
    means = [small(candles, updates=updates, tries=3).card.mean_r for updates in (1, 40)]

    assert means[1] > means[0]


def test_about_one_signal_a_day_is_left_in_sample(candles: pd.DataFrame) -> None:
    card = small(candles).card

    assert card.signals_per_day == pytest.approx(1.0, abs=0.1)


def test_years_are_told_in_and_out_of_sample(candles: pd.DataFrame) -> None:
    model = small(candles)
    years = by_year(model, candles)
    learned = lesson(candles, ppo.DEFAULT_RULE)
    places, sides = signals(model, learned)
    earned = learned.rewards[places, sides]

    assert [(each.year, each.in_sample) for each in years] == [(2025, True), (2026, True), (2026, False)]
    assert sum(each.signals for each in years) == np.isfinite(earned).sum()
    total = sum(each.signals * each.mean_r for each in years)
    assert total == pytest.approx(np.nansum(earned))
    assert all(each.error > 0 for each in years)


def test_too_few_candles_and_one_sided_models_are_refused(
    candles: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingFailed, match="72 candles, needed are more than 72"):
        small(candles.iloc[:72])
    model = small(candles)
    learned = lesson(candles[candles.index < MONDAY - 30 * DAY], ppo.DEFAULT_RULE)
    best = 10**12
    assert problem_of(model.model_copy(update={"hold": best}), learned).startswith("0.00 signals a day in 2025")
    assert "signals a day in 2025, allowed are" in problem_of(model.model_copy(update={"hold": -best}), learned)
    monkeypatch.setattr(ppo, "LEAST_SIDE", 0.6)
    with pytest.raises(TrainingFailed, match=r"none of 1 tries is accepted, .* on one side, allowed is 60%"):
        small(candles)


def test_the_command_writes_a_model_that_decides(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(run)
    file, other = tmp_path / "model.json", tmp_path / "other.json"
    asked = ["--candles", FEED, "--until", "2026-02-01", "--tries", "1", "--updates", "2", "--out"]

    plot = ["--plot", str(tmp_path / "plot.svg")]
    done, again = (CliRunner().invoke(app, [*asked, str(file), *plot]) for _ in range(2))
    nowhere = CliRunner().invoke(app, [*asked, str(other), "--plot", str(tmp_path / "none" / "plot.svg")])
    refused = CliRunner().invoke(app, [*asked, str(other), "--symbol", "NONE"])
    early = CliRunner().invoke(app, [*asked, str(other), "--until", "2025-11-03"])

    assert done.exit_code == 0, done.output
    assert f"{file}: {file.stat().st_size} bytes, sha256" in done.output
    assert "2026 out of sample" in done.output
    assert read_model(model_path(str(file))).card.trained_until == "2026-02-01T00:00:00+00:00"
    assert "2026 out of sample" in (tmp_path / "plot.svg").read_text()
    assert (nowhere.exit_code, "a file in a folder that exists" in nowhere.output) == (2, True)
    assert (again.exit_code, "exists" in again.output) == (2, True)
    assert (refused.exit_code, early.exit_code, other.exists()) == (2, 2, False)
