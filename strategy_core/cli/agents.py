"""Commands for assistants: serve them, list what they asked, and decide what they propose."""

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from strategy_core.cli.context import AnyStrategy, Context, Limit, Override, Reason, command, default_command
from strategy_core.domain.audit import Command
from strategy_core.domain.errors import MissingExtra

if TYPE_CHECKING:
    from strategy_core.store.tables import Proposal

commands = typer.Typer()
proposals = typer.Typer(help="List what assistants propose, and approve or reject it.")

TOKEN = "ROLLOUT_MCP_TOKEN"  # noqa: S105  the name of a variable
ProposalId = Annotated[UUID, typer.Argument(metavar="ID", help="Id of the proposal.")]


@command(commands)
def mcp(shell: Context) -> None:
    """Serve an assistant over standard input and output (Model Context Protocol).

    It may read. With an owner's token in ROLLOUT_MCP_TOKEN it may also roll back, pause, and propose changes, which a
    person approves with `rollout proposals approve`. Each call is recorded.
    """
    try:
        from strategy_core.cli.assistant import AssistantGateway, build_server
    except ModuleNotFoundError:
        raise MissingExtra("rollout mcp", "mcp") from None
    from strategy_core.api.auth import Authenticator, Failures, Revocations
    from strategy_core.api.settings import read_api_settings
    from strategy_core.observe import configure_logs
    from strategy_core.services.tokens import is_revoked
    from strategy_core.settings import DatabaseClock

    engine, token = shell.engine, os.environ.get(TOKEN)
    clock = DatabaseClock(engine, shell.settings)
    clock.refresh()
    authenticator = None
    if token:
        settings = read_api_settings()
        revocations = Revocations(partial(is_revoked, engine))
        authenticator = Authenticator(settings, settings.open_keys(), Failures(), revocations=revocations)
    gateway = AssistantGateway(engine, clock, shell.actor.name, token, authenticator)
    configure_logs()
    with clock.kept_fresh():
        build_server(gateway).run("stdio")


@default_command(proposals)
def _list_by_default(shell: Context, limit: Limit = 50) -> None:
    """List open proposals, newest first."""
    from strategy_core.services.proposals import list_proposals

    _answer_proposals(shell, list_proposals(shell.engine, limit=limit))


@command(proposals, "list")
def list_(
    shell: Context,
    strategy: AnyStrategy = None,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are decided.")] = False,
    limit: Limit = 50,
) -> None:
    """List proposals, newest first."""
    from strategy_core.services.proposals import list_proposals

    _answer_proposals(shell, list_proposals(shell.engine, strategy, open_alone=not all_, limit=limit))


@command(proposals)
def approve(shell: Context, proposal: ProposalId, reason: Reason = "", override_reason: Override = "") -> None:
    """Approve a proposal: the change is made now, in your name.

    It is refused if the strategy has changed since the proposal, or if you proposed it.
    """
    from strategy_core.services.proposals import approve_proposal

    settings = shell.settings
    command = Command(shell.actor, shell.now, reason, override_reason=override_reason, four_eyes=settings.four_eyes)
    done = approve_proposal(shell.engine, command, proposal, in_replay=shell.clock.in_replay)
    shell.answer(done.model_dump(mode="json"), f"{_what(done)} is done")


@command(proposals)
def reject(shell: Context, proposal: ProposalId, reason: Reason = "") -> None:
    """Reject a proposal."""
    from strategy_core.services.proposals import reject_proposal

    done = reject_proposal(shell.engine, Command(shell.actor, shell.now, reason), proposal)
    shell.answer(done.model_dump(mode="json"), f"{_what(done)} is rejected")


@command(proposals)
def calls(shell: Context, strategy: AnyStrategy = None, limit: Limit = 50) -> None:
    """List the newest calls of assistants, also those that only read or were refused."""
    from strategy_core.cli.context import table
    from strategy_core.services.proposals import newest_calls

    found = newest_calls(shell.engine, strategy, limit=limit)
    rows = [(each.at, each.actor, each.tool, each.strategy_name, each.arguments, each.refused) for each in found]
    columns = ["at", "by", "tool", "strategy", "arguments", "refused"]
    shell.answer([each.model_dump(mode="json") for each in found], table(columns, rows) if rows else "no calls yet")


def _what(proposal: "Proposal") -> str:
    version = proposal.parameters.get("version")
    return " ".join(each for each in (proposal.action, proposal.strategy_name, version) if each)


def _answer_proposals(shell: Context, found: "Sequence[Proposal]") -> None:
    from strategy_core.cli.context import table

    columns = ["id", "what", "plan", "by", "at", "reason", "decision", "result"]
    rows = [
        (
            each.id,
            _what(each),
            each.parameters.get("plan"),
            each.proposed_by,
            each.proposed_at,
            each.reason,
            f"{each.decision} by {each.decided_by}" if each.decision else "open",
            each.line,
        )
        for each in found
    ]
    data = [each.model_dump(mode="json") for each in found]
    following = ["Next: rollout proposals approve ID, or: rollout proposals reject ID"] if rows else []
    shell.answer(data, table(columns, rows) if rows else "no proposals", *following)
