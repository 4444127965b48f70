"""How old routing may be: what changes reaches a router; cut off, it takes nobody to and fro, and admits nobody new."""

import gc
import weakref
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url
from structlog.testing import capture_logs

from strategy_core import Router
from strategy_core.domain.audit import Command
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import Routing, bucket_of
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.router.router import Table
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.rollback import roll_back
from strategy_core.services.user_exclusions import exclude_users
from strategy_core.services.versions import activate_version
from tests.builders import HOUR, MONDAY, OWNER, put_version
from tests.router.conftest import USERS, Clock, until


def told(router: Router) -> set[str]:
    return set(router.assign(USERS, "fib_rsi"))


def test_a_change_reaches_the_router(canary: Engine, database_url: str) -> None:
    with Router(database_url) as router:
        assert told(router) == {"1", "2"}

        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")
        until(lambda: router.generation("fib_rsi") == 2)
        assert told(router) == {"1"}

        activate_canary(
            canary,
            Command(OWNER, MONDAY, override_reason="mended"),
            strategy_name="fib_rsi",
            version="2",
            rollout_percent=100,
        )
        until(lambda: told(router) == {"2"})

        update_canary_percent(canary, Command(OWNER, MONDAY), strategy_name="fib_rsi", percent=0)
        until(lambda: told(router) == {"1"})

        put_version(canary, "1", Status.ACTIVE, strategy_name="ppo_gold")
        activate_version(canary, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2")
        until(lambda: told(router) == {"2"})
        until(lambda: "ppo_gold" in router._table.served)


def test_an_exclusion_reaches_the_router_and_runs_out_there(canary: Engine, database_url: str) -> None:
    """Without a write when it runs out."""
    times = [MONDAY]
    inside = next(user for user in USERS if bucket_of(user) < 2_500)
    outside = next(user for user in USERS if bucket_of(user) >= 2_500)
    with Router(database_url, now=lambda: times[-1]) as router:
        assert (router.version_for(inside, "fib_rsi"), router.version_for(outside, "fib_rsi")) == ("2", "1")

        for user, kind in ((inside, ExclusionKind.OPT_OUT), (outside, ExclusionKind.ALWAYS)):
            exclude_users(
                canary,
                Command(OWNER, MONDAY),
                strategy_name="fib_rsi",
                user_ids=[user],
                kind=kind,
                until=MONDAY + HOUR,
            )
        until(lambda: router.generation("fib_rsi") == 3)
        assert (router.version_for(inside, "fib_rsi"), router.version_for(outside, "fib_rsi")) == ("1", "2")

        times.append(MONDAY + HOUR)
        until(lambda: router.version_for(inside, "fib_rsi") == "2")
        assert router.version_for(outside, "fib_rsi") == "1"


on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@on_sqlite
def test_cut_off_for_too_long_a_canary_admits_nobody_new_and_loses_nobody(
    canary: Engine, database_url: str, clock: Clock
) -> None:
    file = Path(str(make_url(database_url).database))
    with Router(database_url, max_age_s=60, clock=clock) as router, capture_logs() as logs:
        inside = [user for user in USERS if router.explain(user, "fib_rsi").in_canary]
        outside = next(user for user in USERS if user not in inside)
        one, many, new, newer = inside[0], inside[1:20], inside[20], inside[21:40]
        assert router.version_for(one, "fib_rsi") == "2"
        assert router.assign(many, "fib_rsi") == ["2"] * len(many)

        away = file.rename(file.with_suffix(".away"))
        until(lambda: _cut_off(router))
        clock.seconds = router._table.confirmed_at + 60
        assert not router.stale
        assert router.version_for(new, "fib_rsi") == "2", "as old as it may be is not too old"

        clock.seconds += 0.001
        until(lambda: logs)
        assert router.age() == pytest.approx(60.001)
        assert [router.version_for(user, "fib_rsi") for user in (one, *many, new)] == ["2"] * 21
        assert [router.version_for(user, "fib_rsi") for user in (*newer, outside)] == ["1"] * 20
        assert router.assign([one, newer[0], outside, new], "fib_rsi") == ["2", "1", "1", "2"]
        assert router.explain(one, "fib_rsi").why.endswith(
            "< canary percent 25.00; admitted before while routing is stale"
        )
        assert router.explain(newer[0], "fib_rsi").why.endswith(
            "< canary percent 25.00; no new user while routing is stale"
        )
        assert not router.explain(newer[0], "fib_rsi").in_canary
        assert not router.explain(outside, "fib_rsi").stale

        away.rename(file)
        until(lambda: not router.stale)
        assert [router.version_for(user, "fib_rsi") for user in newer] == ["2"] * 19
        until(lambda: len(logs) == 2)

    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("router.stale", "warning"),
        ("router.refreshed", "info"),
    ]
    assert (logs[0]["source"], logs[0]["cause"], logs[0]["age_s"]) == (database_url, "No such file or directory", 60.0)


