"""`rollout start | sample | tick | pause | resume | approve | decide | rollback`: a canary's journey and its owner."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from strategy_core.cli.context import (
    Context,
    NeededReason,
    Override,
    Reason,
    StrategyName,
    VersionName,
    Yes,
    command,
    read_json,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import InvalidPercent, InvalidPlan

if TYPE_CHECKING:
    from strategy_core.domain.preview import Audience, Overlap

commands = typer.Typer()


@command(commands)
def plan(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="The plan as JSON; the usual one, else.")] = None,
) -> None:
    """Show whom each stage reaches, how many slots it needs, how long that takes, and whether they can suffice."""
    from strategy_core.cli.output import table
    from strategy_core.domain.plan import read_plan
    from strategy_core.services.rollouts import preview_plan
    from strategy_core.services.users import plan_audience

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
    from strategy_core.domain.preview import ESTIMATE

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


if TYPE_CHECKING:
    from strategy_core.store.tables import Rollout


@command(commands)
def start(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help="The plan as JSON; the usual one, else.")] = None,
    reason: Reason = "",
    override_reason: Override = "",
    yes: Yes = False,
) -> None:
    """Start a rollout: the version becomes the canary, at the first stage of the plan."""
    from strategy_core.domain.gates.on_metrics import MetricThreshold
    from strategy_core.domain.plan import read_plan
    from strategy_core.services.rollouts import start_rollout

    frozen = read_plan({} if plan is None else read_json(f"@{plan}", InvalidPlan))
    engine = shell.engine
    percents = " → ".join(f"{stage.percent:g}" for stage in frozen.stages)
    shell.confirm(f"{version} becomes the canary of {strategy}: {percents} % of users", yes=yes)
    rollout = start_rollout(
        engine,
        Command(shell.actor, shell.now, reason, override_reason=override_reason),
        strategy_name=strategy,
        version=version,
        plan=frozen,
    )
    notes = []
    if shell.settings.prometheus_url is None and any(isinstance(gate, MetricThreshold) for gate in frozen.gates):
        notes.append(
            "ROLLOUT_PROMETHEUS_URL is not set here: metric gates are blind unless it is where they are sampled"
        )
    headline = f"{strategy} {version} started at {frozen.stages[0].percent:g} % of users"
    _answer_rollout(shell, rollout, headline, *notes)


@command(commands)
def tick(shell: Context) -> None:
    """Rule once on every open rollout: advance, hold or roll back; without a feed it is blind, which holds at first."""
    from dataclasses import asdict

    from strategy_core.cli.output import table
    from strategy_core.services.tick import tick as tick_all
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
def sample(shell: Context) -> None:
    """Ask for the external metrics of open rollouts, once; their gates judge the answers at the next tick."""
    from dataclasses import asdict

    from strategy_core.cli.output import table
    from strategy_core.services.sample_metrics import sample_metrics

    sampled = sample_metrics(shell.engine, shell.settings.open_prometheus(), now=shell.now)
    rows = [(each.strategy_name, each.version, each.gate, each.value, each.problem) for each in sampled]
    columns = ["strategy", "version", "gate", "value", "problem"]
    shell.answer(
        [asdict(each) for each in sampled], table(columns, rows) if rows else "no open rollout has a metric gate"
    )
    if any(each.problem for each in sampled):
        raise typer.Exit(1)


@command(commands)
def pause(shell: Context, strategy: StrategyName, reason: Reason = "") -> None:
    """Keep a rollout where it is; every protection stays armed."""
    from strategy_core.services import rollouts

    rollout = rollouts.pause(shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy)
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} is paused")


@command(commands)
def resume(shell: Context, strategy: StrategyName, reason: Reason = "") -> None:
    """Let a paused rollout go on, at its stage's percent."""
    from strategy_core.services import rollouts

    rollout = rollouts.resume(shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy)
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} goes on")


