"""Copies of the whole database, made and put back by the database's own tools; no row is read or written here.

On SQLite that is `VACUUM INTO`, both ways; on PostgreSQL `pg_dump` and `pg_restore`, which must be on the path.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import Engine, inspect

from strategy_core.domain.errors import BackupRefused
from strategy_core.store.engine import address, check_known, revisions


def dump(engine: Engine, file: Path) -> str:
    """Write what stands in the database at one moment to *file*, for its owner's eyes alone; writers go on meanwhile.

    The file appears when it is whole. It may be of an older release: a dump is what comes before an upgrade.

    Returns:
        The schema's revision.

    Raises:
        SchemaOutdated: there is nothing of ours to be kept.
        BackupRefused: *file* exists, so does its `.part`, or the tool failed.
    """
    if file.exists():
        raise BackupRefused(str(file), "a file of this name exists; give another, no dump is ever replaced")
    revision = check_known(engine)
    if engine.dialect.name == "postgresql":
        _whole(file, lambda part: _run("pg_dump", engine, "--format=custom", f"--file={part}"))
    else:
        _whole(file, lambda part: _copy(_path(engine), part))
    return revision


def restore(engine: Engine, file: Path) -> str:
    """Put what `dump` wrote back into an empty database, whole or not at all, and return its schema's revision.

    On PostgreSQL everything belongs to whoever restores; roles that were granted something must be there.

    Raises:
        BackupRefused: there are tables already, *file* is no dump of this kind of database, or the tool failed.
    """
    if not file.is_file():
        raise BackupRefused(str(file), "there is no such file")
    if engine.dialect.name == "postgresql":
        _refuse_tables(engine)
        _run("pg_restore", engine, "--no-owner", "--single-transaction", "--exit-on-error", str(file))
    else:
        target = _path(engine)
        if target.exists():
            _refuse_tables(engine)
            engine.dispose()
        if target.with_name(target.name + "-wal").exists():
            raise BackupRefused(
                address(engine), "there is a -wal of a database that was here, or is in use; move it away"
            )
        _whole(target, lambda part: _copy_ours(file, part))
    return check_known(engine)


def _refuse_tables(engine: Engine) -> None:
    tables = inspect(engine).get_table_names()
    if tables:
        raise BackupRefused(
            address(engine), f"a dump is restored into an empty database alone; this one has {len(tables)} tables"
        )


def _whole(file: Path, write: Callable[[Path], None]) -> None:
    """Let *write* fill a file beside *file* that then takes its name: half of one would look like one."""
    part = file.with_name(file.name + ".part")
    try:
        part.touch(mode=0o600, exist_ok=False)
    except FileExistsError:  # replacing it would tear what another process may be writing
        raise BackupRefused(
            str(part), "one that was killed has left it, or one that runs is writing it; if none runs, delete it"
        ) from None
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)


def _copy(source: Path, empty: Path) -> None:
    try:
        with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("VACUUM INTO ?", (str(empty),))
    except (sqlite3.Error, UnicodeEncodeError) as error:  # a path may be of bytes that are no text
        raise BackupRefused(str(source), str(error)) from None


def _copy_ours(source: Path, empty: Path) -> None:
    """Copy a dump, and refuse what is none: a file of nothing, or of another software, is a database to SQLite."""
    _copy(source, empty)
    with closing(sqlite3.connect(empty)) as copied, suppress(sqlite3.Error):
        found = copied.execute("SELECT version_num FROM alembic_version").fetchone()
        if found is not None and found[0] in revisions():
            return
    raise BackupRefused(str(source), "holds no database of this release, or of an earlier one")


def _run(tool: str, engine: Engine, *arguments: str) -> None:
    """Run a tool of PostgreSQL; the password goes by its environment: a list of processes would show arguments."""
    program = shutil.which(tool)
    if program is None:
        raise BackupRefused(tool, "it is not on the path: install PostgreSQL's client, at least as new as the server")
    url = engine.url.set(drivername="postgresql")
    password = {"PGPASSWORD": url.password} if url.password else {}
    target = url._replace(password=None).render_as_string()
    done = subprocess.run(  # noqa: S603  its address is the owner's
        [program, "--no-password", f"--dbname={target}", *arguments],
        env=os.environ | password,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise BackupRefused(tool, said[0] if said else f"it ended with exit code {done.returncode}")


def _path(engine: Engine) -> Path:
    return Path(engine.url.database or "")
