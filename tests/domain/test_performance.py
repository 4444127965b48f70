"""Performance, computed by hand. `test_scoring_oracle` compares with an independent library."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from strategy_core.domain.arrays import FloatArray
from strategy_core.domain.performance import ClosedTrades, deepest_so_far, drawdown, equity, max_drawdown, performance

NONE = np.empty(0)

series = hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(-3, 3))


def test_metrics_of_a_handful_of_trades() -> None:
    r = np.array([1.0, -1.0, 2.0, 0.0, -1.0])

    result = performance(r, r * 10, marks=np.array([1.0, -1.0, 2.0, 0.0, -1.0]), risk_fraction=0.1)

    assert result.model_dump() == {
        "trades": 5,
        "win_rate": 0.4,
        "average_pnl": pytest.approx(2.0),
        "expectancy": pytest.approx(0.2),
        "profit_factor": 1.5,
        "max_drawdown": pytest.approx(0.1 / 1.1),
    }


def test_without_trades_nothing_is_claimed() -> None:
    result = performance(NONE, NONE, marks=NONE)

    assert result.model_dump() == {
        "trades": 0,
        "win_rate": None,
        "average_pnl": None,
        "expectancy": None,
        "profit_factor": None,
        "max_drawdown": None,
    }


def test_a_flat_account_has_lost_nothing_but_an_unmeasured_one_is_unknown() -> None:
    assert performance(NONE, NONE, marks=np.zeros(3)).max_drawdown == 0
    assert performance(NONE, NONE).max_drawdown is None


@pytest.mark.parametrize(
    ("r", "factor"),
    [
        ([1.0, 0.0], None),
        ([], None),
        ([1.0, -5e-324], None),  # a loss that is rounding
        ([-1.0, 0.0], 0.0),
    ],
)
def test_a_profit_factor_needs_losses(r: list[float], factor: float | None) -> None:
    assert ClosedTrades.of(np.array(r), np.array(r)).profit_factor == factor


@given(r=series, cut=st.integers(0, 50))
def test_trades_add_up(r: FloatArray, cut: int) -> None:
    r = np.round(r * 8) / 8  # sums without rounding

    assert ClosedTrades.of(r[:cut], r[:cut]) + ClosedTrades.of(r[cut:], r[cut:]) == ClosedTrades.of(r, r)


def test_a_high_win_rate_can_lose_money() -> None:
    result = performance(np.array([0.5] * 54 + [-1.0] * 46), np.zeros(100))

    assert result.win_rate == 0.54
    assert result.expectancy == pytest.approx(-0.19)


def test_a_loss_from_the_start_is_a_drawdown() -> None:
    """The start counts as a peak, for a version without any win."""
    assert max_drawdown(np.array([-5.0, 1.0]), 0.01) == pytest.approx(0.05)
    np.testing.assert_allclose(drawdown(equity(np.array([-5.0, 10.0, -3.0]), 0.01)), [0.05, 0, 0.03 / 1.05])


@given(marks=series)
def test_the_drawdown_is_the_worst_of_all_pairs_of_moments(marks: FloatArray) -> None:
    """Its definition, in quadratic time, for an account that stays above 0."""
    account = np.concatenate(([1.0], equity(marks, 0.005)))

    worst = max_drawdown(marks, 0.005)

    pairs = [(peak - later) / peak for at, peak in enumerate(account) for later in account[at:]]
    assert worst == pytest.approx(max(pairs), abs=1e-12)


@given(marks=series)
def test_the_candles_on_which_the_drawdown_exceeds_all_before(marks: FloatArray) -> None:
    worst = [0.0, *(max_drawdown(marks[: at + 1], 0.005) or 0.0 for at in range(len(marks)))]
    expected = [(at, now) for at, (before, now) in enumerate(pairwise(worst)) if now > before]

    positions, falls = deepest_so_far(marks, 0.005)

    assert list(zip(positions, falls, strict=True)) == expected


@given(marks=series, cut=st.integers(0, 50))
def test_a_drawdown_never_shrinks_as_candles_come(marks: FloatArray, cut: int) -> None:
    early = max_drawdown(marks[:cut], 0.01)

    assert (early or 0) <= (max_drawdown(marks, 0.01) or 0)
