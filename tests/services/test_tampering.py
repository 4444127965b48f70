"""Whoever may drop triggers can write what he likes; the chain tells where, and a hash noted earlier tells the rest."""

from collections.abc import Callable

import pytest
from sqlalchemy import Connection, Engine, text

from strategy_core.domain.audit import BEFORE_THE_FIRST, Command, event_hash, noted_heads
from strategy_core.domain.lifecycle import Status
from strategy_core.services.audit import export, verify_export, verify_trail
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.versions import activate_version
from strategy_core.store import audit
from strategy_core.store.engine import open_database, reading
from tests.builders import HOUR, MONDAY, OWNER, put_version
from tests.prepared import prepared

COLUMNS = (
    'at, actor, role, source, action, strategy_name, version, rollout_id, "before", "after", reason, evidence, '
    "request_id, idempotency_key, position, previous_hash, hash"
)
Tamper = Callable[[Connection], object]


@pytest.fixture
def told(engine: Engine) -> Engine:
    """Two strategies with a trail of five events each: fib_rsi's ids are 1, 3, 5, 7 and 9."""
    prepared(engine, act)
    return engine


def act(engine: Engine) -> None:
    for name in ("fib_rsi", "ppo_gold"):
        put_version(engine, "1", Status.ACTIVE, strategy_name=name)
        put_version(engine, "2", strategy_name=name)
    for number in range(5):
        for name in ("fib_rsi", "ppo_gold"):
            if number == 0:
                activate_canary(
                    engine,
                    Command(OWNER, MONDAY + number * HOUR, "so"),
                    strategy_name=name,
                    version="2",
                    rollout_percent=5,
                )
            else:
                update_canary_percent(
                    engine, Command(OWNER, MONDAY + number * HOUR, "so"), strategy_name=name, percent=5 + number
                )


