"""A feed that could not be opened: every question about it is answered with why."""

import pytest

from strategy_core.domain.errors import InvalidCandles
from strategy_core.market.source import AbsentSource, CandleSource
from tests.builders import GOLD, MONDAY


def test_every_question_is_answered_with_why_it_is_not_there() -> None:
    source: CandleSource = AbsentSource("gold.csv", "1h", InvalidCandles("gold.csv", "no such file"))

    with pytest.raises(InvalidCandles, match="no such file"):
        source.symbols()
    with pytest.raises(InvalidCandles, match="no such file"):
        source.candles(GOLD, closed_by=MONDAY)
    with pytest.raises(InvalidCandles, match="no such file"):
        source.expected_at(GOLD, MONDAY)
