"""`rollout api`: the HTTP API, served until a signal ends it."""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from strategy_core.cli.context import Context, Symbol, command
from strategy_core.domain.errors import InvalidSetting, MissingExtra

commands = typer.Typer()


@command(commands)
def api(
    shell: Context,
    host: Annotated[str | None, typer.Option(help="Where it listens; ROLLOUT_API_HOST, else this machine.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="ROLLOUT_API_PORT, else 8321; 0: any.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that answer.")] = 1,
) -> None:
    """Serve the owner's HTTP API; whose tokens it accepts is set by ROLLOUT_API_SECRET, _PUBLIC_KEY or _JWKS_URL."""
    given = {"ROLLOUT_API_HOST": host, "ROLLOUT_API_PORT": port, "ROLLOUT_DATABASE_URL": shell.database_url}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})  # its processes read it
    try:
        from strategy_core.api.app import serve
        from strategy_core.api.settings import read_api_settings
    except ModuleNotFoundError:
        raise MissingExtra("rollout api", "api") from None

    serve(read_api_settings(), workers=workers)


@command(commands)
def exporter(
    shell: Context,
    host: Annotated[str, typer.Option(help="Where it listens; it asks for no token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = 9464,
) -> None:
    """Serve /metrics for a Prometheus, which reads the database each time; docs/metrics.md tells every name."""
    from sqlalchemy.exc import DBAPIError

    from strategy_core.observe import configure_logs
    from strategy_core.observe.exporter import serve
    from strategy_core.services.database import check_schema

    database = shell.database
    configure_logs()
    with suppress(DBAPIError):  # away for now: scrapes are refused until it is back
        check_schema(database)
    serve(database, shell.settings.now, host=host, port=port)


@command(commands)
def deploy(
    shell: Context,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prefect.yaml of your own; the one that came along, else.")
    ] = None,
) -> None:
    """Create or update deployments, work pool and automations on the server of PREFECT_API_URL; yours stay."""
    import importlib.util

    if importlib.util.find_spec("prefect") is None:
        raise MissingExtra("rollout deploy", "prefect")
    from deployments import prefect_yaml
    from deployments.deploy import deploy as bring

    done = bring(file or prefect_yaml())
    shell.answer({"done": done}, *(done or ["nothing changed: the server has all of it"]))


@command(commands)
def token(
    shell: Context,
    name: Annotated[str | None, typer.Option(help="Who the audit trail will name; you, unless given.")] = None,
    role: Annotated[Literal["owner", "admin"], typer.Option(help="What they are.")] = "owner",
    hours: Annotated[float, typer.Option(help="How long it is valid, 720 at most.")] = 12,
    strategy: Annotated[
        list[str] | None, typer.Option(help="It reaches this strategy alone; more by repeating it; all, unless given.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="It changes nothing: for Routers and scrapers.")
    ] = False,
    private_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM: the other half of ROLLOUT_API_PUBLIC_KEY.")
    ] = None,
) -> None:
    """Make a token for the API, signed by ROLLOUT_API_SECRET, a private key, or ROLLOUT_API_DEVELOPMENT=1's secret."""
    from datetime import UTC, datetime

    try:
        from strategy_core.api.auth import issue_token
        from strategy_core.api.settings import read_api_settings
    except ModuleNotFoundError:
        raise MissingExtra("rollout token", "api") from None

    made, claims = issue_token(
        read_api_settings(),
        name=shell.actor.name if name is None else name,
        role=role,
        hours=hours,
        strategies=strategy or (),
        read_only=read_only,
        private_key=None if private_key is None else _read(private_key),
        now=datetime.now(UTC),  # never a replay's: the server that gets it lives in the real time
    )
    if shell.as_json:
        shell.answer({"token": made, "claims": claims})
    else:
        typer.echo(made)  # alone, for $(rollout token)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise InvalidSetting("--private-key", str(file), f"a file that can be read ({error.strerror})") from None


Candles = Annotated[Path | None, typer.Option(metavar="FILE", help="CSV or Parquet; a synthetic market, else.")]


@command(commands)
def demo(
    shell: Context,
    candles: Candles = None,
    symbol: Symbol = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the SQLite database in this new file.")
    ] = None,
) -> None:
    """Tell the whole story in one process on a simulated clock: shadow, ramp, promotion, automatic rollback."""
    from rich.console import Console

    from strategy_core.demo import run_demo
    from strategy_core.observe import configure_logs

    configure_logs(level=logging.WARNING)
    run_demo(
        candles=candles, symbol=symbol, as_json=shell.as_json, database=keep, console=Console(stderr=shell.as_json)
    )


@command(commands)
def up(
    shell: Context,
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
