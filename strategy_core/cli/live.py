"""`rollout outcomes | users`: what the platform reports of its trades and its users."""

from pathlib import Path
from typing import Annotated

import typer

from strategy_core.cli.shell import Shell, command

commands = typer.Typer()


@command(commands)
def outcomes(
    shell: Shell,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, a trade a line; - is standard input.")],
) -> None:
    """Take in live trades; the same report twice is one. Columns: see README, "What the platform reports"."""
    from dataclasses import asdict

    from strategy_core.services.live import ingest_csv

    done = ingest_csv(shell.engine, file, now=shell.now)
    told = f"{done.new} reports taken in, {done.known} known already"
    shell.answer(asdict(done), told + (f"; {done.misrouted} of users on a wrong version" if done.misrouted else ""))


@command(commands)
def users(
    shell: Shell,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV of user_id and capital; - is standard input.")],
) -> None:
    """Replace the directory of the platform's users, which plans count by, with the file's."""
    from dataclasses import asdict

    from strategy_core.services.directory import load_users_csv

    done = load_users_csv(shell.engine, file, now=shell.now)
    told = f"{done.users} users: {done.added} added, {done.removed} removed, {done.changed} with another capital"
    shell.answer(asdict(done), told)
