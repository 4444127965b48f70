"""`ppo_gold` decides in whole numbers: alike at once and one by one, upside down, and on every processor."""

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from strategy_core.domain.errors import StrategyFailed
from strategy_core.domain.strategy import Action, Context, checked_decision
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.strategies.loading import load
from strategy_core.strategies.ppo_gold import BARS, FEATURES, ONE, PpoGold, PpoGoldParams, features, read_model
from tests.builders import DAY, MONDAY

CONTEXT = Context("GOLD", "1h", MONDAY)
PARAMS = PpoGoldParams()
SAME_ON_EVERY_PROCESSOR = "78fe02a1ae859bcd3b5bd2238a14ddb46e2fd376a98838b50f13d35a81777cda"


@pytest.fixture(scope="module")
def candles() -> pd.DataFrame:
    return SyntheticSource(("GOLD",), start=MONDAY - 100 * DAY, days=100).candles("GOLD", closed_by=MONDAY)


def log_digest(candles: pd.DataFrame) -> str:
    decisions = PpoGold().decide_many(candles, PARAMS, CONTEXT)
    return sha256(repr([(d.action.value, d.confidence, dict(d.features)) for d in decisions]).encode()).hexdigest()


def test_one_by_one_and_at_once_are_the_same(candles: pd.DataFrame) -> None:
    strategy = load("ppo_gold")
    at_once = PpoGold().decide_many(candles, PARAMS, CONTEXT)

    assert len(at_once) == len(candles) - BARS + 1
    for row in range(0, len(at_once), 37):
        window = candles.iloc[row : row + BARS]
        assert strategy.decide(window, PARAMS, CONTEXT) == checked_decision(at_once[row])
    assert {each.action for each in at_once} == set(Action)


def test_the_market_upside_down_has_the_opposite_decisions(candles: pd.DataFrame) -> None:
    mirrored = pd.DataFrame(
        {"open": -candles["open"], "high": -candles["low"], "low": -candles["high"], "close": -candles["close"]}
    )
    turned = {Action.BUY: Action.SELL, Action.SELL: Action.BUY, Action.HOLD: Action.HOLD}

    ours, theirs = (PpoGold().decide_many(each, PARAMS, CONTEXT) for each in (candles, mirrored))

    assert [turned[each.action] for each in ours] == [each.action for each in theirs]
    assert [each.confidence for each in ours] == [each.confidence for each in theirs]


def test_features_are_distances_in_mean_ranges() -> None:
    close = np.arange(100.0, 100.0 + BARS)
    rising = pd.DataFrame({"high": close + 1, "low": close - 1, "close": close})

    (row,) = features(rising).tolist()

    known = dict(zip(FEATURES, (value / ONE for value in row), strict=True))
    assert known["return_1"] == 0.5
    assert known["return_48"] == 8.0, "24 mean ranges, of which 8 are the most"
    assert known["last_range"] == 0.0
    assert known["place"] == pytest.approx((BARS - 1 + 1 - 1) / (BARS + 1), abs=1 / ONE)


def test_a_market_that_stands_still_has_no_signal() -> None:
    still = pd.DataFrame({name: np.full(BARS, 2_000.0) for name in ("open", "high", "low", "close")})

    assert features(still).tolist() == [[0] * len(FEATURES)]


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "is not a model"), ("{}", "is not a model"), ("shape", "is a model of another shape")],
)
def test_another_file_is_refused(tmp_path: Path, content: str | None, why: str) -> None:
    file = tmp_path / "model.json"
    if content == "shape":
        shipped = read_model(PpoGold().model_files(PARAMS)[0])
        content = shipped.model_copy(update={"b1": [1]}).model_dump_json()
    if content is not None:
        file.write_text(content)

    with pytest.raises(StrategyFailed, match=f"model.json {why}"):
        read_model(file)


def test_the_decisions_are_those_of_every_other_processor(candles: pd.DataFrame) -> None:
    assert log_digest(candles) == SAME_ON_EVERY_PROCESSOR


@pytest.mark.full
@pytest.mark.parametrize("kernel", ["Haswell", "Prescott", "Nehalem"])
def test_the_decisions_do_not_depend_on_the_kernels_of_numpy(kernel: str) -> None:
    code = (
        "from tests.strategies.test_ppo_gold import log_digest\n"
        "from strategy_core.market.synthetic import SyntheticSource\n"
        "from tests.builders import DAY, MONDAY\n"
        "source = SyntheticSource(('GOLD',), start=MONDAY - 100 * DAY, days=100)\n"
        "print(log_digest(source.candles('GOLD', closed_by=MONDAY)))"
    )
    plain = {"NPY_DISABLE_CPU_FEATURES": "AVX2 FMA3"} if kernel != "Haswell" else {}
    told = {**os.environ, "OPENBLAS_CORETYPE": kernel, **plain}

    said = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)

    assert said.stdout.splitlines()[-1] == SAME_ON_EVERY_PROCESSOR
