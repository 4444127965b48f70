"""Exclusions of users: the rule beside the seed's, and the standing that a user had at the time of a trade."""

from datetime import timedelta
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategy_core.domain.errors import InvalidExclusion, InvalidName
from strategy_core.domain.live_trades import Serving, is_misrouted
from strategy_core.domain.routing import Routing, Standing, bucket_of
from strategy_core.domain.user_exclusions import (
    ExclusionKind,
    UserExclusion,
    checked_users,
    standings,
)
from tests.builders import DAY, HOUR, MONDAY

users = st.text(min_size=1, max_size=20)
NOON = MONDAY + 12 * HOUR
HISTORY = [Serving(MONDAY, "1", "2", 500)]
IN_CANARY, IN_ACTIVE = 499, 500  # buckets


def excluded(kind: ExclusionKind, since: timedelta, until: timedelta | None = None) -> UserExclusion:
    return UserExclusion("fib_rsi", "u1", kind, NOON + since, None if until is None else NOON + until)


@given(user=users, percent=st.integers(0, 100), others=st.frozensets(users, max_size=5))
def test_a_user_without_an_exclusion_is_routed_by_the_seed_s_rule(
    user: str, percent: int, others: frozenset[str]
) -> None:
    routing = Routing("1", "2", percent * 100, "", 7, kept=others - {user}, always=others - {user})
    plain = int(sha256(user.encode()).hexdigest(), 16) % 100 < percent

    assert routing.version_of(bucket_of(user), None, user) == ("2" if plain else "1")


@given(user=users, percent_bp=st.integers(0, 10_000), kept=st.booleans(), always=st.booleans())
def test_kept_beats_always_which_beats_the_bucket(user: str, percent_bp: int, kept: bool, always: bool) -> None:
    one, nobody = frozenset({user}), frozenset[str]()
    routing = Routing("1", "2", percent_bp, "", 7, kept=one if kept else nobody, always=one if always else nobody)
    by_bucket = bucket_of(user) < percent_bp

    version = routing.version_of(bucket_of(user), None, user)

    assert version == ("2" if percent_bp > 0 and not kept and (always or by_bucket) else "1")


@pytest.mark.parametrize(
    "routing",
    [
        Routing("1", None, 0, "", 7, always=frozenset({"u1"})),
        Routing("1", "2", 0, "", 7, always=frozenset({"u1"})),
        Routing("1", "2", 10_000, "", 7, frozenset({"GOLD"}), always=frozenset({"u1"})),
    ],
)
def test_always_gives_no_canary_that_serves_nobody(routing: Routing) -> None:
    """Rolled back, paused, or excluded from the symbol: they leave with all the others."""
    assert routing.version_of(0, "GOLD", "u1") == "1"


@pytest.mark.parametrize(
    ("exclusions", "expected"),
    [
        ([], {Standing.BUCKET}),
        ([excluded(ExclusionKind.OPT_OUT, -HOUR)], {Standing.KEPT}),
        ([excluded(ExclusionKind.OPT_OUT, timedelta(seconds=1))], {Standing.BUCKET, Standing.KEPT}),
        ([excluded(ExclusionKind.ALWAYS, -HOUR, timedelta())], {Standing.BUCKET}),
        ([excluded(ExclusionKind.ALWAYS, -HOUR, timedelta(seconds=1))], {Standing.ALWAYS, Standing.BUCKET}),
        ([excluded(ExclusionKind.ALWAYS, -HOUR), excluded(ExclusionKind.GUARD, -HOUR)], {Standing.KEPT}),
        ([excluded(ExclusionKind.NEVER, -2 * HOUR, -HOUR)], {Standing.BUCKET}),
        ([excluded(ExclusionKind.NEVER, HOUR)], {Standing.BUCKET}),
    ],
)
def test_a_user_s_standing_follows_the_history(exclusions: list[UserExclusion], expected: set[Standing]) -> None:
    assert standings(exclusions, NOON, NOON + timedelta(seconds=5)) == expected


