"""`rollout api`: the HTTP API, served until a signal ends it."""

import os
from typing import Annotated

import typer

from strategy_core.cli.shell import Shell, command
from strategy_core.domain.errors import MissingExtra

commands = typer.Typer()


@command(commands)
def api(
    shell: Shell,
    host: Annotated[str | None, typer.Option(help="Where it listens; ROLLOUT_API_HOST, else this machine.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="ROLLOUT_API_PORT, else 8321; 0: any.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that answer.")] = 1,
) -> None:
    """Serve the owner's HTTP API; whose tokens it accepts is set by ROLLOUT_API_SECRET, _PUBLIC_KEY or _JWKS_URL."""
    given = {"ROLLOUT_API_HOST": host, "ROLLOUT_API_PORT": port, "ROLLOUT_DATABASE_URL": shell.database_url}
    os.environ.update({name: str(value) for name, value in given.items() if value is not None})  # its processes read it
    try:
        from strategy_core.api.server import serve
        from strategy_core.api.settings import read_api_settings
    except ModuleNotFoundError:
        raise MissingExtra("rollout api", "api") from None

    serve(read_api_settings(), workers=workers)
