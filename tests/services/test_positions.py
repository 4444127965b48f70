"""Positions: kept from reports in any order, and no version that manages some is retired."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event, text
from sqlmodel import select

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import Contradicted, HandOverRefused, InvalidReport, PositionsOpen
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.routing import in_canary
from strategy_core.services.audit import verify_trail
from strategy_core.services.canary import activate_canary
from strategy_core.services.live_trades import ingest
from strategy_core.services.positions import (
    AT_ONCE,
    OpenTrade,
    Reconciled,
    flatten,
    hand_over,
    held_positions,
    list_positions,
    reconcile,
)
from strategy_core.services.queries import get_version
from strategy_core.services.versions import activate_version, retire_version
from strategy_core.store.engine import open_database, reading
from strategy_core.store.tables import AuditEvent, PositionChange
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version
from tests.waiting import until_somebody_waits

BY = Command(OWNER, MONDAY + DAY, "it is time")
NAME = "fib_rsi"
NOON = MONDAY + 12 * HOUR


def opened(trade_id: str = "t1", version: str = "1", **changes: Any) -> dict[str, Any]:
    facts = {"trade_id": trade_id, "user_id": f"u-{trade_id}", "strategy_name": NAME, "version": version}
    return {**facts, "symbol": "GOLD", "opened_at": MONDAY + HOUR, **changes}


def closed(trade_id: str = "t1", version: str = "1", **changes: Any) -> dict[str, Any]:
    return opened(trade_id, version, closed_at=MONDAY + 3 * HOUR, pnl=1.0, risk=2.0, **changes)


@contextmanager
def changes_by_transaction(engine: Engine) -> Iterator[list[int]]:
    """Yield the number of positions that each transaction has changed, without those that changed none."""
    found: list[int] = []
    open_now: list[int] = []

    def count(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool) -> None:
        if statement.startswith("INSERT INTO position_change"):
            open_now.append(len(parameters) if many else 1)

    def commit(_c: Any) -> None:
        found.extend([sum(open_now)] if open_now else [])
        open_now.clear()

    event.listen(engine, "before_cursor_execute", count)
    event.listen(engine, "commit", commit)
    yield found
    event.remove(engine, "before_cursor_execute", count)
    event.remove(engine, "commit", commit)


def put_positions(engine: Engine, count: int, version: str = "1") -> list[str]:
    names = [f"t{number:04}" for number in range(count)]
    ingest(engine, [opened(name, version, size=2.0) for name in names], now=MONDAY + DAY)
    return names


def put_versions(engine: Engine) -> None:
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    put_version(engine, "3", recorded=True, symbols=("SILVER",))


def events(engine: Engine, action: str) -> list[AuditEvent]:
    with reading(engine) as session:
        return list(session.exec(select(AuditEvent).where(AuditEvent.action == action)).all())


def managers(engine: Engine) -> dict[str, int]:
    return held_positions(engine, NAME).by_manager


ORDERS = list(dict.fromkeys(permutations(["open", "closed", "open", "closed"])))


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_reports_in_any_order_make_one_position_that_is_closed(engine: Engine, order: tuple[str, ...]) -> None:
    put_versions(engine)

    for state in order:
        ingest(engine, [opened() if state == "open" else closed()], now=MONDAY + DAY)

    (position,) = list_positions(engine, [NAME], open_only=False)
    assert (position.closed_at, position.opened_by, position.manager) == (MONDAY + 3 * HOUR, "1", "1")


def test_reports_of_one_batch_make_one_position_each(engine: Engine) -> None:
    put_versions(engine)

    ingest(engine, [closed("t1"), opened("t1"), opened("t2", "2"), opened("t2", "2")], now=MONDAY + DAY)

    assert [position.trade_id for position in list_positions(engine, [NAME])] == ["t2"]
    assert managers(engine) == {"2": 1}


def test_a_failed_order_makes_no_position(engine: Engine) -> None:
    put_versions(engine)

    ingest(engine, [opened(error="no money")], now=MONDAY + DAY)

    assert list_positions(engine, [NAME], open_only=False) == []


def test_a_contradicted_report_leaves_the_position_as_it_was(engine: Engine) -> None:
    put_versions(engine)
    ingest(engine, [opened()], now=MONDAY + DAY)

    with pytest.raises(Contradicted):
        ingest(engine, [closed(version="2"), opened("t2")], now=MONDAY + DAY)

    assert managers(engine) == {"1": 1}


def test_a_version_that_manages_positions_is_not_retired(engine: Engine) -> None:
    put_versions(engine)
    ingest(engine, [opened("t1", "2"), opened("t2", "2")], now=MONDAY + DAY)

    with pytest.raises(PositionsOpen, match="manages 2 open positions"):
        retire_version(engine, BY, strategy_name=NAME, version="2")
    with pytest.raises(PositionsOpen):  # without a reason
        retire_version(engine, Command(OWNER, BY.now), strategy_name=NAME, version="2", orphans_to="1")

    assert get_version(engine, NAME, "2").status == Status.SHADOW
    assert managers(engine) == {"2": 2}


@pytest.mark.parametrize(("orphans_to", "left"), [("1", {"1": 1}), ("flatten", {"": 1})])
def test_a_retirement_may_say_where_its_positions_go(engine: Engine, orphans_to: str, left: dict[str, int]) -> None:
    put_versions(engine)
    ingest(engine, [opened("t1", "2")], now=MONDAY + DAY)

    retire_version(engine, BY, strategy_name=NAME, version="2", orphans_to=orphans_to)

    assert get_version(engine, NAME, "2").status == Status.RETIRED
    assert managers(engine) == left


def test_an_activation_keeps_a_version_with_positions_in_shadow(engine: Engine) -> None:
    put_versions(engine)
    ingest(engine, [opened()], now=MONDAY + DAY)

    activate_version(engine, BY, strategy_name=NAME, version="2")

    assert get_version(engine, NAME, "1").status == Status.SHADOW
    assert held_positions(engine, NAME).draining == {"1": 1}
    assert list(verify_trail(engine).problems()) == []


def test_a_trade_that_is_reported_late_brings_its_retired_version_back(engine: Engine) -> None:
    put_versions(engine)
    retire_version(engine, BY, strategy_name=NAME, version="2")

    ingest(engine, [opened("t1", "2")], now=MONDAY + 2 * DAY)

    assert get_version(engine, NAME, "2").status == Status.SHADOW
    assert managers(engine) == {"2": 1}
    assert list(verify_trail(engine).problems()) == []


def test_a_hand_over_needs_a_version_that_decides_on_the_symbols(engine: Engine) -> None:
    put_versions(engine)
    ingest(engine, [opened()], now=MONDAY + DAY)

    with pytest.raises(HandOverRefused, match="does not decide on GOLD; it decides on SILVER; allowed: 2, flatten"):
        hand_over(engine, BY, strategy_name=NAME, version="1", to_version="3")

    assert hand_over(engine, BY, strategy_name=NAME, version="1", to_version="2") == 1
    assert managers(engine) == {"2": 1}


def test_entries_beside_a_position_of_another_version_are_counted(engine: Engine) -> None:
    """Users of the canary who still hold a position of the active version cannot enter, and those of others can."""
    put_versions(engine)
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name=NAME, version="2", rollout_percent=50.0)
    users = [f"u{number}" for number in range(20)]
    of_canary = [user for user in users if in_canary(user, 5_000)]
    held = [opened(f"t-{user}", "1", user_id=user) for user in users]
    half = [{**report, "closed_at": MONDAY + 3 * HOUR, "pnl": 1.0, "risk": 1.0} for report in held[:10]]
    ingest(engine, [*held, *half], now=MONDAY + DAY)
    put_decisions(engine, *(decision_row("2", MONDAY + hour * HOUR, "buy") for hour in (0, 1, 3)))

    found = held_positions(engine, NAME, now=MONDAY + DAY).suppressed

    still = [user for user in of_canary if user not in users[:10]]
    assert found == {"1": 0, "2": len(of_canary) * 2 + len(still)}
    assert 0 < len(still) < len(of_canary)


def test_a_snapshot_marks_what_is_missing_and_lists_what_is_unknown(engine: Engine) -> None:
    put_versions(engine)
    ingest(engine, [opened("t1", size=2.0), opened("t2"), closed("t3"), opened("late", opened_at=NOON)], now=NOON)
    command, trades = Command(OWNER, NOON), [OpenTrade("t1", 0.5), OpenTrade("t3"), OpenTrade("x")]

    found = [reconcile(engine, command, strategy_name=NAME, taken_at=NOON - HOUR, trades=trades) for _ in range(2)]

    assert found[0] == Reconciled(matched=1, missing=["t2"], unknown=["x"], closed=["t3"], resized=1)
    assert (found[1].missing, found[1].resized) == (["t2"], 0)
    kept = {each.trade_id: (each.size, each.missing_since) for each in list_positions(engine, [NAME])}
    assert kept == {"t1": (0.5, None), "t2": (None, NOON - HOUR), "late": (None, None)}
    assert held_positions(engine, NAME).missing == 1
    with reading(engine) as session:
        changes = session.exec(select(PositionChange).order_by(PositionChange.trade_id)).all()
    assert [(each.trade_id, each.kind, each.before, each.after) for each in changes] == [
        ("t1", "size", "2", "0.5"),
        ("t2", "missing", "", ""),
    ]

    back = reconcile(engine, command, strategy_name=NAME, taken_at=NOON, trades=[*trades, OpenTrade("t2")])
    assert back.missing == ["late"]
    assert held_positions(engine, NAME).missing == 1


@pytest.mark.parametrize(
    ("taken_at", "trades", "why"),
    [(NOON + HOUR, [], "later than now"), (NOON, [OpenTrade("t1"), OpenTrade("t1")], "occurs twice")],
)
def test_a_snapshot_that_cannot_be_is_refused(engine: Engine, taken_at: Any, trades: Any, why: str) -> None:
    put_versions(engine)

    with pytest.raises(InvalidReport, match=why):
        reconcile(engine, Command(OWNER, NOON), strategy_name=NAME, taken_at=taken_at, trades=trades)


def test_a_snapshot_that_arrives_late_is_refused(engine: Engine) -> None:
    put_versions(engine)
    ingest(engine, [opened("t1", size=2.0)], now=NOON)
    command, newer, older = Command(OWNER, NOON), [OpenTrade("t1", 2.0)], [OpenTrade("t1", 9.0)]
    reconcile(engine, command, strategy_name=NAME, taken_at=NOON - HOUR, trades=newer)

    with pytest.raises(InvalidReport, match="the last one was taken later, 2026-03-02 11:00:00 UTC"):
        reconcile(engine, command, strategy_name=NAME, taken_at=NOON - 2 * HOUR, trades=older)

    assert [each.size for each in list_positions(engine, [NAME])] == [2.0]


@pytest.mark.parametrize("size", [-1.0, float("nan"), float("inf")])
def test_a_size_that_is_no_size_is_refused(engine: Engine, size: float) -> None:
    put_versions(engine)
    ingest(engine, [opened("t1", size=2.0)], now=NOON)
    trades = [OpenTrade("t1", size)]

    with pytest.raises(InvalidReport, match="allowed: a finite number from 0"):
        reconcile(engine, Command(OWNER, NOON), strategy_name=NAME, taken_at=NOON, trades=trades)


def test_a_trade_of_another_strategy_is_unknown_to_a_snapshot(engine: Engine) -> None:
    put_versions(engine)
    put_version(engine, "1", Status.ACTIVE, strategy_name="other")
    ingest(engine, [closed("t1", strategy_name="other")], now=MONDAY + DAY)

    found = reconcile(engine, BY, strategy_name=NAME, taken_at=NOON, trades=[OpenTrade("t1")])

    assert (found.unknown, found.closed) == (["t1"], [])


def test_a_large_snapshot_is_taken_over_in_short_transactions(engine: Engine) -> None:
    put_versions(engine)
    names = put_positions(engine, AT_ONCE + 10)

    with changes_by_transaction(engine) as changes:
        found = reconcile(
            engine, BY, strategy_name=NAME, taken_at=BY.now, trades=[OpenTrade(each, 0.5) for each in names[5:]]
        )

    assert changes == [AT_ONCE, 10]
    assert (found.matched, found.resized, found.missing) == (AT_ONCE + 5, AT_ONCE + 5, names[:5])
    assert [each.size for each in list_positions(engine, [NAME])] == [2.0] * 5 + [0.5] * (AT_ONCE + 5)


def test_many_positions_are_flattened_in_short_transactions_under_one_event(engine: Engine) -> None:
    put_versions(engine)
    put_positions(engine, AT_ONCE + 10)

    with changes_by_transaction(engine) as changes:
        assert flatten(engine, BY, strategy_name=NAME, version="1") == AT_ONCE + 10

    assert changes == [AT_ONCE, 10]
    assert {each.flatten_at for each in list_positions(engine, [NAME])} == {BY.now}
    assert [each.after["positions"] for each in events(engine, "flatten_positions")] == [AT_ONCE + 10]


def test_many_positions_are_handed_over_in_short_transactions_under_one_event(engine: Engine) -> None:
    put_versions(engine)
    put_positions(engine, AT_ONCE + 10)

    with changes_by_transaction(engine) as changes:
        assert hand_over(engine, BY, strategy_name=NAME, version="1", to_version="2") == AT_ONCE + 10

    assert changes == [AT_ONCE, 10]
    assert managers(engine) == {"2": AT_ONCE + 10}
    assert [each.after["positions"] for each in events(engine, "hand_over_positions")] == [AT_ONCE + 10]


@pytest.mark.parametrize(
    ("orphans_to", "action", "left"), [("1", "hand_over_positions", "1"), ("flatten", "flatten_positions", "")]
)
def test_a_version_with_many_positions_is_retired_in_short_transactions(
    engine: Engine, orphans_to: str, action: str, left: str
) -> None:
    put_versions(engine)
    put_positions(engine, AT_ONCE + 10, "2")
    command = replace(BY, actor=replace(OWNER, idempotency_key="once"))

    with changes_by_transaction(engine) as changes:
        retire_version(engine, command, strategy_name=NAME, version="2", orphans_to=orphans_to)

    assert changes == [AT_ONCE, 10]
    assert managers(engine) == {left: AT_ONCE + 10}
    assert get_version(engine, NAME, "2").status == Status.RETIRED
    assert [each.after["positions"] for each in events(engine, action)] == [AT_ONCE + 10]
    (retired,) = events(engine, "retire_version")
    assert (retired.after["positions"], retired.idempotency_key) == (AT_ONCE + 10, "once")
    assert list(verify_trail(engine).problems()) == []


@pytest.mark.parametrize("act", ["report", "flatten"])
def test_positions_are_locked_by_trade_id(postgresql_url: str, act: str) -> None:
    """Who waits for the first holds none of the others, so that no two wait for each other."""
    engine = open_database(postgresql_url)
    put_versions(engine)
    ingest(engine, [opened("b"), opened("a")], now=MONDAY + DAY)
    acts = {
        "report": lambda: ingest(engine, [closed("b"), closed("a")], now=MONDAY + DAY),
        "flatten": lambda: flatten(engine, BY, strategy_name=NAME, version="1"),
    }

    with ThreadPoolExecutor() as pool, engine.connect() as other:
        other.execute(text("SELECT 1 FROM position WHERE trade_id = 'a' FOR UPDATE"))
        waiting = pool.submit(acts[act])
        until_somebody_waits(engine, unless=waiting)
        other.execute(text("SELECT 1 FROM position WHERE trade_id = 'b' FOR UPDATE NOWAIT"))
        other.rollback()

        waiting.result()
    engine.dispose()


def test_a_version_that_cannot_return_stops_no_other(engine: Engine) -> None:
    for name in ("a", "b"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name, recorded=True)
        put_version(engine, "0", Status.RETIRED, strategy_name=name, recorded=True)
    with engine.begin() as connection:
        refuse_moves(connection, "a")

    ingest(engine, [opened(name, "0", strategy_name=name) for name in ("a", "b")], now=MONDAY + DAY)

    assert get_version(engine, "a", "0").status == Status.RETIRED
    assert get_version(engine, "b", "0").status == Status.SHADOW
    assert [each.trade_id for each in list_positions(engine, ["a"])] == ["a"]


def refuse_moves(connection: Connection, name: str) -> None:
    """Let the database refuse each change of the strategy's versions, as damage would."""
    when = f"strategy_version FOR EACH ROW WHEN (new.strategy_name = '{name}')"
    if connection.dialect.name == "postgresql":
        connection.execute(
            text("CREATE FUNCTION broken() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'broken'; END $$")
        )
        connection.execute(text(f"CREATE TRIGGER broken BEFORE UPDATE ON {when} EXECUTE FUNCTION broken()"))
    else:
        stop = "BEGIN SELECT RAISE(ABORT, 'broken'); END"
        connection.execute(text(f"CREATE TRIGGER broken BEFORE UPDATE ON {when} {stop}"))
