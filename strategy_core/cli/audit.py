"""`rollout audit log | at | rollout | verify | export`: who changed what, when and why, and whether that is all."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from strategy_core.cli.context import Context, Limit, StrategyName, command, default_command, moment
from strategy_core.domain.errors import InvalidName

if TYPE_CHECKING:
    from strategy_core.services.audit import TimelineEntry, Verification
    from strategy_core.store.tables import AuditEvent

commands = typer.Typer(help="Who changed what, when and why.")
_HASH = re.compile(r"[0-9a-fA-F]{64}")

AnyStrategy = Annotated[str | None, typer.Argument(metavar="[STRATEGY]", help="All, unless given.")]
OfRollout = Annotated[UUID | None, typer.Option("--rollout", metavar="ID", help="Only of this rollout.")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Only what this person or flow did.")]
Action = Annotated[str | None, typer.Option("--action", metavar="ACTION", help="Only this, such as roll_back.")]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="From then on.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then.")]


@default_command(commands)
def _log_of_all(shell: Context, limit: Limit = 50) -> None:
    """Show who changed what, when and why."""
    log(shell, limit=limit)


@command(commands)
def log(
    shell: Context,
    strategy: AnyStrategy = None,
    rollout: OfRollout = None,
    by: By = None,
    action: Action = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
) -> None:
    """Show the changes that are asked for, the newest last."""
    from strategy_core.services.audit import read_events

    wanted = _wanted(strategy, rollout, by, action, since, until)
    found = read_events(shell.engine, **wanted, limit=limit, newest=True)
    shell.answer([each.model_dump(mode="json") for each in found], _changes(found))


@command(commands)
def at(
    shell: Context,
    strategy: StrategyName,
    time: Annotated[str, typer.Argument(metavar="TIME", help="2026-01-31, or 2026-01-31T12:00Z.")],
) -> None:
    """Show who served whom at a moment, and which changes had made it so."""
    from strategy_core.cli.output import table
    from strategy_core.services.audit import state_at

    stood = state_at(shell.engine, strategy, moment(time, "--at") or shell.now)
    values = {"active": stood.active, "canary": stood.canary, "percent": stood.percent, "rollout": stood.rollout}
    rows = []
    for fact, value in values.items():
        made = stood.made_by.get(fact)
        who = (made.at, f"{made.actor} ({made.source})", made.action, made.reason) if made else (None,) * 4
        rows.append((fact, _value(value), *who))
    shown = table(
        ["", "was", "since", "by", "action", "reason"], rows, title=f"{strategy} at {stood.at:%Y-%m-%d %H:%M} UTC"
    )
    data = {"strategy_name": strategy, "at": stood.at, **values, "event": stood.event.model_dump(mode="json")}
    made_by = {fact: each.model_dump(mode="json") for fact, each in stood.made_by.items()}
    shell.answer(data | {"made_by": made_by}, shown)


@command(commands)
def rollout(shell: Context, rollout: Annotated[UUID, typer.Argument(metavar="ID", help="Of the rollout.")]) -> None:
    """Show all that happened to a rollout: what its gates said, what was changed, and what was told to whom."""
    from strategy_core.cli.output import table
    from strategy_core.services.audit import about_rollout

    found, happenings = about_rollout(shell.engine, rollout)
    title = f"{found.strategy_name} {found.version} against {found.control_version}: {found.state}"
    data = {
        "rollout": found.model_dump(mode="json"),
        "happenings": [_happening(each) | {"row": each.told.model_dump(mode="json")} for each in happenings],
    }
    rows = [tuple(_happening(each).values()) for each in happenings]
    shell.answer(data, table(["at", "kind", "by", "what", "reason"], rows, title=title))


@command(commands)
def verify(
    shell: Context,
    strategy: AnyStrategy = None,
    head: Annotated[list[str] | None, typer.Option("--head", metavar="HASH", help="Noted earlier; may repeat.")] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="JSON lines exported earlier; all must stand still.")
    ] = None,
) -> None:
    """Compute every hash of the trail anew; exit code 1 if a chain does not hold, or lacks what was noted earlier."""
    from strategy_core.domain.audit import noted_heads
    from strategy_core.services.audit import verify_trail

    heads = [_hash(each) for each in head or ()]
    engine = shell.engine
    if export is not None:
        with export.open(encoding="utf-8", errors="replace") as lines:  # an export is ASCII: the rest is no event
            heads += noted_heads(lines, strategy)
    found = verify_trail(engine, strategy, heads)
    shell.answer({"holds": found.holds} | asdict(found), *_verdict(found))
    if not found.holds:
        raise typer.Exit(1)


@command(commands)
def export(
    shell: Context,
    strategy: AnyStrategy = None,
    format: Annotated[  # noqa: A002  the option's name
        Literal["jsonl", "csv"], typer.Option(help="jsonl can be verified later; csv is for spreadsheets.")
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Standard output, unless given.")] = None,
    rollout: OfRollout = None,
    by: By = None,
    action: Action = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Write the changes that are asked for, all columns of them, a line each."""
    from strategy_core.services.audit import ExportFormat
    from strategy_core.services.audit import export as lines_of

    wanted = _wanted(strategy, rollout, by, action, since, until)
    with closing(lines_of(shell.engine, ExportFormat(format), **wanted)) as lines:
        if output is None:
            sys.stdout.writelines(lines)
            return
        _write_whole(output, lines)
    shell.answer({"output": str(output)}, f"exported to {output}")


