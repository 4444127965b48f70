"""The result of the demo on a terminal of 80 columns."""

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from strategy_core.demo.result import DemoResult, RolloutResult, VersionResult

_COLOURS = {
    "roll back": "red",
    "rolled back": "red",
    "breach": "red",
    "fail": "red",
    "quarantined": "red",
    "promote": "green",
    "complete": "green",
    "active": "green",
    "pass": "green",
    "await approval": "yellow",
    "await decision": "yellow",
    "inconclusive": "yellow",
    "advance": "cyan",
}


def show_result(result: DemoResult, console: Console) -> None:
    console.print()
    console.print(_timeline(result))
    for act in result.acts:
        console.rule(f"[bold]{act.title}", align="left")
        for version in filter(None, (result.version(act.strategy, name) for name in act.versions)):
            _show_version(result, version, console)
    console.rule("[bold]Versions at the end", align="left")
    console.print(_versions(result))
    console.rule("[bold]What happened", align="left")
    console.print(result.summary, highlight=False)


def _timeline(result: DemoResult) -> Table:
    table = Table(title="Changes, from the audit trail", title_justify="left", title_style="bold", box=SIMPLE)
    for column in ("when (UTC)", "who", "version", "change"):
        table.add_column(column)
    for event in result.timeline:
        version = f"{event.strategy} {event.version}"
        action = event.action.replace("_version", "").replace("_rollout", "").replace("_", " ")
        to = f" {event.percent:g} %" if event.percent and action in ("start", "advance") else ""
        to += f" (asked {event.asked:g} %)" if to and event.asked else ""
        table.add_row(f"{event.at:%Y-%m-%d %H:%M}", event.actor, version, _coloured(action) + to)
    return table


def _show_version(result: DemoResult, version: VersionResult, console: Console) -> None:
    console.print(f"[bold]{version.version}[/]  {escape(version.about)}", highlight=False)
    for one in result.comparisons:
        if (one.strategy, one.shadow_version) == (version.strategy, version.version):
            signals = f"{one.shadow_signal_count} signals against {one.active_signal_count} of {one.active_version}"
            found = "" if one.difference is None else f", difference {one.difference:+.3f} R a slot"
            range_ = "" if one.low is None or one.high is None else f" ({one.low:+.3f} to {one.high:+.3f})"
            console.print(f"In shadow, {one.days:.0f} days: {signals}{found}{range_}.", highlight=False)
    rollout = result.rollout(version.strategy, version.version)
    if rollout is not None:
        console.print(_stages(rollout))
        for note in filter(None, (stage.cap_note for stage in rollout.stages)):
            console.print(note, highlight=False)
    if version.outcome:
        console.print(escape(version.outcome), highlight=False)
    console.print()


def _stages(rollout: RolloutResult) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1), collapse_padding=True, pad_edge=False)
    for column in ("users", "capital", "from", "days", "slots", "difference", "at least", "needed", "verdict"):
        table.add_column(column, justify="left" if column in ("from", "verdict") else "right", no_wrap=True)
    for stage in rollout.stages:
        lasted = None if stage.left_at is None else (stage.left_at - stage.entered_at).total_seconds() / 86_400
        days = "" if lasted is None else f"{lasted:.1f}" if lasted < 10 else f"{lasted:.0f}"
        bound = stage.bound
        found = (
            ("", "", "", "")
            if bound is None
            else (str(bound.slots), f"{bound.mean:+.3f}", f"{bound.low:+.3f}", f"{bound.limit:+.3f}")
        )
        capital = "" if stage.capital is None else f"{stage.capital:.3g} %"
        table.add_row(
            f"{stage.served:g} %", capital, f"{stage.entered_at:%m-%d}", days, *found, _coloured(stage.verdict)
        )
    return table


def _versions(result: DemoResult) -> Table:
    table = Table(box=SIMPLE)
    for column in ("version", "status", "decisions", "signals"):
        table.add_column(column, no_wrap=True, justify="right" if column in ("decisions", "signals") else "left")
    table.add_column("other than the active version", overflow="fold")
    for one in result.versions:
        status = _coloured("quarantined" if one.quarantined else one.status)
        counts = (f"{one.decisions:,}", f"{one.signals:,}")
        table.add_row(f"{one.strategy} {one.version}", status, *counts, escape(one.differs) or "-")
    return table


def _coloured(words: str) -> str:
    plain = words.replace("_", " ")
    return f"[{_COLOURS[plain]}]{plain}[/]" if plain in _COLOURS else plain
