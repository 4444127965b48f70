"""A platform gets each signal of a serving version once, in an order that it can continue from."""

import itertools
import random
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlmodel import Session, select

from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidName, InvariantRefused, SignalCursorLost, UnknownStrategy
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.signals import Signal
from strategy_core.services.canary import activate_canary
from strategy_core.services.queries import Scope
from strategy_core.services.rollback import roll_back
from strategy_core.services.signals import drop_signals, publish_signals, read_signals
from strategy_core.services.versions import activate_version
from strategy_core.store import decisions
from strategy_core.store.engine import reading, transaction
from strategy_core.store.tables import SignalHead
from tests.builders import DAY, HOUR, MONDAY, OWNER, decision_row, put_decisions, put_version

ALL = Scope()


@pytest.fixture
def canary(engine: Engine) -> Engine:
    """Version 1 is active, version 2 the canary of a tenth of the users, version 3 in shadow."""
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    put_version(engine, "3")
    activate_canary(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", rollout_percent=10)
    return engine


ROLES = {"1": "active", "2": "canary", "3": "shadow"}


def signal_row(version: str, hour: int, decision: str = "buy", **changes: Any) -> dict[str, Any]:
    at = MONDAY + hour * HOUR
    return decision_row(version, at, decision, **changes) | {"role": ROLES[version], "logged_at": at + HOUR}


def put_signals(engine: Engine, *rows: dict[str, Any]) -> None:
    put_decisions(engine, *rows)
    publish_signals(engine)


def keys(signals: list[Signal]) -> list[tuple[str, float]]:
    return [(each.version, (each.candle - MONDAY) / HOUR) for each in signals]


def read_all(engine: Engine, since: str | None = None) -> Iterator[Signal]:
    while page := read_signals(engine, since=since, limit=2):
        yield from page.items
        if not page.more:
            return
        since = page.cursor


def test_signals_of_serving_versions_are_handed_out_by_candle(canary: Engine) -> None:
    put_signals(canary, signal_row("2", 1, "sell"), signal_row("1", 1), signal_row("1", 0), signal_row("3", 0))
    put_signals(canary, signal_row("1", 2, "hold"))

    page = read_signals(canary)

    assert keys(page.items) == [("1", 0), ("1", 1), ("2", 1)]
    assert page.more is False
    assert page.cursor == page.items[-1].cursor
    last = page.items[-1]
    assert (last.role, last.action, last.intent, last.confidence, last.risk_scale) == ("canary", "sell", "open", 0.5, 1)
    assert (last.candle, last.closed_at, last.valid_until) == (MONDAY + HOUR, MONDAY + 2 * HOUR, MONDAY + 3 * HOUR)


def test_a_reader_continues_behind_its_cursor(canary: Engine) -> None:
    put_signals(canary, *(signal_row("1", hour) for hour in range(5)))

    first = read_signals(canary, limit=2)
    second = read_signals(canary, since=first.cursor, limit=2)
    after_one = read_signals(canary, since=first.items[0].cursor)

    assert (keys(first.items), first.more) == ([("1", 0), ("1", 1)], True)
    assert keys(second.items) == [("1", 2), ("1", 3)]
    assert keys(after_one.items) == [("1", 1), ("1", 2), ("1", 3), ("1", 4)]
    assert read_signals(canary, since=after_one.cursor).items == []


def test_a_signal_logged_late_comes_after_those_that_were_read(canary: Engine) -> None:
    put_signals(canary, signal_row("1", 8))
    cursor = read_signals(canary).cursor

    put_signals(canary, signal_row("1", 3), signal_row("1", 8))  # the second is logged already

    late = read_signals(canary, since=cursor).items
    assert keys(late) == [("1", 3)]
    assert not late[0].may_enter(MONDAY + 9 * HOUR)


def test_a_signal_is_entered_on_until_the_next_candle_closes(canary: Engine) -> None:
    put_signals(canary, signal_row("1", 0))

    (signal,) = read_signals(canary).items

    second = timedelta(seconds=1)
    assert [signal.may_enter(MONDAY + HOUR + after) for after in (-second, 0 * second, HOUR - second, HOUR)] == [
        *(True, True),  # a slow clock loses no signal
        *(True, False),
    ]


def test_after_a_rollback_no_signal_of_the_canary_is_handed_out_as_one(canary: Engine) -> None:
    put_signals(canary, signal_row("1", 0), signal_row("2", 0))
    put_decisions(canary, signal_row("2", 1))  # logged before the rollback, numbered after it

    roll_back(canary, Command(OWNER, MONDAY + HOUR, "odd fills"), strategy_name="fib_rsi")
    put_signals(canary, signal_row("2", 2))  # of a run that began before the rollback

    found = read_signals(canary).items
    assert [(each.version, each.role) for each in found] == [("1", "active"), *[("2", "withdrawn")] * 3]
    for signal in found[1:]:
        assert signal.valid_until == signal.closed_at
        assert not any(signal.may_enter(signal.candle + hours * HOUR) for hours in range(4))


def test_a_promotion_withdraws_the_predecessors_signals(canary: Engine) -> None:
    put_signals(canary, signal_row("1", 0), signal_row("2", 0))

    activate_version(canary, Command(OWNER, MONDAY + HOUR), strategy_name="fib_rsi", version="2")

    assert [(each.version, each.role) for each in read_signals(canary).items] == [("1", "withdrawn"), ("2", "active")]


def test_one_strategys_reader_moves_past_the_others(canary: Engine) -> None:
    put_version(canary, "1", Status.ACTIVE, strategy_name="ppo_gold")
    put_signals(canary, signal_row("1", 0), signal_row("1", 0, strategy_name="ppo_gold"), signal_row("1", 1))

    gold = read_signals(canary, Scope("ppo_gold"))

    assert [each.strategy_name for each in gold.items] == ["ppo_gold"]
    assert gold.cursor == read_signals(canary).cursor
    assert [each.strategy_name for each in read_signals(canary, Scope(strategies=["ppo_gold"])).items] == ["ppo_gold"]
    with pytest.raises(UnknownStrategy):
        read_signals(canary, Scope("nobodys"))


def test_signals_that_a_killed_run_left_without_a_number_are_numbered_by_the_next(canary: Engine) -> None:
    put_decisions(canary, signal_row("1", 0), signal_row("2", 0))  # the run was killed here
    assert read_signals(canary).items == []

    put_signals(canary, signal_row("1", 1))

    assert keys(read_signals(canary).items) == [("1", 0), ("2", 0), ("1", 1)]


def test_a_cursor_before_the_first_signal_misses_none(canary: Engine) -> None:
    empty = read_signals(canary)

    put_signals(canary, signal_row("1", 0))

    assert empty.items == []
    assert keys(read_signals(canary, since=empty.cursor).items) == [("1", 0)]


def test_a_cursor_behind_what_is_kept_is_refused(canary: Engine) -> None:
    put_signals(canary, *(signal_row("1", hour) for hour in range(5)))
    found = read_signals(canary).items

    dropped = drop_signals(canary, MONDAY + 3 * HOUR)

    assert dropped == 3
    assert keys(read_signals(canary).items) == [("1", 3), ("1", 4)]
    assert keys(read_signals(canary, since=found[3].cursor).items) == [("1", 4)]
    with pytest.raises(SignalCursorLost, match="not kept any more"):
        read_signals(canary, since=found[0].cursor)


def test_the_newest_signal_stays_for_those_who_have_read_all(canary: Engine) -> None:
    put_signals(canary, *(signal_row("1", hour) for hour in range(3)))
    cursor = read_signals(canary).cursor

    drop_signals(canary, MONDAY + DAY)
    put_signals(canary, signal_row("1", 5))

    assert keys(read_signals(canary, since=cursor).items) == [("1", 5)]


def test_a_cursor_of_a_database_that_was_restored_is_refused(canary: Engine) -> None:
    put_signals(canary, signal_row("1", 0))
    cursor = read_signals(canary).cursor
    number, _, _ = cursor.partition("-")

    with pytest.raises(SignalCursorLost, match="another history"):
        read_signals(canary, since=f"{number}-00000000")
    with pytest.raises(SignalCursorLost, match="another history"):
        read_signals(canary, since=cursor.replace(number, "9"))


@pytest.mark.parametrize("since", ["", "7", "x", "-1-00000000", "1-0000000g", "01-00000000", "9" * 19 + "-00000000"])
def test_what_is_no_cursor_is_named(canary: Engine, since: str) -> None:
    with pytest.raises(InvalidName, match="cursor"):
        read_signals(canary, since=since)


@pytest.mark.parametrize("change", ["number = 9", "decision = 'sell'", "version = '2'"])
def test_a_signal_that_was_handed_out_is_not_changed(canary: Engine, change: str) -> None:
    put_signals(canary, signal_row("1", 0))

    with pytest.raises(InvariantRefused, match="a signal is"), transaction(canary) as session:
        session.connection().execute(text(f"UPDATE signal SET {change}"))


def test_neither_decisions_nor_a_rollback_wait_for_the_numbering(canary: Engine) -> None:
    """Another process has stopped in the middle of its numbering. On SQLite it would hold the only write lock."""
    if canary.dialect.name == "sqlite":
        return
    put_signals(canary, signal_row("1", 5))
    with Session(canary) as stuck:
        stuck.exec(select(SignalHead).with_for_update()).one()

        put_decisions(canary, signal_row("1", 0), signal_row("2", 0))
        rolled_back = roll_back(canary, Command(OWNER, MONDAY + HOUR, "odd fills"), strategy_name="fib_rsi")
        publish_signals(canary)  # gives up

    assert rolled_back == "2"
    assert keys(read_signals(canary).items) == [("1", 5)]
    publish_signals(canary)
    assert keys(read_signals(canary).items) == [("1", 5), ("1", 0), ("2", 0)]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_order_of_commits_each_signal_is_read_once(canary: Engine, seed: int) -> None:
    """Runs of several machines log, commit in any order and are cut off; readers stop, and go on from their cursors."""
    if canary.dialect.name == "sqlite":
        return  # has one writer at a time, so its commits are in order
    draw = random.Random(seed)
    hours = iter(draw.sample(range(200), 200))
    machines = itertools.count()
    committed: set[tuple[str, float]] = set()
    seen: list[tuple[str, float]] = []
    numbers: list[int] = []
    cursor: str | None = None
    running: list[tuple[ExitStack, Session, list[dict[str, Any]]]] = []

    def begin() -> None:
        stack = ExitStack()
        session = stack.enter_context(Session(canary))
        own = f"SYMBOL{next(machines)}"
        rows = [signal_row(draw.choice("12"), next(hours), symbol=own) for _ in range(draw.randint(1, 3))]
        decisions.log_decisions(session, rows)
        running.append((stack, session, rows))

    def end() -> None:
        stack, session, rows = running.pop(draw.randrange(len(running)))
        if draw.random() < 0.8:
            session.commit()
            committed.update((row["version"], (row["timestamp"] - MONDAY) / HOUR) for row in rows)
        stack.close()

    def read() -> None:
        nonlocal cursor
        page = read_signals(canary, since=cursor, limit=draw.randint(1, 4))
        handled = page.items[: draw.randint(0, len(page.items))]  # killed after some of them
        seen.extend(keys(handled))
        numbers.extend(int(each.cursor.partition("-")[0]) for each in handled)
        cursor = handled[-1].cursor if handled else cursor

    for _ in range(80):
        step = draw.random()
        if step < 0.35 and len(running) < 5:
            begin()
        elif step < 0.6 and running:
            end()
        elif step < 0.8:
            publish_signals(canary)
        else:
            read()
    while running:
        end()
    publish_signals(canary)
    seen += keys(list(read_all(canary, cursor)))

    assert len(seen) == len(committed)
    assert set(seen) == committed
    assert numbers == sorted(set(numbers))


def test_a_failure_to_number_leaves_the_decisions_in_place(canary: Engine) -> None:
    with transaction(canary) as session:
        session.connection().execute(text("ALTER TABLE signal_head RENAME TO elsewhere"))
    put_decisions(canary, signal_row("1", 0))

    publish_signals(canary)

    with transaction(canary) as session:
        session.connection().execute(text("ALTER TABLE elsewhere RENAME TO signal_head"))
    publish_signals(canary)
    assert keys(read_signals(canary).items) == [("1", 0)]
    with reading(canary) as session:
        assert len(decisions.find_decisions(session, "fib_rsi", "1")) == 1
