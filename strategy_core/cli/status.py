"""Commands that show rollouts: status, watch, verdicts and reports."""

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

    from strategy_core.domain.capital import Reach
    from strategy_core.domain.readings import GateReading
    from strategy_core.services.history import VerdictHistory
    from strategy_core.services.status import RolloutStatus, StrategyStatus
    from strategy_core.store.tables import AlertOutbox

commands = typer.Typer()
_GATES_SHOWN = 4  # of those that hold a rollout


@command(commands)
def status(
    shell: Context,
    strategy: AnyStrategy = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Show every gate, live trades and past alerts too.")
    ] = False,
) -> None:
    """Show where rollouts stand: the verdict, the stage, the gates that do not pass, and the next step.

    One strategy fits a screen of 80 columns. Several have two lines each.
    """
    found, isolation, shown = _read_status(shell, strategy, everything=everything)
    shell.warn(next((each.rollout.doubt for each in found if each.rollout and each.rollout.doubt), ""))
    shell.warn(_feed_end(shell, found))
    shell.answer([_status_data(each) for each in found], *shown, *([isolation] if everything else []))


@command(commands)
def watch(
    shell: Context,
    strategy: AnyStrategy = None,
    every: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, max=3_600, help="Time between two looks at the database.")
    ] = 5,
) -> None:
    """Show `rollout status` live, until Ctrl-C.

    In a pipe it prints a line per strategy whenever its verdict changes.
    """
    from strategy_core.cli.watch import watch_status

    watch_status(shell, lambda: _read_status(shell, strategy)[0::2], every_s=every)


def _read_status(
    shell: Context, strategy: str | None, *, everything: bool = False
) -> tuple["Sequence[StrategyStatus]", str, list["RenderableType"]]:
    """Return the status of strategies, where versions run, and what is shown."""
    from strategy_core.isolation.sandbox import available
    from strategy_core.services.status import read_status

    found = read_status(shell.engine, strategy, now=shell.now, clock=shell.clock.clock_check)
    if everything:
        shown = [part for each in found for part in _with_age(shell, each, _all_lines(each))]
    elif len(found) == 1:
        shown = _with_age(shell, found[0], _screen(found[0]))
    else:
        shown = [part for each in found for part in _with_age(shell, each, _two_lines(each))]
    isolation = f"versions run in isolation on this machine: {available()}"
    return found, isolation, shown or ["no strategies yet"]


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
    columns = ["at", "stage", "gate", "verdict", "value", "limit", "seen", "reason"]
    rows = [
        (v.ticked_at, v.stage_index + 1, v.gate, each.shown_verdict, each.value, each.limit, each.count, each.reason)
        for v, each in zip(found.verdicts, found.readings, strict=True)
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
        str,
        typer.Argument(
            metavar="ID", help="Rollout id, a strategy name for its newest rollout, or an id of `rollout reports`."
        ),
    ],
    output: Output = None,
    open_in: OpenIn = "none",
) -> None:
    """Write the report of a rollout, or one that was written for owners, as one HTML file."""
    from strategy_core.report.html import html_page
    from strategy_core.report.owner import owner_report_page
    from strategy_core.report.rollout import FOLDED, page_title, rollout_markdown
    from strategy_core.services.owner_reports import resolve_owner_report
    from strategy_core.services.reports import read_report, resolve_rollout

    engine = shell.engine
    if (stored := resolve_owner_report(engine, rollout)) is not None:
        row, written = stored
        file = output or Path(f"{row.strategy_name}-{row.kind}-{written.at:%Y-%m-%d}.html")
        answer_page(shell, row.model_dump(mode="json"), row.sentence, owner_report_page(written), file, open_in)
        return
    known_id = resolve_rollout(engine, rollout)
    found, generation = read_report(engine, known_id, now=shell.now, clock=shell.clock.clock_check)
    known = found.progress.status.rollout
    facts = {"generation": generation, "report": found}
    if shell.as_json and output is None:
        shell.answer(facts)
        return
    page = html_page(page_title(found), rollout_markdown(found), folded=FOLDED)
    file = output or Path(f"rollout-{known.strategy_name}-{known.version}-{known.id.hex[:8]}.html")
    answer_page(shell, facts, page_title(found), page, file, open_in)


