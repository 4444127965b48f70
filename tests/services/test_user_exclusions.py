"""Exclusions of users: what they do to routing and to reports of trades, their history, and their trail."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text

from strategy_core.domain.audit import Actor, Command
from strategy_core.domain.errors import InvalidExclusion, InvariantRefused, LostRace, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import Standing
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.services.audit import verify_trail
from strategy_core.services.live_trades import ingest
from strategy_core.services.queries import RoutingTable, route_user
from strategy_core.services.rollback import roll_back
from strategy_core.services.user_exclusions import end_exclusions, exclude_users, list_exclusions
from strategy_core.store import audit, user_exclusions, versions
from strategy_core.store.engine import reading, transaction
from tests.builders import DAY, HOUR, OWNER, put_version
from tests.services.test_live import IN_ACTIVE, IN_CANARY, NOON, pair, ramped, report, stored

__all__ = ["pair", "ramped"]  # fixtures: 5 % of users get version 2
ALL_KINDS = list(ExclusionKind)


def command(at: timedelta = timedelta(), **conditions: Any) -> Command:
    return Command(OWNER, NOON + at, "asked by mail", **conditions)


def exclude(engine: Engine, kind: ExclusionKind, *users: str, strategy: str = "fib_rsi", **options: Any) -> list[str]:
    at = options.pop("at", timedelta())
    return list(exclude_users(engine, command(at), strategy_name=strategy, user_ids=users, kind=kind, **options).users)


def given(engine: Engine, user: str, at: timedelta = timedelta()) -> str:
    return route_user(engine, user_id=user, strategy_name="fib_rsi", now=NOON + at).version


@pytest.mark.parametrize("strategy", ["fib_rsi", "*"])
def test_kept_users_stay_with_the_active_version(ramped: Engine, strategy: str) -> None:
    assert given(ramped, IN_CANARY) == "2"

    for kind in (ExclusionKind.OPT_OUT, ExclusionKind.NEVER):
        assert exclude(ramped, kind, IN_CANARY, strategy=strategy) == [IN_CANARY]

    route = route_user(ramped, user_id=IN_CANARY, strategy_name="fib_rsi", now=NOON)
    assert (route.version, route.standing) == ("1", Standing.KEPT)
    assert route.why == f"the user stays with the active version: never by {OWNER.shown}"
    end_exclusions(ramped, command(), strategy_name=strategy, user_ids=[IN_CANARY], kinds=[ExclusionKind.NEVER])
    assert given(ramped, IN_CANARY) == "1", "the opt-out still holds"
    end_exclusions(ramped, command(), strategy_name=strategy, user_ids=[IN_CANARY])
    assert given(ramped, IN_CANARY) == "2"


def test_a_route_names_the_exclusion_also_without_a_canary(ramped: Engine) -> None:
    exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY, until=NOON + timedelta(days=1))
    exclude(ramped, ExclusionKind.ALWAYS, IN_CANARY)
    roll_back(ramped, command(), strategy_name="fib_rsi")

    route = route_user(ramped, user_id=IN_CANARY, strategy_name="fib_rsi", now=NOON)
    later = route_user(ramped, user_id=IN_CANARY, strategy_name="fib_rsi", now=NOON + timedelta(days=1))

    until = f"{NOON + timedelta(days=1):%Y-%m-%d %H:%M} UTC"
    assert route.why == f"the user stays with the active version: opt_out by {OWNER.shown} until {until}"
    assert "bucket" in later.why


def test_always_users_get_the_canary_and_leave_it_with_all_others(ramped: Engine) -> None:
    exclude(ramped, ExclusionKind.ALWAYS, IN_ACTIVE)
    route = route_user(ramped, user_id=IN_ACTIVE, strategy_name="fib_rsi", now=NOON)
    assert (route.version, route.in_canary) == ("2", True)
    assert route.why == f"the user always gets the canary: always by {OWNER.shown}"

    roll_back(ramped, command(), strategy_name="fib_rsi")

    assert given(ramped, IN_ACTIVE) == "1"
    assert RoutingTable(ramped).read(NOON)["fib_rsi"].always == frozenset()  # type: ignore[union-attr]


def test_an_exclusion_that_has_run_out_no_longer_counts_without_any_write(ramped: Engine) -> None:
    table = RoutingTable(ramped)
    exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY, until=NOON + HOUR)

    def kept(at: timedelta) -> frozenset[str]:
        found = table.read(NOON + at)["fib_rsi"]
        assert found is not None
        return found.kept

    assert (given(ramped, IN_CANARY, HOUR - timedelta(seconds=1)), given(ramped, IN_CANARY, HOUR)) == ("1", "2")
    assert (kept(timedelta()), kept(HOUR)) == (frozenset({IN_CANARY}), frozenset())
    assert exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY, at=2 * HOUR) == [IN_CANARY], "set anew"
    assert kept(2 * HOUR) == {IN_CANARY}


def test_setting_it_again_changes_nothing_but_its_end(ramped: Engine) -> None:
    exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY)
    before = _events(ramped)

    assert exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY, at=HOUR) == []
    assert end_exclusions(ramped, command(), strategy_name="fib_rsi", user_ids=[IN_ACTIVE]).users == []
    assert _events(ramped) == before
    assert exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY, at=HOUR, until=NOON + DAY) == [IN_CANARY]

    rows = list_exclusions(ramped, "fib_rsi")
    assert [(row.valid_from, row.valid_to, row.until) for row in rows] == [
        (NOON, NOON + HOUR, None),
        (NOON + HOUR, None, NOON + DAY),
    ]
    assert [row.id for row in list_exclusions(ramped, user_id=IN_CANARY, counting_at=NOON + HOUR)] == [rows[1].id]


def test_each_change_is_an_event_of_each_strategy_that_it_concerns(ramped: Engine) -> None:
    put_version(ramped, "1", Status.ACTIVE, strategy_name="ppo_gold")

    exclude(ramped, ExclusionKind.OPT_OUT, "u9", strategy="*", until=NOON + DAY)
    end_exclusions(ramped, command(HOUR), strategy_name="*", user_ids=["u9"])

    for name in ("fib_rsi", "ppo_gold"):
        with reading(ramped) as session:
            events = [event for event in audit.events(session, name) if event.action in audit.OF_USERS]
        assert [event.action for event in events] == ["exclude_users", "end_exclusions"]
        assert [event.reason for event in events] == ["asked by mail"] * 2
        until = (NOON + DAY).isoformat()
        others = {"others": ["ppo_gold"]} if name == "fib_rsi" else {}  # the first event names the others
        assert events[0].after["users"] == {
            "kinds": ["opt_out"],
            "ids": ["u9"],
            "strategies": "all",
            "until": until,
            **others,
        }
    assert all(trail.breaks == [] for trail in verify_trail(ramped).trails)


def test_what_is_refused(ramped: Engine) -> None:
    for kind in (ExclusionKind.GUARD, ExclusionKind.LARGE_ACCOUNT):
        with pytest.raises(InvalidExclusion, match="set by the software alone; allowed: always, never, opt_out"):
            exclude(ramped, kind, "u1")
    with pytest.raises(InvalidExclusion, match="allowed: a time after"):
        exclude(ramped, ExclusionKind.NEVER, "u1", until=NOON)
    with pytest.raises(UnknownStrategy):
        exclude(ramped, ExclusionKind.NEVER, "u1", strategy="nope")
    with pytest.raises(LostRace):
        exclude_users(
            ramped,
            command(if_generation=99),
            strategy_name="fib_rsi",
            user_ids=["u1"],
            kind=ExclusionKind.NEVER,
        )


def test_without_a_strategy_there_is_no_trail_and_no_exclusion_for_all(engine: Engine) -> None:
    with pytest.raises(UnknownStrategy):
        exclude(engine, ExclusionKind.OPT_OUT, "u1", strategy="*")


def test_a_trade_is_judged_by_the_exclusions_of_its_time(ramped: Engine) -> None:
    """Also for all strategies, and also once the exclusion has ended."""
    exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY, strategy="*")
    exclude(ramped, ExclusionKind.ALWAYS, IN_ACTIVE)
    end_exclusions(ramped, command(HOUR), strategy_name="*", user_ids=[IN_CANARY])
    trades = [
        (IN_CANARY, "2", -HOUR, 0),
        (IN_CANARY, "2", HOUR / 2, 1),
        (IN_CANARY, "1", HOUR / 2, 0),
        (IN_CANARY, "2", 2 * HOUR, 0),
        (IN_ACTIVE, "2", HOUR / 2, 0),
        (IN_ACTIVE, "1", HOUR / 2, 1),
    ]
    batch = [
        report(f"t{number}", user_id=user, version=version, opened_at=NOON + after)
        for number, (user, version, after, _) in enumerate(trades)
    ]

    ingest(ramped, batch, now=NOON + DAY)

    rows = stored(ramped)
    assert [int(row.misrouted) for row in rows] == [wrong for *_, wrong in trades]
    assert [row.canary_bp for row in rows] == [500, 0, 0, 500, 10_000, 10_000]


def test_a_large_account_is_kept_by_the_transaction_that_excludes_it(ramped: Engine) -> None:
    with transaction(ramped) as session:
        user_exclusions.exclude(
            session, "fib_rsi", ExclusionKind.LARGE_ACCOUNT, [IN_CANARY], now=NOON, reason="6 %", actor="ramp"
        )

    assert given(ramped, IN_CANARY) == "1"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE canary_exclusion SET user_id = 'u2'",
        "UPDATE canary_exclusion SET until = NULL",
        "UPDATE canary_exclusion SET valid_to = '2026-03-09 00:00:00'",
        "DELETE FROM canary_exclusion",
    ],
)
def test_history_is_never_edited(ramped: Engine, change: str) -> None:
    exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY)
    end_exclusions(ramped, command(HOUR), strategy_name="fib_rsi", user_ids=[IN_CANARY])

    with (
        pytest.raises(InvariantRefused, match=r"never (edited|deleted)|ends once"),
        transaction(ramped) as session,
    ):
        session.connection().execute(text(change))


def test_the_routing_table_is_what_the_database_says_after_every_change(ramped: Engine) -> None:
    """Also after a rollback, which does not wait for the exclusions of other strategies."""
    put_version(ramped, "1", Status.ACTIVE, strategy_name="ppo_gold")
    table = RoutingTable(ramped)
    steps: list[Callable[[], object]] = [
        lambda: exclude(ramped, ExclusionKind.OPT_OUT, IN_CANARY, strategy="*"),
        lambda: exclude(ramped, ExclusionKind.ALWAYS, IN_ACTIVE),
        lambda: exclude(ramped, ExclusionKind.NEVER, "u9", strategy="ppo_gold"),
        lambda: end_exclusions(ramped, command(HOUR), strategy_name="*", user_ids=[IN_CANARY]),
        lambda: roll_back(ramped, Command(Actor("bo"), NOON + HOUR, "harm"), strategy_name="fib_rsi"),
        lambda: exclude(ramped, ExclusionKind.NEVER, IN_CANARY),
    ]
    for step in steps:
        step()
        with reading(ramped) as session:
            assert table.read(NOON) == versions.all_routing(session, NOON)


def _events(engine: Engine) -> int:
    with reading(engine) as session:
        return len(audit.events(session))
