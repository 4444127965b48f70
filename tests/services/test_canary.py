from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest
from sqlalchemy import Engine

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    IllegalTransition,
    InvalidName,
    InvalidPercent,
    NoActiveVersion,
    NoCanary,
    Quarantined,
    RolloutOpen,
    UnknownStrategy,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.routing import bucket_of
from strategy_core.services.canary import activate_canary, set_share, update_canary_percent
from strategy_core.services.queries import route_user
from strategy_core.services.rollouts import pause, resume, start_rollout
from strategy_core.services.transitions import withdraw_canary
from strategy_core.store import audit, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.versions import create_strategy
from tests.builders import MONDAY, OWNER, put_pair, put_version
from tests.prepared import prepared


@pytest.fixture
def pair(engine: Engine) -> Engine:
    prepared(engine, put_pair)
    return engine


def test_routing_obeys_the_percent_at_once(pair: Engine) -> None:
    """user_123's bucket is 5988: in the canary from 59.89 % on."""
    activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=59.88)
    before = route_user(pair, user_id="user_123", strategy_name="fib_rsi", now=MONDAY)
    update_canary_percent(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=59.89)
    after = route_user(pair, user_id="user_123", strategy_name="fib_rsi", now=MONDAY)

    assert (before.version, after.version) == ("1", "2")
    assert after.generation == before.generation + 1
    assert before.why == "bucket 59.88 >= canary percent 59.88"
    assert after.why == "bucket 59.88 < canary percent 59.89"


def test_without_a_canary_everybody_gets_the_active_version(pair: Engine) -> None:
    route = route_user(pair, user_id="user_123", strategy_name="fib_rsi", now=MONDAY)

    assert (route.version, route.in_canary, route.percent, route.generation) == ("1", False, 0.0, 0)


def test_a_strategys_salt_moves_its_users(engine: Engine) -> None:
    with transaction(engine) as session:
        create_strategy(session, "fib_rsi", salt="fib_rsi", scoring={}, now=MONDAY)
    put_version(engine, "1", Status.ACTIVE)

    assert route_user(engine, user_id="user_123", strategy_name="fib_rsi", now=MONDAY).bucket == bucket_of(
        "user_123", "fib_rsi"
    )


def test_who_cannot_be_routed_is_an_error_never_a_default(engine: Engine) -> None:
    with pytest.raises(UnknownStrategy):
        route_user(engine, user_id="user_123", strategy_name="fib_rsi", now=MONDAY)
    put_version(engine, "1")
    with pytest.raises(NoActiveVersion, match="activate one first"):
        route_user(engine, user_id="user_123", strategy_name="fib_rsi", now=MONDAY)


@pytest.mark.parametrize("user_id", ["", "\udcff", "user_\ud83d"])
def test_a_user_id_that_is_no_text_is_refused(pair: Engine, user_id: str) -> None:
    with pytest.raises(InvalidName, match="is not a user id; allowed: text in UTF-8, one character or more"):
        route_user(pair, user_id=user_id, strategy_name="fib_rsi", now=MONDAY)


@pytest.mark.parametrize("percent", [150, -1, 33.333, float("nan")])
def test_a_percent_out_of_bounds_changes_nothing(pair: Engine, percent: float) -> None:
    with pytest.raises(InvalidPercent):
        activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=percent)

    with reading(pair) as session:
        assert versions.get_version(session, "fib_rsi", "2").status == "shadow"
        assert audit.events(session) == []


def test_a_second_canary_is_refused_by_the_name_of_the_first(pair: Engine) -> None:
    put_version(pair, "3")
    activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)

    with pytest.raises(IllegalTransition, match="2 is the canary"):
        activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="3", rollout_percent=5)


def test_a_canary_needs_an_active_version_beside_it(engine: Engine) -> None:
    put_version(engine, "2")

    with pytest.raises(NoActiveVersion):
        activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)


def test_a_quarantined_version_is_no_canary(pair: Engine) -> None:
    put_version(pair, "3", quarantined_at=MONDAY)

    for blank in ("", "  "):
        with pytest.raises(Quarantined):
            activate_canary(
                pair,
                Command(OWNER, MONDAY, override_reason=blank),
                strategy_name="fib_rsi",
                version="3",
                rollout_percent=5,
            )


def test_there_must_be_a_canary_to_set_its_percent(pair: Engine) -> None:
    with pytest.raises(NoCanary):
        update_canary_percent(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=5)


def test_by_hand_only_where_no_rollout_runs(pair: Engine) -> None:
    put_version(pair, "3")
    start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())

    with pytest.raises(RolloutOpen, match="let it end, or roll it back"):
        activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="3", rollout_percent=5)
    with pytest.raises(RolloutOpen, match="pause it, then set the percent"):
        update_canary_percent(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=50)


def test_a_resumed_rollout_goes_back_to_its_stages_percent(pair: Engine) -> None:
    start_rollout(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    pause(pair, Command(OWNER, MONDAY, "news"), strategy_name="fib_rsi")
    update_canary_percent(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=1)
    lowered = route_user(pair, user_id="user_123", strategy_name="fib_rsi", now=MONDAY).percent
    resume(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi")

    assert lowered == 1.0
    assert route_user(pair, user_id="user_123", strategy_name="fib_rsi", now=MONDAY).percent == 5.0
    with reading(pair) as session:
        actions = [event.action for event in audit.events(session)]
    assert actions == ["start_rollout", "pause", "update_canary_percent", "resume"]


def test_a_share_for_a_canary_that_is_rolled_back_meanwhile_is_refused_as_one_for_it_then(pair: Engine) -> None:
    activate_canary(pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=5)

    with ThreadPoolExecutor(1) as thread, transaction(pair) as session:
        versions.lock_strategy(session, "fib_rsi")
        withdraw_canary(session, versions.get_version(session, "fib_rsi", "2"), quarantine=True, now=MONDAY)
        late = thread.submit(set_share, pair, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", percent=10)
        sleep(0.3)  # it has begun, and waits

    with pytest.raises(Quarantined):
        late.result()
