"""Upgrades that meet: two at once, one that meets a newer schema, one that meets a busy table."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, Table, column, insert, table, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlmodel import Session, SQLModel

from strategy_core.cli import main
from strategy_core.domain.errors import SchemaOutdated
from strategy_core.services.maintenance import check_database
from strategy_core.store import engine as store
from strategy_core.store.engine import check_schema, open_database, transaction, upgrade
from tests.builders import MONDAY, decision_row, put_version
from tests.lending import address
from tests.waiting import until_somebody_waits

LOCKED = "SELECT name FROM strategy FOR UPDATE"
AUDITED = (
    "INSERT INTO audit_event (at, actor, role, source, action, strategy_name, version, before, after, reason, "
    "position, previous_hash, hash) VALUES ('2026-03-02', 'o', 'owner', 'cli', 'roll_back', 'fib_rsi', '2', "
    f"""'{{"active": "1"}}', '{{"active": "2"}}', '', 1, '{"0" * 64}', 'head')"""
)
DECISIONS: Table = SQLModel.metadata.tables["shadow_decision_log"]
COUNTED = "UPDATE strategy SET generation = 1, audit_head = 'head'"
ALERTED = (
    "INSERT INTO alert_outbox (at, severity, kind, strategy_name, text, facts, dedupe_key) "
    "VALUES ('2026-03-02', 'critical', 'rollout.rolled_back', 'fib_rsi', '', '{}', 'new')"
)
TALLIES = "SELECT what, name, total FROM tally ORDER BY what"
UPGRADE = [sys.executable, "-m", "strategy_core.cli", "db", "upgrade", "--database-url"]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Engine) -> Iterator[str]:
    """The address of an empty database, on SQLite of a missing file."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
        return
    with new_database(postgresql) as url:
        yield url


@pytest.fixture
def new_postgresql(postgresql: Engine) -> Iterator[Engine]:
    with new_database(postgresql) as url:
        engine = open_database(url)
        yield engine
        engine.dispose()


@contextmanager
def new_database(postgresql: Engine) -> Iterator[str]:
    """Yield the address of a database without a table."""
    name = f"new_{uuid4().hex}"
    with postgresql.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield address(postgresql.url.set(database=name))
    with postgresql.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.mark.full
def test_two_processes_that_upgrade_at_once_make_one_schema(new_url: str) -> None:
    """As two machines do that are started together, each with its own one-shot."""
    both = [subprocess.Popen([*UPGRADE, new_url], stderr=subprocess.PIPE, text=True) for _ in range(2)]

    said = [process.communicate()[1] for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    engine = open_database(new_url)
    assert check_database(engine).holds
    engine.dispose()


def test_a_schema_of_a_newer_release_is_refused_in_one_line(
    database_url: str, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = check_schema(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v9999'"))

    for command in (["db", "upgrade"], ["list"], ["db", "check"]):
        assert main([*command, "--database-url", database_url]) == 5
        (line,) = capsys.readouterr().err.splitlines()
        assert f"is at schema v9999, needed is {needed}; install the release that made it, or a newer one" in line


def test_a_database_of_another_software_is_left_as_it_is(engine: Engine) -> None:
    """Prefect's own database has a table of this name as well."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9e83011d1f2a'"))

    with pytest.raises(SchemaOutdated, match="9e83011d1f2a"):
        upgrade(engine)


def test_an_upgrade_never_holds_up_a_rollback_behind_a_long_query(
    postgresql: Engine, new_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for the query, and everybody else for it: so it gives up, whole, and may be tried again."""
    if new_url.startswith("sqlite"):
        monkeypatch.setattr(store, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(store, "_LOCKS_WITHIN", "100ms")
    engine = open_database(new_url)
    upgrade(engine, "v0001")
    with engine.connect() as busy:
        busy.execution_options(sqlite_begin="IMMEDIATE").execute(text("SELECT count(*) FROM strategy"))

        with pytest.raises(OperationalError):
            upgrade(engine)

    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "v0001"
    upgrade(engine)
    assert check_database(engine).holds
    engine.dispose()


def test_an_upgrade_that_is_stuck_is_undone(new_postgresql: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped keeps its connection: without a limit every rollback would wait for it."""
    monkeypatch.setattr(store, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr("alembic.command.upgrade", lambda *_: time.sleep(0.4))

    with pytest.raises(DBAPIError, match="idle-in-transaction timeout"):
        upgrade(new_postgresql)


@pytest.mark.parametrize(
    ("done", "to_do"),
    [
        pytest.param([LOCKED, AUDITED, COUNTED], [ALERTED], id="rollback"),
        pytest.param(["log"], [ALERTED], id="run-that-logs-first"),
        pytest.param([ALERTED], ["log"], id="run-that-alerts-first"),
    ],
)
def test_an_upgrade_waits_for_who_writes_and_counts_what_he_wrote(
    new_postgresql: Engine, done: Sequence[str], to_do: Sequence[str]
) -> None:
    """With any lock held: otherwise a deadlock could cancel the rollback."""
    upgrade(new_postgresql, "v0005")
    put_version(new_postgresql, "1")

    def write(session: Session, steps: Sequence[str]) -> None:
        for step in steps:
            if step == "log":
                row = decision_row("1", MONDAY, "buy")
                del row["intent"]  # the release that writes knows none
                columns = [column(name, DECISIONS.c[name].type) for name in row]
                session.connection().execute(insert(table(DECISIONS.name, *columns)), row)
            else:
                session.connection().exec_driver_sql(step)

    with ThreadPoolExecutor(1) as threads:
        with transaction(new_postgresql) as session:
            write(session, done)
            upgrading = threads.submit(upgrade, new_postgresql)
            until_somebody_waits(new_postgresql, unless=upgrading)
            write(session, to_do)
        upgrading.result()

    wrote = {*done, *to_do}
    with new_postgresql.connect() as connection:
        tallies = [tuple(row) for row in connection.execute(text(TALLIES))]
        bought = connection.execute(text("SELECT sum(buy) FROM decision_tally")).scalar()
    assert tallies == [("activation", "2", 1)] * (AUDITED in wrote) + [("rollback", "owner", 1)]
    assert bought == (1 if "log" in wrote else None)
