"""A scikit-learn pipeline as a strategy: it signals where the model is sure. It needs the extra `sklearn`.

    cd examples
    export ROLLOUT_SYMBOL=GOLD
    uv run python sklearn_model.py
    uv run rollout db upgrade
    uv run rollout register learned 1.0.0 --entry-point sklearn_model:Learned --status active --yes
    uv run rollout route user_123 learned

`python` trains on the synthetic market and saves the pipeline beside this file. The strategy declares that file, so its
content is part of the version. skops restores only types that it knows, where a pickle runs any code that it holds.
"""

from functools import lru_cache
from pathlib import Path

import pandas as pd
import sklearn  # noqa: F401  its version becomes part of the fingerprint: other versions may answer differently
import skops.io
from pydantic import BaseModel, Field

from strategy_core import Action, Context, Decision

LAGS = (1, 4, 12, 24)
AHEAD = 12  # candles


class Params(BaseModel):
    model: str = "sklearn_model.skops"  # a file beside this module
    sure: float = Field(default=0.55, ge=0.5, lt=1)


def features(candles: pd.DataFrame) -> pd.DataFrame:
    """Return the returns over LAGS of each candle, from past candles only."""
    return pd.DataFrame({f"return_{lag}": candles["close"].pct_change(lag) for lag in LAGS})


@lru_cache
def load(path: Path):
    return skops.io.load(path)


class Learned:
    Params = Params
    warmup_bars = max(LAGS) + 1

    def model_files(self, params: Params) -> list[Path]:
        return [Path(__file__).with_name(params.model)]

    def decide(self, candles: pd.DataFrame, params: Params, context: Context) -> Decision:
        model = load(self.model_files(params)[0])  # here, not at import: only then can the worker see the file
        down, up = model.predict_proba(features(candles).tail(1))[0]
        confidence = round(float(max(down, up)), 3)  # the last digits may differ between processors
        if confidence < params.sure:
            return Decision(Action.HOLD)
        return Decision(Action.BUY if up > down else Action.SELL, confidence)


def train(candles: pd.DataFrame, file: Path) -> None:
    """Fit a pipeline to whether the close is higher AHEAD candles later, and save it."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = features(candles).iloc[max(LAGS) : -AHEAD]
    rises = candles["close"].shift(-AHEAD) > candles["close"]
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(known, rises[known.index])
    skops.io.dump(pipeline, file)
    print(f"{file.name}: right on {pipeline.score(known, rises[known.index]):.0%} of {len(known)} candles in sample")


def main() -> None:
    from strategy_core.market.synthetic import SyntheticSource

    now = pd.Timestamp("2026-01-05", tz="UTC").to_pydatetime()
    train(
        SyntheticSource(["GOLD"]).candles("GOLD", closed_by=now, bars=5_000), Path(__file__).with_name(Params().model)
    )


if __name__ == "__main__":
    main()
