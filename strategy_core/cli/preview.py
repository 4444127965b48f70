"""`rollout plan`: what a rollout would take, before anything moves."""

from pathlib import Path
from typing import Annotated

import typer

from strategy_core.cli.shell import Shell, StrategyName, VersionName, command, read_json
from strategy_core.domain.errors import InvalidPlan

commands = typer.Typer()


@command(commands)
def plan(
    shell: Shell,
    strategy: StrategyName,
    version: VersionName,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="The plan as JSON; the usual one, else.")] = None,
) -> None:
    """Show how many slots each stage needs, how long that takes, and whether the evidence can suffice."""
    from strategy_core.cli.tables import table
    from strategy_core.domain.plan import read_plan
    from strategy_core.services.preview import preview_plan

    frozen = read_plan({} if plan is None else read_json(f"@{plan}", InvalidPlan))
    found = preview_plan(shell.engine, strategy_name=strategy, version=version, plan=frozen, now=shell.now)
    rows = [
        (
            f"{stage.percent:g} %",
            stage.slots_needed,
            "-" if stage.days_expected is None else f"{stage.days_expected:.1f}",
            "underpowered" if stage.underpowered else "",
        )
        for stage in found.stages
    ]
    data = found.model_dump(mode="json") | {"underpowered": found.underpowered, "verdict": found.verdict}
    shell.answer(data, table(["stage", "slots needed", "days expected", ""], rows), found.verdict)
