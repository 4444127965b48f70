"""How the demo looks on a terminal: bars while it runs, then the timeline with reasons and the tables."""

from rich.console import Console
from rich.table import Table

from strategy_core.demo.result import DemoResult

_COLOURS = {
    "roll_back": "red",
    "promote": "green",
    "complete": "green",
    "advance": "cyan",
    "await_approval": "yellow",
    "await_decision": "yellow",
    "rolled_back": "red",
    "completed": "green",
    "active": "green",
    "canary": "cyan",
    "pass": "green",
    "breach": "red",
    "fail": "red",
}


def show(result: DemoResult, console: Console) -> None:
    console.print()
    console.print(_timeline(result))
    console.print(_comparisons(result))
    for plan in result.plans:
        console.print(f"[bold]Plan for {plan.version}[/]: {plan.verdict}", highlight=False)
    console.print()
    console.print(_stages(result))
    console.print(_versions(result))
    console.print(result.ending, highlight=False)


def _timeline(result: DemoResult) -> Table:
    table = _table("Timeline", "when (UTC)", "who", "what", "version", "canary", "why")
    for event in result.timeline:
        percent = f"{event.percent:g} %" if event.percent else ""
        what = _coloured(event.action)
        table.add_row(f"{event.at:%Y-%m-%d %H:%M}", event.actor, what, event.version, percent, event.reason)
    return table


def _comparisons(result: DemoResult) -> Table:
    table = _table(
        "Shadow against active", "shadow", "active", "days", "signals", "differ", "wins", "R a slot", "slots"
    )
    for one in result.comparisons:
        interval = "" if one.low is None else f"  [{one.low:+.3f}, {one.high:+.3f}]"
        table.add_row(
            one.shadow_version,
            one.active_version,
            f"{one.days:.0f}",
            f"{one.shadow_signal_count} / {one.active_signal_count}",
            _share(one.divergence_rate, 1),
            f"{_share(one.shadow_win_rate)} / {_share(one.active_win_rate)}",
            "-" if one.difference is None else f"{one.difference:+.3f}{interval}",
            str(one.slots),
        )
    return table


def _stages(result: DemoResult) -> Table:
    table = _table("Rollouts", "version", "stage", "entered", "days", "verdict", "why it was left")
    for rollout in result.rollouts:
        for stage in rollout.stages:
            left_at = stage.left_at or result.ended_at
            days = (left_at - stage.entered_at).total_seconds() / 86_400
            verdict = _coloured(stage.verdict)
            entered = f"{stage.entered_at:%Y-%m-%d %H:%M}"
            table.add_row(rollout.version, f"{stage.percent:g} %", entered, f"{days:.1f}", verdict, stage.reason)
        table.add_section()
    return table


def _versions(result: DemoResult) -> Table:
    title = f"Versions after {result.candles:,} candles of {', '.join(result.symbols)}"
    table = _table(title, "version", "status", "decisions", "signals", "errors", "code", "config")
    for one in result.versions:
        status = _coloured(one.status) + (" [red]quarantined[/]" if one.quarantined else "")
        config = ", ".join(f"{key}={value}" for key, value in one.config.items())
        counts = (f"{one.decisions:,}", f"{one.signals:,}", str(one.errors))
        table.add_row(one.version, status, *counts, one.entry_point.rpartition(":")[2], config)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold", expand=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _coloured(word: str) -> str:
    plain = word.replace("_", " ")
    return f"[{_COLOURS[word]}]{plain}[/]" if word in _COLOURS else plain


def _share(value: float | None, scale: int = 100) -> str:
    return "-" if value is None else f"{value * scale:.1f} %"