@command(commands)
def reports(shell: Context, strategy: AnyStrategy = None, limit: Limit = 20) -> None:
    """List the reports that were written for owners: morning notes, weekly, final and ready ones."""
    from strategy_core.domain.alerts import REPORT_TITLES
    from strategy_core.services.owner_reports import list_owner_reports
    from strategy_core.services.queries import Scope

    found = list_owner_reports(shell.engine, Scope(strategy), limit=limit)
    lines = [
        f"{each.created_at:%Y-%m-%d %H:%M}  {each.strategy_name} {REPORT_TITLES[each.kind]}: {each.sentence}\n"
        f"  rollout report {each.id}"
        for each in found
    ]
    shell.answer([each.model_dump(mode="json", exclude={"facts"}) for each in found], *(lines or ["no reports yet"]))


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
        "sentence": status.sentence,
        "active": status.active,
        "canary": status.canary,
        "percent": status.percent,
        "reach": None if status.reach is None else _reach_data(status.reach),
        "also_on_other_canaries": status.also_on,
        "excluded_symbols": status.excluded,
        "shadows": status.shadows,
        "watch": status.watch,
        "draining": [asdict(each) for each in status.draining],
        "frozen": status.frozen,
        "scheduled": None if status.scheduled is None else status.scheduled.model_dump(mode="json", exclude={"plan"}),
        "rollout": None if rollout is None else _rollout_data(rollout),
        "alerts": [alert.model_dump(mode="json") for alert in status.alerts],
    }


def _rollout_data(status: "RolloutStatus") -> dict[str, Any]:
    return {
        **status.rollout.model_dump(mode="json", exclude={"plan"}),
        "stages": status.stages,
        "risk_line": status.risk,
        "open_risk": status.open_risk,
        "minimum_left": _seconds(status.outlook.minimum_left),
        "maximum_left": _seconds(status.outlook.maximum_left),
        "needs": status.outlook.needs,
        "clock_disagrees": status.doubt,
        "verdict": asdict(status.verdict),
        "verdicts": [
            row.model_dump(mode="json") | {"since": status.since[row.gate], "reading": asdict(reading)}
            for row, reading in zip(status.verdicts, status.readings, strict=True)
        ],
        "live": {version: asdict(summary) for version, summary in status.live.items()},
    }


def _with_age(shell: Context, status: "StrategyStatus", lines: list["RenderableType"]) -> list["RenderableType"]:
    """Put the age of the figures behind the first line, if ticks are overdue."""
    from strategy_core.services.status import stale_remark

    if status.rollout is None:
        return lines
    remark = stale_remark(status.rollout, shell.now, shell.clock.tick_overdue)
    return [lines[0], *([remark] if remark else []), *lines[1:]]


def _two_lines(status: "StrategyStatus") -> list["RenderableType"]:
    """Return what serves the strategy's users, and its verdict."""
    from rich.padding import Padding

    from strategy_core.cli.context import plain

    serves = f"{status.active or 'closed'}"
    if status.canary:
        serves += f", {status.canary} for {_percent_of(status)} of users"
    waits = ", open alerts" if _open_alerts(status) else ""
    return [f"{status.strategy_name}: {serves}{waits}", Padding(plain(status.sentence), (0, 0, 0, 2))]


def _screen(status: "StrategyStatus") -> list["RenderableType"]:
    """Return one strategy in at most some 25 lines of 80 columns: what an owner needs to know and to do."""
    from strategy_core.cli.context import DECIDE, facts_table, lines_table, plain
    from strategy_core.domain.gates.base import NOT_DECIDED
    from strategy_core.domain.ramp import ENDED, State
    from strategy_core.domain.readings import NO_DATA

    rollout, name = status.rollout, status.strategy_name
    known: dict[str, object] = {
        "strategy": name,
        "active": status.active or f"none, {status.serves_none}",
        "canary": _canary(status),
        "shadow": _names(status.shadows),
        "draining": ", ".join(f"{each.version} {each.at_first} → {each.left}" for each in status.draining) or None,
        "watch": None if status.watch.startswith("not") else status.watch,
        **_release_facts(status),
    }
    if rollout is None or State(rollout.rollout.state) in ENDED:
        return [plain(status.sentence), "", facts_table(_known(known)), *_alert_lines(status)]
    known |= _stage_facts(rollout)
    holding = [reading for reading in rollout.readings if reading.holds]
    shown: list[RenderableType] = [plain(rollout.verdict.sentence), "", facts_table(_known(known)), ""]
    rows = [(each.title, each.verdict, each.reason) for each in holding if each.verdict != NO_DATA]
    silent = [each.title for each in holding if each.verdict == NO_DATA]
    if silent:
        rows = [*rows[: _GATES_SHOWN - 1], ("no data yet", "hold it", ", ".join(silent))]
    shown += [lines_table(rows[:_GATES_SHOWN])] if rows else []
    shown.append(_other_gates(rollout, name, more=max(0, len(rows) - _GATES_SHOWN)))
    shown += [f"next: {plain(line)}" for line in _needs_beside(rollout)[:3]]
    if any(NOT_DECIDED in each.reason for each in holding):
        shown.append(DECIDE)
    elif rollout.verdict.needs_owner:
        shown += _commands(rollout)
    return [*shown, *_alert_lines(status)]


