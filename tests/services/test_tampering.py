"""Whoever may drop triggers can write what he likes; the chain tells where, and a hash noted earlier tells the rest."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import Connection, Engine, text

from strategy_core.domain.audit import BEFORE_THE_FIRST, Command, event_hash, noted_heads
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.domain.ramp import Ruling, Step
from strategy_core.domain.user_exclusions import ExclusionKind
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.audit import export, verify_export, verify_trail
from strategy_core.services.canary import activate_canary, update_canary_percent
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import apply_ruling, tick
from strategy_core.services.user_exclusions import end_exclusions, exclude_users
from strategy_core.services.versions import activate_version
from strategy_core.store import audit, rollouts
from strategy_core.store.engine import open_database, reading, transaction
from tests.builders import DAY, HOUR, MONDAY, OWNER, put_day, put_version
from tests.prepared import prepared

COLUMNS = (
    'at, actor, role, source, action, strategy_name, version, rollout_id, "before", "after", reason, evidence, '
    "request_id, idempotency_key, position, previous_hash, hash"
)
Tamper = Callable[[Connection], object]


@pytest.fixture
def told(engine: Engine) -> Engine:
    """Two strategies with a trail of seven events each: fib_rsi's ids are 1, 3, 5, 7, 9, 11 and 13."""
    prepared(engine, act)
    return engine


def act(engine: Engine) -> None:
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW)):
        for name in ("fib_rsi", "ppo_gold"):
            put_version(engine, version, status, strategy_name=name, recorded=True)
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
        ("UPDATE audit_event SET reason = 'he said so' WHERE id = 9", [5]),
        ("UPDATE audit_event SET actor = 'eve' WHERE id = 5", [3]),
        ("UPDATE audit_event SET actor = 'eve' WHERE id = 13", [7]),
        ("UPDATE audit_event SET at = (SELECT at FROM audit_event WHERE id = 7) WHERE id = 9", [5]),
        ("UPDATE audit_event SET evidence = '[\"x\"]' WHERE id = 9", [5]),
        ("UPDATE audit_event SET request_id = 'r' WHERE id = 9", [5]),
        ("""UPDATE audit_event SET "before" = '{}' WHERE id = 9""", [5]),
        ("""UPDATE audit_event SET "after" = '[]' WHERE id = 9""", [5]),
        ("UPDATE audit_event SET rollout_id = '6f1b1c2e53a54d0b9a395f8f4a0c7d11' WHERE id = 9", [5]),
        ("UPDATE audit_event SET hash = previous_hash WHERE id = 9", [5, 6]),
        ("DELETE FROM audit_event WHERE id = 5", [4]),
        ("DELETE FROM audit_event WHERE id = 9", [6]),
        ("DELETE FROM audit_event WHERE id = 13", [7]),
        ("DELETE FROM audit_event WHERE strategy_name = 'fib_rsi'", [7]),
        ("UPDATE audit_event SET strategy_name = 'other' WHERE id = 13", [7]),
        ("UPDATE strategy SET generation = 6 WHERE name = 'fib_rsi'", [6]),
        ("UPDATE strategy SET audit_head = 'x' WHERE name = 'fib_rsi'", [7]),
    ],
)
def test_what_was_changed_is_found_where_it_was_changed(told: Engine, tamper: str, positions: list[int]) -> None:
    assert verify_trail(told).holds

    intrude(told, statement(tamper))

    assert [position for name, position in found(told) if name == "fib_rsi"] == positions
    assert [position for name, position in found(told) if name == "ppo_gold"] == []
    assert not verify_trail(told).holds


def test_events_of_nobody_are_a_break(told: Engine) -> None:
    intrude(told, statement("UPDATE audit_event SET strategy_name = 'other' WHERE id = 13"))

    assert ("other", 7) in found(told)


def test_two_events_that_changed_places_are_found(told: Engine) -> None:
    def swap(connection: Connection) -> None:
        for old, new in ((7, -7), (9, 7), (-7, 9)):
            connection.execute(text(f"UPDATE audit_event SET id = {new} WHERE id = {old}"))

    intrude(told, swap)

    assert found(told) == [("fib_rsi", 5), ("fib_rsi", 4), ("fib_rsi", 6)]


@pytest.mark.parametrize(("copied", "positions"), [(7, [4, 7]), (13, [7])])
def test_an_event_that_was_added_is_found(told: Engine, copied: int, positions: list[int]) -> None:
    names = f"INSERT INTO audit_event (id, {COLUMNS}) SELECT 100, {COLUMNS} FROM audit_event WHERE id = {copied}"

    intrude(told, statement(names))

    assert found(told) == [("fib_rsi", position) for position in positions]


