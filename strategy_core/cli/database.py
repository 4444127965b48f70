"""`rollout db upgrade`: the database's schema, brought up to date; every other command needs it to be."""

import typer

from strategy_core.cli.shell import Shell, command

commands = typer.Typer(help="The database.")


@commands.callback()
def _group() -> None:
    """Keep `upgrade` a command of its own: Typer would make the only one the whole group."""


@command(commands)
def upgrade(shell: Shell) -> None:
    """Bring the schema up to date; does nothing when it is."""
    from strategy_core.store.engine import address, check_schema
    from strategy_core.store.engine import upgrade as upgrade_schema

    upgrade_schema(shell.database)
    revision, database = check_schema(shell.database), address(shell.database)
    shell.answer({"database": database, "revision": revision}, f"{database} is at schema {revision}")
