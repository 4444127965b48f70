"""Users on several canaries: the arithmetic against users that are routed one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.overlap import ServingCanary, on_another_too, on_two_or_more, overlap_line
from strategy_core.domain.routing import buckets_of

USERS = [f"user_{number}" for number in range(4_000)]


def canaries(*shares: tuple[int, str]) -> list[ServingCanary]:
    return [ServingCanary(f"s{number}", bp, salt) for number, (bp, salt) in enumerate(shares)]


@given(st.lists(st.tuples(st.integers(1, 10_000), st.sampled_from(["", "a", "b"])), min_size=1, max_size=6))
def test_shares_are_those_of_routed_users(shares: list[tuple[int, str]]) -> None:
    found = canaries(*shares)
    served = np.array([buckets_of(USERS, each.salt) < each.percent_bp for each in found])
    on = served.sum(axis=0)

    assert on_two_or_more(found) == pytest.approx(np.mean(on >= 2), abs=0.05)
    assert on_another_too(found[0], found[1:]) == pytest.approx(np.mean(served[0] & (on >= 2)), abs=0.05)


def test_one_salt_puts_all_canaries_on_the_same_users() -> None:
    assert on_two_or_more(canaries((500, ""), (500, ""), (2_000, ""))) == pytest.approx(0.05)
    assert on_two_or_more(canaries((500, "a"), (500, "b"))) == pytest.approx(0.0025)
    assert on_two_or_more(canaries((500, "a"))) == pytest.approx(0)


@pytest.mark.parametrize(
    ("shares", "line"),
    [
        ([(500, "")], ""),
        ([(1_000, "a"), (500, "b")], "0.5% of users are on two canaries or more, by their buckets"),
        (
            [(500, ""), (500, ""), (500, "b")],
            "5.0% of users are on two canaries or more, by their buckets: 2 canaries have one salt, so they serve the "
            "same users first",
        ),
    ],
)
def test_the_line_tells_why(shares: list[tuple[int, str]], line: str) -> None:
    assert overlap_line(canaries(*shares)) == line
