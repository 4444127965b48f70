"""`rollout demo | up`: the whole thing at once, for a first look; what either does is its own module's."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from strategy_core.cli.shell import Shell, Symbol, command

commands = typer.Typer()
Candles = Annotated[Path | None, typer.Option(metavar="FILE", help="CSV or Parquet; a synthetic market, else.")]


@command(commands)
def demo(
    shell: Shell,
    candles: Candles = None,
    symbol: Symbol = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the SQLite database in this new file.")
    ] = None,
) -> None:
    """Tell the whole story in one process on a simulated clock: shadow, ramp, promotion, automatic rollback."""
    from rich.console import Console

    from strategy_core.demo import run_demo
    from strategy_core.observe.logs import configure_logs

    configure_logs(level=logging.WARNING)
    run_demo(
        candles=candles, symbol=symbol, as_json=shell.as_json, database=keep, console=Console(stderr=shell.as_json)
    )


@command(commands)
def up(
    shell: Shell,
    candles: Candles = None,
    symbol: Symbol = None,
    speed: Annotated[float, typer.Option(help="Simulated seconds in a real one: 5760 is four days a minute.")] = 5760.0,
    port: Annotated[int | None, typer.Option(min=1, max=65_535, help="Of the Prefect UI; a free one, else.")] = None,
    state: Annotated[Path, typer.Option(metavar="FOLDER", help="Databases and logs; made if need be.")] = Path(
        ".rollout"
    ),
) -> None:
    """Start a Prefect server, the flows on their schedules and a replayed market; Ctrl-C stops them all."""
    from deployments.up import up as bring_up

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    code = bring_up(
        database_url=shell.database_url,
        feed=None if candles is None else str(candles),
        symbol=symbol,
        speed=speed,
        port=port,
        state=state,
        say=say,
    )
    raise typer.Exit(code)
