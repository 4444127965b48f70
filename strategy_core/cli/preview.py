"""`rollout plan`: what a rollout would take, and whom it would reach, before anything moves."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.shell import Shell, StrategyName, VersionName, command, read_json
from strategy_core.domain.errors import InvalidPlan

if TYPE_CHECKING:
    from strategy_core.domain.audience import Audience, Overlap

commands = typer.Typer()


@command(commands)
def plan(
    shell: Shell,
    strategy: StrategyName,
    version: VersionName,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="The plan as JSON; the usual one, else.")] = None,
) -> None:
    """Show whom each stage reaches, how many slots it needs, how long that takes, and whether they can suffice."""
    from strategy_core.cli.tables import table
    from strategy_core.domain.plan import read_plan
    from strategy_core.services.directory import plan_audience
    from strategy_core.services.preview import preview_plan

    frozen = read_plan({} if plan is None else read_json(f"@{plan}", InvalidPlan))
    found = preview_plan(shell.engine, strategy_name=strategy, version=version, plan=frozen, now=shell.now)
    reached = plan_audience(shell.engine, strategy_name=strategy, plan=frozen)
    columns = ["stage", "users", "share", "capital", "share of capital", "slots needed", "days expected", ""]
    short = "unknown" if found.pnl_deviation is None else "underpowered"
    rows = [
        (
            f"{stage.percent:g} %",
            who.users,
            f"{who.share:.2%}",
            None if who.capital is None else f"{who.capital:,.0f}",
            None if who.capital_share is None else f"{who.capital_share:.2%}",
            stage.slots_needed,
            None if stage.days_expected is None else f"{stage.days_expected:.1f}",
            short if stage.underpowered else "",
        )
        for stage, who in zip(found.stages, reached.stages, strict=True)
    ]
    data = found.model_dump(mode="json") | {
        "underpowered": found.underpowered,
        "verdict": found.verdict,
        "audience": reached.model_dump(mode="json") | {"estimated": reached.estimated},
    }
    told = [_counted(reached), *(_shared(overlap) for overlap in reached.overlaps), found.verdict]
    shell.answer(data, table(columns, rows), *told)


def _counted(reached: "Audience") -> str:
    from strategy_core.domain.audience import ESTIMATE

    if reached.estimated:
        return f"shares of users are {ESTIMATE}"
    unknown = f"; the capital of {reached.capital_unknown} is not known" if reached.capital_unknown else ""
    return f"of {reached.users} users in the directory{unknown}"


def _shared(overlap: "Overlap") -> str:
    both = (
        " → ".join(f"{share:.2%}" for share in overlap.shares) + " of users"
        if overlap.users is None
        else " → ".join(f"{users}" for users in overlap.users) + " users"
    )
    how = "has the same salt, so they are the same users" if overlap.same_salt else "expected, by other salts"
    return f"also in the {overlap.percent:g} % canary of {overlap.strategy_name} {overlap.version}: {both} ({how})"
