"""Commands for exclusions of users: opt-outs, users that never get a canary, and users that always do."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from strategy_core.cli.context import AnyStrategy, Context, Limit, NeededReason, command, default_command
from strategy_core.domain.audit import Command

if TYPE_CHECKING:
    from strategy_core.domain.user_exclusions import ExclusionKind
    from strategy_core.services.user_exclusions import ChangedUsers

commands = typer.Typer()
exclusions = typer.Typer(help="Users that canaries do not serve, or always serve.")

_Strategy = Annotated[str, typer.Argument(metavar="STRATEGY", help="Strategy name, or '*' for all strategies.")]
_Users = Annotated[list[str], typer.Argument(metavar="USER...", help="User ids, at most 10,000.")]
_Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="End: 2026-01-31 or 2026-01-31T12:00Z. Default: no end.")
]


@command(commands)
def optout(
    shell: Context,
    user: Annotated[str, typer.Argument(metavar="USER", help="User id.")],
    strategy: Annotated[str, typer.Option(metavar="NAME", help="Only this strategy. Default: all.")] = "*",
    until: _Until = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Kept in the audit trail.")] = "asked by the user",
) -> None:
    """Let a user opt out: the user keeps the active version.

    To end it: rollout exclusions end '*' USER.
    """
    from strategy_core.domain.user_exclusions import ExclusionKind

    _exclude(shell, strategy, [user], ExclusionKind.OPT_OUT, until, reason)


@default_command(exclusions)
def _list_by_default(shell: Context, limit: Limit = 50) -> None:
    """Users that canaries do not serve, or always serve."""
    list_(shell, limit=limit)


@command(exclusions, "list")
def list_(
    shell: Context,
    strategy: AnyStrategy = None,
    user: Annotated[str | None, typer.Option(metavar="USER", help="Only this user.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    limit: Limit = 50,
) -> None:
    """List exclusions, newest last."""
    from strategy_core.cli.context import table
    from strategy_core.services.user_exclusions import list_exclusions

    counting_at = None if every else shell.now
    found = list_exclusions(shell.engine, strategy, user_id=user, counting_at=counting_at, limit=limit, newest=True)
    rows = [
        (each.user_id, each.shown_strategy, each.kind, each.valid_from, each.ends_at, each.actor, each.reason)
        for each in found
    ]
    columns = ["user", "strategy", "kind", "since", "until", "by", "reason"]
    shell.answer([each.model_dump(mode="json") for each in found], table(columns, rows) if rows else "no exclusion")


@command(exclusions)
def never(shell: Context, strategy: _Strategy, users: _Users, reason: NeededReason, until: _Until = None) -> None:
    """Keep users with the active version, whatever share a canary has."""
    from strategy_core.domain.user_exclusions import ExclusionKind

    _exclude(shell, strategy, users, ExclusionKind.NEVER, until, reason)


@command(exclusions)
def always(shell: Context, strategy: _Strategy, users: _Users, reason: NeededReason, until: _Until = None) -> None:
    """Give users every canary from its first stage: staff, testers.

    A rollback takes them off it with all others.
    """
    from strategy_core.domain.user_exclusions import ExclusionKind

    _exclude(shell, strategy, users, ExclusionKind.ALWAYS, until, reason)


@command(exclusions)
def end(
    shell: Context,
    strategy: _Strategy,
    users: _Users,
    reason: NeededReason,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="opt_out, never, always or guard. Default: all but guard."),
    ] = None,
) -> None:
    """End exclusions of users. An exclusion for all strategies ends with '*'."""
    from strategy_core.domain.errors import InvalidName
    from strategy_core.domain.user_exclusions import ExclusionKind
    from strategy_core.services.user_exclusions import BY_HAND, end_exclusions

    if odd := set(kind or ()) - set(ExclusionKind):
        raise InvalidName("kind of exclusion", min(odd), ", ".join(ExclusionKind))
    ended = end_exclusions(
        shell.engine,
        Command(shell.actor, shell.now, reason),
        strategy_name=strategy,
        user_ids=users,
        kinds=BY_HAND if kind is None else [ExclusionKind(each) for each in kind],
    )
    left = [user for user in users if user not in ended.users]
    held = [] if strategy == "*" else _excluded(shell, "*", left, set(ended.kinds))
    note = (
        [f"{_shown(held)}: excluded for all strategies. To end that: rollout exclusions end '*' USER"] if held else []
    )
    _answer(shell, ended, f"exclusions ended for {ended.shown_strategy}: {_shown(ended.users)}", *note)


def _exclude(
    shell: Context, strategy: str, users: Sequence[str], kind: "ExclusionKind", until: str | None, reason: str
) -> None:
    from strategy_core.domain.parsing import owners_time
    from strategy_core.domain.user_exclusions import KEEPING, ExclusionKind
    from strategy_core.services.user_exclusions import exclude_users

    done = exclude_users(
        shell.engine,
        Command(shell.actor, shell.now, reason),
        strategy_name=strategy,
        user_ids=users,
        kind=kind,
        until=owners_time(until, "--until"),
    )
    end_ = "" if done.until is None else f" until {done.until:%Y-%m-%d %H:%M} UTC"
    kept = _excluded(shell, strategy, users, KEEPING) if kind is ExclusionKind.ALWAYS else []
    note = [f"{_shown(kept)}: kept with the active version all the same, by an earlier exclusion"] if kept else []
    _answer(shell, done, f"{kind.value} for {done.shown_strategy}{end_}: {_shown(done.users)}", *note)


def _excluded(shell: Context, strategy: str, users: Sequence[str], kinds: Collection[str]) -> list[str]:
    """Return which of the first users have an exclusion of these kinds, for this strategy or for all."""
    from strategy_core.services.user_exclusions import list_exclusions

    strategies = [] if strategy == "*" else [strategy]
    return [
        user
        for user in users[:_NOTED]
        if any(
            row.kind in kinds
            for row in list_exclusions(shell.engine, strategies=strategies, user_id=user, counting_at=shell.now)
        )
    ]


_NOTED = 20  # users that a note looks at


def _answer(shell: Context, done: "ChangedUsers", *lines: str) -> None:
    shell.answer(asdict(done), *lines)


def _shown(users: Sequence[str]) -> str:
    """Return some of the users, and how many there are."""
    shown = ", ".join(users[:5])
    if not users:
        return "no user, nothing has changed"
    return shown if len(users) <= 5 else f"{shown} and {len(users) - 5:,} more"
