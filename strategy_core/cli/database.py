"""`rollout db upgrade | check | maintain | dump | restore`: the database as a whole; no row by itself."""

from pathlib import Path
from typing import Annotated

import typer

from strategy_core.cli.context import Context, command

commands = typer.Typer(help="The database.")

Dump = Annotated[Path, typer.Argument(metavar="FILE", help="Of SQLite a database file, of PostgreSQL pg_dump's.")]


@command(commands)
def upgrade(shell: Context) -> None:
    """Bring the schema up to date; does nothing when it is."""
    from strategy_core.services.database import address, check_schema
    from strategy_core.services.database import upgrade as upgrade_schema

    upgrade_schema(shell.database)
    revision, database = check_schema(shell.database), address(shell.database)
    shell.answer({"database": database, "revision": revision}, f"{database} is at schema {revision}")


@command(commands)
def check(shell: Context) -> None:
    """Say whether the database is whole: schema, triggers, indexes, audit chains; exit code 1 when it is not."""
    from dataclasses import asdict

    from strategy_core.services.database import address
    from strategy_core.services.maintenance import check_database

    found = check_database(shell.database)
    broken = [f"the audit chain of {each.strategy_name} does not hold" for each in found.trail.trails if each.breaks]
    events = sum(each.count for each in found.trail.trails)
    database = f"{address(shell.database)}, schema {found.revision}"
    shell.answer(
        {"holds": found.holds} | asdict(found),
        *found.missing,
        *broken,
        f"{database}: whole; {events} audit events hold" if found.holds else f"{database}: NOT whole",
    )
    if not found.holds:
        raise typer.Exit(1)


@command(commands)
def maintain(
    shell: Context, dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")] = False
) -> None:
    """Make months ahead, and drop those that ROLLOUT_KEEP_DAYS lets go of and nothing needs; on PostgreSQL alone."""
    from dataclasses import asdict

    from strategy_core.services.maintenance import maintain as maintain_database
    from strategy_core.services.maintenance import summary_lines

    done = maintain_database(shell.database, now=shell.now, keep_days=shell.settings.keep_days, apply=not dry_run)
    shell.answer({"dry_run": dry_run} | asdict(done), *summary_lines(done, dry_run=dry_run))


@command(commands)
def dump(shell: Context, file: Dump) -> None:
    """Write all that stands in the database to a new file, as of one moment, while everything goes on."""
    from strategy_core.services.database import address
    from strategy_core.services.database import dump as write

    revision, database = write(shell.database, file), address(shell.database)
    shell.answer(
        {"database": database, "revision": revision, "file": str(file), "bytes": file.stat().st_size},
        f"{database}, schema {revision}, is in {file} ({file.stat().st_size:,} bytes)",
    )


@command(commands)
def restore(shell: Context, file: Dump) -> None:
    """Put a dump into an empty database, whole or not at all; then see: rollout db check."""
    from strategy_core.services.database import address
    from strategy_core.services.database import restore as read

    revision, database = read(shell.database, file), address(shell.database)
    shell.answer(
        {"database": database, "revision": revision, "file": str(file)},
        f"{database} holds what stands in {file}, schema {revision}; now: rollout db upgrade && rollout db check",
    )
