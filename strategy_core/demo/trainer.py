"""The models of `ppo_gold` in the demo, trained while it runs."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from strategy_core.domain.errors import TrainingFailed
from strategy_core.market.source import CandleSource
from strategy_core.training.ppo import train

SEED, TRIES = 7, 5
HASTY, THOROUGH = 1, 30  # updates
CANDLES = 8_000  # the newest ones: training takes a few seconds


@dataclass(frozen=True, slots=True)
class Trainer:
    """Trains models on the candles of the source's first symbol.

    Attributes:
        folder: for the files, must exist.
    """

    source: CandleSource
    symbol: str
    folder: Path

    def train(self, version: str, until: datetime, *, updates: int, without_wicks: bool = False) -> Path:
        """Return the file of a model that was trained on the candles before *until*.

        Args:
            without_wicks: on candles that were rebuilt from open and close. Ranges then look half as large, so the
                least score of a signal is chosen far too high for real candles.

        Raises:
            TrainingFailed
        """
        candles = self.source.candles(self.symbol, closed_by=until, bars=CANDLES)
        if without_wicks:
            candles = _without_wicks(candles)
        for seed in range(SEED, SEED + TRIES):
            try:
                model = train(candles, until, seed=seed, tries=1, updates=updates)
            except TrainingFailed:
                if seed == SEED + TRIES - 1:
                    raise
            else:
                break
        path = self.folder.resolve() / f"ppo_gold_{version}.json"
        path.write_text(model.model_dump_json() + "\n", encoding="utf-8")
        return path


def _without_wicks(candles: pd.DataFrame) -> pd.DataFrame:
    high, low = (pick(candles["open"], candles["close"]) for pick in (np.maximum, np.minimum))
    return candles.assign(high=high, low=low)
