"""Upgrades that meet: two at once, one that meets a newer schema, one that meets a busy table."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from strategy_core.cli import main
from strategy_core.domain.errors import SchemaOutdated
from strategy_core.services.check import check_database
from strategy_core.store import engine as store
from strategy_core.store.engine import check_schema, open_database, upgrade

UPGRADE = [sys.executable, "-m", "strategy_core.cli", "db", "upgrade", "--database-url"]


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path, postgresql: Engine) -> Iterator[str]:
    """The address of a database without a table; of SQLite, of none yet."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new.db'}"
        return
    name = f"new_{uuid4().hex}"
    with postgresql.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield postgresql.url.set(database=name).render_as_string(hide_password=False)
    with postgresql.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


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
        monkeypatch.setattr(store, "_BUSY_SECONDS", 0.1)
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
