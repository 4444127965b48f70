"""Routing. Do not change the golden values: every user would get another bucket."""

from decimal import Decimal
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.errors import InvalidPercent
from strategy_core.domain.routing import (
    BUCKETS,
    SaltedBuckets,
    as_percent,
    basis_points,
    bucket_of,
    buckets_of,
    in_canary,
    refused_user,
)

users = st.text(min_size=0, max_size=40)
shares = st.integers(0, BUCKETS)


@pytest.mark.parametrize(
    ("user_id", "salt", "bucket"),
    [
        ("user_123", "", 5988),
        ("user_1", "", 8374),
        ("", "", 4965),
        ("ünïcode-日本", "", 9052),
        ("user_123", "fib_rsi", 5853),
        ("user_123", "ppo_gold", 7624),
    ],
)
def test_golden_buckets(user_id: str, salt: str, bucket: int) -> None:
    assert bucket_of(user_id, salt) == bucket


@given(st.lists(users), st.text(max_size=10))
def test_buckets_of_many_are_those_of_each(user_ids: list[str], salt: str) -> None:
    each = [bucket_of(user_id, salt) for user_id in user_ids]
    salted = SaltedBuckets(salt)

    assert buckets_of(user_ids, salt).tolist() == each
    assert [salted.bucket_of(user_id.encode()) for user_id in user_ids] == each


@given(users, st.integers(0, 100))
def test_a_whole_percent_without_salt_is_sha256_modulo_100(user_id: str, percent: int) -> None:
    plain = int(sha256(user_id.encode()).hexdigest(), 16) % 100 < percent

    assert in_canary(user_id, basis_points(percent)) is plain


@given(users, st.text(max_size=10), shares, shares)
def test_widening_the_ramp_never_drops_a_user(user_id: str, salt: str, one: int, other: int) -> None:
    narrow, wide = sorted((one, other))

    assert in_canary(user_id, wide, salt) or not in_canary(user_id, narrow, salt)


@given(users)
def test_nobody_is_in_at_0_and_everybody_at_100(user_id: str) -> None:
    assert not in_canary(user_id, 0)
    assert in_canary(user_id, BUCKETS)


def test_shares_are_met_to_a_hundredth_of_a_percent() -> None:
    buckets = [bucket_of(f"user_{i}") for i in range(50_000)]

    for percent_bp in (1, 50, 500, 1_000, 2_500, 5_000):
        share = sum(bucket < percent_bp for bucket in buckets) / len(buckets)
        assert share == pytest.approx(percent_bp / BUCKETS, abs=4 * (percent_bp / BUCKETS / len(buckets)) ** 0.5)


def test_two_salts_draw_independent_canaries() -> None:
    """Without salts, every canary would have the same tenth of the users. With salts, 1 % is in both."""
    users = [f"user_{i}" for i in range(50_000)]
    both = sum(in_canary(user, 1_000, "fib_rsi") and in_canary(user, 1_000, "ppo_gold") for user in users)

    assert both / len(users) == pytest.approx(0.01, abs=0.002)


@pytest.mark.parametrize(
    ("percent", "percent_bp"),
    [(0, 0), (5, 500), (33.33, 3333), (0.01, 1), (100.0, 10_000), ("12.5", 1250), (Decimal("0.10"), 10), (0.29, 29)],
)
def test_percents_become_whole_basis_points(percent: float | str | Decimal, percent_bp: int) -> None:
    assert basis_points(percent) == percent_bp
    assert as_percent(percent_bp) == float(percent)


@pytest.mark.parametrize(
    "percent", [150, -1, 100.01, 33.333, 0.001, float("nan"), float("inf"), "ten", "", True, Decimal("NaN")]
)
def test_what_is_no_percent_is_refused_with_the_allowed_range(percent: float | str | Decimal) -> None:
    with pytest.raises(InvalidPercent, match=r"allowed: 0\.00 to 100\.00, two decimals at most"):
        basis_points(percent)


@pytest.mark.parametrize("user_id", ["", "\ud800", None, 7, b"user_1"])
def test_what_is_no_users_id_is_refused(user_id: object) -> None:
    assert str(refused_user(user_id)).endswith("allowed: text in UTF-8, one character or more")
    assert refused_user("user_1") is None
