"""Commands of races: many candidates against the active version at once."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import Context, PlanFile, check_folder, command, progress, read_json
from strategy_core.domain.errors import InvalidPlan

if TYPE_CHECKING:
    from rich.table import Table

    from strategy_core.domain.race_simulation import Cell

_LEGEND = """worse: share of user-days on a version that is worse than the active one.
moves: of each user. day: on which a best version came to serve all (median).
foreseen: the ramp, if the best version were known on day 0. No rule can know it.
best out: races that eliminated a best version.
wrong: races in which a version that is worse came to serve all."""

commands = typer.Typer(help="Set many candidates against the active version.")


@commands.callback()
def _race() -> None: ...


@command(commands)
def simulate(
    shell: Context,
    candidates: Annotated[
        list[int] | None, typer.Option(metavar="N", help="Number of candidates. May be repeated. Default: 4.")
    ] = None,
    runs: Annotated[int, typer.Option(metavar="N", min=1, help="Simulated races of each kind.")] = 100,
    days: Annotated[int, typer.Option(metavar="N", min=15, max=365, help="Length of a race.")] = 90,
    shadow_days: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Days of shadow that are known at the start. May be repeated. Default: 60."),
    ] = None,
    scenario: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="This scenario. May be repeated. Default: all.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="This way to give users to versions. May be repeated. Default: all."),
    ] = None,
    plan: PlanFile = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed, for the same result again.")] = 1,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw a chart.")] = None,
) -> None:
    """Simulate races, and compare ways to give users to the candidates.

    Every way sees the same markets and the same days of shadow. R is what a user earned more than with the active
    version. `ramp` nominates the leader of a race and gives it users by a rollout with all gates. `foreseen` does so
    with the truly best version from day 0 on, which bounds what a better nomination could earn.
    """
    from dataclasses import asdict

    from strategy_core.domain.plan import read_plan
    from strategy_core.report.charts import races_svg
    from strategy_core.services.simulate_races import simulate_races

    check_folder("plot", plot)
    frozen = read_plan({} if plan is None else read_json(f"@{plan}", InvalidPlan))
    with progress() as shown_done:
        found = simulate_races(
            frozen,
            candidates=candidates or [4],
            shadow_days=[60] if shadow_days is None else shadow_days,
            runs=runs,
            days=days,
            seed=seed,
            scenarios=scenario or (),
            policies=policy or (),
            done=partial(shown_done, "races"),
        )
    if plot is not None:
        plot.write_text(races_svg(f"{runs:,} simulated races of {days} days each", found.cells), encoding="utf-8")
    groups = dict.fromkeys((cell.scenario, cell.candidates, cell.shadow_days) for cell in found.cells)
    tables = [_table([each for each in found.cells if _group(each) == group]) for group in groups]
    data = found.model_dump(mode="json", exclude={"cells"}) | {"cells": [asdict(cell) for cell in found.cells]}
    said = f"{runs:,} races of {days} days each, seed {seed}. Gain and worst user in R against the active version."
    shell.answer(data, *tables, said, _LEGEND)


def _group(cell: "Cell") -> tuple[str, int, int]:
    return cell.scenario, cell.candidates, cell.shadow_days


def _table(cells: "Sequence[Cell]") -> "Table":
    from strategy_core.cli.context import table

    first = cells[0]
    rows = [
        (
            cell.policy,
            f"{cell.gain:+.1f}",
            f"{cell.gain_error:.1f}",
            f"{cell.worst:+.1f}",
            f"{cell.worse_days:.1%}",
            f"{cell.switches:.2f}",
            cell.median_days,
            f"{cell.best_eliminated:.1%}",
            f"{cell.worse_promoted:.1%}",
        )
        for cell in cells
    ]
    name = f"{first.scenario}, {first.candidates} candidates, {first.shadow_days} days of shadow"
    columns = ["policy", "gain", "±", "worst", "worse", "moves", "day", "best out", "wrong"]
    return table(columns, rows, title=f"{name}: the best from day 0 earns {first.best_fixed:+.1f} R")
