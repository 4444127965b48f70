"""Dump and restore the whole database.

SQLite uses `VACUUM INTO` for both. PostgreSQL uses `pg_dump` and `pg_restore`, which must be on the PATH.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import Engine, inspect

from strategy_core.domain.errors import BackupRefused, reason_of
from strategy_core.store.engine import address, check_known, revisions


def dump(engine: Engine, file: Path) -> str:
    """Write a consistent copy of the database to *file*, readable by its owner only. Writers are not blocked.

    The file appears when it is complete. A schema of an older release is accepted, so that a dump can precede an
    upgrade.

    Returns:
        The schema's revision.

    Raises:
        SchemaOutdated: the database is missing, empty or belongs to other software.
        BackupRefused: *file* or its `.part` exists, or the tool failed.
    """
    if file.exists():
        raise BackupRefused(str(file), "a file of this name exists, and a dump does not replace it: give another name")
    revision = check_known(engine)
    if engine.dialect.name == "postgresql":
        _write_whole(file, lambda part: _run("pg_dump", engine, "--format=custom", f"--file={part}"))
    else:
        _write_whole(file, lambda part: _copy(_path(engine), part))
    return revision


def restore(engine: Engine, file: Path) -> str:
    """Restore a dump into an empty database, in one transaction, and return its schema's revision.

    On PostgreSQL the restoring role owns all objects. Roles that had privileges must exist.

    Raises:
        BackupRefused: the database has tables, *file* is not a dump of this kind of database, or the tool failed.
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
                address(engine), "a -wal file of an earlier database is beside it, or it is in use: move that file away"
            )
        _write_whole(target, lambda part: _copy_ours(file, part))
    return check_known(engine)


def _refuse_tables(engine: Engine) -> None:
    tables = inspect(engine).get_table_names()
    if tables:
        raise BackupRefused(
            address(engine), f"a dump can only be restored into an empty database; this one has {len(tables)} tables"
        )


def _write_whole(file: Path, write: Callable[[Path], None]) -> None:
    """Let *write* fill a `.part` file and rename it to *file*, so that no incomplete file has that name."""
    part = file.with_name(file.name + ".part")
    try:
        part.touch(mode=0o600, exist_ok=False)
    except FileExistsError:  # another process may be writing it
        raise BackupRefused(
            str(part), "another dump or restore is writing it, or was killed and left it: if none is running, delete it"
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
    except (sqlite3.Error, UnicodeEncodeError) as error:  # a path may hold bytes that are not text
        raise BackupRefused(str(source), reason_of(error)) from None


def _copy_ours(source: Path, empty: Path) -> None:
    """Copy a dump. Refuse empty files and databases of other software, which SQLite itself accepts."""
    _copy(source, empty)
    with closing(sqlite3.connect(empty)) as copied, suppress(sqlite3.Error):
        found = copied.execute("SELECT version_num FROM alembic_version").fetchone()
        if found is not None and found[0] in revisions():
            return
    raise BackupRefused(str(source), "it is not a database of this release or an earlier one")


def _run(tool: str, engine: Engine, *arguments: str) -> None:
    """Run a tool of PostgreSQL. The password is passed in the environment, as arguments show in process lists."""
    program = shutil.which(tool)
    if program is None:
        raise BackupRefused(
            tool, "it is not on the PATH: install PostgreSQL's client programs, at least as new as the server"
        )
    url = engine.url.set(drivername="postgresql")
    password = {"PGPASSWORD": url.password} if url.password else {}
    server, question, options = url._replace(password=None).render_as_string().partition("?")
    target = server + question + options.replace("+", "%20")  # libpq takes + for itself, not for a blank
    done = subprocess.run(  # noqa: S603  the address comes from the owner's settings
        [program, "--no-password", f"--dbname={target}", *arguments],
        env=os.environ | password,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or done.stderr.splitlines()
        raise BackupRefused(tool, lines[0] if lines else f"it ended with exit code {done.returncode}")


def _path(engine: Engine) -> Path:
    return Path(engine.url.database or "")
