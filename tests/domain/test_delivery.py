"""How long a refused alert waits, and when it has waited long enough: exact, by the times that are passed in."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.alerts import DeliveryPace
from tests.builders import HOUR, MONDAY

MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("failures", "minutes"), [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 30), (7, 30), (10_000, 30)]
)
def test_the_wait_doubles_up_to_half_an_hour(failures: int, minutes: int) -> None:
    assert DeliveryPace().retry_after(failures, jitter=0) == minutes * MINUTE


@given(failures=st.integers(1, 1_000), jitter=st.floats(0, 1, exclude_max=True))
def test_jitter_takes_off_half_at_most(failures: int, jitter: float) -> None:
    whole = DeliveryPace().retry_after(failures, 0)

    assert whole / 2 <= DeliveryPace().retry_after(failures, jitter) <= whole


def test_a_day_is_long_enough() -> None:
    assert not DeliveryPace().over(MONDAY, MONDAY + 24 * HOUR - MINUTE)
    assert DeliveryPace().over(MONDAY, MONDAY + 24 * HOUR)


def test_on_a_replays_clock_everything_lasts_as_much_longer() -> None:
    """Or a lease would run out while its message is under way."""
    fast = DeliveryPace().at_speed(5760)

    assert fast.lease == timedelta(days=20)
    assert fast.retry_after(1, 0) == 4 * 24 * HOUR