HEAD_BEFORE_THE_LAST = "(SELECT hash FROM audit_event WHERE strategy_name = 'fib_rsi' AND position = generation - 1)"
NO_EVENT = "has no audit event that created it"
AT = "'2026-02-20 00:00:00.000000'"
OF_2 = "WHERE strategy_name = 'fib_rsi' AND version = '2'"


@pytest.mark.parametrize(
    ("forgery", "told_lines"),
    [
        pytest.param(
            [
                "DELETE FROM audit_event WHERE strategy_name = 'fib_rsi'",
                "UPDATE strategy SET generation = 0, audit_head = '' WHERE name = 'fib_rsi'",
            ],
            [
                f"strategy_version 1 {NO_EVENT}",
                f"strategy_version 2 {NO_EVENT}",
                f"canary_config fib_rsi {NO_EVENT}",
            ],
            id="an emptied trail",
        ),
        pytest.param(
            [
                f"UPDATE strategy SET audit_head = {HEAD_BEFORE_THE_LAST} WHERE name = 'fib_rsi'",
                "DELETE FROM audit_event WHERE id = 13",
                "UPDATE strategy SET generation = generation - 1 WHERE name = 'fib_rsi'",
            ],
            [
                "canary_config fib_rsi has generation 5, but its audit events leave 4",
                "canary_config fib_rsi has rollout_bp 900, but its audit events leave 800",
                "canary_config fib_rsi has asked_bp 900, but its audit events leave 800",
            ],
            id="a last event deleted with a patched head",
        ),
        pytest.param(
            [f"""UPDATE strategy_version SET config = '{{"rsi_period": 15}}' {OF_2}"""],
            ["strategy_version 2 has another config than its fingerprint was made of"],
            id="an edited config",
        ),
        pytest.param(
            [f"""UPDATE strategy_version SET config = '{{"rsi_period": true}}' {OF_2}"""],
            ["strategy_version 2 has another config than its fingerprint was made of"],
            id="a config of another type",
        ),
        pytest.param(
            [f"""UPDATE strategy_version SET fingerprint_parts = '{{}}' {OF_2}"""],
            ["strategy_version 2 has a fingerprint that is not the digest of its fingerprint_parts"],
            id="emptied parts",
        ),
        pytest.param(
            [
                """UPDATE strategy_version SET fingerprint_parts = '{}', fingerprint = """
                f"'44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a' {OF_2}"
            ],
            [
                "strategy_version 2 has fingerprint "
                "'44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a', but its audit events leave "
            ],
            id="emptied parts with their digest",
        ),
        pytest.param(
            [f"UPDATE strategy_version SET timeframe = '1d', symbols = '[\"SILVER\"]', warmup_bars = 1 {OF_2}"],
            ["strategy_version 2 has another symbols, timeframe, warmup_bars than its fingerprint was made of"],
            id="another market",
        ),
        pytest.param(
            [
                "INSERT INTO strategy_version SELECT '6f1b1c2e53a54d0b9a395f8f4a0c7d11', strategy_name, '3', 'shadow', "
                "entry_point, config, symbols, timeframe, warmup_bars, 'f', fingerprint_parts, registration_report, "
                f"created_at, activated_at, retired_at, quarantined_at FROM strategy_version {OF_2}",
            ],
            [
                f"strategy_version 3 {NO_EVENT}",
                "strategy_version 3 has a fingerprint that is not the digest of its fingerprint_parts",
            ],
            id="a version that was not registered",
        ),
        pytest.param(
            [f"DELETE FROM canary_config {OF_2}", f"DELETE FROM strategy_version {OF_2}"],
            [
                "strategy_version 2 is missing: an audit event created it",
                "canary_config fib_rsi has 0 rows, but its audit events leave one",
            ],
            id="a deleted version",
        ),
        pytest.param(
            [f"UPDATE strategy_version SET status = 'shadow' {OF_2}"],
            ["strategy_version 2 has status 'shadow', but its audit events leave 'canary'"],
            id="another status",
        ),
        pytest.param(
            [f"UPDATE strategy_version SET created_at = {AT}, quarantined_at = {AT}, activated_at = {AT} {OF_2}"],
            [
                "strategy_version 2 has created_at 2026-02-20T00:00:00+00:00, but its audit events leave "
                "2026-03-01T00:00:00+00:00",
                "strategy_version 2 has activated_at 2026-02-20T00:00:00+00:00, but its audit events leave None",
                "strategy_version 2 has quarantined_at 2026-02-20T00:00:00+00:00, but its audit events leave None",
            ],
            id="other times",
        ),
        pytest.param(
            [f"UPDATE canary_config SET rollout_bp = 9000 {OF_2}"],
            ["canary_config fib_rsi has rollout_bp 9000, but its audit events leave 900"],
            id="a raised share",
        ),
        pytest.param(
            [f"UPDATE canary_config SET version = '1', started_at = {AT}, salt = 'x' {OF_2}"],
            [
                "canary_config fib_rsi has version '1', but its audit events leave '2'",
                "canary_config fib_rsi has started_at 2026-02-20T00:00:00+00:00, but its audit events leave "
                "2026-03-02T00:00:00+00:00",
                "canary_config fib_rsi has salt 'x', but its audit events leave ''",
            ],
            id="another canary",
        ),
        pytest.param(
            ["UPDATE strategy SET salt = 'x' WHERE name = 'fib_rsi'", f"UPDATE canary_config SET salt = 'x' {OF_2}"],
            ["strategy fib_rsi has salt 'x', but its audit events leave ''"],
            id="other users",
        ),
        pytest.param(
            ["""UPDATE strategy SET scoring = '{"cost": 9}' WHERE name = 'fib_rsi'"""],
            ["strategy fib_rsi has scoring "],
            id="another scoring",
        ),
    ],
)
def test_a_row_that_does_not_follow_from_its_events_is_found(
    told: Engine, forgery: list[str], told_lines: list[str]
) -> None:
    def forge(connection: Connection) -> None:
        for each in forgery:
            connection.execute(text(each))

    intrude(told, forge)

    fib_rsi, ppo_gold = verify_trail(told).trails
    lines = list(fib_rsi.problems())
    assert len(lines) == len(told_lines)
    for line, begins in zip(lines, told_lines, strict=True):
        assert line.startswith(f"fib_rsi: {begins}")
        assert line.endswith((". Compare it with a backup, and find out who wrote to the database", "new version"))
    assert ppo_gold.holds
    assert not verify_trail(told).holds


