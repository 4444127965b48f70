"""The forms that exclude users from canaries and end it."""

import pytest
from sqlalchemy import Engine

from flows.exclusions import end_some_exclusions, exclude_some_users
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.user_exclusions import list_exclusions
from tests.builders import put_version
from tests.flows.conftest import Clock


@pytest.fixture
def strategy(engine: Engine, at: Clock) -> Engine:
    put_version(engine, "v1", Status.ACTIVE)
    return engine


def test_users_are_excluded_and_included_again_by_form(strategy: Engine) -> None:
    excluded = exclude_some_users.fn(
        "*", ["u1", "u2"], ExclusionKind.NEVER, owner="ana", reason="contract", until="2026-03-04"
    )
    (one, _) = list_exclusions(strategy)
    ended = end_some_exclusions.fn("*", ["u1", "u3"], ExclusionKind.NEVER, owner="ana", reason="over")
    refused = exclude_some_users.fn("fib_rsi", ["u1"], ExclusionKind.GUARD, owner="ana", reason="anger")

    assert excluded.message == "never for all strategies: 2 of 2 users are new"
    assert (one.user_id, one.actor, one.reason) == ("u1", "ana (unverified)", "contract")
    assert ended.message == "never ended for all strategies: 1 users"
    assert "guard is set by the software alone; allowed: always, never, opt_out" in str(refused.message)
