"""Ask a version for a trick between two honest decisions."""

import pandas as pd

from strategy_core.isolation.client import DecisionRequest, IsolatedStrategy
from strategy_core.isolation.protocol import Answer


def between_honest_ones(version: IsolatedStrategy, candles: pd.DataFrame, trick: str) -> Answer:
    """Ask for the trick between two honest decisions, which must succeed, and return the trick's answer."""
    asks = [DecisionRequest(symbol, "1h", candles, [20], 5) for symbol in ("GOLD", trick, "GOLD")]
    (before,), (answer,), (after,) = version.decide(asks)

    assert before.kind == after.kind == ""
    assert before.decision == after.decision
    return answer
