"""While exclusions of users cannot be read, a router sees every rollback and serves no new canary."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text
from structlog.testing import capture_logs

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import Routing, bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.router import database
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.queries import RoutingTable
from strategy_core.services.rollback import roll_back
from strategy_core.store import user_exclusions, versions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.routing_reader import RoutingReader
from tests.builders import MONDAY, OWNER, put_version
from tests.router.conftest import USERS, until

OPTED_OUT, GUARDED, INSIDE = [user for user in USERS if bucket_of(user) < 2_500][:3]


def start(engine: Engine, name: str) -> None:
    put_version(engine, "1", Status.ACTIVE, strategy_name=name)
    put_version(engine, "2", strategy_name=name)
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name=name, version="2", rollout_percent=25)


@pytest.fixture
def canaries(engine: Engine) -> Engine:
    """Three strategies with a canary of a quarter of the users."""
    for name in ("aa", "bb", "cc"):
        start(engine, name)
    with transaction(engine) as session:
        for kind, user in ((ExclusionKind.OPT_OUT, OPTED_OUT), (ExclusionKind.GUARD, GUARDED)):
            user_exclusions.exclude(session, "*", kind, [user], now=MONDAY, reason="", actor="ana")
    return engine


def rename(engine: Engine, before: str, after: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))


def given(read: Callable[[str, str], str]) -> list[list[str]]:
    return [[read(user, name) for user in (OPTED_OUT, GUARDED, INSIDE)] for name in ("aa", "bb", "cc")]


def test_every_rollback_is_seen_without_the_exclusions(canaries: Engine, database_url: str) -> None:
    with Router(database_url) as router, capture_logs() as logs:
        assert given(router.version_for) == [["1", "1", "2"]] * 3
        rename(canaries, "canary_exclusion", "elsewhere")

        for seen, name in enumerate(("aa", "bb"), 1):
            roll_back(canaries, Command(OWNER, MONDAY, "odd fills"), strategy_name=name)
            until(lambda name=name: router.version_for(INSIDE, name) == "1")  # type: ignore[misc]
            assert given(router.version_for)[seen:] == [["1", "1", "2"]] * (3 - seen)
        assert not router.may_enter(GUARDED, "aa")
        until(lambda: logs)
    assert [line["event"] for line in logs] == ["routing.exclusions_unreadable"]


def test_a_canary_whose_exclusions_were_not_read_serves_no_users(canaries: Engine) -> None:
    reader = RoutingReader()

    def read() -> dict[str, Routing]:
        with reading(canaries) as session:
            return {name: one for name, one in reader.read(session, MONDAY).items() if one}

    read()
    start(canaries, "dd")
    roll_back(canaries, Command(OWNER, MONDAY, "odd fills"), strategy_name="aa")
    rename(canaries, "canary_exclusion", "elsewhere")
    assert {name: one.canary for name, one in read().items()} == {"aa": None, "bb": "2", "cc": "2", "dd": None}
    assert reader.behind
    found = read()
    assert {name: one.canary for name, one in found.items()} == {"aa": None, "bb": "2", "cc": "2", "dd": None}
    assert [one.exit_only for one in found.values()] == [{GUARDED}] * 4
    assert not reader.behind, "else a router would read again without a pause"
    assert reader.is_due(MONDAY)

    rename(canaries, "elsewhere", "canary_exclusion")
    assert (read()["dd"].canary, read()["dd"].kept) == ("2", {OPTED_OUT, GUARDED})


def test_a_canary_that_starts_again_waits_for_exclusions_again(canaries: Engine) -> None:
    reader = RoutingReader()
    with reading(canaries) as session:
        reader.read(session, MONDAY)
        found, heads = versions.serving_routing(session)
    rename(canaries, "canary_exclusion", "elsewhere")
    withdrawn = found | {"aa": Routing("1", None, 0, "", 5)}

    for routing, canary in ((withdrawn, None), (withdrawn, None), (found, None)):
        with reading(canaries) as session:
            read = reader.add_users(session, routing, heads | {"aa": str(id(routing))}, MONDAY)["aa"]
            assert read is not None
            assert read.canary == canary


def test_a_narrower_canary_does_not_wait_for_exclusions(canaries: Engine) -> None:
    reader = RoutingReader()
    with reading(canaries) as session:
        reader.read(session, MONDAY)
    start(canaries, "dd")
    update_canary_percent(canaries, Command(OWNER, MONDAY), strategy_name="aa", percent=5)

    with reading(canaries) as session:
        found = reader.read(session, MONDAY)

    assert found["aa"] is not None
    assert found["aa"].percent_bp == 500
    assert reader.behind


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_lock_on_the_exclusions_keeps_a_rollback_from_a_router(
    canaries: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As VACUUM FULL or an open session holds one, for longer than a router waits for any answer."""
    monkeypatch.setattr(database, "_HEARTBEAT_S", 3_600.0)  # notifications arrive on the same connection
    with Router(database_url) as router, canaries.connect() as holder:
        connection = router._feed.source._connection  # type: ignore[attr-defined]
        holder.execute(text("LOCK TABLE canary_exclusion IN ACCESS EXCLUSIVE MODE"))

        for name in ("aa", "bb"):
            roll_back(canaries, Command(OWNER, MONDAY, "odd fills"), strategy_name=name)
            until(lambda name=name: router.version_for(INSIDE, name) == "1")  # type: ignore[misc]

        assert given(router.version_for)[2] == ["1", "1", "2"]
        assert router._feed.source._connection is connection, "it goes on"  # type: ignore[attr-defined]


def test_a_router_whose_connection_was_lost_goes_on_with_the_known_exclusions(
    canaries: Engine, database_url: str
) -> None:
    with Router(database_url) as router:
        rename(canaries, "canary_exclusion", "elsewhere")
        router._feed.source.close()
        roll_back(canaries, Command(OWNER, MONDAY, "odd fills"), strategy_name="aa")

        until(lambda: router.version_for(INSIDE, "aa") == "1")
        assert given(router.version_for)[1:] == [["1", "1", "2"]] * 2


def test_the_api_answers_with_known_exclusions_while_another_request_reads_them(canaries: Engine) -> None:
    table = RoutingTable(canaries)
    table.read(MONDAY)
    roll_back(canaries, Command(OWNER, MONDAY, "odd fills"), strategy_name="aa")
    start(canaries, "dd")

    with table._lock:
        found = table.read(MONDAY)

    assert {name: one and one.canary for name, one in found.items()} == {"aa": None, "bb": "2", "cc": "2", "dd": None}
    assert found["bb"] is not None
    assert found["bb"].kept == {OPTED_OUT, GUARDED}
