"""`ppo_gold`: a small policy that PPO has trained, in whole numbers, so that every processor decides the same.

A demonstration of a strategy with a model file, and no edge: see docs/explanation/ppo-gold.md. It is trained by
`strategy_core.training`.
"""

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from strategy_core.domain.errors import StrategyFailed
from strategy_core.domain.strategy import Action, Context, Decision

IntArray = NDArray[np.int64]

BARS = 72  # candles that one decision sees
LAGS = (1, 2, 4, 8, 16, 24, 48)  # candles back, of the returns
FEATURES = (*(f"return_{lag}" for lag in LAGS), "place", "last_range")
ONE = 256  # the whole number that stands for 1
LARGEST = 8 * ONE  # of a feature and of a hidden unit
HIDDEN = 16
_MIRRORED = np.array([-1] * (len(LAGS) + 1) + [1], np.int64)  # of the market upside down: all but the last range


class ModelCard(BaseModel):
    """How a model was made.

    Attributes:
        candles: sha256 of the training candles.
        first, trained_until: open times of the first candle, and the end of the training.
        seed: of the training that was kept, one of *tries*.
        code: sha256 of the training's and the features' source.
        rule: the scoring rule whose R was the reward.
        mean_r, win_rate, signals_per_day, buys: in sample, with *buys* as a share of the signals.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    candles: str
    first: str
    trained_until: str
    seed: int
    tries: int
    updates: int
    code: str
    rule: dict[str, Any]
    mean_r: float
    win_rate: float
    signals_per_day: float
    buys: float


class Model(BaseModel):
    """The weights, in units of 1 / ONE, and the card.

    Attributes:
        w1, b1: from the features to the hidden units, of shape (HIDDEN, features) and (HIDDEN,).
        w2, b2: from the hidden units to the score.
        hold: least score of a signal, in units of 1 / ONE².
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    w1: list[list[int]]
    b1: list[int]
    w2: list[int]
    b2: int
    hold: int
    card: ModelCard


class PpoGoldParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        default="ppo_gold_v1", min_length=1, description="a model of this package, or the path of a file"
    )


def features(candles: pd.DataFrame) -> IntArray:
    """Return the features of each window of BARS candles, shape (windows, len(FEATURES)), in units of 1 / ONE.

    Distances are measured in the mean range of the window's candles. Only operations that every processor rounds alike
    are used (+ − × ÷, comparisons, sums in order), and the result is rounded to whole numbers.
    """
    high, low, close = (candles[name].to_numpy(np.float64) for name in ("high", "low", "close"))
    windows = sliding_window_view(high - low, BARS)
    unit = np.add.accumulate(windows, axis=1)[:, -1] / BARS
    top, bottom = sliding_window_view(high, BARS).max(axis=1), sliding_window_view(low, BARS).min(axis=1)
    last = close[BARS - 1 :]
    found = np.empty((len(last), len(FEATURES)))
    still = unit <= 0.0
    scale = np.where(still, 1.0, unit)
    for column, lag in enumerate(LAGS):
        found[:, column] = (last - close[BARS - 1 - lag : len(close) - lag]) / scale
    # Twice the distance from the middle, so that the market upside down has exactly the negative
    found[:, -2] = ((last - bottom) - (top - last)) / np.where(top > bottom, top - bottom, 1.0)
    found[:, -1] = (high[BARS - 1 :] - low[BARS - 1 :]) / scale - 1.0
    found[still] = 0.0
    return np.clip(np.rint(found * ONE), -LARGEST, LARGEST).astype(np.int64)


def scores(model: Model, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Return the scores of a buy and of a sell for each row of features, in units of 1 / ONE².

    A sell's score is a buy's in the market upside down. So the policy cannot learn that a market went up.
    """
    w1, b1, w2 = (np.array(each, np.int64) for each in (model.w1, model.b1, model.w2))

    def score(x: IntArray) -> IntArray:
        hidden = np.clip((x @ w1.T) // ONE + b1, 0, LARGEST)
        return np.asarray(hidden @ w2 + model.b2 * ONE, np.int64)

    return score(rows), score(rows * _MIRRORED)


class PpoGold:
    """Signal the side with the higher score where that is above `hold`. Confidence is the distance to `hold`."""

    Params = PpoGoldParams

    def warmup_bars(self, params: PpoGoldParams) -> int:
        return BARS

    def model_files(self, params: PpoGoldParams) -> list[Path]:
        return [model_path(params.model)]

    def trained_until(self, params: PpoGoldParams) -> datetime:
        return datetime.fromisoformat(read_model(model_path(params.model)).card.trained_until)

    def decide(self, candles: pd.DataFrame, params: PpoGoldParams, context: Context) -> Decision:
        return self.decide_many(candles.iloc[-BARS:], params, context)[0]

    def decide_many(self, candles: pd.DataFrame, params: PpoGoldParams, context: Context) -> Sequence[Decision]:
        model, rows = read_model(model_path(params.model)), features(candles)
        decisions = []
        for row, buy, sell in zip(rows.tolist(), *(each.tolist() for each in scores(model, rows)), strict=True):
            best = max(buy, sell)
            known = dict(zip(FEATURES, (value / ONE for value in row), strict=True)) | {"score": best / ONE**2}
            if best <= model.hold or buy == sell:
                decisions.append(Decision(Action.HOLD, features=known))
                continue
            confidence = min(best - model.hold, ONE**2) / ONE**2
            decisions.append(Decision(Action.BUY if buy > sell else Action.SELL, confidence, known))
        return decisions


def model_path(name: str) -> Path:
    """Return the file of a model of this package, which lies beside this module, or the path that *name* is."""
    own = Path(__file__).parent / f"{name}.json"
    return own if "/" not in name and own.is_file() else Path(name)


@lru_cache(maxsize=4)
def read_model(path: Path) -> Model:
    """Return the model of a file.

    Raises:
        StrategyFailed: the file cannot be read or is not a model.
    """
    try:
        model = Model.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise StrategyFailed(f"{path.name} is not a model of ppo_gold: {str(error).splitlines()[0]}") from None
    shapes = (len(model.w1), {len(row) for row in model.w1}, len(model.b1), len(model.w2))
    if shapes != (HIDDEN, {len(FEATURES)}, HIDDEN, HIDDEN):
        raise StrategyFailed(f"{path.name} is a model of another shape")
    return model
