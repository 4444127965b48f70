"""`rollout token`: a token for the owner API, where this installation holds the key that signs it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from strategy_core.cli.shell import Shell, command
from strategy_core.domain.errors import InvalidSetting, MissingExtra

commands = typer.Typer()


@command(commands)
def token(
    shell: Shell,
    name: Annotated[str | None, typer.Option(help="Who the audit trail will name; you, unless given.")] = None,
    role: Annotated[Literal["owner", "admin"], typer.Option(help="What they are.")] = "owner",
    hours: Annotated[float, typer.Option(help="How long it is valid, 720 at most.")] = 12,
    strategy: Annotated[
        list[str] | None, typer.Option(help="It reaches this strategy alone; more by repeating it; all, unless given.")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="It changes nothing: for Routers and scrapers.")
    ] = False,
    private_key: Annotated[
        Path | None, typer.Option(metavar="FILE", help="PEM: the other half of ROLLOUT_API_PUBLIC_KEY.")
    ] = None,
) -> None:
    """Make a token for the API, signed by ROLLOUT_API_SECRET, a private key, or ROLLOUT_API_DEVELOPMENT=1's secret."""
    from datetime import UTC, datetime

    try:
        from strategy_core.api.issue import issue_token
        from strategy_core.api.settings import read_api_settings
    except ModuleNotFoundError:
        raise MissingExtra("rollout token", "api") from None

    made, claims = issue_token(
        read_api_settings(),
        name=shell.actor.name if name is None else name,
        role=role,
        hours=hours,
        strategies=strategy or (),
        read_only=read_only,
        private_key=None if private_key is None else _read(private_key),
        now=datetime.now(UTC),  # never a replay's: the server that gets it lives in the real time
    )
    if shell.as_json:
        shell.answer({"token": made, "claims": claims})
    else:
        typer.echo(made)  # alone, for $(rollout token)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise InvalidSetting("--private-key", str(file), f"a file that can be read ({error.strerror})") from None
