"""Commands that show rollouts: status, verdicts and reports."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from strategy_core.cli.context import (
    AnyStrategy,
    Context,
    Limit,
    OpenIn,
    Output,
    StrategyName,
    answer_page,
    command,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from strategy_core.services.history import VerdictHistory
    from strategy_core.services.status import RolloutStatus, StrategyStatus

commands = typer.Typer()


@command(commands)
def status(
    shell: Context,
    strategy: AnyStrategy = None,
) -> None:
    """Show versions, rollout, gates, next step and recent alerts."""
    from strategy_core.isolation.sandbox import available
    from strategy_core.services.status import read_status

    found = read_status(shell.engine, strategy, now=shell.now, clock=shell.clock.clock_check)
    shell.warn(next((each.rollout.doubt for each in found if each.rollout and each.rollout.doubt), ""))
    shell.warn(_feed_end(shell, found))
    shown = [part for each in found for part in _status_lines(each)]
    isolation = f"versions run in isolation on this machine: {available()}"
    shell.answer([_status_data(each) for each in found], *(shown or ["no strategies yet"]), isolation)


@command(commands)
def verdicts(
    shell: Context,
    strategy: StrategyName,
    gate: Annotated[str | None, typer.Option(metavar="NAME", help="Only this gate, with its value over time.")] = None,
    rollout: Annotated[UUID | None, typer.Option(metavar="ID", help="Rollout id. Default: the newest rollout.")] = None,
    limit: Limit = 50,
) -> None:
    """Show the gate verdicts of a rollout over time, with reasons."""
    from strategy_core.cli.context import table
    from strategy_core.services.history import read_verdicts

    found = read_verdicts(shell.engine, strategy, gate=gate, rollout_id=rollout, limit=limit)
    columns = ["at", "stage", "gate", "verdict", "value", "limit", "low", "high", "n", "reason"]
    rows = [
        (v.ticked_at, v.stage_index + 1, v.gate, _verdict(v), v.value, v.limit, v.low, v.high, v.n, v.reason)
        for v in found.verdicts
    ]
    data = {
        "rollout_id": found.rollout.id,
        "strategy_name": strategy,
        "version": found.rollout.version,
        "verdicts": [row.model_dump(mode="json") for row in found.verdicts],
        "values": found.values,
    }
    shown = table(columns, rows) if rows else "no verdicts yet"
    shell.answer(data, f"{strategy} {found.rollout.version}: {found.rollout.state}", shown, *_spark_lines(found))


@command(commands)
def report(
    shell: Context,
    rollout: Annotated[
        str, typer.Argument(metavar="ID", help="Rollout id, or a strategy name for its newest rollout.")
    ],
    output: Output = None,
    open_in: OpenIn = "none",
) -> None:
    """Write the report of a rollout as one HTML file."""
    from strategy_core.report.html import html_page
    from strategy_core.report.rollout import page_title, rollout_markdown
    from strategy_core.services.reports import read_report, resolve_rollout

    engine = shell.engine
    known_id = resolve_rollout(engine, rollout)
    found, generation = read_report(engine, known_id, now=shell.now, clock=shell.clock.clock_check)
    known = found.progress.status.rollout
    facts = {"generation": generation, "report": found}
    if shell.as_json and output is None:
        shell.answer(facts)
        return
    page = html_page(page_title(found), rollout_markdown(found))
    file = output or Path(f"rollout-{known.strategy_name}-{known.version}-{known.id.hex[:8]}.html")
    answer_page(shell, facts, page_title(found), page, file, open_in)


def _feed_end(shell: Context, found: "Sequence[StrategyStatus]") -> str:
    """Return since when a feed of files has no candles. It is read only if the newest decisions are old too."""
    from strategy_core.market.source import LONG_CLOSURE
    from strategy_core.services.queries import newest_decisions

    for each in found:
        if each.active is not None:
            newest = newest_decisions(shell.engine, strategy_name=each.strategy_name, version=each.active, limit=1)
            if newest and shell.now - newest[0].timestamp <= LONG_CLOSURE:
                return ""
    return shell.feed_end() if found else ""


def _spark_lines(found: "VerdictHistory") -> list[str]:
    from strategy_core.cli.context import cell, spark

    if not found.values:
        return []
    times, values = zip(*found.values, strict=True)
    span = f"{cell(times[0])} to {cell(times[-1])} UTC"
    limit = f"limit {cell(found.verdicts[-1].limit)}, "
    return [f"{spark(times, values)}  {cell(min(values))} to {cell(max(values))}, {limit}{span}"]


def _status_data(status: "StrategyStatus") -> dict[str, Any]:
    rollout = status.rollout
    return {
        "strategy_name": status.strategy_name,
        "active": status.active,
        "canary": status.canary,
        "percent": status.percent,
        "excluded_symbols": status.excluded,
        "shadows": status.shadows,
        "watch": status.watch,
        "rollout": None if rollout is None else _rollout_data(rollout),
        "alerts": [alert.model_dump(mode="json") for alert in status.alerts],
    }


def _rollout_data(status: "RolloutStatus") -> dict[str, Any]:
    return {
        **status.rollout.model_dump(mode="json", exclude={"plan"}),
        "stages": status.stages,
        "minimum_left": _seconds(status.outlook.minimum_left),
        "maximum_left": _seconds(status.outlook.maximum_left),
        "needs": status.outlook.needs,
        "clock_disagrees": status.doubt,
        "verdicts": [row.model_dump(mode="json") | {"since": status.since[row.gate]} for row in status.verdicts],
        "live": {version: asdict(summary) for version, summary in status.live.items()},
    }


def _status_lines(status: "StrategyStatus") -> list["RenderableType"]:
    from strategy_core.cli.context import DECIDE, facts_table, plain, table
    from strategy_core.domain.gates.base import NOT_DECIDED

    canary = f"{status.canary} for {status.percent:g} % of users" if status.canary else None
    if canary and status.excluded:
        canary += f", not on {', '.join(status.excluded)}"
    known: dict[str, object] = {
        "strategy": status.strategy_name,
        "active": status.active or "none: the strategy is closed, its users get no version",
        "canary": canary,
        "shadow": status.shadows,
        "watch": status.watch,
    }
    shown: list[RenderableType] = []
    if (rollout := status.rollout) is not None:
        known |= _rollout_facts(rollout)
        columns = ["gate", "verdict", "value", "limit", "n", "reason", "since"]
        rows = [(v.gate, _verdict(v), v.value, v.limit, v.n, v.reason, rollout.since[v.gate]) for v in rollout.verdicts]
        shown.append(table(columns, rows))
        if rollout.rollout.ended_at is None and any(NOT_DECIDED in v.reason for v in rollout.verdicts):
            shown.append(DECIDE)
        if rollout.live:
            shown.append(_live_table(rollout))
        if rollout.outlook.needs:
            shown += ["before it advances:", *(f"  - {plain(line)}" for line in rollout.outlook.needs)]
    shown.insert(0, facts_table(known))
    shown += [f"{alert.at:%Y-%m-%d %H:%M} {alert.severity}: {plain(alert.text)}" for alert in status.alerts]
    return shown


def _live_table(status: "RolloutStatus") -> "RenderableType":
    """Compare live results with shadow results, per version."""
    from strategy_core.cli.context import table

    columns = ["version", "from", "trades", "win rate", "average PnL", "expectancy R", "drawdown", "fidelity"]
    rows: list[tuple[object, ...]] = []
    for version, summary in status.live.items():
        fidelity = None if summary.fidelity is None else summary.fidelity.concordance
        for source, done in (("users", summary.live), ("shadow", summary.shadow)):
            trades = summary.trades if source == "users" else done.trades
            measured = (done.win_rate, done.average_pnl, done.expectancy, done.max_drawdown)
            rows.append((version, source, trades, *measured, fidelity if source == "users" else None))
    return table(columns, rows)


def _rollout_facts(status: "RolloutStatus") -> dict[str, object]:
    rollout = status.rollout
    stages = " → ".join(
        f"[{percent:g}]" if index == rollout.stage_index else f"{percent:g}"
        for index, percent in enumerate(status.stages)
    )
    return {
        "rollout": f"{rollout.version} against {rollout.control_version}: {rollout.state}",
        "stages": f"{stages} %",
        "in stage since": rollout.stage_entered_at,
        "minimum left": "clock disagrees" if status.doubt else _span(status.outlook.minimum_left),
        "maximum left": "clock disagrees" if status.doubt else _span(status.outlook.maximum_left),
        "promoted": rollout.promoted_at,
        "ended": rollout.ended_at,
        "last tick": rollout.last_tick_at,
        "blind since": rollout.blind_since,
        "reason": rollout.reason,
    }


def _verdict(row: Any) -> str:
    return row.verdict if row.armed else f"{row.verdict} (no vote)"


def _span(span: timedelta | None) -> str | None:
    from strategy_core.domain.gates.base import format_duration

    return None if span is None else format_duration(span)


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()