def _hash(text: str) -> str:
    """Return the hash that *text* is; else raise InvalidName: a slip of the pen is no tampering."""
    if not _HASH.fullmatch(text):
        raise InvalidName("hash of an audit event", text, "64 hexadecimal digits")
    return text


def _write_whole(output: Path, lines: Iterable[str]) -> None:
    """Write *lines* under another name first: what stands under the one asked for is an export to its last line."""
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)
        part.replace(output)
    finally:
        part.unlink(missing_ok=True)


def _wanted(
    strategy: str | None, rollout: UUID | None, by: str | None, action: str | None, since: str | None, until: str | None
) -> dict[str, Any]:
    return {
        "strategy_name": strategy,
        "rollout_id": rollout,
        "actor": by,
        "action": action,
        "since": moment(since, "--since"),
        "until": moment(until, "--until"),
    }


def _changes(events: Sequence["AuditEvent"]) -> Any:
    from strategy_core.cli.output import table

    columns = ["at", "by", "action", "strategy", "version", "active", "canary", "reason"]
    rows = [
        (
            event.at,
            f"{event.actor} ({event.source})",
            event.action,
            event.strategy_name,
            event.version,
            _change(event.before.get("active"), event.after.get("active")),
            _change(event.before.get("percent"), event.after.get("percent")),
            event.reason,
        )
        for event in events
    ]
    return table(columns, rows) if rows else "nothing was changed yet"


def _happening(happening: "TimelineEntry") -> dict[str, Any]:
    from strategy_core.store.tables import AuditEvent, GateVerdict

    told = happening.told
    match told:
        case GateVerdict():
            kind, by, what, reason = "verdict", "", f"{told.gate}: {told.verdict}", told.reason
        case AuditEvent():
            kind, by, what, reason = "change", f"{told.actor} ({told.source})", told.action, told.reason
        case _:
            kind, by, what, reason = "alert", "", f"{told.severity}: {told.kind}", told.text
    return {"at": happening.at, "kind": kind, "by": by, "what": what, "reason": reason}


def _verdict(found: "Verification") -> Iterable[str]:
    for trail in found.trails:
        for each in trail.breaks:
            yield f"{trail.strategy_name}: event {each.position} {each.problem}"
        if not trail.breaks:
            yield f"{trail.strategy_name}: {trail.count} events hold, the newest is {trail.head}"
    for head in found.missing:
        yield f"{head} was noted earlier, and stands in no chain any more: the trail was rewritten"
    if not found.trails and not found.missing:
        yield "nothing was changed yet"


def _value(value: Mapping[str, Any] | str | float | None) -> object:
    if isinstance(value, Mapping):
        return f"{value.get('state')}, stage {value.get('stage', 0) + 1}"
    return value


def _change(before: object, after: object) -> str:
    from strategy_core.cli.output import cell

    return cell(after) if before == after else f"{cell(before)} → {cell(after)}"
