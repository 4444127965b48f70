"""Commands that freeze releases, list and lift freezes, and cancel scheduled starts."""

from typing import Annotated

import typer

from strategy_core.cli.context import AnyStrategy, Context, NeededReason, Reason, StrategyName, command
from strategy_core.domain.audit import Command

commands = typer.Typer()

_StrategyOrAll = Annotated[str, typer.Argument(metavar="STRATEGY", help="Strategy name, or '*' for all strategies.")]


@command(commands)
def freeze(
    shell: Context,
    strategy: _StrategyOrAll,
    reason: NeededReason,
    end: Annotated[str, typer.Option("--to", metavar="TIME", help="End: 2026-01-31 or 2026-01-31T12:00Z.")],
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Start. Default: now.")] = None,
) -> None:
    """Freeze a strategy: no rollout starts, advances or is promoted.

    Rollbacks, pauses and exclusions go on.
    """
    from strategy_core.domain.parsing import owners_time
    from strategy_core.services.release_times import set_freeze

    frozen = set_freeze(
        shell.engine,
        Command(shell.actor, shell.now, reason),
        strategy_name=strategy,
        starts_at=owners_time(start, "--from"),
        ends_at=owners_time(end, "--to"),
    )
    shell.answer(
        frozen.model_dump(mode="json"),
        f"freeze {frozen.id} of {frozen.shown_strategy}: {frozen.span}",
        f'To lift it: rollout unfreeze {frozen.id} --reason "..."',
    )


@command(commands)
def freezes(
    shell: Context,
    strategy: AnyStrategy = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that have ended or were lifted.")] = False,
) -> None:
    """List freezes and scheduled starts."""
    from strategy_core.cli.context import table
    from strategy_core.services.release_times import list_freezes
    from strategy_core.services.scheduled_starts import list_starts

    found = list_freezes(shell.engine, strategy, since=None if every else shell.now)
    starts = list_starts(shell.engine, strategy)
    rows = [
        (each.id, each.shown_strategy, each.starts_at, each.until, each.set_by, each.reason, each.lifted_by or None)
        for each in found
    ]
    data = {
        "freezes": [each.model_dump(mode="json") for each in found],
        "scheduled_starts": [each.model_dump(mode="json") for each in starts],
    }
    lines = [
        f"{each.strategy_name} {each.version} starts at {each.start_at:%Y-%m-%d %H:%M} UTC, scheduled by {each.actor}"
        for each in starts
    ]
    columns = ["id", "strategy", "from", "to", "by", "reason", "lifted by"]
    shell.answer(data, table(columns, rows) if rows else "no freeze", *lines)


@command(commands)
def unfreeze(
    shell: Context,
    freeze: Annotated[int, typer.Argument(metavar="ID", help="Number of the freeze.")],
    reason: NeededReason,
) -> None:
    """Lift a freeze before it ends."""
    from strategy_core.services.release_times import lift_freeze

    lifted = lift_freeze(shell.engine, Command(shell.actor, shell.now, reason), freeze)
    shell.answer(lifted.model_dump(mode="json"), f"freeze {lifted.id} of {lifted.shown_strategy} is lifted")


@command(commands, "cancel-start")
def cancel_start(shell: Context, strategy: StrategyName, reason: Reason = "") -> None:
    """Cancel the scheduled start of a rollout. Its version stays in shadow."""
    from strategy_core.services import scheduled_starts

    cancelled = scheduled_starts.cancel_start(
        shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy
    )
    shell.answer(
        cancelled.model_dump(mode="json", exclude={"plan"}), f"the start of {strategy} {cancelled.version} is cancelled"
    )
