"""`rollout deploy`: schedules, forms and automations brought to a Prefect server; it starts nothing."""

from pathlib import Path
from typing import Annotated

import typer

from strategy_core.cli.shell import Shell, command
from strategy_core.domain.errors import MissingExtra

commands = typer.Typer()


@command(commands)
def deploy(
    shell: Shell,
    file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A prefect.yaml of your own; the one that came along, else.")
    ] = None,
) -> None:
    """Create or update deployments, work pool and automations on the server of PREFECT_API_URL; yours stay."""
    import importlib.util

    if importlib.util.find_spec("prefect") is None:
        raise MissingExtra("rollout deploy", "prefect")
    from deployments.deploy import deploy as bring
    from deployments.files import prefect_yaml

    done = bring(file or prefect_yaml())
    shell.answer({"done": done}, *(done or ["nothing changed: the server has all of it"]))
