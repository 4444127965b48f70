"""Training in another process gives the same model, tells how it learns, and has a low priority."""

import os
from pathlib import Path

import pandas as pd
import pytest

from strategy_core.domain.errors import TrainingFailed
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.training.ppo import train
from strategy_core.training.process import NICENESS, train_apart
from tests.builders import DAY, MONDAY

pytestmark = pytest.mark.full  # each starts an interpreter
UNTIL = MONDAY - 30 * DAY


@pytest.fixture(scope="module")
def candles() -> pd.DataFrame:
    return SyntheticSource(("GOLD",), start=MONDAY - 120 * DAY, days=120).candles("GOLD", closed_by=MONDAY)


def children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def test_the_model_is_that_of_a_training_here(candles: pd.DataFrame) -> None:
    told: list[tuple[int, int]] = []
    nice: set[int] = set()

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        nice.update(os.getpriority(os.PRIO_PROCESS, pid) for pid in children())

    found = train_apart(candles, UNTIL, seed=7, tries=2, updates=2, progress=tell)

    assert found.model == train(candles, UNTIL, seed=7, tries=2, updates=2)
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {seed: len(curve) for seed, curve in found.learning.rewards.items()} == {7: 2, 8: 2}
    assert min(os.nice(0) + NICENESS, 19) in nice


def test_a_refusal_is_told_in_the_same_words(candles: pd.DataFrame) -> None:
    with pytest.raises(TrainingFailed, match="72 candles, needed are more than 72"):
        train_apart(candles.iloc[:72], UNTIL, seed=7, tries=1, updates=2)


def test_whoever_stops_listening_ends_the_process(candles: pd.DataFrame) -> None:
    before = set(children())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_apart(candles, UNTIL, seed=7, tries=1, updates=500, progress=interrupt)

    assert set(children()) <= before


def test_a_file_of_the_folder_it_is_started_in_hides_no_module(
    candles: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "calendar.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)

    assert train_apart(candles, UNTIL, seed=7, tries=1, updates=1).learning.rewards.keys() == {7}
