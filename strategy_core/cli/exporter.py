"""`rollout exporter`: numbers for a Prometheus, served until a signal ends it."""

from contextlib import suppress
from typing import Annotated

import typer

from strategy_core.cli.shell import Shell, command

commands = typer.Typer()


@command(commands)
def exporter(
    shell: Shell,
    host: Annotated[str, typer.Option(help="Where it listens; it asks for no token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0: any that is free.")] = 9464,
) -> None:
    """Serve /metrics for a Prometheus, which reads the database each time; docs/metrics.md tells every name."""
    from sqlalchemy.exc import DBAPIError

    from strategy_core.observe.exporter import serve
    from strategy_core.observe.logs import configure_logs
    from strategy_core.store.engine import check_schema

    database = shell.database
    configure_logs()
    with suppress(DBAPIError):  # away for now: scrapes are refused until it is back
        check_schema(database)
    serve(database, shell.settings.now, host=host, port=port)