def _release_facts(status: "StrategyStatus") -> dict[str, object]:
    """Return the freeze that lasts now and the scheduled start, if there are any."""
    known: dict[str, object] = {}
    if status.frozen:
        known["frozen"] = status.frozen.removeprefix("frozen ")
    if (start := status.scheduled) is not None:
        known["scheduled"] = f"{start.version} starts at {start.start_at:%Y-%m-%d %H:%M} UTC, by {start.actor}"
    return known


def _other_gates(rollout: "RolloutStatus", name: str, *, more: int) -> str:
    """Return how many gates are not shown, and how to see them."""
    from strategy_core.domain.readings import NO_DATA

    passing = [reading for reading in rollout.readings if not reading.holds]
    silent = sum(reading.verdict == NO_DATA for reading in passing)
    counts = [(more, "more hold it"), (len(passing) - silent, "pass"), (silent, "need no data")]
    counted = ", ".join(f"{count} {what}" for count, what in counts if count)
    return f"other gates: {counted}. See: rollout status {name} --all" if counted else "no tick has judged a gate yet"


def _needs_beside(rollout: "RolloutStatus") -> list[str]:
    """Return what the rollout waits for, without the gates that are shown with their reasons."""
    gates = tuple(f'"{reading.title}" ' for reading in rollout.readings)
    needs = [line for line in rollout.outlook.needs if not line.startswith(gates)]
    return [line for line in needs if "rolls it back" not in line and "no tick has judged it" not in line]


def _commands(rollout: "RolloutStatus") -> list[str]:
    from strategy_core.report.rollout import progress_commands

    return [f"do: {line}" for line in progress_commands(rollout.rollout)[:-1]]


def _alert_lines(status: "StrategyStatus") -> list["RenderableType"]:
    from strategy_core.cli.context import plain

    found = _open_alerts(status)
    if not found:
        return []
    newest = found[0]
    more = ["more open alerts: rollout alerts list"] if len(found) > 1 else []
    return ["", f"alert: {newest.at:%Y-%m-%d %H:%M} {newest.severity}: {plain(newest.text)}", *more]


def _open_alerts(status: "StrategyStatus") -> "list[AlertOutbox]":
    """Return the open ones of the newest alerts."""
    from strategy_core.domain.alerts import Severity

    return [one for one in status.alerts if one.acknowledged_at is None and one.severity != Severity.INFO]


def _all_lines(status: "StrategyStatus") -> list["RenderableType"]:
    """Return all that is known of a strategy."""
    from strategy_core.cli.context import DECIDE, cell, facts_table, lines_table, plain
    from strategy_core.domain.gates.base import NOT_DECIDED

    known: dict[str, object] = {
        "strategy": status.strategy_name,
        "active": status.active or f"none, {status.serves_none}",
        "canary": _canary(status),
        "shadow": status.shadows,
        "watch": status.watch,
    }
    known |= _release_facts(status)
    shown: list[RenderableType] = []
    if (rollout := status.rollout) is not None:
        known |= _rollout_facts(rollout)
        rows = [
            (
                each.title,
                each.shown_verdict,
                f"{_measured(each)}since {cell(rollout.since[each.gate])}\n{each.reason}",
            )
            for each in rollout.readings
        ]
        shown += ["", lines_table(rows), ""]
        if rollout.rollout.ended_at is None and any(NOT_DECIDED in v.reason for v in rollout.verdicts):
            shown.append(DECIDE)
        if rollout.live:
            shown.append(_live_table(rollout))
        if rollout.outlook.needs:
            shown += ["before it advances:", *(f"  - {plain(line)}" for line in rollout.outlook.needs)]
    shown[:0] = [plain(status.sentence), "", facts_table(known)]
    shown += [f"{alert.at:%Y-%m-%d %H:%M} {alert.severity}: {plain(alert.text)}" for alert in status.alerts]
    return shown


