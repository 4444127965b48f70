"""`rollout audit`: who changed what, when and why."""

from typing import Annotated

import typer

from strategy_core.cli.shell import Shell, command

commands = typer.Typer()


@command(commands)
def audit(
    shell: Shell,
    strategy: Annotated[str | None, typer.Argument(metavar="[STRATEGY]", help="All, unless given.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
) -> None:
    """Show who changed what, when and why."""
    from strategy_core.cli.tables import table
    from strategy_core.services.status import read_audit

    found = read_audit(shell.engine, strategy, limit=limit)
    columns = ["at", "by", "action", "strategy", "version", "active", "canary", "reason"]
    rows = [
        (
            event.at,
            f"{event.actor} ({event.source})",
            event.action,
            event.strategy_name,
            event.version,
            _change(event.before.get("active"), event.after.get("active")),
            _change(event.before.get("percent"), event.after.get("percent")),
            event.reason,
        )
        for event in found
    ]
    shell.answer(
        [e.model_dump(mode="json") for e in found], table(columns, rows) if rows else "nothing was changed yet"
    )


def _change(before: object, after: object) -> str:
    from strategy_core.cli.tables import cell

    return cell(after) if before == after else f"{cell(before)} → {cell(after)}"
