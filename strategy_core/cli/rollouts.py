"""Commands that plan, start, move and end rollouts and canaries."""

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from strategy_core.cli.context import (
    Context,
    NeededReason,
    Override,
    PlanChoice,
    Reason,
    StrategyName,
    VersionName,
    Yes,
    choose_plan,
    command,
)
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import AlreadyRolledBack, InvalidPercent

if TYPE_CHECKING:
    from strategy_core.domain.preview import Audience, Overlap
    from strategy_core.store.tables import Rollout

commands = typer.Typer()

Percent = Annotated[str, typer.Argument(metavar="PERCENT", help="Percent of users, 0 to 100, at most two decimals.")]


@command(commands)
def plan(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    plan: PlanChoice = None,
) -> None:
    """Preview a rollout: users, evidence and days needed per stage.

    Shows how many users each stage reaches, how many slots (candles with a signal) its gates need, how long that
    takes, what the version earned in shadow, and how soon faults would be found. With little shadow, replays of past
    candles are used too, and it says so.
    """
    from strategy_core.cli.context import table
    from strategy_core.services.rollouts import preview_plan
    from strategy_core.services.users import plan_audience

    frozen = choose_plan(shell, strategy, plan)
    found = preview_plan(shell.engine, strategy_name=strategy, version=version, plan=frozen, now=shell.now)
    reached = plan_audience(shell.engine, strategy_name=strategy, plan=frozen, now=shell.now)
    columns = ["stage", "served", "users", "share", "capital", "share of capital", "slots needed", "days expected", ""]
    short = "unknown" if found.pnl_deviation is None else "underpowered"
    rows = [
        (
            f"{stage.percent:g} %",
            f"{who.effective_percent:g} %",
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
        "notes": [*reached.notes, *found.notes],
        "audience": reached.model_dump(mode="json") | {"estimated": reached.estimated},
    }
    lines = [
        _audience_line(reached),
        *reached.notes,
        *(_overlap_line(overlap) for overlap in reached.overlaps),
        found.verdict,
        *found.notes,
    ]
    if found.pnl_deviation is None:
        lines.append(f"Next: rollout replay {strategy} {version}")
    shell.answer(data, table(columns, rows), *lines)


@command(commands)
def start(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    plan: PlanChoice = None,
    reason: Reason = "",
    override_reason: Override = "",
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Start it at this time: 2026-01-31 or 2026-01-31T12:00Z. Default: now."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Start a rollout: the version becomes the canary.

    With --at it starts at that time, if all checks of a start still pass then. Until then the version stays in shadow.

    In a fast replay the plan's limits for late and missing evidence are widened.
    """
    from strategy_core.domain.gates.on_metrics import MetricThreshold
    from strategy_core.domain.parsing import owners_time
    from strategy_core.domain.risk import load_risk
    from strategy_core.services.rollouts import overlap_warning, served_share, start_rollout, start_warning
    from strategy_core.services.scheduled_starts import schedule_start

    asked = choose_plan(shell, strategy, plan)
    start_at = owners_time(at, "--at")
    engine, in_replay = shell.engine, shell.clock.in_replay
    frozen = in_replay(asked)
    shell.warn(start_warning(engine, strategy_name=strategy, version=version, now=shell.now))
    shell.warn(overlap_warning(engine, strategy_name=strategy, plan=frozen))
    percents = " → ".join(f"{stage.percent:g}" for stage in frozen.stages)
    when = "" if start_at is None else f" at {start_at:%Y-%m-%d %H:%M} UTC"
    shell.confirm(f"{version} becomes the canary of {strategy}{when}: {percents} % of users", yes=yes)
    command = Command(shell.actor, shell.now, reason, override_reason=override_reason)
    if start_at is not None:
        scheduled = schedule_start(
            engine, command, strategy_name=strategy, version=version, plan=asked, start_at=start_at
        )
        shell.answer(scheduled.model_dump(mode="json"), f"{strategy} {version} starts{when}")
        return
    rollout = start_rollout(engine, command, strategy_name=strategy, version=version, plan=asked, in_replay=in_replay)
    measured = load_risk(rollout.risk)
    notes = [] if measured is None else [measured.line(version, rollout.control_version)]
    if shell.settings.prometheus_url is None and any(isinstance(gate, MetricThreshold) for gate in frozen.gates):
        notes.append(
            "ROLLOUT_PROMETHEUS_URL is not set here. Metric gates are blind unless it is set where samples are taken."
        )
    headline = f"{strategy} {version} started at {served_share(engine, strategy)}"
    _answer_rollout(shell, rollout, headline, *notes)


@command(commands)
def tick(shell: Context) -> None:
    """Judge every open rollout once: advance, hold or roll back. Then start those that are due.

    The schedule does this every minute. Without candles a rollout is blind: it is held, and rolled back at its plan's
    blind limit.
    """
    from dataclasses import asdict

    from strategy_core.cli.context import DECIDE, table
    from strategy_core.domain.gates.base import NOT_DECIDED
    from strategy_core.services.scheduled_starts import start_due
    from strategy_core.services.tick import tick as tick_all
    from strategy_core.settings import read_settings

    shell.tolerate_bad_settings()
    engine, settings = shell.engine, shell.clock
    shell.warn(settings.clock_note)
    source, quiet = settings.candles_if_any(shell.now), settings.alert_pace.quiet
    ticked = tick_all(engine, source, now=shell.now, actor=shell.actor, quiet=quiet)
    due = start_due(engine, now=shell.now, in_replay=shell.clock.in_replay)
    rows = [
        (t.strategy_name, t.version, *((t.ruling.step, t.ruling.reason) if t.ruling else ("error", t.error)))
        for t in ticked
    ]
    shown = table(["strategy", "version", "step", "reason"], rows) if rows else "no rollout is open"
    following = [DECIDE] if any(t.ruling and NOT_DECIDED in t.ruling.reason for t in ticked) else []
    shell.answer([asdict(each) for each in ticked], shown, *(each.summary for each in due), *following)
    read_settings()  # report an invalid setting, but only after the tick
    if any(each.error for each in ticked):
        raise typer.Exit(1)


@command(commands)
def sample(shell: Context) -> None:
    """Sample the external metrics of open rollouts, for the next tick."""
    from dataclasses import asdict

    from strategy_core.cli.context import table
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
    """Pause a rollout at its current percent.

    Its gates can still roll it back.
    """
    from strategy_core.services import rollouts

    rollout = rollouts.pause(shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy)
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} is paused")


@command(commands)
def resume(shell: Context, strategy: StrategyName, reason: Reason = "") -> None:
    """Resume a paused rollout, at the percent of its stage."""
    from strategy_core.services import rollouts

    rollout = rollouts.resume(shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy)
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} is resumed")


@command(commands)
def exclude(
    shell: Context,
    strategy: StrategyName,
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="Symbol of the feed.")],
    reason: NeededReason,
    yes: Yes = False,
) -> None:
    """Take one symbol off the canary for the rest of the rollout.

    Every user gets the active version on it. The rollout goes on with the other symbols, and is not promoted. The
    platform must route by symbol (ROLLOUT_ROUTES_BY_SYMBOL=1).
    """
    from strategy_core.services.rollouts import exclude_symbol

    engine = shell.engine
    shell.confirm(f"the canary of {strategy} no longer serves {symbol}, and is not promoted", yes=yes)
    rollout = exclude_symbol(
        engine,
        Command(shell.actor, shell.now, reason),
        strategy_name=strategy,
        symbol=symbol,
        routes_by_symbol=shell.settings.routes_by_symbol,
    )
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} no longer serves {symbol}")


@command(commands)
def approve(shell: Context, strategy: StrategyName, reason: Reason = "") -> None:
    """Approve the next stage of a rollout.

    The next tick enters it if the gates still pass. The last stage, which serves all users, needs a reason.
    """
    from strategy_core.services import rollouts

    rollout = rollouts.approve(
        shell.engine,
        Command(shell.actor, shell.now, reason, four_eyes=shell.settings.four_eyes),
        strategy_name=strategy,
    )
    then = "The next tick advances it, if its gates pass and no freeze or window holds it."
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version} is approved. {then}")


@command(commands)
def decide(
    shell: Context,
    strategy: StrategyName,
    choice: Annotated[
        Literal["extend", "advance", "rollback"],
        typer.Argument(
            metavar="CHOICE",
            help="extend: restart the stage's time limit. advance: next stage. rollback: roll back now.",
        ),
    ],
    reason: NeededReason,
    override_reason: Override = "",
) -> None:
    """Decide about a rollout that awaits a decision.

    The choice "rollback" is accepted in every state.
    """
    from strategy_core.services import rollouts
    from strategy_core.services.rollback import never_locked_out

    if choice == "rollback":
        shell.tolerate_bad_settings()

    def run() -> "Rollout":
        four_eyes = shell.settings.four_eyes
        command = Command(shell.actor, shell.now, reason, override_reason=override_reason, four_eyes=four_eyes)
        return rollouts.decide_rollout(shell.engine, command, strategy_name=strategy, choice=rollouts.Choice(choice))

    rollout = never_locked_out()(run)() if choice == "rollback" else run()
    _answer_rollout(shell, rollout, f"{strategy} {rollout.version}: {choice} is decided")


@command(commands)
def rollback(
    shell: Context,
    strategy: StrategyName,
    reason: NeededReason,
    version: Annotated[
        str | None,
        typer.Option(metavar="VERSION", help="Version to roll back. Required to roll back an active version."),
    ] = None,
) -> None:
    """Roll back now, without confirmation.

    Ends the open rollout, or withdraws the canary. With --version it also undoes the activation of that version.
    Users return to the version that they had before.
    """
    from strategy_core.services.rollback import never_locked_out, roll_back

    shell.tolerate_bad_settings()

    @never_locked_out()
    def run() -> str:
        command = Command(shell.actor, shell.now, reason)  # its clock is in the database, which may be locked
        return roll_back(shell.engine, command, strategy_name=strategy, version=version)

    try:
        taken_off = run()
        line = f"{strategy} {taken_off} is rolled back. No user gets it."
    except AlreadyRolledBack as done:
        taken_off, line = done.done, str(done)
    shell.answer({"strategy_name": strategy, "version": taken_off}, line)


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
    """Route a percent of users to a shadow version, without a rollout."""
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
def percent(
    shell: Context,
    strategy: StrategyName,
    percent: Percent,
    reason: Reason = "",
    override_reason: Override = "",
    yes: Yes = False,
) -> None:
    """Set the canary's percent by hand.

    Allowed without an open rollout, or while the rollout is paused.
    """
    from strategy_core.services.canary import update_canary_percent

    share, engine = _percent(percent), shell.engine
    shell.confirm(f"{share:g} % of the users of {strategy} get its canary", yes=yes)
    config = update_canary_percent(
        engine,
        Command(shell.actor, shell.now, reason, override_reason=override_reason, four_eyes=shell.settings.four_eyes),
        strategy_name=strategy,
        percent=share,
    )
    data = {"strategy_name": strategy, "version": config.version, "rollout_percent": config.rollout_percent}
    shell.answer(data, f"{strategy} {config.version} is the canary of {config.rollout_percent:g} % of users")


@command(commands)
def route(
    shell: Context,
    user: Annotated[str, typer.Argument(metavar="USER", help="User id.")],
    strategy: StrategyName,
    symbol: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Symbol of the trade. It may be excluded from the canary."),
    ] = None,
) -> None:
    """Show which version a user gets now, and why."""
    from dataclasses import asdict

    from strategy_core.services.queries import route_user

    found = route_user(shell.engine, user_id=user, strategy_name=strategy, now=shell.now, symbol=symbol)
    shell.answer(asdict(found) | {"why": found.why}, f"{user} gets {strategy} {found.version}: {found.why}")


def _answer_rollout(shell: Context, rollout: "Rollout", *lines: str) -> None:
    shell.answer(rollout.model_dump(mode="json"), *lines)


def _audience_line(reached: "Audience") -> str:
    from strategy_core.domain.preview import ESTIMATE

    if reached.estimated:
        return f"Shares of users are {ESTIMATE}."
    unknown = f" The capital of {reached.capital_unknown} is unknown." if reached.capital_unknown else ""
    kept = f" {reached.kept:,} are kept with the active version." if reached.kept else ""
    always = f" {reached.always:,} always get the canary." if reached.always else ""
    return f"Based on {reached.users:,} users in the directory.{unknown}{kept}{always}"


def _overlap_line(overlap: "Overlap") -> str:
    both = (
        " → ".join(f"{share:.2%}" for share in overlap.shares) + " of users"
        if overlap.users is None
        else " → ".join(f"{users}" for users in overlap.users) + " users"
    )
    how = "same salt: the same users" if overlap.same_salt else "expected, salts differ"
    return f"also in the {overlap.percent:g} % canary of {overlap.strategy_name} {overlap.version}: {both} ({how})"


def _percent(text: str) -> float:
    """Parse and check a percent, before the confirmation asks about it."""
    try:
        found = float(text)
    except ValueError:
        raise InvalidPercent(text) from None
    from strategy_core.domain.routing import basis_points

    basis_points(text)
    return found