def _measured(reading: "GateReading") -> str:
    """Return value, limit and count of a gate, as far as it has them."""
    from strategy_core.domain.readings import NONE

    parts = [reading.value, f"limit {reading.limit}", reading.count]
    return "".join(f"{part}; " for part in parts if part not in (NONE, f"limit {NONE}"))


def _percent_of(status: "StrategyStatus") -> str:
    from strategy_core.domain.capital import served_of_asked

    asked = status.percent if status.reach is None else status.reach.asked_bp / 100
    return served_of_asked(status.percent, asked)


def _reach_data(reach: "Reach") -> dict[str, Any]:
    return {
        "percent": reach.percent_bp / 100,
        "asked_percent": reach.asked_bp / 100,
        "users": reach.users,
        "capital_share": reach.capital_share,
        "left_out": reach.left_out,
    }


def _canary(status: "StrategyStatus") -> str | None:
    canary = f"{status.canary} for {_percent_of(status)} of users" if status.canary else None
    if canary and status.reach is not None and status.reach.capital_share is not None:
        canary += f", {status.reach.capital_share:.1%} of capital"
    if canary and status.also_on:
        canary += f", {status.also_on:.1%} on another strategy's canary too"
    return f"{canary}, not on {', '.join(status.excluded)}" if canary and status.excluded else canary


def _names(versions: "Sequence[str]") -> str | None:
    """Return the first of many versions, and how many more there are."""
    more = f" and {len(versions) - 4} more" if len(versions) > 4 else ""
    return f"{', '.join(versions[:4])}{more}" if versions else None


def _known(facts: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if value is not None}


def _live_table(status: "RolloutStatus") -> "RenderableType":
    """Compare live results with shadow results, per version, in R."""
    from strategy_core.cli.context import table

    columns = [
        "version",
        "from",
        "trades",
        "win rate",
        "R per trade",
        "profit factor",
        "drawdown",
        "fidelity",
        "suppressed",
    ]
    rows: list[tuple[object, ...]] = []
    for version, summary in status.live.items():
        fidelity = None if summary.fidelity is None else summary.fidelity.concordance
        for source, done in (("users", summary.live), ("shadow", summary.shadow)):
            trades = summary.trades if source == "users" else done.trades
            measured = (done.win_rate, done.expectancy, done.profit_factor, done.max_drawdown)
            of_users = (fidelity, summary.suppressed) if source == "users" else (None, None)
            rows.append((version, source, trades, *measured, *of_users))
    return table(columns, rows)


def _stages(status: "RolloutStatus") -> str:
    current = status.rollout.stage_index
    return (
        " → ".join(
            f"[{percent:g}]" if index == current else f"{percent:g}" for index, percent in enumerate(status.stages)
        )
        + " %"
    )


def _stage_facts(status: "RolloutStatus") -> dict[str, object]:
    rollout, left = status.rollout, status.outlook
    times = [(left.minimum_left, "at least"), (left.maximum_left, "at most")]
    return {
        "stage": f"{_stages(status)}, since {rollout.stage_entered_at:%Y-%m-%d %H:%M}",
        "time left": ", ".join(f"{word} {_span(span)}" for span, word in times if span) or None,
        "last tick": rollout.last_tick_at,
        "risk": status.risk if rollout.risk_scale != 1 else None,
        "open risk": status.open_risk or None,
    }


def _rollout_facts(status: "RolloutStatus") -> dict[str, object]:
    rollout = status.rollout
    return {
        "rollout": f"{rollout.version} against {rollout.control_version}: {rollout.state}",
        "stages": _stages(status),
        "in stage since": rollout.stage_entered_at,
        "minimum left": "clock disagrees" if status.doubt else _span(status.outlook.minimum_left),
        "maximum left": "clock disagrees" if status.doubt else _span(status.outlook.maximum_left),
        "promoted": rollout.promoted_at,
        "ended": rollout.ended_at,
        "last tick": rollout.last_tick_at,
        "blind since": rollout.blind_since,
        "risk": status.risk or None,
        "open risk": status.open_risk or None,
        "reason": rollout.reason,
    }


def _span(span: timedelta | None) -> str | None:
    from strategy_core.domain.gates.base import format_duration

    return None if span is None else format_duration(span)


def _seconds(span: timedelta | None) -> float | None:
    return None if span is None else span.total_seconds()
