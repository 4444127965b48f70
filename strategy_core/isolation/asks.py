"""What a version is asked: the candles it may see for it, and what is still to be answered; never how it is asked."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from strategy_core.domain.candles import timeframe_delta
from strategy_core.domain.errors import InvalidCandles
from strategy_core.domain.strategy import INSUFFICIENT_HISTORY, Action, Decision
from strategy_core.domain.windows import Windows
from strategy_core.isolation.wire import Answer, Question

TOO_SHORT = Answer(Decision(Action.HOLD, reason=INSUFFICIENT_HISTORY))


@dataclass(frozen=True, slots=True)
class Ask:
    """Decide at the close of `candles.iloc[p]`, for each p of *positions*, on the *bars* candles that end there.

    Fewer than *bars* candles are answered for the version: hold, `insufficient_history`.
    """

    symbol: str
    timeframe: str
    candles: pd.DataFrame | Windows
    positions: Sequence[int]
    bars: int


class Pending:
    """What is left of one ask.

    Attributes:
        many: answered by one decide_many.
        answers: one per position of the ask; those of too little history are there from the start.
        places: indexes of the positions still to be answered, in order.
    """

    def __init__(self, ask: Ask, *, many: bool) -> None:
        self.ask = ask
        self.many = many
        self.answers = [TOO_SHORT] * len(ask.positions)
        self.places = deque(i for i, position in enumerate(ask.positions) if position >= ask.bars - 1)

    def question(self) -> Question:
        ask, positions = self.ask, [self.ask.positions[place] for place in self.places]
        start, end = min(positions) - ask.bars + 1, max(positions) + 1  # and not one candle later
        whole = isinstance(ask.candles, Windows)
        windows = ask.candles if isinstance(ask.candles, Windows) else Windows(ask.candles.iloc[start:end])
        return Question(
            symbol=ask.symbol,
            timeframe=ask.timeframe,
            columns=windows.columns,
            table=windows.rows(start, end) if whole else windows.rows(0, end - start),
            positions=np.array(positions, dtype=np.int64) - start,
            bars=ask.bars,
            many=self.many,
        )

    def put(self, answer: Answer) -> None:
        self.answers[self.places.popleft()] = answer

    def fail(self, answer: Answer) -> None:
        """Answer what shares the failed deadline: one position, or all that a decide_many was to answer."""
        self.put(answer)
        while self.many and self.places:
            self.put(answer)


def check(ask: Ask) -> None:
    """Raise InvalidTimeframe or InvalidCandles for an ask that no version can answer."""
    timeframe_delta(ask.timeframe)
    for position in ask.positions:
        if not 0 <= position < len(ask.candles):
            raise InvalidCandles(ask.symbol, f"no candle at position {position} of {len(ask.candles)}")
