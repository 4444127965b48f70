"""An ONNX model as a strategy. PyTorch, XGBoost, scikit-learn and others can write one. It needs the extra `onnx`.

    cd examples
    export ROLLOUT_SYMBOL=GOLD
    uv run rollout db upgrade
    uv run rollout register exported 1.0.0 --entry-point onnx_model:Exported --status active --yes
    uv run rollout route user_123 exported

An ONNX file holds numbers and operators, but no code. The strategy declares it, so its content is part of the version.
`onnx_model.onnx` is the pipeline of `sklearn_model.py`: `python onnx_model.py` exports it, for which it needs skl2onnx.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from pydantic import BaseModel, Field

from strategy_core import Action, Context, Decision

LAGS = (1, 4, 12, 24)  # candles back, of the returns that the model was trained on


class Params(BaseModel):
    model: str = "onnx_model.onnx"  # a file beside this module
    sure: float = Field(default=0.55, ge=0.5, lt=1)


@lru_cache
def load(path: Path) -> onnxruntime.InferenceSession:
    one_thread = onnxruntime.SessionOptions()
    one_thread.intra_op_num_threads = 1  # sums of several threads may differ in their last digits
    return onnxruntime.InferenceSession(path.read_bytes(), one_thread, providers=["CPUExecutionProvider"])


class Exported:
    Params = Params
    warmup_bars = max(LAGS) + 1

    def model_files(self, params: Params) -> list[Path]:
        return [Path(__file__).with_name(params.model)]

    def decide(self, candles: pd.DataFrame, params: Params, context: Context) -> Decision:
        session = load(self.model_files(params)[0])  # here, not at import: only then can the worker see the file
        closes = candles["close"].to_numpy()
        features = np.array([[closes[-1] / closes[-1 - lag] - 1 for lag in LAGS]], np.float32)
        (probabilities,) = session.run(["probabilities"], {session.get_inputs()[0].name: features})
        down, up = probabilities[0]
        confidence = round(float(max(down, up)), 3)  # the last digits may differ between processors
        if confidence < params.sure:
            return Decision(Action.HOLD)
        return Decision(Action.BUY if up > down else Action.SELL, confidence)


def main() -> None:
    from skl2onnx import to_onnx
    from skops.io import load as load_pipeline

    pipeline = load_pipeline(Path(__file__).with_name("sklearn_model.skops"))
    without_names = {type(pipeline.steps[-1][1]): {"zipmap": False}}  # probabilities as an array, not a list of dicts
    example = np.zeros((1, len(LAGS)), np.float32)
    model = to_onnx(pipeline, example, options=without_names)
    Path(__file__).with_name(Params().model).write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
