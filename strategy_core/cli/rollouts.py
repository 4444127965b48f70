"""`rollout start | sample | tick | pause | resume | approve | decide | rollback`: a canary's journey and its owner."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from strategy_core.cli.shell import (
    NeededReason,
    Override,
    Reason,
    Shell,
    StrategyName,
    VersionName,
    Yes,
    command,
    read_json,
)
from strategy_core.domain.errors import InvalidPlan

if TYPE_CHECKING:
    from strategy_core.store.rollout_tables import Rollout

commands = typer.Typer()


@command(commands)
def start(
    shell: Shell,
    strategy: StrategyName,
    version: VersionName,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="The plan as JSON; the usual one, else.")] = None,
    reason: Reason = "",
    override_reason: Override = "",
    yes: Yes = False,
) -> None:
    """Start a rollout: the version becomes the canary, at the first stage of the plan."""
    from strategy_core.domain.metric import MetricThreshold
    from strategy_core.domain.plan import read_plan
    from strategy_core.services.start import start_rollout

    frozen = read_plan({} if plan is None else read_json(f"@{plan}", InvalidPlan))
    engine = shell.engine
    percents = " → ".join(f"{stage.percent:g}" for stage in frozen.stages)
    shell.confirm(f"{version} becomes the canary of {strategy}: {percents} % of users", yes=yes)
    rollout = start_rollout(
        engine,
        strategy_name=strategy,
        version=version,
        plan=frozen,
        actor=shell.actor,
        now=shell.now,
        reason=reason,
        override_reason=override_reason,
    )
    notes = []
    if shell.settings.prometheus_url is None and any(isinstance(gate, MetricThreshold) for gate in frozen.gates):
        notes.append(
            "ROLLOUT_PROMETHEUS_URL is not set here: metric gates are blind unless it is where they are sampled"
        )
    headline = f"{strategy} {version} started at {frozen.stages[0].percent:g} % of users"
    _answer_rollout(shell, rollout, headline, *notes)


@command(commands)
def tick(shell: Shell) -> None:
    """Rule once on every open rollout: advance, hold or roll back; without a feed it is blind, which holds at first."""
    from dataclasses import asdict

    from strategy_core.cli.tables import table
    from strategy_core.services.ramp import tick as tick_all
    from strategy_core.settings import read_settings

    shell.need_the_database_alone()
    ticked = tick_all(shell.engine, shell.settings.candles_if_any(shell.now), now=shell.now, actor=shell.actor)
    rows = [
        (t.strategy_name, t.version, *((t.ruling.step, t.ruling.reason) if t.ruling else ("error", t.error)))
        for t in ticked
    ]
    shown = table(["strategy", "version", "step", "reason"], rows) if rows else "no rollout is open"
    shell.answer([asdict(each) for each in ticked], shown)
    read_settings()  # one that is not valid is told, after the rollouts have been ruled on
    if any(each.error for each in ticked):
        raise typer.Exit(1)


@command(commands)
def sample(shell: Shell) -> None:
    """Ask for the external metrics of open rollouts, once; their gates judge the answers at the next tick."""
    from dataclasses import asdict

    from strategy_core.cli.tables import table
    from strategy_core.services.sample import sample_metrics

    sampled = sample_metrics(shell.engine, shell.settings.open_prometheus(), now=shell.now)
    rows = [(each.strategy_name, each.version, each.gate, each.value, each.problem) for each in sampled]
    columns = ["strategy", "version", "gate", "value", "problem"]
    shell.answer(
        [asdict(each) for each in sampled], table(columns, rows) if rows else "no open rollout has a metric gate"
    )
    if any(each.problem for each in sampled):
        raise typer.Exit(1)


@command(commands)
def pause(shell: Shell, strategy: StrategyName, reason: Reason = "") -> None:
    """Keep a rollout where it is; every protection stays armed."""
    from strategy_core.services import approve as owner

    rollout = owner.pause(shell.engine, strategy_name=strategy, actor=shell.actor, now=shell.now, reason=reason)
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} is paused")


@command(commands)
def resume(shell: Shell, strategy: StrategyName, reason: Reason = "") -> None:
    """Let a paused rollout go on, at its stage's percent."""
    from strategy_core.services import approve as owner

    rollout = owner.resume(shell.engine, strategy_name=strategy, actor=shell.actor, now=shell.now, reason=reason)
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} goes on")


@command(commands)
def approve(shell: Shell, strategy: StrategyName, reason: Reason = "") -> None:
    """Let a rollout enter the stage it waits for, at the next tick."""
    from strategy_core.services import approve as owner

    rollout = owner.approve(
        shell.engine,
        strategy_name=strategy,
        actor=shell.actor,
        now=shell.now,
        reason=reason,
        four_eyes=shell.settings.four_eyes,
    )
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} is approved; the next tick advances it")


@command(commands)
def decide(
    shell: Shell,
    strategy: StrategyName,
    choice: Annotated[
        Literal["extend", "advance", "rollback"],
        typer.Argument(help="The maximum time anew, the next stage, or users off it now."),
    ],
    reason: NeededReason,
) -> None:
    """Answer a rollout that waits for a decision; to roll back is heard in every state."""
    from strategy_core.services import approve as owner

    if choice == "rollback":
        shell.need_the_database_alone()
    rollout = owner.decide_rollout(
        shell.engine,
        strategy_name=strategy,
        choice=owner.Choice(choice),
        actor=shell.actor,
        now=shell.now,
        reason=reason,
        four_eyes=shell.settings.four_eyes,
    )
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version}: {choice}, as decided")


@command(commands)
def rollback(
    shell: Shell,
    strategy: StrategyName,
    reason: NeededReason,
    version: Annotated[
        str | None, typer.Option(help="Take users off this one; the active one is undone only when it is named.")
    ] = None,
) -> None:
    """Take users off a version now: undo its rollout, its canary, or, named, its activation. Asks nothing."""
    from strategy_core.services.rollback import roll_back

    shell.need_the_database_alone()
    taken_off = roll_back(
        shell.engine, strategy_name=strategy, version=version, actor=shell.actor, now=shell.now, reason=reason
    )
    data = {"strategy_name": strategy, "version": taken_off}
    shell.answer(data, f"{strategy} {taken_off} is rolled back; no user gets it")


def _answer_rollout(shell: Shell, rollout: "Rollout", *lines: str) -> None:
    shell.answer(rollout.model_dump(mode="json"), *lines)