def _cut_off(router: Router) -> bool:
    source = router._feed.source
    return source._connection is None  # type: ignore[attr-defined]


@on_sqlite
def test_a_change_made_meanwhile_is_obeyed_once_it_can_be_read(canary: Engine, database_url: str, clock: Clock) -> None:
    file = Path(str(make_url(database_url).database))
    with Router(database_url, clock=clock) as router:
        told(router)
        roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")
        canary.dispose()
        away = file.rename(file.with_suffix(".away"))
        until(lambda: _cut_off(router))
        clock.seconds += 3_600

        away.rename(file)

        until(lambda: told(router) == {"1"})
        until(lambda: not router.stale)


@on_sqlite
def test_a_file_that_was_replaced_is_read_anew(canary: Engine, database_url: str, tmp_path: Path) -> None:
    """As a backup is restored: another file under the old name, at a generation below the known one."""
    file = Path(str(make_url(database_url).database))
    canary.dispose()
    backup = tmp_path / "backup.db"
    backup.write_bytes(file.read_bytes())
    roll_back(canary, Command(OWNER, MONDAY, "odd fills"), strategy_name="fib_rsi")
    canary.dispose()
    with capture_logs() as logs, Router(database_url) as router:
        assert told(router) == {"1"}

        backup.replace(file)

        until(lambda: told(router) == {"1", "2"})
    assert {"event": "router.went_back", "strategy": "fib_rsi", "known": 2, "found": 1, "log_level": "warning"} in logs


ONE = Routing("1", "2", 2_500, "", 7)


@pytest.mark.parametrize(
    ("next_", "kept"),
    [
        (Routing("1", "2", 5_000, "", 8), True),
        (Routing("1", "2", 0, "", 8), True),
        (Routing("1", "3", 2_500, "", 8), False),
        (Routing("1", "2", 2_500, "gold", 8), False),
        (Routing("1", None, 0, "", 8), False),
        (None, False),
    ],
)
def test_who_was_admitted_is_remembered_for_as_long_as_the_canary_lasts(next_: Routing | None, kept: bool) -> None:
    table = Table(60, Clock())
    table.update({"fib_rsi": ONE}, 0)
    _admitted(table).add("user_1")

    table.update({"fib_rsi": next_}, 0)
    table.update({"fib_rsi": ONE}, 0)

    assert ("user_1" in _admitted(table)) is kept


def _admitted(table: Table) -> set[str]:
    served = table.served["fib_rsi"]
    assert served is not None
    return served.admitted


def test_what_changes_while_it_is_read_is_not_confirmed_by_that(clock: Clock) -> None:
    """Age counts from when a reading began, not from when it ended."""
    table = Table(60, clock)
    began = clock()
    clock.seconds += 5

    table.update({"fib_rsi": ONE}, began)

    assert table.age == 5


@pytest.mark.full
def test_a_router_that_nobody_refers_to_ends(canary: Engine, database_url: str) -> None:
    router = Router(database_url)
    thread, gone = router._feed._refresher._thread, weakref.ref(router)

    del router
    gc.collect()

    assert gone() is None
    until(lambda: not thread.is_alive())
