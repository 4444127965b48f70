"""The first sentence of a comparison says no more than its interval does."""

import pytest

from strategy_core.domain.comparison import Interval
from strategy_core.report.comparison import difference_verdict


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ((0.05, 0.01, 0.09), "2 earned more than 1: +0.050 R a slot, 95 % interval +0.010 to +0.090"),
        ((-0.05, -0.09, -0.01), "2 earned less than 1: -0.050 R a slot, 95 % interval -0.090 to -0.010"),
        (
            (0.05, -0.01, 0.11),
            "no difference between 2 and 1 is shown: +0.050 R a slot, 95 % interval -0.010 to +0.110",
        ),
        ((0.05, None, None), "2 made +0.050 R a slot against 1, on too few days for an interval"),
        ((None, None, None), "2 and 1 have no closed slot in common, so their results cannot be compared"),
    ],
)
def test_it_names_the_better_version_only_if_the_interval_does(
    limits: tuple[float | None, float | None, float | None], said: str
) -> None:
    mean, low, high = limits

    assert difference_verdict(Interval(mean=mean, low=low, high=high, n=9, days=3), "2", "1") == said
