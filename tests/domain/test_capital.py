"""The cap on the capital of a canary, on random directories with Pareto capital."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from strategy_core.domain.arrays import BoolArray, FloatArray, IntArray
from strategy_core.domain.capital import (
    LARGE_MEANS,
    NO_CAPITAL,
    NO_DIRECTORY,
    TOLERANCE,
    CapitalBelow,
    Placed,
    Reach,
    Sums,
    capital_below,
    narrowed_bp,
    reach_now,
    share_of,
)
from strategy_core.domain.plan import Plan

STAGES = [(500, 5.0), (1_000, 10.0), (2_500, 25.0), (5_000, 50.0)]


@dataclass(frozen=True)
class Directory:
    """Users with a bucket and a capital each. Unknown capital is NaN."""

    buckets: IntArray
    capital: FloatArray

    @property
    def below(self) -> CapitalBelow:
        return capital_below(self.buckets, self.capital)

    @property
    def weights(self) -> FloatArray:
        """Capital, with the unknown at the mean: counted here without the sums that the product keeps."""
        return np.where(np.isnan(self.capital), np.nanmean(self.capital), self.capital)

    def large(self, percent: float = 0.5) -> BoolArray:
        weights = self.weights
        is_large = (weights > percent / 100 * weights.sum()) & (weights > LARGE_MEANS * weights.mean())
        return np.asarray(is_large & ~np.isnan(self.capital), np.bool_)

    def placed(self, which: BoolArray) -> list[Placed]:
        return [
            Placed(int(bucket), None if np.isnan(capital) else float(capital))
            for bucket, capital in zip(self.buckets[which], self.capital[which], strict=True)
        ]


def pareto(rng: np.random.Generator) -> Directory:
    """Draw 50 to 2,000 users with Pareto capital, up to a fifth of it unknown."""
    users, alpha = int(rng.integers(50, 2_001)), rng.uniform(1.1, 2.0)
    capital = rng.pareto(alpha, users) + 1
    capital[rng.random(users) < rng.uniform(0, 0.18)] = np.nan
    return Directory(rng.integers(0, 10_000, users), capital)


def drawn(count: int, seed: int = 20) -> Iterator[Directory]:
    rng = np.random.default_rng(seed)
    return (pareto(rng) for _ in range(count))


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=pytest.mark.full, id="ten thousand")])
def test_no_directory_is_over_the_cap_at_entry(count: int) -> None:
    """And none has one bucket fewer than fits: the next bucket with a user would exceed the cap."""
    over = not_the_most = 0
    for directory in drawn(count):
        below, weights = directory.below, directory.weights
        large = directory.large()
        for asked_bp, cap in STAGES:
            share = share_of(below, asked_bp, cap, kept=directory.placed(large))
            inside = (directory.buckets < share.percent_bp) & ~large
            over += weights[inside].sum() > cap / 100 * weights.sum() * (1 + 1e-9)
            more = (directory.buckets <= share.percent_bp) & ~large
            fits = weights[more].sum() <= cap / 100 * weights.sum() * (1 - 1e-9)
            not_the_most += share.percent_bp < asked_bp and fits

            assert share.percent_bp <= asked_bp
            assert share.users == inside.sum()
            assert share.left_out == (large & (directory.buckets < asked_bp)).sum()
            assert share.capital_share == pytest.approx(weights[inside].sum() / weights.sum(), abs=1e-12)

    assert (over, not_the_most) == (0, 0)


def moved_in_a_week(directory: Directory, rng: np.random.Generator) -> tuple[int, float]:
    """Return the users that change version in seven nights, and the most capital in the canary, as a part of the cap.

    Each night every account has its own capital at the start, times a factor between 0.8 and 1.2.
    """
    (asked_bp, cap), large = STAGES[0], directory.large()
    present = share_of(directory.below, asked_bp, cap, kept=directory.placed(large)).percent_bp
    moved, most = 0, 0.0
    for _ in range(7):
        drifted = Directory(directory.buckets, directory.capital * rng.uniform(0.8, 1.2, len(directory.capital)))
        kept = drifted.placed(large)
        after = narrowed_bp(drifted.below, present, cap, kept=kept)
        low, high = sorted((present, after))
        moved += int(((directory.buckets >= low) & (directory.buckets < high) & ~large).sum())
        present = after
        measured = share_of(drifted.below, asked_bp, cap, kept=kept, fixed_bp=present)
        most = max(most, (measured.capital_share or 0.0) / (cap / 100))
    return moved, most


@pytest.mark.parametrize("count", [30, pytest.param(2_000, marks=pytest.mark.full, id="two thousand")])
def test_capital_that_drifts_by_a_fifth_moves_hardly_any_user(count: int) -> None:
    rng = np.random.default_rng(29)
    users = moved = 0
    most = 0.0
    for directory in drawn(count):
        more, high = moved_in_a_week(directory, rng)
        users, moved, most = users + len(directory.buckets), moved + more, max(most, high)

    print(f"{moved} of {users} users moved in a week, at most {most:.3f} × the cap in the canary")  # noqa: T201  for the docs
    assert moved / users < 0.001
    assert most <= TOLERANCE


def test_without_a_directory_the_rule_is_the_percent_of_users() -> None:
    nobody = np.array([], np.int64)
    unknown = Directory(np.array([3, 400, 9_000]), np.full(3, np.nan))
    poor = Directory(np.array([3, 400, 9_000]), np.zeros(3))

    for below in (None, capital_below(nobody, nobody.astype(float))):
        share = share_of(below, 500, 5.0)
        assert (share.percent_bp, share.note, share.users, share.capital_share) == (500, NO_DIRECTORY, None, None)
    for directory in (unknown, poor):
        share = share_of(directory.below, 500, 5.0)
        assert (share.percent_bp, share.note, share.users, share.blind) == (500, NO_CAPITAL, 2, "")
    assert share_of(None, 500, None).note == ""
    assert share_of(None, 10_000, None).note == ""


def test_a_cap_ends_at_100_percent_and_where_the_plan_has_none() -> None:
    rich = Directory(np.array([3, 400, 9_000]), np.array([1e6, 1.0, 1.0]))

    assert share_of(rich.below, 500, 5.0).percent_bp == 3
    assert share_of(rich.below, 500, None).percent_bp == 500
    everyone = share_of(rich.below, 10_000, None)
    assert (everyone.percent_bp, everyone.capital_share, everyone.cap) == (10_000, 1.0, None)


def test_the_bucket_that_just_fits_is_served() -> None:
    below = Directory(np.arange(0, 10_000, 10), np.ones(1_000)).below

    assert share_of(below, 500, 5.0).percent_bp == 500
    assert share_of(below, 500, 4.9).percent_bp == 490  # 49 users, below bucket 490
    assert share_of(below, 500, 4.85).percent_bp == 480  # 48 users: the one in bucket 480 does not fit


def test_unknown_capital_counts_as_the_mean_and_a_fifth_of_it_is_blind() -> None:
    buckets = np.arange(10) * 100
    some = Directory(buckets, np.array([10.0] * 8 + [np.nan] * 2))
    many = Directory(buckets, np.array([10.0] * 7 + [np.nan] * 3))

    assert some.below.total == many.below.total == 100
    assert share_of(some.below, 9_000, 50.0).blind == ""
    assert "30% of the users is unknown, 20% at most may be" in share_of(many.below, 9_000, 50.0).blind
    assert share_of(many.below, 9_000, 50.0).percent_bp == 500
    assert share_of(many.below, 9_000, None).blind == ""


def test_users_who_want_every_canary_count_to_the_cap() -> None:
    directory = Directory(np.arange(0, 10_000, 100), np.ones(100))
    always = [Placed(9_900, 1.0), Placed(100, 1.0)]
    kept = [Placed(0, 1.0)]

    share = share_of(directory.below, 500, 5.0, kept=kept, always=always)

    # of the buckets below 500, one user is kept. With the one from bucket 9,900 that makes 5 of 100
    assert (share.percent_bp, share.users, share.capital_share, share.left_out) == (500, 5, 0.05, 1)
    assert share_of(directory.below, 500, 3.0, kept=kept, always=always).percent_bp == 300
    assert share_of(directory.below, 500, 1.0, kept=kept, always=always).percent_bp == 0


def test_between_stages_only_a_large_change_moves_users() -> None:
    buckets = np.arange(0, 10_000, 10)

    def after(inside: float) -> int:
        capital = np.where(buckets < 500, inside, 1.0)
        return narrowed_bp(Directory(buckets, capital).below, 300, 5.0)

    assert after(1.0) == 300  # 5 % of users would fit, but a load is no evidence
    assert after(2.0) == 300  # 5.7 %: above the cap, below 1.25 × the cap
    narrowed = after(3.0)
    assert narrowed == 180  # 8 %: narrowed to the cap, from above
    assert share_of(Directory(buckets, np.where(buckets < 500, 3.0, 1.0)).below, 500, 5.0).percent_bp == narrowed


def test_without_a_known_cap_a_share_stays_between_stages() -> None:
    buckets = np.arange(0, 10_000, 10)

    assert narrowed_bp(Directory(buckets, np.full(1_000, np.nan)).below, 300, 5.0) == 300
    assert narrowed_bp(Directory(buckets, np.ones(1_000)).below, 10_000, 5.0) == 10_000


def test_a_canary_that_a_cap_leaves_no_bucket_serves_nobody_though_some_ask_for_it() -> None:
    everyone, always = Sums(10, 0, 100.0), [Placed(9_900, 50.0)]

    assert reach_now(0, 500, Sums(0, 0, 0.0), everyone, always=always) == Reach(0, 500, 0, 0.0, 0)
    assert reach_now(0, 500, Sums(0, 0, 0.0), Sums(10, 10, 0.0)).capital_share is None
    assert reach_now(500, 500, Sums(1, 1, 0.0), Sums(10, 10, 0.0)).capital_share is None
    assert reach_now(500, 500, Sums(1, 0, 10.0), everyone, always=always) == Reach(500, 500, 2, 0.6, 0)


def test_a_small_directory_is_not_made_of_large_accounts() -> None:
    equal = Directory(np.arange(0, 10_000, 200), np.ones(50))
    above = equal.below.large_above(Plan().largest_account_percent)

    assert above == 4.0  # each has 2 % of all capital
    assert equal.below.large_above(None) is None
    assert Directory(np.array([1]), np.array([np.nan])).below.large_above(0.5) is None