def intrude(engine: Engine, tamper: Tamper) -> None:
    """Write past the triggers, as one who owns the database can."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for (name,) in connection.execute(text(triggers)).all():
                connection.execute(text(f"DROP TRIGGER {name}"))
        tamper(connection)


def statement(sql: str) -> Tamper:
    return lambda connection: connection.execute(text(sql))


def found(engine: Engine) -> list[tuple[str, int]]:
    return [(trail.strategy_name, each.position) for trail in verify_trail(engine).trails for each in trail.breaks]


@pytest.mark.parametrize(
    ("tamper", "positions"),
    [
        ("UPDATE audit_event SET reason = 'he said so' WHERE id = 5", [3]),
        ("UPDATE audit_event SET actor = 'eve' WHERE id = 1", [1]),
        ("UPDATE audit_event SET actor = 'eve' WHERE id = 9", [5]),
        ("UPDATE audit_event SET at = (SELECT at FROM audit_event WHERE id = 3) WHERE id = 5", [3]),
        ("UPDATE audit_event SET evidence = '[\"x\"]' WHERE id = 5", [3]),
        ("UPDATE audit_event SET request_id = 'r' WHERE id = 5", [3]),
        ("""UPDATE audit_event SET "before" = '{}' WHERE id = 5""", [3]),
        ("""UPDATE audit_event SET "after" = '[]' WHERE id = 5""", [3]),
        ("UPDATE audit_event SET rollout_id = '6f1b1c2e53a54d0b9a395f8f4a0c7d11' WHERE id = 5", [3]),
        ("UPDATE audit_event SET hash = previous_hash WHERE id = 5", [3, 4]),
        ("DELETE FROM audit_event WHERE id = 1", [2]),
        ("DELETE FROM audit_event WHERE id = 5", [4]),
        ("DELETE FROM audit_event WHERE id = 9", [5]),
        ("DELETE FROM audit_event WHERE strategy_name = 'fib_rsi'", [5]),
        ("UPDATE audit_event SET strategy_name = 'other' WHERE id = 9", [5]),
        ("UPDATE strategy SET generation = 4 WHERE name = 'fib_rsi'", [4]),
        ("UPDATE strategy SET audit_head = 'x' WHERE name = 'fib_rsi'", [5]),
        ("UPDATE canary_config SET rollout_bp = 9000 WHERE strategy_name = 'fib_rsi'", [5]),
        ("UPDATE strategy_version SET status = 'shadow' WHERE strategy_name = 'fib_rsi' AND version = '2'", [5]),
    ],
)
def test_what_was_changed_is_found_where_it_was_changed(told: Engine, tamper: str, positions: list[int]) -> None:
    assert verify_trail(told).holds

    intrude(told, statement(tamper))

    assert [position for name, position in found(told) if name == "fib_rsi"] == positions
    assert [position for name, position in found(told) if name == "ppo_gold"] == []
    assert not verify_trail(told).holds


def test_events_of_nobody_are_a_break(told: Engine) -> None:
    intrude(told, statement("UPDATE audit_event SET strategy_name = 'other' WHERE id = 9"))

    assert ("other", 5) in found(told)


def test_two_events_that_changed_places_are_found(told: Engine) -> None:
    def swap(connection: Connection) -> None:
        for old, new in ((3, -3), (5, 3), (-3, 5)):
            connection.execute(text(f"UPDATE audit_event SET id = {new} WHERE id = {old}"))

    intrude(told, swap)

    assert found(told) == [("fib_rsi", 3), ("fib_rsi", 2), ("fib_rsi", 4)]


@pytest.mark.parametrize(("copied", "positions"), [(3, [2, 5]), (9, [5])])
def test_an_event_that_was_added_is_found(told: Engine, copied: int, positions: list[int]) -> None:
    names = f"INSERT INTO audit_event (id, {COLUMNS}) SELECT 100, {COLUMNS} FROM audit_event WHERE id = {copied}"

    intrude(told, statement(names))

    assert found(told) == [("fib_rsi", position) for position in positions]


def test_a_chain_rewritten_whole_holds_but_lacks_what_was_noted(told: Engine) -> None:
    """No hash protects against one who can compute them all anew: a copy that he cannot reach does."""
    noted = list(export(told))
    heads = {trail.strategy_name: trail.head for trail in verify_trail(told).trails}

    intrude(told, rewrite)

    assert verify_trail(told).holds
    alone = verify_trail(told, known_heads=[heads["fib_rsi"].upper(), f" {heads['ppo_gold']}\n"])
    assert (alone.holds, alone.missing) == (False, (heads["fib_rsi"],))
    by_export = verify_trail(told, known_heads=noted_heads(noted))
    assert (by_export.holds, by_export.missing) == (False, (heads["fib_rsi"],))


def test_a_trail_cut_short_with_its_strategys_row_is_found_by_what_was_noted(told: Engine) -> None:
    (head,) = (trail.head for trail in verify_trail(told, "fib_rsi").trails)

    def cut(connection: Connection) -> None:
        connection.execute(text("DELETE FROM audit_event WHERE id = 9"))
        connection.execute(
            text(
                "UPDATE strategy SET generation = 4, audit_head = (SELECT hash FROM audit_event WHERE id = 7) "
                "WHERE name = 'fib_rsi'"
            )
        )
        connection.execute(text("UPDATE canary_config SET rollout_bp = 800 WHERE strategy_name = 'fib_rsi'"))

    intrude(told, cut)

    assert verify_trail(told).holds
    assert verify_trail(told, known_heads=[head]).missing == (head,)


def test_what_was_noted_stands_while_the_trail_grows(told: Engine) -> None:
    noted = list(export(told))

    activate_version(told, Command(OWNER, MONDAY + 9 * HOUR), strategy_name="fib_rsi", version="2")

    assert verify_trail(told, known_heads=noted_heads(noted)).holds
    assert verify_trail(told, "fib_rsi", noted_heads(noted, "fib_rsi")).holds


def test_an_event_that_cannot_be_read_is_a_break_and_no_fault(sqlite_url: str) -> None:
    """PostgreSQL keeps no such thing; SQLite keeps any text."""
    engine = open_database(sqlite_url)
    put_version(engine, "1")
    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")
    intrude(engine, statement("""UPDATE audit_event SET "after" = 'no JSON'"""))

    (trail,) = verify_trail(engine).trails

    assert [each.position for each in trail.breaks] == [1]
    assert trail.breaks[0].problem.startswith("cannot be read: ")
    engine.dispose()


def test_an_export_is_verified_without_its_database(told: Engine) -> None:
    lines = list(export(told))
    forged = [line.replace('"so"', '"no"') if '"position":3' in line and "fib_rsi" in line else line for line in lines]

    whole, changed, short = verify_export(lines), verify_export(forged), verify_export([*lines[:4], *lines[6:]])

    assert [(trail.count, trail.breaks) for trail in whole] == [(5, []), (5, [])]
    assert [trail.head for trail in whole] == [trail.head for trail in verify_trail(told).trails]
    assert [[each.position for each in trail.breaks] for trail in changed] == [[3], []]
    assert [[each.position for each in trail.breaks] for trail in short] == [[4], [4]]


def rewrite(connection: Connection) -> None:
    """Change a reason and compute every later hash anew, as software that can read this could."""
    engine = connection.engine
    with reading(engine) as session:
        events = audit.events(session, "fib_rsi")
    previous = BEFORE_THE_FIRST
    for event in events:
        if event.position == 2:
            event.reason = "he said so"
        event.previous_hash = previous
        previous = event_hash(previous, audit.link_of(event).facts)
        connection.execute(
            text("UPDATE audit_event SET reason = :reason, previous_hash = :before, hash = :hash WHERE id = :id"),
            {"reason": event.reason, "before": event.previous_hash, "hash": previous, "id": event.id},
        )
    connection.execute(text("UPDATE strategy SET audit_head = :head WHERE name = 'fib_rsi'"), {"head": previous})