@pytest.mark.parametrize(
    ("column", "forged", "problem"),
    [
        ("state", "'running'", "has state 'running', but its audit events leave 'awaiting_approval'"),
        ("stage_index", "1", "has stage_index 1, but its audit events leave 0"),
        ("approved_stage", "1", "has approved_stage 1, but its audit events leave 0 or None"),
        ("generation", "9", "has generation 9, but its audit events leave 2"),
        ("control_version", "'3'", "has control_version '3', but its audit events leave '1'"),
        ("version", "'3'", "has version '3', but its audit events leave '2'"),
        (
            "stage_entered_at",
            AT,
            "has stage_entered_at 2026-02-20T00:00:00+00:00, but its audit events leave 2026-03-02",
        ),
        ("stage_extended_at", AT, "has stage_extended_at 2026-02-20T00:00:00+00:00, but its audit events leave"),
        ("started_at", AT, "has started_at 2026-02-20T00:00:00+00:00, but its audit events leave 2026-03-02"),
        ("promoted_at", AT, "has promoted_at 2026-02-20T00:00:00+00:00, but its audit events leave None"),
        ("plan", "'{}'", "has plan '44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a', but"),
    ],
)
def test_a_rollout_that_does_not_follow_from_its_events_is_found(
    engine: Engine, column: str, forged: str, problem: str
) -> None:
    for version, status in (("1", Status.ACTIVE), ("2", Status.SHADOW), ("3", Status.SHADOW)):
        put_version(engine, version, status, recorded=True)
    rollout = start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    with transaction(engine) as session:
        waiting = rollouts.get_rollout(session, rollout.id)
        ruling = Ruling(Step.AWAIT_APPROVAL, "every gate passes")
        apply_ruling(session, waiting, Plan(), ruling, Command(OWNER, MONDAY + HOUR))
    assert verify_trail(engine).holds

    intrude(engine, statement(f"UPDATE rollout SET {column} = {forged}"))

    ((line,),) = (list(trail.problems()) for trail in verify_trail(engine).trails)
    assert line.startswith(f"fib_rsi: rollout {rollout.id} {problem}")


def test_a_deleted_rollout_is_found(told: Engine) -> None:
    roll_back(told, Command(OWNER, MONDAY + DAY, "no"), strategy_name="fib_rsi")
    started = Command(OWNER, MONDAY + DAY, override_reason="again")
    rollout = start_rollout(told, started, strategy_name="fib_rsi", version="2", plan=Plan())
    roll_back(told, Command(OWNER, MONDAY + DAY, "no"), strategy_name="fib_rsi")
    assert verify_trail(told).holds

    intrude(
        told, lambda connection: [connection.execute(text(f"DELETE FROM {t}")) for t in ("rollout_book", "rollout")]
    )

    ((line,), _) = (list(trail.problems()) for trail in verify_trail(told).trails)
    assert line.startswith(f"fib_rsi: rollout {rollout.id} is missing: an audit event created it")


