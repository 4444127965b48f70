"""Decisions to close end simulated trades at the open of the next candle, and change nothing for those without."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.scoring import ExitReason, ScoringRule, marks, score
from strategy_core.market.synthetic import SyntheticSource
from tests.builders import DAY, MONDAY

RULE = ScoringRule(horizon=12, cost=0.1, spread=0.2)
CANDLES = SyntheticSource(("GOLD",), start=MONDAY, days=30).candles("GOLD", closed_by=MONDAY + 25 * DAY, bars=300)
ROWS = st.lists(st.integers(20, len(CANDLES) - 1), min_size=1, max_size=8)


@given(ROWS, st.lists(st.integers(0, len(CANDLES) - 1), max_size=6), st.data())
def test_a_trade_ends_at_the_open_after_the_first_close_unless_the_rule_ended_it_before(
    rows: list[int], closes: list[int], data: st.DataObject
) -> None:
    sides = np.array([data.draw(st.sampled_from([1, -1])) for _ in rows])
    closes = sorted(set(closes))

    plain, found = score(CANDLES, rows, sides, RULE), score(CANDLES, rows, sides, RULE, closes)

    opens = {side: CANDLES[f"{quote}_open"].to_numpy() for side, quote in ((1, "bid"), (-1, "ask"))}
    for i, row in enumerate(rows):
        leave = next((close + 1 for close in closes if close >= row + 1), None)
        before = plain.exit_position[i] if plain.closed[i] else len(CANDLES)
        if leave is None or leave > before or leave >= len(CANDLES) or found.exit_reason[i] == ExitReason.NO_RISK:
            assert (found.exit_position[i], found.exit_reason[i]) == (plain.exit_position[i], plain.exit_reason[i])
            assert np.array_equal(found.r_multiple[i], plain.r_multiple[i], equal_nan=True)
        else:
            assert (found.exit_position[i], found.exit_reason[i]) == (leave, ExitReason.CLOSE)
            assert found.exit_price[i] == opens[sides[i]][leave]
    changes = marks(CANDLES, found, RULE)
    if found.closed.all():
        assert np.isclose(changes.sum(), found.r_multiple.sum())


@given(ROWS)
def test_without_closes_every_number_is_the_same_bits(rows: list[int]) -> None:
    sides = np.where(np.array(rows) % 2, 1, -1)

    plain, found = score(CANDLES, rows, sides, RULE), score(CANDLES, rows, sides, RULE, [])

    for name in ("exit_position", "exit_price", "pnl", "r_multiple", "return_fraction", "exit_reason"):
        assert getattr(plain, name).tobytes() == getattr(found, name).tobytes()