@pytest.mark.parametrize(
    ("kind", "bucket", "version", "after_s", "misrouted"),
    [
        (ExclusionKind.OPT_OUT, IN_CANARY, "2", 59, False),  # the routers have a minute
        (ExclusionKind.OPT_OUT, IN_CANARY, "2", 61, True),
        (ExclusionKind.OPT_OUT, IN_CANARY, "1", -6, True),
        (ExclusionKind.OPT_OUT, IN_CANARY, "1", -4, False),
        (ExclusionKind.ALWAYS, IN_ACTIVE, "2", 0, False),
        (ExclusionKind.ALWAYS, IN_ACTIVE, "2", -6, True),
        (ExclusionKind.ALWAYS, IN_ACTIVE, "1", 61, True),
        (ExclusionKind.LARGE_ACCOUNT, IN_CANARY, "1", 61, False),
    ],
)
def test_a_trade_is_judged_by_the_exclusion_at_its_time(
    kind: ExclusionKind, bucket: int, version: str, after_s: int, misrouted: bool
) -> None:
    opened_at = NOON + timedelta(seconds=after_s)
    exclusions = [excluded(kind, timedelta(), DAY)]

    assert is_misrouted(HISTORY, bucket, "GOLD", version, opened_at, exclusions) is misrouted


spans = st.builds(
    lambda kind, since, length: excluded(kind, since * HOUR, None if length is None else (since + length) * HOUR),
    st.sampled_from(ExclusionKind),
    st.integers(-48, 48),
    st.none() | st.integers(1, 48),
)


@given(exclusions=st.lists(spans, max_size=6), bucket=st.integers(0, 9_999), hours=st.integers(-48, 48))
def test_a_trade_on_the_version_that_routing_gave_is_never_misrouted(
    exclusions: list[UserExclusion], bucket: int, hours: int
) -> None:
    """And one on another version is, if no exclusion began or ended within the minute before."""
    opened_at = NOON + hours * HOUR + timedelta(minutes=5)
    one = frozenset({"u1"})
    counting = {each.kind for each in exclusions if each.since <= opened_at < (each.until or opened_at + HOUR)}
    routing = Routing(
        "1",
        "2",
        500,
        "",
        7,
        kept=one if counting - {ExclusionKind.ALWAYS} else frozenset(),
        always=one if ExclusionKind.ALWAYS in counting else frozenset(),
    )
    history = [Serving(NOON - 9 * DAY, "1", "2", 500)]

    version = routing.version_of(bucket, "GOLD", "u1")

    assert not is_misrouted(history, bucket, "GOLD", version, opened_at, exclusions)
    assert is_misrouted(history, bucket, "GOLD", "2" if version == "1" else "1", opened_at, exclusions)


@pytest.mark.parametrize(("standing", "share"), [(Standing.BUCKET, 500), (Standing.KEPT, 0), (Standing.ALWAYS, 10_000)])
def test_a_trade_s_share_is_that_of_users_like_its_own(standing: Standing, share: int) -> None:
    assert HISTORY[0].share_of(standing) == share
    assert Serving(MONDAY, "1", None, 0).share_of(standing) == 0


def test_users_are_stored_once_and_in_order() -> None:
    assert checked_users(["b", "a", "b"]) == ["a", "b"]


@pytest.mark.parametrize("user_ids", [[], ["u"] * 10_001, ["u" * 201], ["a\nb"]])
def test_users_that_no_report_can_name_are_refused(user_ids: list[str]) -> None:
    with pytest.raises(InvalidExclusion, match="allowed: "):
        checked_users(user_ids)


@pytest.mark.parametrize("user_id", ["", "\udcff"])
def test_what_is_no_user_id_is_refused(user_id: str) -> None:
    with pytest.raises(InvalidName, match="is not a user id"):
        checked_users(["u1", user_id])
