"""`rollout shadow | score | compare | decisions`: what versions say, and what it is worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import Context, Limit, StrategyName, Symbol, VersionName, command, moment

if TYPE_CHECKING:
    from rich.console import RenderableType

    from strategy_core.domain.comparison import Comparison, Interval

commands = typer.Typer()
Start = Annotated[str | None, typer.Option(help="Candles from then on: 2026-01-31, or 2026-01-31T12:00Z.")]
End = Annotated[str | None, typer.Option(help="Candles before then; now, unless given.")]


@command(commands)
def shadow(shell: Context) -> None:
    """Let every version that is not retired decide on the candles that have closed."""
    from dataclasses import asdict

    from strategy_core.cli.output import table
    from strategy_core.isolation.pool import WorkerPool
    from strategy_core.services.shadow import run_shadow

    engine, source = shell.engine, shell.candles()
    settings = shell.settings
    with WorkerPool(deadline_s=settings.decision_deadline_s, at_once=settings.shadow_workers) as workers:
        runs = run_shadow(engine, source, workers, now=shell.now)
    columns = ["strategy", "version", "role", "logged", "signals", "errors", "refused"]
    rows = [(run.strategy_name, run.version, run.role, run.logged, run.signals, run.errors, run.error) for run in runs]
    shell.answer([asdict(run) for run in runs], table(columns, rows))
    if any(run.error for run in runs):
        raise typer.Exit(1)


@command(commands)
def score(shell: Context) -> None:
    """Book what decisions were worth whose trades have closed."""
    from dataclasses import asdict

    from strategy_core.services.score import score_outcomes

    scored = score_outcomes(shell.engine, shell.candles(), now=shell.now)
    lost = f", {scored.lost} have no candle in the feed" if scored.lost else ""
    told = f"{scored.booked} outcomes booked, {scored.pending} trades still open{lost}"
    shell.answer(asdict(scored), told, *(f"not scored: {refused}" for refused in scored.refused))
    if scored.refused:
        raise typer.Exit(1)


@command(commands)
def compare(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    days: Annotated[float | None, typer.Option(help="The last so many; 30, unless a start is given.")] = None,
    start: Start = None,
    end: End = None,
    symbol: Symbol = None,
) -> None:
    """Set a version against the active one over the same candles."""
    from strategy_core.services.compare import chosen_period, compare_versions

    over = chosen_period(days, moment(start, "--start"), moment(end, "--end"), shell.now)
    found = compare_versions(
        shell.engine,
        strategy_name=strategy,
        shadow_version=version,
        over=over,
        symbol=symbol,
        source=shell.candles(),
    )
    data = {"start": over.start, "end": over.end, **found.model_dump(mode="json")}
    shell.answer(data, f"{over.start:%Y-%m-%d %H:%M} to {over.end:%Y-%m-%d %H:%M} UTC", *_shown(found, version))


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
    """Show what a version said on each candle."""
    from strategy_core.cli.output import table
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


def _shown(found: "Comparison", version: str) -> list["RenderableType"]:
    from strategy_core.cli.output import facts_table, table

    known = {
        "candles": f"{found.candles_compared} compared, {found.candles_excluded} excluded",
        "signals": f"{version} {found.shadow_signal_count}, active {found.active_signal_count}",
        "divergence": f"{_percent(found.divergence_rate)} of actionable candles, "
        f"{_percent(found.divergence_rate_all_candles)} of all",
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


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.1f} %"


def _interval(difference: "Interval") -> str:
    if difference.mean is None:
        return "no closed slot"
    limits = "" if difference.low is None else f", 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    return f"{difference.mean:+.3f} R a slot{limits} ({difference.n} slots on {difference.days} days)"


@command(commands)
def outcomes(
    shell: Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, a trade a line; - is standard input.")],
) -> None:
    """Take in live trades; the same report twice is one. Columns: see README, "What the platform reports"."""
    from dataclasses import asdict

    from strategy_core.services.live_trades import ingest_csv

    done = ingest_csv(shell.engine, file, now=shell.now)
    told = f"{done.new} reports taken in, {done.known} known already"
    shell.answer(asdict(done), told + (f"; {done.misrouted} of users on a wrong version" if done.misrouted else ""))


@command(commands)
def users(
    shell: Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV of user_id and capital; - is standard input.")],
) -> None:
    """Replace the directory of the platform's users, which plans count by, with the file's."""
    from dataclasses import asdict

    from strategy_core.services.users import load_users_csv

    done = load_users_csv(shell.engine, file, now=shell.now)
    told = f"{done.users} users: {done.added} added, {done.removed} removed, {done.changed} with another capital"
    shell.answer(asdict(done), told)
