"""Across strategies: a holdout that no canary reaches, and a limit on canaries that serve the same users."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import ReleaseClosed
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.policy import Policy
from strategy_core.domain.routing import BUCKETS
from strategy_core.market.calendars import CALENDARS
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.declarations import set_policy
from strategy_core.services.fleet import read_fleet
from strategy_core.services.release_times import canaries_hold
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import overlap_warning, served_share
from strategy_core.services.status import read_status
from strategy_core.services.versions import activate_version
from strategy_core.store import rollouts
from strategy_core.store.engine import reading
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_version

NOON = MONDAY + 12 * HOUR
LIMITED = Policy(max_canaries_per_user=1)


@pytest.fixture
def strategies(engine: Engine) -> Engine:
    """Four strategies with a version in shadow. Users of `apart` have buckets of their own."""
    for name in ("one", "two", "three", "apart"):
        salt = "apart" if name == "apart" else ""
        put_version(engine, "1", Status.ACTIVE, strategy_name=name, salt=salt)
        put_version(engine, "2", strategy_name=name, salt=salt)
    return engine


def policy(engine: Engine, name: str, wanted: Policy) -> None:
    set_policy(engine, Command(OWNER, MONDAY), strategy_name=name, policy=wanted)


def canary(engine: Engine, name: str, percent: float = 5, **conditions: str) -> int:
    command = Command(OWNER, NOON, "better in shadow", **conditions)  # type: ignore[arg-type]
    return activate_canary(engine, command, strategy_name=name, version="2", rollout_percent=percent)[1].rollout_bp


def held(engine: Engine, name: str) -> str:
    with reading(engine) as session:
        return canaries_hold(session, name)


@given(percent_bp=st.integers(0, BUCKETS), holdout=st.integers(0, 50))
def test_a_stage_below_the_holdout_is_as_without_one(percent_bp: int, holdout: int) -> None:
    served = Policy(holdout_percent=holdout).served_bp(percent_bp)

    assert served == (percent_bp if percent_bp <= BUCKETS - 100 * holdout else BUCKETS - 100 * holdout)
    assert Policy().served_bp(percent_bp) == percent_bp


def test_no_canary_reaches_the_holdout(strategies: Engine) -> None:
    policy(strategies, "one", Policy(holdout_percent=2.5))

    assert canary(strategies, "one", 50) == 5_000
    raised = update_canary_percent(strategies, Command(OWNER, NOON), strategy_name="one", percent=100)
    assert raised.rollout_bp == 9_750
    activate_version(strategies, Command(OWNER, NOON), strategy_name="one", version="2")

    with reading(strategies) as session:
        assert rollouts.get_canary(session, "one").rollout_bp == 0, "promoted: all users get it as the active version"


def test_a_younger_canary_waits_for_the_older_one(strategies: Engine) -> None:
    for name in ("one", "two", "three"):
        policy(strategies, name, LIMITED)
    canary(strategies, "apart")
    canary(strategies, "one")

    assert held(strategies, "one") == "", "the older one goes on"
    with pytest.raises(ReleaseClosed, match="1 older canaries with the same salt, at most 1 allowed"):
        canary(strategies, "two")
    canary(strategies, "three", override_reason="tiny")
    assert held(strategies, "three") != "", "its next stage waits"
    roll_back(strategies, Command(OWNER, NOON, "harm"), strategy_name="one")
    assert held(strategies, "three") == ""
    assert held(strategies, "two") != ""


def test_an_activation_for_all_users_does_not_wait(strategies: Engine) -> None:
    policy(strategies, "two", LIMITED)
    canary(strategies, "one")

    activate_version(strategies, Command(OWNER, NOON + DAY, "hotfix"), strategy_name="two", version="2")


def test_without_a_limit_canaries_serve_the_same_users(strategies: Engine) -> None:
    assert [canary(strategies, name) for name in ("one", "two", "three")] == [500, 500, 500]


def test_users_on_several_canaries_are_counted_at_the_start_and_later(strategies: Engine) -> None:
    assert overlap_warning(strategies, strategy_name="two", plan=Plan()) == ""
    canary(strategies, "one", 5)
    canary(strategies, "apart", 20)

    assert overlap_warning(strategies, strategy_name="two", plan=Plan()).startswith(
        "5.0% of users will be on this canary and on another strategy's too: 2 other canaries serve users, 1 of them "
        "with the same salt, so that they serve the same users first"
    )
    assert "20.0%" not in overlap_warning(strategies, strategy_name="three", plan=Plan())
    (status,) = read_status(strategies, "one", now=NOON)
    assert status.also_on == pytest.approx(0.05 * 0.20)
    fleet = read_fleet(strategies, now=NOON, overdue=HOUR, calendar=CALENDARS["always"])
    assert fleet.overlap == "1.0% of users are on two canaries or more, by their buckets"
    own = read_fleet(strategies, frozenset({"one"}), now=NOON, overdue=HOUR, calendar=CALENDARS["always"])
    assert own.overlap == "", "a reader of one strategy sees nothing of the others"


def test_the_share_of_a_start_is_what_it_serves(strategies: Engine) -> None:
    policy(strategies, "one", Policy(holdout_percent=2.5))
    assert served_share(strategies, "one") == "its first stage"

    canary(strategies, "one", 100)

    assert served_share(strategies, "one") == "97.5 % of users"


def test_a_canary_without_users_is_in_nobody_s_way(strategies: Engine) -> None:
    policy(strategies, "two", LIMITED)
    canary(strategies, "one", 0)

    assert canary(strategies, "two") == 500