def test_deleted_evidence_of_a_rollback_is_found(engine: Engine, market: SyntheticSource) -> None:
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    for day in range(5):
        put_day(
            engine,
            MONDAY + day * DAY,
            {"1": "buy", "2": "buy"},
            {"1": 0.4, "2": -1.0},
            signal_hours=range(0, 20, 2),
        )
        tick(engine, market, now=MONDAY + (day + 1) * DAY)
    assert verify_trail(engine).holds

    intrude(engine, statement("DELETE FROM gate_verdict WHERE gate = 'harm'"))

    ((line,),) = (list(trail.problems()) for trail in verify_trail(engine).trails)
    assert line.startswith("fib_rsi: gate_verdict ")
    assert " is missing: event 4 rests on it. " in line


def test_two_active_versions_are_found_where_their_index_was_dropped(told: Engine) -> None:
    def forge(connection: Connection) -> None:
        connection.execute(text("DROP INDEX one_active_per_strategy"))
        connection.execute(text(f"UPDATE strategy_version SET status = 'active', activated_at = {AT} {OF_2}"))

    intrude(told, forge)

    lines = list(verify_trail(told).trails[0].problems())
    assert lines[0].startswith("fib_rsi: strategy_version 2 has status 'active', but its audit events leave 'canary'")


@pytest.mark.parametrize("table", ["strategy_version", "strategy"])
def test_a_row_that_cannot_be_read_is_found(sqlite_url: str, table: str) -> None:
    """PostgreSQL keeps no such thing."""
    engine = open_database(sqlite_url)
    put_version(engine, "1", recorded=True)
    column = "config" if table == "strategy_version" else "scoring"
    intrude(engine, statement(f"UPDATE {table} SET {column} = 'no JSON'"))

    (trail,) = verify_trail(engine).trails

    assert [(each.table, each.problem.partition(":")[0]) for each in trail.mismatches] == [(table, "cannot be read")]
    engine.dispose()


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
        connection.execute(text("DELETE FROM audit_event WHERE id = 13"))
        connection.execute(
            text(
                "UPDATE strategy SET generation = 6, audit_head = (SELECT hash FROM audit_event WHERE id = 11) "
                "WHERE name = 'fib_rsi'"
            )
        )
        connection.execute(
            text(
                "UPDATE canary_config SET rollout_bp = 800, asked_bp = 800, generation = 4 "
                "WHERE strategy_name = 'fib_rsi'"
            )
        )

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
    put_version(engine, "1", recorded=True)
    activate_version(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="1")
    intrude(engine, statement("""UPDATE audit_event SET "after" = 'no JSON' WHERE position = 2"""))

    (trail,) = verify_trail(engine).trails

    assert [each.position for each in trail.breaks] == [1]
    assert trail.breaks[0].problem.startswith("or a later one cannot be read: ")
    engine.dispose()


def test_an_export_is_verified_without_its_database(told: Engine) -> None:
    lines = list(export(told))
    forged = [line.replace('"so"', '"no"') if '"position":5' in line and "fib_rsi" in line else line for line in lines]

    whole, changed, short = verify_export(lines), verify_export(forged), verify_export([*lines[:8], *lines[10:]])

    assert [(trail.count, trail.breaks) for trail in whole] == [(7, []), (7, [])]
    assert [trail.head for trail in whole] == [trail.head for trail in verify_trail(told).trails]
    assert [[each.position for each in trail.breaks] for trail in changed] == [[5], []]
    assert [[each.position for each in trail.breaks] for trail in short] == [[6], [6]]


def rewrite(connection: Connection) -> None:
    """Change a reason and compute every later hash anew, as software that can read this could."""
    engine = connection.engine
    with reading(engine) as session:
        events = audit.events(session, "fib_rsi")
    previous = BEFORE_THE_FIRST
    for event in events:
        if event.position == 4:
            event.reason = "he said so"
        event.previous_hash = previous
        previous = event_hash(previous, audit.link_of(event).facts)
        connection.execute(
            text("UPDATE audit_event SET reason = :reason, previous_hash = :before, hash = :hash WHERE id = :id"),
            {"reason": event.reason, "before": event.previous_hash, "hash": previous, "id": event.id},
        )
    connection.execute(text("UPDATE strategy SET audit_head = :head WHERE name = 'fib_rsi'"), {"head": previous})


