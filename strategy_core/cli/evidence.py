"""Commands that collect and show evidence: decisions, outcomes, comparisons, live trades and users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import (
    Context,
    Limit,
    PlanFile,
    StrategyName,
    Symbol,
    VersionName,
    command,
    moment,
    read_json,
)
from strategy_core.domain.errors import InvalidPlan

if TYPE_CHECKING:
    from rich.console import RenderableType

    from strategy_core.domain.comparison import Comparison, Interval

commands = typer.Typer()
Start = Annotated[str | None, typer.Option(metavar="TIME", help="First candle: 2026-01-31 or 2026-01-31T12:00Z.")]
End = Annotated[str | None, typer.Option(metavar="TIME", help="Only candles before this time. Default: now.")]


@command(commands)
def shadow(shell: Context) -> None:
    """Log the decisions of all versions on newly closed candles."""
    from dataclasses import asdict

    from strategy_core.cli.context import table
    from strategy_core.isolation.pool import WorkerPool
    from strategy_core.services.shadow import run_shadow

    engine, source = shell.engine, shell.candles()
    settings = shell.settings
    with WorkerPool(deadline_s=settings.decision_deadline_s, at_once=settings.shadow_workers) as workers:
        runs = run_shadow(engine, source, workers, now=shell.now, quiet=shell.settings.alert_pace.quiet)
    columns = ["strategy", "version", "role", "logged", "signals", "errors", "refused"]
    rows = [(run.strategy_name, run.version, run.role, run.logged, run.signals, run.errors, run.error) for run in runs]
    shell.answer([asdict(run) for run in runs], table(columns, rows))
    if any(run.error for run in runs):
        raise typer.Exit(1)


@command(commands)
def score(shell: Context) -> None:
    """Record the outcomes of simulated trades that have closed."""
    from dataclasses import asdict

    from strategy_core.services.score import score_outcomes

    scored = score_outcomes(shell.engine, shell.candles(), now=shell.now)
    lost = f", {scored.lost} have no candle in the feed" if scored.lost else ""
    summary = f"{scored.booked} outcomes recorded, {scored.pending} trades still open{lost}"
    shell.answer(asdict(scored), summary, *(f"not scored: {refused}" for refused in scored.refused))
    if scored.refused:
        raise typer.Exit(1)


@command(commands)
def replay(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    start: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="First candle. Default: 180 days before --to.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Only candles before this time. Default: the newest.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Delete what was replayed in this period, and decide again.")
    ] = False,
) -> None:
    """Let a version and the active one decide on past candles.

    The decisions and their results are kept apart from the log of live decisions. The commands compare, plan and
    calibrate use them where there is too little live evidence. No gate of a rollout counts them.
    """
    from dataclasses import asdict

    from strategy_core.cli.context import progress, table
    from strategy_core.isolation.pool import WorkerPool
    from strategy_core.services.replay import replay_version

    engine, source, settings = shell.engine, shell.candles(), shell.settings
    with (
        WorkerPool(deadline_s=settings.decision_deadline_s, at_once=settings.shadow_workers) as workers,
        progress() as done,
    ):
        found = replay_version(
            engine,
            source,
            workers,
            strategy_name=strategy,
            version=version,
            now=shell.now,
            start=moment(start, "--from"),
            end=moment(end, "--to"),
            again=again,
            done=done,
        )
    columns = ["version", "first candle", "last candle", "candles", "new", "signals", "closed", "open", "errors"]
    fields = ("version", "first", "newest", "candles", "decided", "signals", "closed", "pending", "errors")
    rows = [[getattr(one, field) for field in fields] for one in found]
    notes = [note for one in found for note in one.notes]
    following = f"Next: rollout compare {strategy} {version} --start {found[0].first:%Y-%m-%d}"
    shell.answer([asdict(one) | {"notes": one.notes} for one in found], table(columns, rows), *notes, following)
    if any(one.errors for one in found):
        raise typer.Exit(1)


@command(commands)
def compare(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    days: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Length in days. Default: 30, without --start.")
    ] = None,
    start: Start = None,
    end: End = None,
    symbol: Symbol = None,
) -> None:
    """Compare a version with the active one on the same candles.

    On candles before both decided live, replayed decisions are compared if there are any.
    """
    from strategy_core.services.compare import chosen_period, compare_versions, why_empty

    over = chosen_period(days, moment(start, "--start"), moment(end, "--end"), shell.now)
    found = compare_versions(
        shell.engine,
        strategy_name=strategy,
        shadow_version=version,
        over=over,
        symbol=symbol,
        source=shell.candles(),
    )
    why = [] if found.candles_compared else why_empty(shell.engine, strategy_name=strategy, version=version, over=over)
    data = {"start": over.start, "end": over.end, **found.model_dump(mode="json"), "notes": why}
    shown_period = f"{over.start:%Y-%m-%d %H:%M} to {over.end:%Y-%m-%d %H:%M} UTC"
    shell.answer(data, shown_period, *_comparison_tables(found, version), *why)


@command(commands)
def whatif(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Start of the rollout. Default: 180 days after the first replay."),
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Only candles before this time. Default: all replayed.")
    ] = None,
    plan: PlanFile = None,
) -> None:
    """Show how a rollout would have gone on replayed candles.

    Every candle is a tick with the gates of the plan. Owners approve at once. Nothing is changed.
    """
    from dataclasses import asdict

    from strategy_core.cli.context import table
    from strategy_core.domain.plan import read_plan
    from strategy_core.services.whatif import what_if

    found = what_if(
        shell.engine,
        strategy_name=strategy,
        version=version,
        plan=read_plan({} if plan is None else read_json(f"@{plan}", InvalidPlan)),
        start=moment(start, "--from"),
        end=moment(end, "--to"),
    )
    columns = ["stage", "entered", "left", "days", "slots", "canary R", "users R", "ended by"]
    rows = [
        (
            stage.name,
            stage.entered,
            stage.left,
            f"{((stage.left or found.end) - stage.entered).total_seconds() / 86_400:.1f}",
            stage.slots,
            f"{stage.canary_r:+.2f}",
            f"{stage.users_r:+.2f}",
            stage.reason if stage.left else "",
        )
        for stage in found.stages
    ]
    shell.answer(asdict(found) | {"notes": found.notes}, table(columns, rows), *found.notes)


@command(commands)
def decisions(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    symbol: Symbol = None,
    start: Start = None,
    end: End = None,
    limit: Limit = 20,
) -> None:
    """Show the decisions of a version, candle by candle."""
    from strategy_core.cli.context import table
    from strategy_core.domain.lifecycle import utc
    from strategy_core.services.queries import newest_decisions

    since, until = moment(start, "--start"), moment(end, "--end")
    found = newest_decisions(
        shell.engine,
        strategy_name=strategy,
        version=version,
        symbol=symbol,
        start=utc(since, "--start") if since else None,
        end=utc(until, "--end") if until else None,
        limit=limit,
    )
    columns = ["candle", "symbol", "decision", "confidence", "role", "reason"]
    rows = [
        (d.timestamp, d.symbol, d.decision, d.confidence, d.role, f"{d.error_kind}: {d.error}" if d.error else d.reason)
        for d in found
    ]
    shell.answer([d.model_dump(mode="json") for d in found], table(columns, rows) if rows else "no decisions yet")


@command(commands)
def outcomes(
    shell: Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, one live trade per line. - is standard input.")],
) -> None:
    """Import live trades from a CSV file.

    A trade that is already known is not counted twice. The documentation lists the columns.
    """
    from dataclasses import asdict

    from strategy_core.services.live_trades import ingest_csv

    done = ingest_csv(shell.engine, file, now=shell.now)
    misrouted = f", {done.misrouted} from users on a wrong version" if done.misrouted else ""
    shell.answer(asdict(done), f"{done.new} reports imported, {done.known} already known{misrouted}")


@command(commands)
def users(
    shell: Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV with user_id and capital, or - for standard input.")
    ],
) -> None:
    """Replace the user list, by which plans count users."""
    from dataclasses import asdict

    from strategy_core.services.users import load_users_csv

    done = load_users_csv(shell.engine, file, now=shell.now)
    counts = f"{done.added} added, {done.removed} removed, {done.changed} with changed capital"
    shell.answer(asdict(done), f"{done.users} users: {counts}")


def _comparison_tables(found: "Comparison", version: str) -> list["RenderableType"]:
    from strategy_core.cli.context import facts_table, table

    known = {
        "candles": f"{found.candles_compared} compared, {found.candles_excluded} excluded",
        **({"from replay": f"{found.candles_replayed} of the candles"} if found.candles_replayed else {}),
        "signals": f"{version} {found.shadow_signal_count}, active {found.active_signal_count}",
        "divergence": f"{_percent(found.divergence_rate)} of actionable candles, "
        f"{_percent(found.divergence_rate_all_candles)} of all",
        **_in_sample(found),
        "slots": f"{found.slots}, of which {found.pending_slots} are pending",
        "difference": _interval(found.difference),
    }
    names = {name: name.replace("_", " ") for name in type(found.shadow).model_fields}
    arms = [(shown, getattr(found.shadow, name), getattr(found.active, name)) for name, shown in names.items()]
    by_regime = [(name, each.slots, _interval(each.difference)) for name, each in found.by_regime.items()]
    return [
        facts_table(known),
        table(["", version, "active"], arms),
        *([table(["regime", "slots", "difference"], by_regime)] if by_regime else []),
    ]


def _in_sample(found: "Comparison") -> dict[str, str]:
    """Return the line about candles on which a version was trained. All other lines leave them out."""
    if found.in_sample is None:
        return {}
    counts = f"{found.in_sample.candles_compared} candles and {found.in_sample.slots} slots, not in the other lines"
    return {
        "trained until": f"{found.trained_until:%Y-%m-%d %H:%M} UTC",
        "in sample": f"{counts}: {_interval(found.in_sample.difference)}",
    }


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.1f} %"


def _interval(difference: "Interval") -> str:
    if difference.mean is None:
        return "no closed slot"
    limits = "" if difference.low is None else f", 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    return f"{difference.mean:+.3f} R a slot{limits} ({difference.n} slots on {difference.days} days)"
