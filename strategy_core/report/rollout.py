"""The whole report of one rollout as Markdown, from which its page is made; it decides nothing."""

from collections.abc import Mapping

from strategy_core.report import parts, progress, rollback
from strategy_core.report.change import changes
from strategy_core.report.comparison import comparison_markdown
from strategy_core.report.text import Markdown, argument, commands, plain, sections, table
from strategy_core.services.live import LiveSummary
from strategy_core.services.report import RolloutReport


def title(report: RolloutReport) -> str:
    """Return the page's title, as plain text."""
    rollout = report.progress.status.rollout
    return f"{rollout.strategy_name} {rollout.version} against {rollout.control_version}: {rollout.state}"


def rollout_markdown(report: RolloutReport) -> str:
    """Return everything: what an owner must know first stands first."""
    going = report.progress
    rollout = going.status.rollout
    canary, control = rollout.version, rollout.control_version
    start, end = rollout.started_at, going.at
    undone = report.rolled_back
    return sections(
        f"# {progress.headline(going)}",
        progress.standing(going),
        progress.needs(going),
        *(
            ["## Why it was rolled back", _lowered(rollback.rollback_sections(undone, with_cost=False, wide=True))]
            if undone
            else []
        ),
        *([] if undone else ["## Gates", progress.gates(going, wide=True)]),
        "## Evidence of harm" if going.harm else "",
        parts.harm_picture(going.harm, start=start, end=end),
        *([] if undone else ["## Whom it has reached", parts.reached(going.served, going.directory)]),
        "" if undone else parts.share_picture(going.served, start=start, end=end),
        "## What it cost" if undone else "## What it came to",
        parts.cost(report.cost, canary, control),
        parts.equity_picture(report.equity, canary, control, start=start, end=end),
        parts.day_pictures(report.days, report.usual_unlike),
        *(["## What users' trades came to", _live(going.status.live)] if going.status.live else []),
        *(
            ["## The newest nightly comparison", _lowered(comparison_markdown(report.comparison))]
            if report.comparison
            else []
        ),
        "## What was changed",
        _changes(report),
        "## What next",
        rollback.next_words(undone) if undone else "",
        commands(rollback.acts(undone) if undone else progress.acts(rollout)),
        f"Rollout {rollout.id}, as of {end:%Y-%m-%d %H:%M} UTC. The same as data: "
        f"`rollout report {argument(str(rollout.id))} --json`",
    )


def _lowered(markdown: str) -> str:
    """Return *markdown* with its headlines a level lower; a line of people's words never begins with a bare #."""
    return "\n".join(f"#{line}" if line.startswith("#") else line for line in markdown.splitlines())


def _live(live: Mapping[str, LiveSummary]) -> str:
    columns = ["version", "from", "trades", "win rate", "average PnL", "R a trade", "drawdown", "fidelity"]
    rows: list[tuple[object, ...]] = []
    for version, summary in live.items():
        fidelity = None if summary.fidelity is None else summary.fidelity.concordance
        for source, done in (("users", summary.live), ("shadow", summary.shadow)):
            trades = summary.trades if source == "users" else done.trades
            measured = (done.win_rate, done.average_pnl, done.expectancy, done.max_drawdown)
            rows.append((version, source, trades, *measured, fidelity if source == "users" else None))
    return table(columns, rows)


def _changes(report: RolloutReport) -> str:
    rows = [
        (
            event.at,
            f"{event.actor} ({event.source})",
            event.action.replace("_", " "),
            Markdown(
                "; ".join(
                    f"{plain(said)} {before} → {after}" for said, before, after in changes(event) if before != after
                )
            ),
            event.reason,
        )
        for event in report.changes
    ]
    return table(["at", "by", "action", "what", "why"], rows) if rows else "Nothing was written down of it."
