"""Fidelity of the shadow: Lin's coefficient, and the limit below which it is doubted."""

import numpy as np
import pytest

from strategy_core.domain.live_trades import Fidelity, fidelity

SHADOW = np.array([1.0, -1.0, 2.0, -0.5, 0.5])


def concordance(live: list[float]) -> float:
    found = fidelity(np.array(live), SHADOW[: len(live)])
    assert found is not None
    return found.concordance


def test_equal_results_agree_wholly() -> None:
    assert concordance(SHADOW.tolist()) == pytest.approx(1)


@pytest.mark.parametrize("changed", [SHADOW + 0.5, SHADOW * 0.5, SHADOW[::-1], -SHADOW])
def test_a_shift_another_scale_or_order_lowers_it(changed: np.ndarray) -> None:
    """Correlation alone would call the first two perfect."""
    assert concordance(changed.tolist()) < 0.95


def test_it_is_lins_coefficient() -> None:
    """2·s_xy / (s_x² + s_y² + (x̄ − ȳ)²), of live 1, 2, 3 against shadow 1, −1, 2."""
    assert concordance([1.0, 2.0, 3.0]) == pytest.approx(2 * (1 / 3) / (2 / 3 + 14 / 9 + (4 / 3) ** 2))


def test_results_that_never_vary_agree_when_they_are_equal() -> None:
    same, other = fidelity(np.ones(3), np.ones(3)), fidelity(np.ones(3), np.zeros(3))

    assert same is not None
    assert other is not None
    assert (same.concordance, other.concordance) == (1.0, 0.0)


def test_without_live_trades_there_is_none() -> None:
    assert fidelity(np.array([]), np.array([])) is None


@pytest.mark.parametrize(("value", "n", "doubted"), [(0.79, 30, True), (0.80, 30, False), (0.1, 29, False)])
def test_it_is_doubted_below_the_limit_on_slots_enough(value: float, n: int, doubted: bool) -> None:
    assert bool(Fidelity(value, n, 0.1, 0.2).doubt(0.8)) is doubted


def test_the_doubt_says_what_it_rests_on() -> None:
    assert Fidelity(0.41, 35, -0.1, 0.2).doubt(0.8) == (
        "shadow outcomes do not agree with live trades: concordance 0.41 on 35 slots, limit 0.8 "
        "(mean -0.100 R live, +0.200 R in shadow)"
    )
