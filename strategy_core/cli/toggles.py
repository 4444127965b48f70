"""Commands that set, list, resolve and remove the rules of toggles, and load segments of users."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import Context, NeededReason, Reason, StrategyName, Yes, command
from strategy_core.domain.audit import Command

if TYPE_CHECKING:
    from strategy_core.services.toggles import ToggleState

commands = typer.Typer(help="Set values for some users of a version, without changing its decisions.")

_Toggle = Annotated[str, typer.Argument(metavar="TOGGLE", help="Name of the toggle.")]


@command(commands, "set")
def set_(
    shell: Context,
    strategy: StrategyName,
    toggle: _Toggle,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="true, false, a number or a text.")],
    segment: Annotated[str | None, typer.Option(metavar="NAME", help="Only members of this segment.")] = None,
    user: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only this user. May be repeated.")] = None,
    capital_at_least: Annotated[float | None, typer.Option(metavar="N", help="Only users with this capital.")] = None,
    capital_at_most: Annotated[float | None, typer.Option(metavar="N", help="Only users with this capital.")] = None,
    percent: Annotated[float | None, typer.Option(metavar="P", help="Only this share of users.")] = None,
    at: Annotated[int | None, typer.Option(metavar="N", min=1, help="Place in the rules. Default: the last.")] = None,
    reason: Reason = "",
) -> None:
    """Give users a value, by a rule.

    The first rule that concerns a user decides. A rule with the same conditions is replaced. No decision changes.
    """
    from strategy_core.domain.toggles import parse_value, read_rule
    from strategy_core.services.toggles import set_rule

    given = {
        "user_ids": user or None,
        "segment": segment,
        "capital_at_least": capital_at_least,
        "capital_at_most": capital_at_most,
        "percent": percent,
    }
    found = set_rule(
        shell.engine,
        Command(shell.actor, shell.now, reason),
        strategy_name=strategy,
        name=toggle,
        rule=read_rule(given, parse_value(value), toggle, at or 1),
        position=at,
    )
    shell.answer(_data(found), *_lines(found))


@command(commands, "list")
def list_(shell: Context, strategy: StrategyName) -> None:
    """List the toggles of a strategy, with their rules."""
    from strategy_core.services.toggles import list_toggles

    found = list_toggles(shell.engine, strategy).toggles
    lines = [line for each in found for line in _lines(each)]
    shell.answer([_data(each) for each in found], *(lines or [f"no version of {strategy} declares toggles"]))


@command(commands)
def resolve(
    shell: Context,
    strategy: StrategyName,
    user: Annotated[str, typer.Argument(metavar="USER", help="The platform's id of the user.")],
) -> None:
    """Show the toggles of a user, each with the rule and the bucket that decided."""
    from dataclasses import asdict

    from strategy_core.cli.context import table
    from strategy_core.services.toggles import resolve_toggles

    found = resolve_toggles(shell.engine, user_id=user, strategy_name=strategy, now=shell.now)
    rows = [(name, _shown(each.value), each.why) for name, each in found.toggles.items()]
    line = f"{user} gets {strategy} {found.version}"
    shell.answer(asdict(found), line, table(["toggle", "value", "why"], rows) if rows else "which declares no toggles")


@command(commands)
def remove(
    shell: Context,
    strategy: StrategyName,
    toggle: _Toggle,
    rule: Annotated[int | None, typer.Option(metavar="N", min=1, help="Only this rule. Default: all.")] = None,
    reason: Reason = "",
) -> None:
    """Remove rules of a toggle. Without a rule, users have the default of their version."""
    from strategy_core.services.toggles import remove_rules

    found = remove_rules(
        shell.engine, Command(shell.actor, shell.now, reason), strategy_name=strategy, name=toggle, number=rule
    )
    shell.answer(_data(found), *_lines(found))


@command(commands)
def segments(
    shell: Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV with user_id and segment, or - for standard input.")
    ],
    reason: NeededReason,
    yes: Yes = False,
) -> None:
    """Replace all segments of users.

    A file that removes more than half of the members, and more than 100, needs a confirmation.
    """
    from dataclasses import asdict

    from strategy_core.cli.context import plural
    from strategy_core.services.toggles import load_segments_csv

    done = load_segments_csv(
        shell.engine,
        Command(shell.actor, shell.now, reason),
        file,
        confirm=lambda removed, of: shell.confirm(f"{removed:,} of {of:,} members would be removed", yes=yes),
    )
    counts = f"{plural(done.members, 'member')}: {done.added:,} added, {done.removed:,} removed"
    shell.answer(asdict(done), f"{plural(done.segments, 'segment')} with {counts}")


def _data(found: "ToggleState") -> dict[str, object]:
    return {
        "strategy_name": found.strategy_name,
        "name": found.name,
        "declared": {version: toggle.schema() for version, toggle in found.declared.items()},
        "rules": [{"when": rule.stored(), "value": rule.value} for rule in found.rules],
    }


def _lines(found: "ToggleState") -> list[str]:
    versions: dict[str, list[str]] = {}  # by declaration
    for version, toggle in found.declared.items():
        versions.setdefault(f"{toggle.allowed}; default {_shown(toggle.default)}", []).append(version)
    declared = [f"{', '.join(names)}: {text}" for text, names in versions.items()]
    rules = [f"  {at}. {rule.when.shown_with_ids}: {_shown(rule.value)}" for at, rule in enumerate(found.rules, 1)]
    return [f"{found.name} ({' | '.join(declared) or 'no version declares it'})", *(rules or ["  no rule"])]


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
