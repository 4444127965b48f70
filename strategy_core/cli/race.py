"""Commands of races: many candidates against the active version at once."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import (
    AnyStrategy,
    Context,
    NeededReason,
    Override,
    PlanChoice,
    PlanFile,
    Reason,
    StrategyName,
    VersionName,
    check_folder,
    choose_plan,
    command,
    progress,
    read_json,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidPlan

if TYPE_CHECKING:
    from rich.table import Table

    from strategy_core.domain.race_simulation import Cell
    from strategy_core.services.races import RaceView

_LEGEND = """worse: share of user-days on a version that is worse than the active one.
moves: of each user. day: on which a best version came to serve all (median).
foreseen: the ramp, if the best version were known on day 0. No rule can know it.
best out: races that eliminated a best version.
wrong: races in which a version that is worse came to serve all."""

commands = typer.Typer(help="Set many candidates against the active version.")


@commands.callback()
def _race() -> None: ...


@command(commands)
def start(
    shell: Context,
    strategy: StrategyName,
    versions: Annotated[list[str], typer.Argument(metavar="VERSION...", help="Two or more versions in shadow.")],
    plan: PlanChoice = None,
    starts: Annotated[
        bool,
        typer.Option("--start-rollouts", help="Start the rollout of the leader. Default: alert, and wait for you."),
    ] = False,
    reason: Reason = "",
    override_reason: Override = "",
) -> None:
    """Set versions in shadow against the active version. No user is moved by that."""
    from strategy_core.services.races import start_race

    chosen = choose_plan(shell, strategy, plan)
    begun = start_race(
        shell.engine,
        Command(shell.actor, shell.now, reason, override_reason=override_reason),
        strategy_name=strategy,
        candidates=versions,
        plan=chosen,
        starts=starts,
    )
    then = "its rollout is started" if starts else "you get an alert"
    shell.answer(
        _data(begun),
        f"{strategy}: {', '.join(versions)} race against {begun.entries[0].version}, counted from "
        f"{begun.race.first_day:%Y-%m-%d} on",
        f"When one of them leads clearly, {then}. To see how they stand: rollout race status {strategy}",
    )


@command(commands)
def status(
    shell: Context,
    strategy: AnyStrategy = None,
    every: Annotated[bool, typer.Option("--all", help="Also closed races.")] = False,
) -> None:
    """Show how the versions of each race stand."""
    from strategy_core.services.races import list_races

    found = list_races(shell.engine, strategy, open_alone=not every)
    shown: list[str | Table] = [each for view in found for each in _standings(view)]
    none = f"no race{f' of {strategy}' if strategy else ''}. To start one: rollout race start STRATEGY VERSION VERSION"
    shell.answer([_data(each) for each in found], *(shown or [none]))


@command(commands)
def enter(shell: Context, strategy: StrategyName, version: VersionName, reason: Reason = "") -> None:
    """Enter one more version into the race of a strategy."""
    from strategy_core.services.races import enter_race

    entered = enter_race(shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy, version=version)
    shell.answer(
        _data(entered), f"{strategy} {version} is in the race. Its evidence begins on {entered.race.next_day:%Y-%m-%d}"
    )


@command(commands)
def withdraw(shell: Context, strategy: StrategyName, version: VersionName, reason: NeededReason) -> None:
    """Take a version out of the race of a strategy, for good. A rollout of it goes on."""
    from strategy_core.services.races import withdraw_from_race

    left = withdraw_from_race(
        shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy, version=version
    )
    shell.answer(_data(left), f"{strategy} {version} is out of the race")


@command(commands)
def close(shell: Context, strategy: StrategyName, reason: Reason = "") -> None:
    """Close the race of a strategy. A rollout that it has started goes on."""
    from strategy_core.services.races import close_race

    closed = close_race(shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy)
    shell.answer(_data(closed), f"the race of {strategy} is closed")


@command(commands)
def tick(shell: Context) -> None:
    """Count the days of all races that have closed, and nominate leaders. The schedule does the same every hour."""
    from strategy_core.cli.context import plural
    from strategy_core.services.race_tick import tick_races

    done = tick_races(shell.engine, now=shell.now, in_replay=shell.clock.in_replay)
    data = [
        {"strategy_name": each.strategy_name, "days": each.days, "line": each.line, "error": each.error}
        for each in done
    ]
    lines = [
        f"{each.strategy_name}: {plural(each.days, 'day')} counted; "
        f"{each.error or each.line or 'waits for its first day'}"
        for each in done
    ]
    shell.answer(data, *(lines or ["no open race"]))
    if any(each.error for each in done):
        raise typer.Exit(1)


@command(commands)
def whatif(
    shell: Context,
    strategy: StrategyName,
    versions: Annotated[list[str], typer.Argument(metavar="VERSION...", help="Versions that are replayed.")],
    start: Annotated[str | None, typer.Option("--from", metavar="TIME", help="First candle. Default: all.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Only candles before this time.")] = None,
    shadow_days: Annotated[
        int, typer.Option(metavar="N", min=14, max=365, help="Days that the race knows when it starts.")
    ] = 60,
    plan: PlanChoice = None,
) -> None:
    """Show how a race would have gone on replayed candles. Nothing is changed.

    Replay the active version and each candidate first: rollout replay STRATEGY VERSION.
    """
    from dataclasses import asdict

    from strategy_core.cli.context import table
    from strategy_core.domain.parsing import owners_time
    from strategy_core.services.race_whatif import race_on_replays

    found = race_on_replays(
        shell.engine,
        strategy_name=strategy,
        candidates=versions,
        plan=choose_plan(shell, strategy, plan),
        shadow_days=shadow_days,
        start=owners_time(start, "--from"),
        end=owners_time(end, "--to"),
    )
    out = {row.version: "active" if row.mean is None else row.status.value for row in found.standings}
    base = found.totals[found.active]
    rows = [
        (version, out.get(version, ""), f"{total:+.1f}", f"{total - base:+.1f}" if version != found.active else None)
        for version, total in sorted(found.totals.items(), key=lambda each: -each[1])
    ]
    said = (
        f"Users earned {found.gain:+.1f} R more than with {found.active}, the worst one {found.worst:+.1f} R, and were "
        f"moved {found.switches:.1f} times. The best version from the first day on: {found.best_fixed:+.1f} R."
    )
    title = f"{strategy}: {len(versions)} candidates, {found.start} to {found.end}, after {shadow_days} days of shadow"
    happened = [(each.day, each.version, each.what) for each in found.events]
    shell.answer(
        asdict(found),
        table(["version", "at the end", "R", f"than {found.active}"], rows, title=title),
        *([table(["day", "version", "what happened"], happened)] if happened else ["No version was nominated."]),
        said,
    )


def _data(view: "RaceView") -> dict[str, object]:
    return {
        **view.race.model_dump(mode="json", exclude={"pairs", "plan"}),
        "entries": [each.model_dump(mode="json", exclude={"race_id", "strategy_name"}) for each in view.entries],
        "standings": [each.model_dump(mode="json", exclude={"race_id"}) for each in view.standings],
    }


def _standings(view: "RaceView") -> "list[str | Table]":
    from strategy_core.cli.context import table

    begun, newest = view.race, view.newest
    headline = f"{begun.strategy_name}: {len(view.entries) - 1} candidates since {begun.first_day:%Y-%m-%d}"
    if begun.closed_at is not None:
        headline += f", closed by {begun.closed_by} on {begun.closed_at:%Y-%m-%d}"
    if newest is None:
        return [f"{headline}. No day is counted yet: a day counts once its trades have closed"]
    rows = [
        (
            row["version"],
            "active" if row["version"] == newest.active else row["status"],
            row["slots"] if row["version"] != newest.active else None,
            None if row["mean"] is None else f"{row['mean']:+.3f}",
            None if row["low"] is None or row["mean"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}",
            None if row["mean"] is None else f"{row['log10_e']:+.1f}",
            row["by"],
        )
        for row in view.rows
    ]
    columns = ["version", "standing", "slots", "R a slot", "95 %", "log10 E", "by"]
    title = f"{headline}; counted up to {newest.day:%Y-%m-%d}"
    return [table(columns, rows, title=title), begun.ruling.get("reason", "")]


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
