"""Commands that show, verify and export the audit trail."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import UUID

import typer

from strategy_core.cli.context import AnyStrategy, Context, Limit, StrategyName, command, default_command
from strategy_core.domain.errors import InvalidName
from strategy_core.domain.parsing import owners_time

if TYPE_CHECKING:
    from strategy_core.services.audit import TimelineEntry, Verification
    from strategy_core.store.tables import AuditEvent

commands = typer.Typer(help="Show, verify and export the audit trail.")
_HASH = re.compile(r"[0-9a-fA-F]{64}")

OfRollout = Annotated[UUID | None, typer.Option("--rollout", metavar="ID", help="Only changes of this rollout.")]
By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Only changes by this person or flow.")]
Action = Annotated[
    str | None, typer.Option("--action", metavar="ACTION", help="Only this action, for example roll_back.")
]
Since = Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only changes from this time on.")]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Only changes before this time.")]


@default_command(commands)
def _log_by_default(shell: Context, limit: Limit = 50) -> None:
    """Show, verify and export the audit trail: who changed what, when and why."""
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
    """Show changes, newest last."""
    from strategy_core.services.audit import read_events

    wanted = _wanted(strategy, rollout, by, action, since, until)
    found = read_events(shell.engine, **wanted, limit=limit, newest=True)
    shell.answer([each.model_dump(mode="json") for each in found], _changes(found))


@command(commands)
def at(
    shell: Context,
    strategy: StrategyName,
    time: Annotated[str, typer.Argument(metavar="TIME", help="2026-01-31 or 2026-01-31T12:00Z.")],
) -> None:
    """Show the state of a strategy at a point in time.

    Each fact comes with the change that set it.
    """
    from strategy_core.cli.context import table
    from strategy_core.services.audit import state_at

    stood = state_at(shell.engine, strategy, owners_time(time, "--at") or shell.now)
    values: dict[str, Any] = {
        "active": stood.active,
        "canary": stood.canary,
        "percent": stood.percent,
        "rollout": stood.rollout,
    }
    if stood.excluded:
        values["excluded"] = stood.excluded
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
def rollout(shell: Context, rollout: Annotated[UUID, typer.Argument(metavar="ID", help="Rollout id.")]) -> None:
    """Show the timeline of a rollout: verdicts, changes and alerts."""
    from strategy_core.cli.context import table
    from strategy_core.services.audit import about_rollout

    found, entries = about_rollout(shell.engine, rollout)
    title = f"{found.strategy_name} {found.version} against {found.control_version}: {found.state}"
    data = {
        "rollout": found.model_dump(mode="json"),
        "happenings": [_timeline_row(each) | {"row": each.told.model_dump(mode="json")} for each in entries],
    }
    rows = [tuple(_timeline_row(each).values()) for each in entries]
    shell.answer(data, table(["at", "kind", "by", "what", "reason"], rows, title=title))


@command(commands)
def verify(
    shell: Context,
    strategy: AnyStrategy = None,
    head: Annotated[
        list[str] | None, typer.Option("--head", metavar="HASH", help="Hash noted earlier. Can be repeated.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="FILE", help="Earlier JSON Lines export. All of its events must still exist."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option("--public-key", metavar="FILE", help="PEM. The export must carry a valid signature by this key."),
    ] = None,
) -> None:
    """Verify the audit trail: its hashes, and the versions, rollouts, canaries and exclusions that follow from it.

    The exit code is 1 if an event or a row was changed, or if an event that was noted or exported earlier is missing.
    """
    from strategy_core.services.audit import noted_in, read_public_key, verify_trail

    if public_key is not None and export is None:
        raise typer.BadParameter(
            "needs --export FILE: it verifies the signature of an export", param_hint="--public-key"
        )
    heads = [_hash(each) for each in head or ()]
    engine = shell.engine
    if export is not None:
        heads += noted_in(export, read_public_key(public_key) if public_key else None, strategy)
    found = verify_trail(engine, strategy, heads)
    shell.answer({"holds": found.holds} | asdict(found), *_verdict(found))
    if not found.holds:
        raise typer.Exit(1)


@command(commands)
def export(
    shell: Context,
    strategy: AnyStrategy = None,
    format: Annotated[  # noqa: A002  the option's name
        Literal["jsonl", "csv"], typer.Option(help="jsonl can be verified later, csv is for spreadsheets.")
    ] = "jsonl",
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Output file. Default: standard output.")] = None,
    signed: Annotated[
        bool, typer.Option("--signed", help="Sign the export with the key in ROLLOUT_AUDIT_KEY_FILE.")
    ] = False,
    rollout: OfRollout = None,
    by: By = None,
    action: Action = None,
    since: Since = None,
    until: Until = None,
) -> None:
    """Export changes with all columns, one per line."""
    from strategy_core.domain.errors import InvalidSetting
    from strategy_core.services.audit import ExportFormat, read_signing_key, write_whole
    from strategy_core.services.audit import export as lines_of
    from strategy_core.services.audit import signed as with_signature

    if signed and format == "csv":
        raise typer.BadParameter("only jsonl can be verified later", param_hint="--signed")
    key_file = shell.settings.audit_key_file
    if signed and key_file is None:
        raise InvalidSetting("ROLLOUT_AUDIT_KEY_FILE", None, "the file of an Ed25519 private key, for --signed")
    key = read_signing_key(key_file) if signed and key_file else None
    wanted = _wanted(strategy, rollout, by, action, since, until)
    with closing(lines_of(shell.engine, ExportFormat(format), **wanted)) as events:
        lines = events if key is None else with_signature(events, key, now=shell.now)
        if output is None:
            sys.stdout.writelines(lines)
            return
        write_whole(output, lines)
    shell.answer({"output": str(output)}, f"exported to {output}")


def _hash(text: str) -> str:
    """Return *text* if it is a hash, or raise InvalidName: a typing error must not look like tampering."""
    if not _HASH.fullmatch(text):
        raise InvalidName("hash of an audit event", text, "64 hexadecimal digits")
    return text


def _wanted(
    strategy: str | None, rollout: UUID | None, by: str | None, action: str | None, since: str | None, until: str | None
) -> dict[str, Any]:
    return {
        "strategy_name": strategy,
        "rollout_id": rollout,
        "actor": by,
        "action": action,
        "since": owners_time(since, "--since"),
        "until": owners_time(until, "--until"),
    }


def _changes(events: Sequence["AuditEvent"]) -> Any:
    from strategy_core.cli.context import table

    columns = ["at", "by", "action", "strategy", "version", "active", "canary", "reason"]
    rows = [
        (
            event.at,
            f"{event.actor} ({event.source})",
            " ".join([event.action, *_details(event)]),
            event.strategy_name,
            event.version,
            _change(event.before.get("active"), event.after.get("active")),
            _change(event.before.get("percent"), event.after.get("percent")),
            event.reason,
        )
        for event in events
    ]
    return table(columns, rows) if rows else "no changes yet"


def _details(event: "AuditEvent") -> Iterable[str]:
    """Yield what a change of toggles, segments or exclusions was about."""
    from strategy_core.domain.audit import TOGGLE

    for fact, value in event.after.items():
        if fact.startswith(TOGGLE) and value != event.before.get(fact):
            rules = [_rule(each) for each in value]
            more = f" and {len(rules) - _RULES:,} more" if len(rules) > _RULES else ""
            yield f"{fact.removeprefix(TOGGLE)}: {'; '.join(rules[:_RULES]) or 'no rule'}{more}"
        elif event.action == "load_segment" and fact.startswith("segment "):
            yield f"{fact.removeprefix('segment ')}: {value['added']:,} added, {value['removed']:,} removed"
        elif fact == "users" and "ids" in value:
            ids = value["ids"]
            more = f" and {len(ids) - _IDS:,} more" if len(ids) > _IDS else ""
            yield f"{', '.join(value.get('kinds', ()))}: {', '.join(ids[:_IDS])}{more}"


_RULES = _IDS = 3  # shown in a line


def _rule(fact: Mapping[str, Any]) -> str:
    from strategy_core.domain.toggles import When

    when = dict(fact["when"])
    named = when.pop("user_ids", None)
    users = [] if named is None else ["1 user" if named["users"] == 1 else f"{named['users']:,} users"]
    others = [When.model_validate(when).shown] if when or not users else []
    return f"{json.dumps(fact['value'], ensure_ascii=False)} for {', '.join(users + others)}"


def _timeline_row(entry: "TimelineEntry") -> dict[str, Any]:
    from strategy_core.store.tables import AuditEvent, GateVerdict

    event = entry.told
    match event:
        case GateVerdict():
            kind, by, what, reason = "verdict", "", f"{event.gate}: {event.verdict}", event.reason
        case AuditEvent():
            kind, by, what, reason = "change", f"{event.actor} ({event.source})", event.action, event.reason
        case _:
            kind, by, what, reason = "alert", "", f"{event.severity}: {event.kind}", event.text
    return {"at": entry.at, "kind": kind, "by": by, "what": what, "reason": reason}


def _verdict(found: "Verification") -> Iterable[str]:
    for trail in found.trails:
        if trail.holds:
            yield f"{trail.strategy_name}: {trail.count} events verified, the newest is {trail.head}"
    yield from found.problems()
    if not found.trails and not found.missing:
        yield "no changes yet"


def _value(value: Mapping[str, Any] | str | float | None) -> object:
    if isinstance(value, Mapping):
        return f"{value.get('state')}, stage {value.get('stage', 0) + 1}"
    return value


def _change(before: object, after: object) -> str:
    from strategy_core.cli.context import cell

    return cell(after) if before == after else f"{cell(before)} → {cell(after)}"