@pytest.fixture
def excluded(told: Engine) -> Engine:
    """Exclusions of fib_rsi and of all strategies: set, ended, run out and set anew."""

    def exclude(
        strategy: str, kind: ExclusionKind, *users: str, after: timedelta, until: datetime | None = None
    ) -> None:
        command = Command(OWNER, MONDAY + DAY + after, "asked")
        exclude_users(told, command, strategy_name=strategy, user_ids=users, kind=kind, until=until)

    exclude("fib_rsi", ExclusionKind.NEVER, "u1", "u2", after=HOUR)
    exclude("fib_rsi", ExclusionKind.ALWAYS, "u3", after=2 * HOUR, until=MONDAY + DAY + 4 * HOUR)
    exclude("*", ExclusionKind.OPT_OUT, "u4", "u5", after=3 * HOUR)
    ended = Command(OWNER, MONDAY + DAY + 5 * HOUR, "asked")
    end_exclusions(told, ended, strategy_name="*", user_ids=["u4"])
    end_exclusions(told, ended, strategy_name="fib_rsi", user_ids=["u1", "u3"])
    exclude("fib_rsi", ExclusionKind.ALWAYS, "u3", after=6 * HOUR)
    exclude("*", ExclusionKind.OPT_OUT, "u4", after=6 * HOUR)
    return told


NEW_ROW = (
    "INSERT INTO canary_exclusion (id, strategy_name, user_id, kind, valid_from, reason, actor) "
    f"VALUES (99, '{{}}', 'u9', 'always', {AT}, 'x', 'eve')"
)


@pytest.mark.parametrize(
    ("forgery", "line"),
    [
        (
            "DELETE FROM canary_exclusion WHERE user_id = 'u2'",
            "fib_rsi: canary_exclusion (never of u2) is missing: an audit event set it",
        ),
        (
            "UPDATE canary_exclusion SET kind = 'always' WHERE user_id = 'u2'",
            "fib_rsi: canary_exclusion 2 (always of u2) has no audit event that set it",
        ),
        (
            "UPDATE canary_exclusion SET valid_to = valid_from WHERE user_id = 'u2'",
            "fib_rsi: canary_exclusion 2 (never of u2) has valid_to 2026-03-03T01:00:00+00:00, but its audit events "
            "leave None",
        ),
        (
            "UPDATE canary_exclusion SET valid_to = NULL WHERE user_id = 'u1'",
            "fib_rsi: canary_exclusion 1 (never of u1) has valid_to None, but its audit events leave 2026-03-03T05",
        ),
        (
            "UPDATE canary_exclusion SET until = NULL WHERE id = 3",
            "fib_rsi: canary_exclusion 3 (always of u3) has until None, but its audit events leave 2026-03-03T04",
        ),
        (
            "UPDATE canary_exclusion SET actor = 'eve' WHERE user_id = 'u2'",
            "fib_rsi: canary_exclusion 2 (never of u2) has actor 'eve', but its audit events leave 'ana'",
        ),
        (
            "UPDATE canary_exclusion SET user_id = 'u7' WHERE user_id = 'u5'",
            "all strategies: canary_exclusion 5 (opt_out of u7) has no audit event that set it",
        ),
        (
            "DELETE FROM canary_exclusion WHERE user_id = 'u5'",
            "all strategies: canary_exclusion (opt_out of u5) is missing: an audit event set it",
        ),
        (NEW_ROW.format("*"), "all strategies: canary_exclusion 99 (always of u9) has no audit event that set it"),
        (NEW_ROW.format("ppo_gold"), "ppo_gold: canary_exclusion 99 (always of u9) has no audit event that set it"),
    ],
)
def test_an_exclusion_that_does_not_follow_from_its_events_is_found(excluded: Engine, forgery: str, line: str) -> None:
    assert verify_trail(excluded).holds
    assert verify_trail(excluded, "fib_rsi").holds

    intrude(excluded, statement(forgery))

    verified = verify_trail(excluded)
    assert not verified.holds
    assert next(verified.problems()).startswith(line)


def test_exclusions_without_a_trail_are_counted_when_they_are_many(excluded: Engine) -> None:
    def forge(connection: Connection) -> None:
        for number in range(100, 125):
            connection.execute(text(NEW_ROW.format("fib_rsi").replace("99", str(number)).replace("u9", f"u{number}")))

    intrude(excluded, forge)

    lines = list(verify_trail(excluded).problems())
    assert len(lines) == 21
    assert lines[-1].startswith("fib_rsi: canary_exclusion of fib_rsi and 5 more do not follow from its audit events")
