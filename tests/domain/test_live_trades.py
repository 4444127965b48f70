"""Live trades: the version that served a user, and the candle of a trade."""

from datetime import UTC, datetime, timedelta

import pytest

from strategy_core.domain.live_trades import Serving, candle_of, is_misrouted, serving_at

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
HISTORY = [
    Serving(NOON - timedelta(days=2), None, None, 0),
    Serving(NOON - timedelta(days=1), "1", None, 0),
    Serving(NOON, "1", "2", 500),
    Serving(NOON + timedelta(seconds=30), "1", "2", 0),
    Serving(NOON + timedelta(seconds=40), "3", None, 0),
]


@pytest.mark.parametrize("version", ["1", "2", "3"])
def test_any_version_of_the_last_minute_is_right(version: str) -> None:
    """Three changes in a minute: a router may still obey any of them."""
    assert not is_misrouted(HISTORY, 499, "GOLD", version, NOON + timedelta(seconds=45))


@pytest.mark.parametrize(
    ("bucket", "version", "seconds", "misrouted"),
    [
        (500, "2", 10, True),
        (499, "4", 10, True),
        (499, "2", -5, False),
        (499, "2", -6, True),
        (499, "2", 89, False),
        (499, "2", 90, True),
        (499, "1", 99, False),
        (499, "1", 100, True),
    ],
)
def test_no_other_is(bucket: int, version: str, seconds: float, misrouted: bool) -> None:
    """A change counts from its moment on, and what it ended for the minute after."""
    assert is_misrouted(HISTORY, bucket, "GOLD", version, NOON + timedelta(seconds=seconds)) is misrouted


@pytest.mark.parametrize("days", [-3, -2, -1.5])
def test_while_nobody_was_routed_nobody_was_misrouted(days: float) -> None:
    assert not is_misrouted(HISTORY, 0, "GOLD", "9", NOON + timedelta(days=days))


def test_nobody_served_before_the_history_begins() -> None:
    assert serving_at([], NOON) is None
    assert serving_at(HISTORY, NOON - timedelta(days=3)) is None
    assert serving_at(HISTORY, NOON) == HISTORY[2]


@pytest.mark.parametrize(("minutes", "candle"), [(15, 45 * 60), (60, 0), (240, 0)])
def test_a_trade_lies_in_a_candle_or_the_hour_of_a_longer_one(minutes: int, candle: int) -> None:
    moment = NOON + timedelta(minutes=59, seconds=59)

    assert candle_of(moment, timedelta(minutes=minutes)) == NOON.timestamp() + candle
