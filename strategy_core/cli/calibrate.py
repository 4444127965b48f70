"""The command that simulates how a plan's gates treat healthy and harmful canaries."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import Context, PlanFile, check_folder, command, progress, read_json
from strategy_core.domain.errors import InvalidPlan

if TYPE_CHECKING:
    from rich.table import Table

    from strategy_core.domain.calibration import Calibration

commands = typer.Typer()


@command(commands)
def calibrate(
    shell: Context,
    strategy: Annotated[
        str | None, typer.Argument(metavar="STRATEGY", help="Sample its shadow history. Default: simulated markets.")
    ] = None,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="The version that would be the canary.")
    ] = None,
    plan: PlanFile = None,
    ramps: Annotated[int, typer.Option(metavar="N", min=1, help="Simulated rollouts per scenario.")] = 400,
    days: Annotated[int, typer.Option(metavar="N", min=1, max=365, help="Maximum length of a rollout.")] = 20,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Random seed, for the same result again.")] = 1,
    scenario: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="This scenario, also one that is not among the usual ones. Can be repeated."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Also draw a chart.")] = None,
) -> None:
    """Simulate how often a plan's gates are wrong, and how fast.

    Shows how often healthy canaries are rolled back, and after how many slots harmful ones are.
    """
    from strategy_core.domain.plan import read_plan
    from strategy_core.domain.preview import in_sample_note
    from strategy_core.report.charts import calibration_svg
    from strategy_core.services.calibrate import calibrate, read_pair

    if strategy is not None and version is None:
        raise typer.BadParameter(f"VERSION of {strategy} is missing. Give both, or neither.")
    check_folder("plot", plot)
    frozen = read_plan({} if plan is None else read_json(f"@{plan}", InvalidPlan))
    pair = (
        read_pair(shell.engine, strategy_name=strategy, version=version, now=shell.now)
        if strategy is not None and version is not None
        else None
    )
    with progress() as shown_done:
        done = partial(shown_done, "ramps")
        found = calibrate(frozen, ramps=ramps, days=days, seed=seed, scenarios=scenario or (), pair=pair, done=done)
    if plot is not None:
        of = "simulated markets" if pair is None else f"{strategy} {version}, sampled from its shadow history"
        title = f"{of}: {ramps:,} ramps of {days} days a scenario"
        plot.write_text(calibration_svg(title, found.scenarios), encoding="utf-8")
    data = found.model_dump(mode="json") | {"strategy_name": strategy, "version": version, "ramps": ramps}
    data |= {"slots_replayed": 0 if pair is None else pair.replayed}
    data |= {"left_out_until": None if pair is None else pair.left_out_until}
    shown = [_healthy(found.scenarios), _harmful(found.scenarios), f"{ramps:,} ramps of {days} days each, seed {seed}."]
    if pair is not None:
        of = f"{pair.history.slots:,} slots on {pair.history.days} days in shadow"
        assumed = ", assumed: too few days" if pair.history.provisional else ""
        shown.append(f"Sampled from {of}, design effect {pair.history.design_effect:.2f}{assumed}.")
        if pair.replayed:
            shown.append(f"From replay: {pair.replayed:,} of these slots. The gates of a rollout do not count them.")
        if pair.left_out_until is not None:
            shown.append(in_sample_note(pair.left_out_until))
    if found.left_out:
        shown.append(f"Not simulated: {', '.join(found.left_out)}.")
    shell.answer(data, *(each for each in shown if each is not None))


def _healthy(calibrations: "Sequence[Calibration]") -> "Table | None":
    from strategy_core.cli.context import table

    rows = [
        (
            one.scenario,
            f"{one.rolled_back:.2%}",
            f"{one.rolled_back_limit:.2%}",
            _gates(one),
            f"{one.promoted:.1%}",
            one.median_promotion_days,
        )
        for one in calibrations
        if one.healthy
    ]
    columns = ["healthy canary", "rolled back", "at most (95 %)", "by", "promoted", "median day"]
    return table(columns, rows) if rows else None


def _harmful(calibrations: "Sequence[Calibration]") -> "Table | None":
    from strategy_core.cli.context import table

    rows = [
        (
            one.scenario,
            f"{one.rolled_back:.2%}",
            _gates(one),
            one.median_slots,
            one.p95_slots,
            one.p95_hours,
            one.bound_slots,
            one.median_over_bound,
            f"{one.promoted:.1%}",
        )
        for one in calibrations
        if not one.healthy
    ]
    columns = ["harmful canary", "power", "by", "median slots", "p95", "p95 hours", "bound", "median/bound", "promoted"]
    return table(columns, rows) if rows else None


def _gates(one: "Calibration") -> str:
    return ", ".join(f"{gate} {count}" for gate, count in one.by_gate.items())
