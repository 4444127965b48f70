"""A router says from memory what the database would say, user by user."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import (
    InvalidName,
    InvalidSetting,
    NoActiveVersion,
    RolloutError,
    RouterClosed,
    RoutingUnavailable,
    UnknownStrategy,
)
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import BUCKETS, Routing, bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.router.router import Table
from strategy_core.services.canary import activate_canary
from strategy_core.services.queries import route_user
from strategy_core.store import user_exclusions
from strategy_core.store.engine import transaction
from tests.builders import MONDAY, OWNER, put_version
from tests.effort import examples
from tests.router.conftest import USERS

SHARES = {"none": None, "nobody": 0, "few": 0.01, "quarter": 25, "odd": 33.33, "all": 100}


@pytest.fixture
def every_share(engine: Engine) -> Engine:
    """One strategy for each share and salt."""
    for name, percent in SHARES.items():
        for salt in ("", "salt é"):
            put_version(engine, "1", Status.ACTIVE, strategy_name=name + salt, salt=salt)
            if percent is not None:
                put_version(engine, "2", strategy_name=name + salt, salt=salt)
                activate_canary(
                    engine, Command(OWNER, MONDAY), strategy_name=name + salt, version="2", rollout_percent=percent
                )
    return engine


@pytest.fixture
def router(every_share: Engine, database_url: str) -> Iterator[Router]:
    with Router(database_url) as router:
        yield router


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(30))
@given(user=st.text(min_size=1, max_size=20), share=st.sampled_from([*SHARES]), salt=st.sampled_from(["", "salt é"]))
def test_it_says_what_the_database_says(every_share: Engine, router: Router, user: str, share: str, salt: str) -> None:
    name = share + salt
    route = route_user(every_share, user_id=user, strategy_name=name, now=MONDAY)

    assert router.explain(user, name) == route
    assert router.version_for(user, name) == route.version
    assert router.assign([user], name) == [route.version]


@given(
    user=st.text(min_size=1, max_size=20),
    percent_bp=st.integers(0, BUCKETS),
    salt=st.text(max_size=10),
    kept=st.booleans(),
    always=st.booleans(),
)
def test_it_obeys_what_routing_is(user: str, percent_bp: int, salt: str, kept: bool, always: bool) -> None:
    """As the domain has it, of any percent, any salt and any exclusion."""
    one, nobody = frozenset({user}), frozenset[str]()
    routing = Routing("1", "2", percent_bp, salt, 7, kept=one if kept else nobody, always=one if always else nobody)
    router = Router.__new__(Router)
    router._table = Table(60, time.monotonic)
    router._table.update({"fib_rsi": routing}, time.monotonic())

    version = routing.version_of(bucket_of(user, salt), None, user)

    assert router.version_for(user, "fib_rsi") == version
    assert router.assign([user], "fib_rsi") == [version]
    assert router.explain(user, "fib_rsi").version == version


def test_many_users_are_assigned_as_each_is(canary: Engine, database_url: str) -> None:
    users = [f"user_{i}" for i in range(50_000)]
    with Router(database_url) as router:
        assigned = router.assign(iter(users), "fib_rsi")

        assert assigned == [router.version_for(user, "fib_rsi") for user in users]
        assert assigned.count("2") / len(users) == pytest.approx(0.25, abs=0.01)
        assert router.assign([], "fib_rsi") == []


@pytest.mark.parametrize("user_id", ["", "\udcff", None, 7, b"user_1"])
@pytest.mark.parametrize("strategy_name", ["fib_rsi", "no_canary"])
def test_what_is_no_user_id_is_refused(canary: Engine, database_url: str, user_id: object, strategy_name: str) -> None:
    put_version(canary, "1", Status.ACTIVE, strategy_name="no_canary")
    with Router(database_url) as router:
        for ask in (
            lambda: router.version_for(user_id, strategy_name),  # type: ignore[arg-type]
            lambda: router.explain(user_id, strategy_name),  # type: ignore[arg-type]
            lambda: router.assign(["user_1", user_id], strategy_name),  # type: ignore[list-item]
        ):
            with pytest.raises(InvalidName, match="is not a user id; allowed: text in UTF-8"):
                ask()


def test_a_user_whose_loss_limit_was_hit_may_not_enter(canary: Engine, database_url: str) -> None:
    """Without a canary too."""
    put_version(canary, "1", Status.ACTIVE, strategy_name="no_canary")
    with transaction(canary) as session:
        for name in ("fib_rsi", "no_canary"):
            user_exclusions.exclude(
                session, name, ExclusionKind.GUARD, ["user_1"], now=MONDAY, reason="-10 R", actor="guard"
            )
    with Router(database_url) as router:
        for name in ("fib_rsi", "no_canary"):
            assert not router.may_enter("user_1", name)
            assert router.may_enter("user_2", name)
            route = router.explain("user_1", name)
            answered = route_user(canary, user_id="user_1", strategy_name=name, now=MONDAY)
            assert answered.exclusion == "guard by guard"  # which a Router does not read
            assert replace(route, exclusion=answered.exclusion) == answered
            assert (route.version, route.exit_only) == ("1", True)
            assert route.why.endswith("; loss limit hit: no new position")
        with pytest.raises(InvalidName):
            router.may_enter("", "fib_rsi")


def test_what_nobody_can_be_routed_by_is_told_apart(canary: Engine, database_url: str) -> None:
    put_version(canary, "1", strategy_name="in_shadow")
    with Router(database_url) as router:
        for ask in (router.version_for, router.explain, lambda user, name: router.assign([user], name)):
            with pytest.raises(UnknownStrategy, match="no strategy 'ppo_gold'; known strategies: fib_rsi, in_shadow"):
                ask("user_1", "ppo_gold")
            with pytest.raises(NoActiveVersion):
                ask("user_1", "in_shadow")
        with pytest.raises(UnknownStrategy):
            router.generation("ppo_gold")
        assert router.generation("fib_rsi") == 1

    with pytest.raises(RouterClosed, match="open another"):
        router.version_for("user_1", "fib_rsi")


def test_asking_why_admits_nobody(canary: Engine, database_url: str) -> None:
    with Router(database_url) as router:
        routes = [router.explain(user, "fib_rsi") for user in USERS]

        served = router._table.served["fib_rsi"]
        assert served is not None
        assert served.admitted == set()
        assert {route.why.split()[2] for route in routes} == {"<", ">="}


@pytest.mark.parametrize(
    ("addresses", "refusal"),
    [
        ({}, "exactly one of database_url and api_url"),
        ({"database_url": "sqlite:///x.db", "api_url": "http://h"}, "exactly one of database_url and api_url"),
        ({"database_url": "mysql://h/x"}, "sqlite:///FILE or postgresql"),
        ({"database_url": "sqlite://"}, "a file"),
        ({"api_url": "ftp://h"}, "https://HOST"),
        ({"api_url": "https://ana:hush@h"}, "https://HOST"),
        ({"api_url": "https://h?token=hush"}, "https://HOST"),
        ({"api_url": "http://h", "token": "hush\nHost: x"}, "visible ASCII characters"),
        ({"api_url": "http://h", "token": ""}, "visible ASCII characters"),
        ({"database_url": "sqlite:///x.db", "max_age_s": 0}, "more than 0"),
        ({"database_url": "sqlite:///x.db", "max_age_s": float("nan")}, "more than 0"),
    ],
)
def test_what_is_no_address_is_refused_without_telling_a_secret(addresses: dict[str, str], refusal: str) -> None:
    with pytest.raises(InvalidSetting, match=refusal) as refused:
        Router(**addresses)  # type: ignore[arg-type]

    assert "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["sqlite:///{}/none.db", "sqlite:///{}/empty.db", "postgresql://ana:hush@127.0.0.1:1/x"]
)
def test_a_router_that_cannot_read_is_not_made(tmp_path: Path, url: str) -> None:
    (tmp_path / "empty.db").touch()

    with pytest.raises(RoutingUnavailable, match="routing cannot be read from") as refused:
        Router(url.format(tmp_path))

    assert "hush" not in str(refused.value)
    assert not (tmp_path / "none.db").exists()
    assert isinstance(refused.value, RolloutError)
