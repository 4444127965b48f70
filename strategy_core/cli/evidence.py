"""Commands that collect and show evidence: decisions, outcomes, comparisons, live trades and users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strategy_core.cli.context import (
    Context,
    Limit,
    OpenIn,
    Output,
    PlanChoice,
    StrategyName,
    Symbol,
    VersionName,
    Yes,
    answer_page,
    choose_plan,
    command,
)
from strategy_core.domain.errors import InvalidSetting
from strategy_core.domain.lifecycle import Status
from strategy_core.domain.parsing import owners_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from strategy_core.domain.comparison import Comparison, Interval
    from strategy_core.domain.performance import Performance
    from strategy_core.services.history import ComparisonCurves

commands = typer.Typer()
Start = Annotated[
    str | None, typer.Option("--from", metavar="TIME", help="First candle: 2026-01-31 or 2026-01-31T12:00Z.")
]
End = Annotated[str | None, typer.Option("--to", metavar="TIME", help="Only candles before this time. Default: now.")]
_OLD_NAMES = {"start": "from", "end": "to"}


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
    shell.warn(shell.feed_end(source))
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
    summary = f"{scored.booked:,} outcomes recorded, {scored.pending:,} trades still open{lost}"
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
    from strategy_core.services.queries import all_versions
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
            start=owners_time(start, "--from"),
            end=owners_time(end, "--to"),
            again=again,
            done=done,
        )
    columns = ["version", "first candle", "last candle", "candles", "new", "signals", "closed", "open", "errors"]
    fields = ("version", "first", "newest", "candles", "decided", "signals", "closed", "pending", "errors")
    rows = [[getattr(one, field) for field in fields] for one in found]
    notes = [note for one in found for note in one.notes]
    following = f"Next: rollout compare {strategy} {version} --from {found[0].first:%Y-%m-%d}"
    if not all_versions(engine, strategy, status=Status.ACTIVE):
        following = (
            f"Next: rollout activate {strategy} {version}   (no version is active: there is none to compare with)"
        )
    shell.answer([asdict(one) | {"notes": one.notes} for one in found], table(columns, rows), *notes, following)
    if any(one.errors for one in found):
        raise typer.Exit(1)


@command(commands, old_names=_OLD_NAMES)
def compare(
    shell: Context,
    strategy: StrategyName,
    version: VersionName,
    days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS",
            help="The last DAYS. Default: 30, or all replayed candles if nothing can be compared in these.",
        ),
    ] = None,
    start: Start = None,
    end: End = None,
    symbol: Symbol = None,
    output: Output = None,
    open_in: OpenIn = "none",
) -> None:
    """Compare a version with the active one on the same candles, as a table or as a report with pictures.

    On candles before both decided live, replayed decisions are compared if there are any.
    """
    from strategy_core.report.comparison import difference_verdict
    from strategy_core.services.compare import (
        chosen_period,
        compare_versions,
        compare_with_curves,
        replayed_period,
        why_empty,
    )
    from strategy_core.services.queries import get_active_version

    if days is not None and (start or end):
        raise InvalidSetting("--days", f"{days:g}", "--days alone, or --from and --to without it")
    if end and not start:
        raise InvalidSetting("--to", end, "--to only with --from")
    over = chosen_period(days, owners_time(start, "--from"), owners_time(end, "--to"), shell.now)
    asked: dict[str, Any] = {"strategy_name": strategy, "shadow_version": version, "symbol": symbol}

    def compared() -> tuple["Comparison", "ComparisonCurves | None"]:
        if output is not None or open_in == "browser":
            return compare_with_curves(shell.engine, **asked, over=over, source=shell.candles(), now=shell.now)
        return compare_versions(shell.engine, **asked, over=over, source=shell.candles()), None

    found, curves = compared()
    replayed = None
    if days is None and start is None and not found.candles_compared:
        replayed = replayed_period(shell.engine, strategy_name=strategy, version=version)
    if replayed is not None:
        over = replayed
        found, curves = compared()
    why = [] if found.candles_compared else why_empty(shell.engine, strategy_name=strategy, version=version, over=over)
    data = {"start": over.start, "end": over.end, **found.model_dump(mode="json"), "notes": why}
    if curves is not None:
        from strategy_core.report.comparison import comparison_markdown, page_title, verdict
        from strategy_core.report.html import html_page

        page = html_page(page_title(curves), comparison_markdown(curves, why_empty=why))
        file = output or Path(f"comparison-{strategy}-{version}.html")
        answer_page(shell, data, verdict(curves), page, file, open_in)
        return
    shown_period = f"{over.start:%Y-%m-%d %H:%M} to {over.end:%Y-%m-%d %H:%M} UTC"
    if replayed is not None:
        shown_period += ": all that is replayed, as nothing can be compared in the last 30 days"
    active = get_active_version(shell.engine, strategy).version
    line = difference_verdict(found.difference, version, active)
    shown: list[RenderableType] = [shown_period]
    if found.candles_compared:
        shown = [line, shown_period, *_comparison_tables(found, version, active)]
    shell.answer(data, *shown, *why)


@command(commands)
def comparisons(
    shell: Context,
    strategy: StrategyName,
    version: Annotated[str | None, typer.Option(metavar="VERSION", help="Only this version.")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="Only those made from this time on.")] = None,
    limit: Limit = 20,
) -> None:
    """List the nightly comparisons of versions with the active one, newest first."""
    from strategy_core.cli.context import table
    from strategy_core.domain.comparison import Comparison
    from strategy_core.services.owner_reports import list_comparisons
    from strategy_core.services.queries import Scope

    made_since = owners_time(since, "--since")
    found = list_comparisons(shell.engine, Scope(strategy), version=version, since=made_since, limit=limit)
    measured = [Comparison.model_validate(each.report) for each in found]
    rows = [
        (
            f"{row.created_at:%Y-%m-%d}",
            row.shadow_version,
            row.active_version,
            each.slots,
            _percent(each.divergence_rate),
            _short_interval(each.difference),
        )
        for row, each in zip(found, measured, strict=True)
    ]
    columns = ["night", "version", "active", "slots", "differ", "R a slot (95 %)"]
    data = [row.model_dump(mode="json") for row in found]
    shell.answer(data, table(columns, rows) if rows else "no nightly comparison yet: rollout compare compares now")


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
    plan: PlanChoice = None,
    output: Output = None,
    open_in: OpenIn = "none",
) -> None:
    """Show how a rollout would have gone on replayed candles, as a table or as a report with pictures.

    Every candle is a tick with the gates of the plan. Owners approve at once. Nothing is changed.
    """
    from dataclasses import asdict

    from strategy_core.cli.context import table
    from strategy_core.report.markdown import signed
    from strategy_core.services.whatif import what_if

    found = what_if(
        shell.engine,
        strategy_name=strategy,
        version=version,
        plan=choose_plan(shell, strategy, plan),
        start=owners_time(start, "--from"),
        end=owners_time(end, "--to"),
    )
    data = asdict(found) | {"notes": found.notes}
    if output is not None or open_in == "browser":
        from strategy_core.report.html import html_page
        from strategy_core.report.whatif import page_title, whatif_markdown

        page = html_page(page_title(found), whatif_markdown(found))
        answer_page(shell, data, found.verdict, page, output or Path(f"whatif-{strategy}-{version}.html"), open_in)
        return
    columns = ["stage", "entered", "left", "days", "slots", "canary R", "users R", "ended by"]
    rows = [
        (
            stage.name,
            stage.entered,
            stage.left,
            f"{found.days_in(stage):.1f}",
            stage.slots,
            signed(stage.canary_r),
            signed(stage.users_r),
            stage.reason if stage.left else "",
        )
        for stage in found.stages
    ]
    verdict, *notes = found.notes
    shell.answer(data, verdict, table(columns, rows), *notes)


@command(commands, old_names=_OLD_NAMES)
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
    from strategy_core.services.queries import newest_decisions

    found = newest_decisions(
        shell.engine,
        strategy_name=strategy,
        version=version,
        symbol=symbol,
        start=owners_time(start, "--from"),
        end=owners_time(end, "--to"),
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
    yes: Yes = False,
) -> None:
    """Replace the user list, by which plans count users.

    A file that removes more than half of the users, and more than 100, needs a confirmation.
    """
    from dataclasses import asdict

    from strategy_core.cli.context import plural
    from strategy_core.services.users import load_users_csv

    done = load_users_csv(
        shell.engine,
        file,
        now=shell.now,
        confirm=lambda removed, of: shell.confirm(f"{removed:,} of {of:,} users would be removed", yes=yes),
    )
    counts = f"{done.added:,} added, {done.removed:,} removed, {done.changed:,} with changed capital"
    shell.answer(asdict(done), f"{plural(done.users, 'user')}: {counts}", *done.reviewed)


def _comparison_tables(found: "Comparison", version: str, active: str) -> list["RenderableType"]:
    from strategy_core.cli.context import facts_table, table

    known = {
        "candles": f"{found.candles_compared} compared, {found.candles_excluded} excluded",
        **({"from replay": f"{found.candles_replayed} of the candles"} if found.candles_replayed else {}),
        "signals": f"{version} {found.shadow_signal_count}, {active} {found.active_signal_count}",
        "divergence": f"{_percent(found.divergence_rate)} of actionable candles, "
        f"{_percent(found.divergence_rate_all_candles)} of all",
        **_in_sample(found),
        "slots": f"{found.slots}, of which {found.pending_slots} are pending",
        "difference": _interval(found.difference),
        **({"drawdown": f"from {found.drawdowns_from:%Y-%m-%d %H:%M} UTC"} if found.drawdowns_from else {}),
    }
    names: dict[str, tuple[str, Callable[[Any], str]]] = {  # no average PnL: it is in price units, and the rest is in R
        "trades": ("trades", str),
        "win_rate": ("win rate", _share),
        "expectancy": ("R per trade", lambda mean: f"{mean:+.3f}"),
        "profit_factor": ("profit factor", lambda factor: f"{factor:.2f}"),
        "max_drawdown": ("max drawdown", _share),
    }

    def shown(performance: "Performance", name: str) -> str:
        value = getattr(performance, name)
        return "–" if value is None else names[name][1](value)

    arms = [(label, shown(found.shadow, name), shown(found.active, name)) for name, (label, _) in names.items()]
    by_regime = [(name, each.slots, _interval(each.difference)) for name, each in found.by_regime.items()]
    return [
        facts_table(known),
        table(["", version, f"{active} (active)"], arms),
        *([table(["regime", "slots", "difference"], by_regime)] if by_regime else []),
    ]


def _in_sample(found: "Comparison") -> dict[str, str]:
    """Return the line about candles on which a version was trained. All other lines leave them out."""
    if found.in_sample is None:
        return {}
    counts = f"{found.in_sample.candles_compared:,} candles and {found.in_sample.slots:,} slots, not in the other lines"
    return {
        "trained until": f"{found.trained_until:%Y-%m-%d %H:%M} UTC",
        "in sample": f"{counts}: {_interval(found.in_sample.difference)}",
    }


def _percent(rate: float | None) -> str:
    return "–" if rate is None else f"{rate:.1f} %"


def _share(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _short_interval(difference: "Interval") -> str:
    if difference.mean is None:
        return "–"
    limits = "" if difference.low is None else f" ({difference.low:+.3f} to {difference.high:+.3f})"
    return f"{difference.mean:+.3f}{limits}"


def _interval(difference: "Interval") -> str:
    if difference.mean is None:
        return "no closed slot"
    limits = "" if difference.low is None else f", 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
    return f"{difference.mean:+.3f} R a slot{limits} ({difference.n:,} slots on {difference.days:,} days)"
