"""Commands on positions: list them, hand them over, let a version drain, and announce the exits that are due."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

import typer

from strategy_core.cli.context import Context, NeededReason, Reason, StrategyName, VersionName, Yes, command
from strategy_core.domain.audit import Command

commands = typer.Typer()

_Symbols = Annotated[str | None, typer.Option("--symbols", metavar="NAMES", help="Only these. Default: all.")]


@command(commands)
def positions(
    shell: Context,
    strategy: StrategyName,
    version: Annotated[str | None, typer.Option(metavar="NAME", help="Only those that it manages.")] = None,
    user: Annotated[str | None, typer.Option(metavar="ID", help="Only this user's.")] = None,
) -> None:
    """Show users' open positions by the version that manages them."""
    from strategy_core.cli.context import plural, table
    from strategy_core.services.positions import held_positions, list_draining, list_positions

    found = list_positions(shell.engine, [strategy], strategy_name=strategy, version=version, user_id=user)
    held = held_positions(shell.engine, strategy, now=shell.now)
    counted = sorted(Counter(each.manager or "" for each in found).items())
    missing = sum(each.missing_since is not None for each in found)
    draining = [] if user else list_draining(shell.engine, strategy, now=shell.now)
    draining = [each for each in draining if version in (None, each.version)]
    suppressed = {} if user else {name: n for name, n in held.suppressed.items() if version in (None, name)}
    rows = [
        (each.trade_id, each.user_id, each.symbol, each.side, each.opened_by, each.manager, each.opened_at)
        for each in found[:_LISTED]
    ]
    data = {
        "by_manager": dict(counted),
        "draining": [asdict(each) for each in draining],
        "missing": missing,
        "suppressed": suppressed,
        "positions": [each.model_dump(mode="json") for each in found],
    }
    whose = (f" {version}" if version else "") + (f" of user {user}" if user else "")
    counts = ", ".join(f"{count} by {name or 'none: to be closed'}" for name, count in counted)
    headline = (
        f"{plural(len(found), 'open position')} of {strategy}{whose}"
        if found
        else f"no open position of {strategy}{whose}"
    )
    lines = [headline + (f": {counts}" if counts else ""), *map(str, draining)]
    if missing:
        lines.append(f"{missing} of them {'was' if missing == 1 else 'were'} not in the platform's last snapshot")
    lines += [
        f"{count} entries of {name} in the last week were suppressed by positions of other versions"
        for name, count in suppressed.items()
        if count
    ]
    if more := len(found) - len(rows):
        lines.append(f"{more} more are not shown: use --json")
    columns = ["trade", "user", "symbol", "side", "opened by", "manager", "opened"]
    shell.answer(data, *lines, *([table(columns, rows)] if rows else []))


_LISTED = 20
_EXITS_LISTED = 500


@command(commands, "hand-over")
def hand_over(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    to_version: Annotated[str, typer.Argument(metavar="TO", help="The version that takes them over.")],
    reason: NeededReason,
    symbols: _Symbols = None,
    yes: Yes = False,
) -> None:
    """Give the open positions of a version to another one, which decides from now on when to leave them."""
    from strategy_core.services import positions as service

    engine = shell.engine
    shell.confirm(f"{to_version} decides on the open positions of {strategy} {version}", yes=yes)
    done = service.hand_over(
        engine,
        Command(shell.actor, shell.now, reason),
        strategy_name=strategy,
        version=version,
        to_version=to_version,
        symbols=_listed(symbols),
    )
    shell.answer({"positions": done}, f"{done} positions of {strategy} {version} are managed by {to_version}")


@command(commands)
def drain(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    flatten_after: Annotated[
        str | None,
        typer.Option("--flatten-after", metavar="SPAN", help="Close what is still open then: 12h, 3d, or 0 for now."),
    ] = None,
    symbols: _Symbols = None,
    reason: Reason = "",
    yes: Yes = False,
) -> None:
    """Show how far the positions of a version have drained, and set when the rest is to be closed."""
    from strategy_core.domain.errors import InvalidSetting
    from strategy_core.domain.parsing import owners_span
    from strategy_core.services import positions as service

    engine, done = shell.engine, 0
    left = len(service.list_positions(engine, [strategy], strategy_name=strategy, version=version))
    if flatten_after is not None:
        after = owners_span(flatten_after, "--flatten-after")
        if not reason.strip():
            raise InvalidSetting("--reason", reason, "why users' positions are to be closed")
        shell.confirm(f"the open positions of {strategy} {version} are to be closed after {flatten_after}", yes=yes)
        done = service.flatten(
            engine,
            Command(shell.actor, shell.now, reason),
            strategy_name=strategy,
            version=version,
            symbols=_listed(symbols),
            after=after,
        )
    lines = [str(each) for each in service.list_draining(engine, strategy, now=shell.now) if each.version == version]
    lines = lines or [f"{strategy} {version} manages {left} open positions"]
    if flatten_after is not None:
        lines.append(f"{done} of them are to be closed after {flatten_after}")
    shell.answer({"version": version, "left": left, "flattened": done}, *lines)


@command(commands)
def exits(
    shell: Context,
    since: Annotated[int, typer.Option("--since", metavar="ID", min=0, help="Only those after this one.")] = 0,
    strategy: Annotated[str | None, typer.Option(metavar="NAME", help="Only this strategy.")] = None,
) -> None:
    """Announce which positions to leave now, and list the exits that were announced.

    The scheduled drain does the same each minute.
    """
    from strategy_core.cli.context import table
    from strategy_core.services.drain import drain as drain_now
    from strategy_core.services.positions import list_exits

    done = drain_now(shell.engine, shell.candles(), now=shell.now, quiet=shell.settings.alert_pace.quiet)
    names = None if strategy is None else [strategy]
    found = list_exits(shell.engine, names, strategy_name=strategy, since=since, limit=_EXITS_LISTED)
    rows = [
        (each.id, each.trade_id, each.symbol, each.manager, each.why, each.candle, each.announced_at) for each in found
    ]
    columns = ["id", "trade", "symbol", "manager", "why", "candle", "announced"]
    faults = [*done.orphaned, *done.overdue, *done.exceeded, *done.unknown, *done.failed]
    lines = [f"{done.announced} exits announced now, {len(found)} listed", *faults]
    if len(found) == _EXITS_LISTED:
        lines.append(f"the next ones: --since {found[-1].id}")
    shell.answer([each.model_dump(mode="json") for each in found], *lines, *([table(columns, rows)] if rows else []))


def _listed(symbols: str | None) -> list[str] | None:
    return None if symbols is None else [name.strip() for name in symbols.split(",")]
