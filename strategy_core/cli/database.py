"""Commands that upgrade, check, maintain, dump and restore the database."""

from pathlib import Path
from typing import Annotated

import typer

from strategy_core.cli.context import Context, command

commands = typer.Typer(help="Upgrade, check, maintain, dump and restore the database.", no_args_is_help=True)

Dump = Annotated[Path, typer.Argument(metavar="FILE", help="SQLite: a database file. PostgreSQL: a pg_dump file.")]


@command(commands)
def upgrade(shell: Context) -> None:
    """Upgrade the schema to this release."""
    from strategy_core.services.database import address, check_schema
    from strategy_core.services.database import upgrade as upgrade_schema

    upgrade_schema(shell.database)
    revision, database = check_schema(shell.database), address(shell.database)
    shell.answer({"database": database, "revision": revision}, f"{database} is at schema {revision}")


@command(commands)
def check(shell: Context) -> None:
    """Check schema, triggers, indexes and the audit trail.

    The exit code is 1 if the check fails.
    """
    from dataclasses import asdict

    from strategy_core.services.database import address
    from strategy_core.services.maintenance import check_database

    found = check_database(shell.database)
    events = sum(each.count for each in found.trail.trails)
    database = f"{address(shell.database)}, schema {found.revision}"
    shell.answer(
        {"holds": found.holds} | asdict(found),
        *found.missing,
        *found.trail.problems(),
        f"{database}: whole; {events} audit events hold" if found.holds else f"{database}: NOT whole",
    )
    if not found.holds:
        raise typer.Exit(1)


@command(commands)
def maintain(
    shell: Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, without doing it.")] = False,
) -> None:
    """Create and drop monthly partitions (PostgreSQL only), and delete calls of assistants after 90 days.

    Creates the partitions of the coming months and drops expired ones.
    ROLLOUT_KEEP_DAYS sets when a partition expires. Partitions that an open rollout needs are kept.
    """
    from dataclasses import asdict

    from strategy_core.services.maintenance import maintain as maintain_database
    from strategy_core.services.maintenance import summary_lines

    database = shell.database
    done = maintain_database(database, now=shell.now, keep_days=shell.settings.keep_days, apply=not dry_run)
    shell.answer({"dry_run": dry_run} | asdict(done), *summary_lines(done, dry_run=dry_run))


@command(commands)
def clock(
    shell: Context,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove it: from then on real time counts, for every process.")
    ] = False,
) -> None:
    """Show the time that all processes of this database use.

    `rollout up` stores the clock of its replay here. It stands still while `rollout up` does not run.
    """
    from strategy_core.services.database import read_clock, remove_clock

    engine = shell.engine
    if remove:
        removed = remove_clock(engine)
        shell.answer({"removed": removed}, "the clock is removed: real time counts" if removed else "real time counts")
        return
    stored, now = read_clock(engine), shell.now
    problem = shell.clock.clock_check.problem
    what = "real time counts"
    if stored is not None:
        pace = "stands still" if stored.started_at is None else f"runs {stored.speed:g} times as fast as real time"
        what = f"the clock of a replay {pace}"
    data = {"now": now, "stored": stored, "clock_disagrees": problem}
    shell.answer(data, f"{what}: it is {now:%Y-%m-%d %H:%M} UTC")


@command(commands)
def dump(shell: Context, file: Dump) -> None:
    """Write a consistent copy of the database to a new file.

    The database can be in use meanwhile.
    """
    from strategy_core.services.database import address
    from strategy_core.services.database import dump as write

    revision, database = write(shell.database, file), address(shell.database)
    shell.answer(
        {"database": database, "revision": revision, "file": str(file), "bytes": file.stat().st_size},
        f"{database}, schema {revision}, is in {file} ({file.stat().st_size:,} bytes)",
    )


@command(commands)
def restore(shell: Context, file: Dump) -> None:
    """Restore a dump into an empty database.

    It is restored completely or not at all. Afterwards run: rollout db upgrade && rollout db check
    """
    from strategy_core.services.database import address
    from strategy_core.services.database import restore as read

    revision, database = read(shell.database, file), address(shell.database)
    shell.answer(
        {"database": database, "revision": revision, "file": str(file)},
        f"{database} is restored from {file}, schema {revision}. Next: rollout db upgrade && rollout db check",
    )