@command(commands)
def approve(shell: Context, strategy: StrategyName, reason: Reason = "") -> None:
    """Let a rollout enter the stage it waits for, at the next tick."""
    from strategy_core.services import rollouts

    rollout = rollouts.approve(
        shell.engine,
        Command(shell.actor, shell.now, reason, four_eyes=shell.settings.four_eyes),
        strategy_name=strategy,
    )
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} is approved; the next tick advances it")


@command(commands)
def decide(
    shell: Context,
    strategy: StrategyName,
    choice: Annotated[
        Literal["extend", "advance", "rollback"],
        typer.Argument(help="The maximum time anew, the next stage, or users off it now."),
    ],
    reason: NeededReason,
) -> None:
    """Answer a rollout that waits for a decision; to roll back is heard in every state."""
    from strategy_core.services import rollouts

    if choice == "rollback":
        shell.need_the_database_alone()
    rollout = rollouts.decide_rollout(
        shell.engine,
        Command(shell.actor, shell.now, reason, four_eyes=shell.settings.four_eyes),
        strategy_name=strategy,
        choice=rollouts.Choice(choice),
    )
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version}: {choice}, as decided")


@command(commands)
def rollback(
    shell: Context,
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
        shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy, version=version
    )
    data = {"strategy_name": strategy, "version": taken_off}
    shell.answer(data, f"{strategy} {taken_off} is rolled back; no user gets it")


def _answer_rollout(shell: Context, rollout: "Rollout", *lines: str) -> None:
    shell.answer(rollout.model_dump(mode="json"), *lines)


Percent = Annotated[str, typer.Argument(metavar="PERCENT", help="Of users: 0 to 100, two decimals at most.")]


@command(commands, numbers=True)
def canary(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    percent: Percent,
    reason: Reason = "",
    override_reason: Override = "",
    yes: Yes = False,
) -> None:
    """Send a share of users to a shadow version, outside any rollout."""
    from strategy_core.services.canary import activate_canary

    share, engine = _percent(percent), shell.engine
    shell.confirm(f"{share:g} % of the users of {strategy} get {version}", yes=yes)
    found, config = activate_canary(
        engine,
        Command(shell.actor, shell.now, reason, override_reason=override_reason),
        strategy_name=strategy,
        version=version,
        rollout_percent=share,
    )
    data = {"strategy_name": strategy, "version": found.version, "rollout_percent": config.rollout_percent}
    shell.answer(data, f"{strategy} {version} is the canary of {config.rollout_percent:g} % of users")


@command(commands, numbers=True)
def percent(shell: Context, strategy: StrategyName, percent: Percent, reason: Reason = "", yes: Yes = False) -> None:
    """Set the canary's share of users by hand, while no rollout moves it or its rollout is paused."""
    from strategy_core.services.canary import update_canary_percent

    share, engine = _percent(percent), shell.engine
    shell.confirm(f"{share:g} % of the users of {strategy} get its canary", yes=yes)
    config = update_canary_percent(
        engine,
        Command(shell.actor, shell.now, reason, four_eyes=shell.settings.four_eyes),
        strategy_name=strategy,
        percent=share,
    )
    data = {"strategy_name": strategy, "version": config.version, "rollout_percent": config.rollout_percent}
    shell.answer(data, f"{strategy} {config.version} is the canary of {config.rollout_percent:g} % of users")


@command(commands)
def route(
    shell: Context, user: Annotated[str, typer.Argument(metavar="USER", help="A user's id.")], strategy: StrategyName
) -> None:
    """Say which version a user gets now, and why."""
    from dataclasses import asdict

    from strategy_core.services.queries import route_user

    found = route_user(shell.engine, user_id=user, strategy_name=strategy)
    shell.answer(asdict(found) | {"why": found.why}, f"{user} gets {strategy} {found.version}: {found.why}")


def _percent(text: str) -> float:
    """Return the percent that *text* says, checked before anybody is asked to confirm it."""
    try:
        found = float(text)
    except ValueError:
        raise InvalidPercent(text) from None
    from strategy_core.domain.routing import basis_points

    basis_points(text)
    return found
